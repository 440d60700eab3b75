#!/usr/bin/env bash
# All that waits for a GPU, in the minutes that one is lent for. Nothing is set up: a bare machine with Python, torch,
# torchdiffeq, scipy, matplotlib, tqdm and pytest (pytest-xdist, hypothesis) will do, without network and git.
# usage: [OUT=folder] bash benchmarks/gpu.sh [--device cuda:0] [--seconds 560] [--only "SECTION ..."]
#   Sections, in the order of what is missed most: machine smoke tests update table long. Each has a limit of time; a
#   fault in one stops no other; what it prints stands in OUT/SECTION.txt as it comes, a line of each in OUT/log.txt.
#   --device cpu makes the same calls with tiny sizes. PYTHON: the interpreter, python3 by default.
set -u
device=cuda:0 seconds=560 only="machine smoke tests update table long"
while [ $# -gt 1 ]; do
    case $1 in
    --device) device=$2 ;;
    --seconds) seconds=$2 ;;
    --only) only=$2 ;;
    *) break ;;
    esac
    shift 2
done
if [ $# -gt 0 ]; then
    sed -n '4,7s/^# //p' "$0" >&2
    exit 2
fi
cd "$(dirname "${BASH_SOURCE[0]}")/.." || exit
python=${PYTHON:-python3} out=$(realpath -m "${OUT:-results/gpu}") tmp=$(mktemp -d) failed=0
mkdir -p "$out"
trap 'rm -rf "$tmp"' EXIT
export PYTHONUNBUFFERED=1 OMP_NUM_THREADS=1 PYTHONWARNINGS=default AMAML_DEVICE=$device
export CUBLAS_WORKSPACE_CONFIG=:4096:8 # cuBLAS looks at it once a process
if [ "$device" = cpu ]; then # nothing is compiled, and no limit meant
    slack=10 workers=0 compile=off traced="resumes_to_the_bit and off" compiled="" first=2 updates=3 all=4
    ways=traced networks=small sizes=(--tasks 2 --steps 2 --quantities FOMAML)
    problem=(--shots 4 --queries 4 --inner-steps 2 --width 4 --test-tasks 2 --test-epochs 10)
else
    export TORCHINDUCTOR_CACHE_DIR=$tmp/inductor TRITON_CACHE_DIR=$tmp/triton
    slack=1 workers=8 compile=on traced="traced or off or evaluated or two" compiled="compiled or on"
    first=20 updates=200 all=5000 ways="graphs traced compiled" networks="small wide conv"
    sizes=(--tasks 5 500 --steps 200 5000 --quantities FOMAML "MAML, unrolled" "MAML, by" "A-MAML, 1e-2")
    problem=(--shots 100 --queries 100 --inner-steps 200 --test-tasks 20 --test-epochs 100)
fi

section() { # NAME LIMIT COMMAND...: where NAME is wanted, with what is left of the time
    local name=$1 most=$(($2 * slack)) start=$SECONDS status=0
    shift 2
    [[ " $only " = *" $name "* ]] || return 0
    [ "$most" -lt $((seconds - SECONDS)) ] || most=$((seconds - SECONDS))
    if [ "$most" -lt 5 ]; then
        status="no time left"
    else
        echo "== $*" >>"$out/$name.txt"
        timeout -k 5 "$most" "$@" >>"$out/$name.txt" 2>&1 || status=$? failed=1
    fi
    echo "$name: status $status, $((SECONDS - start)) s of $most: $(tail -n 1 "$out/$name.txt" 2>/dev/null | cut -c1-150)" |
        tee -a "$out/log.txt"
}
tests() { # EXPRESSION: those tests; what packages of this machine warn of is no fault
    section tests 110 "$python" -m pytest -n "$workers" -p no:cacheprovider -o filterwarnings=default --tb=short -rfE \
        --durations=5 tests/experiment/test_cuda.py -k "$1"
}
train() { # SECTION LIMIT COMPILE UPDATES: the project's first command
    section "$1" "$2" "$python" run.py --domain Alpine2D "${problem[@]}" --device "$device" --compile "$3" \
        --meta-updates "$4" --out "$tmp/$1" --overwrite
    [ ! -d "$tmp/$1" ] || cp "$tmp/$1/summary.json" "$out/$1.json" || tail -n 3 "$tmp/$1/metrics.jsonl" >>"$out/$1.txt"
} 2>/dev/null

section machine 30 "$python" - "$device" <<'PYTHON'
import os, sys, torch, torchdiffeq, scipy, matplotlib, tqdm
name = "cpu" if sys.argv[1] == "cpu" else torch.cuda.get_device_name(sys.argv[1])
print(sys.version.split()[0], torch.__version__, torch.version.cuda, name, os.cpu_count())
a = torch.ones(64, 64, dtype=torch.float64, device=sys.argv[1])
print((a @ a).sum().item())
PYTHON
train smoke 60 off "$first"
tests "$traced"
train update 60 $compile "$updates"
[ -z "$compiled" ] || tests "$compiled"
for way in $ways; do
    for network in $networks; do
        section table 60 "$python" -m benchmarks.peers --libraries amaml --device "$device" --networks "$network" \
            --dtypes "$([ "$network" = conv ] && echo float32 || echo float64)" --ways "$way" "${sizes[@]}" \
            --batches 3 --rounds 1 --limit 40 --out "$out/table.csv"
    done
done
# all updates of the first command, where those of "update" were fast enough
if "$python" - "$out/update.json" "$all" $((seconds - SECONDS)) <<'PYTHON' 2>/dev/null; then
import json, sys
rate, updates, left = json.load(open(sys.argv[1]))["seconds_per_update"], *map(int, sys.argv[2:])
sys.exit(1.2 * rate * updates + 60 > left)
PYTHON
    train long "$seconds" $compile "$all"
fi
exit $failed
