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
  GRID.toml: a grid of your own (experiment/grid.py says how one looks); it writes below the folder you start from
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

# What `efficiency` measures once its two networks are trained.
benchmarks() {
    local trained=results/efficiency/trained theta
    export OMP_NUM_THREADS=1
    for theta in "" "--trained $trained/alpine/checkpoint.pt"; do
        module benchmarks.meta_update --network alpine --rounds 9 --steps 10 50 200 1000 5000 $theta --methods \
            "A-MAML auto" "A-MAML auto 1e-2" "released A-MAML" MAML FOMAML iMAML Reptile higher
    done
    for theta in "" "--trained $trained/conv/checkpoint.pt"; do
        module benchmarks.meta_update --network conv --dtype float32 --rounds 3 --steps 10 50 200 $theta \
            --methods "A-MAML auto" "A-MAML auto 1e-2" "A-MAML euler" MAML "MAML checkpointed" FOMAML iMAML Reptile higher
    done
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
    [ -f "configs/targets/$target.toml" ] || usage
    find_environment requirements.txt
    [ "$target" != efficiency ] || set -- "$@" --again # its networks are needed here, not their numbers
    module experiment.reproduce "$@"
    case "$target $*" in
    *--dry-run* | *--status* | *--help*) ;;
    efficiency*) benchmarks ;;
    "horizons "*)
        module benchmarks.directions
        module benchmarks.paper
        ;;
    paper-* | horizons-*) module benchmarks.paper ;; # the tables and pictures of results/paper
    esac
    ;;
esac
