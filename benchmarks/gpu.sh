#!/usr/bin/env bash
# All that waits for a GPU: its tests, the tables of results/efficiency/*-cuda.md, the project's first command.
# usage: bash benchmarks/gpu.sh [DEVICE]      DEVICE: cuda:0 by default; what is there already is not made again
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
device=${1:-cuda:0}
source configs/environment.sh
find_environment requirements.txt tests/requirements.txt
if ! "$PYTHON" -c "import sys, torch; torch.zeros(1, device=sys.argv[1])" "$device" 2>/dev/null; then
    echo "$0: $device is not there, or this torch cannot use it; install a CUDA build of torch (requirements.txt)" >&2
    exit 2
fi
folder=results/efficiency
mkdir -p "$folder/trained"

"$PYTHON" -m pytest -q tests/test_cuda.py tests/test_meta_device.py

# one table each: the network, its precision, the numbers of inner steps
table() { # NAME ARGUMENTS...
    local name=$1
    shift
    [ -f "$folder/$name.md" ] || "$PYTHON" -m benchmarks.meta_update --device "$device" --rounds 3 --out "$folder" "$@"
}
table alpine-untrained-cuda --network alpine --steps 10 50 200 1000
table conv-untrained-cuda --network conv --dtype float32 --steps 10 50 200 --skip-memory
table resnet-untrained-cuda --network resnet --dtype float32 --steps 10 50

# the command of the project's first line, once traced and once compiled
report=$folder/experiment-cuda.md
for compile in off on; do
    run=$folder/trained/alpine-cuda-compile-$compile
    bash experiment.sh Alpine2D 100 100 200 "$device" --compile "$compile" --out "$run" --resume
done
{
    echo "# bash experiment.sh Alpine2D 100 100 200 $device, 5000 meta-updates"
    "$PYTHON" - "$folder/trained" <<'PYTHON'
import json, sys
from pathlib import Path
for run in sorted(Path(sys.argv[1]).glob("alpine-cuda-compile-*")):
    config, summary = (json.loads((run / name).read_text()) for name in ("config.json", "summary.json"))
    print(f"\n`--compile {config['settings']['compile']}`, {config['device']}, torch {config['versions']['torch']}:\n")
    print("\n".join("    " + line for line in summary["table"].splitlines()))
PYTHON
} >"$report"
echo "$report"
