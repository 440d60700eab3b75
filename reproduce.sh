#!/usr/bin/env bash
# The paper's figures and tables, cell by cell: see usage. A cell that is done is not run again, a killed one goes on.
set -euo pipefail

caller=$PWD
root=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
cd "$root"
source configs/environment.sh

usage() {
    cat >&2 <<'TEXT'
usage: bash reproduce.sh TARGET|GRID.toml [--seeds 0 1 2] [--only AXIS=A,B] [--workers N] [--gpus [N]]
                         [--slurm PARTITION] [--walltime H:M:S] [--account A] [--jobs N] [--again] [--dry-run] [--status]
       bash reproduce.sh compare CSV_OR_RUN... [--only AXIS=A,B] [--out FOLDER]
  GRID.toml: a grid of your own (docs/how-to/many-runs.md says how one looks); it writes below the folder you start from
targets:
TEXT
    local file
    for file in configs/targets/*.toml; do
        printf '  %-24s %s\n' "$(basename "$file" .toml)" "$(sed -n 's/^about = "\(.*\)"$/\1/p' "$file")" >&2
    done
    exit 2
}

# module NAME ARGUMENTS...: a module of the project, in the folder $place
module() {
    case $PYTHON in .venv/*) PYTHON=$root/$PYTHON ;; esac
    (cd "$place" && PYTHONPATH=$root exec "$PYTHON" -m "$@")
}

# What `efficiency` measures once its network is trained; PEERS: a Python that has benchmarks/peers/requirements.txt.
benchmarks() {
    local theta measure=(benchmarks.peers --rounds 3 --turn 0.3 --out results/efficiency/peers.csv)
    if [ -n "${PEERS:-}" ]; then measure+=(--python "$PEERS"); else measure+=(--libraries amaml); fi
    export OMP_NUM_THREADS=1
    rm -f results/efficiency/peers.csv
    for theta in "" "--trained results/efficiency/trained/Alpine2D/checkpoint.pt"; do
        module "${measure[@]}" $theta --steps 200 --quantities gradient product FOMAML MAML A-MAML Reptile iMAML
        module "${measure[@]}" $theta --steps 500 --dtypes float64 --quantities FOMAML MAML A-MAML Reptile iMAML
        module "${measure[@]}" $theta --steps 5000 --batches 20 --quantities FOMAML "MAML, ch" A-MAML
    done
    module "${measure[@]}" --networks wide conv --dtypes float32 --steps 1 --quantities gradient product
    module benchmarks.peers.report
    module benchmarks.scale
    module benchmarks.accuracy
}

target=${1:-}
place=$root
case $target in
"" | -*) usage ;;
compare | *.toml)
    find_environment requirements.txt
    place=$caller
    module experiment.reproduce "$@"
    ;;
*)
    if [ ! -f "configs/targets/$target.toml" ]; then
        echo "$0: there is no target '$target'; a grid of your own ends in .toml" >&2
        usage
    fi
    find_environment requirements.txt
    [ "$target" != efficiency ] || set -- "$@" --again # its networks are needed here, not their numbers
    module experiment.reproduce "$@"
    case "$target $*" in
    *--dry-run* | *--status* | *--help*) ;;
    efficiency*) benchmarks ;;
    paper-* | horizons*) module benchmarks.paper ;; # the tables and pictures of results/paper
    esac
    ;;
esac
