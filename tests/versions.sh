#!/usr/bin/env bash
# Which versions of torch pass the tests of the library and of run.py; each in an environment of its own.
# Prints a line a version; status 1 where one fails. Environments and logs stay in AMAML_VERSIONS, by default
# ~/.cache/amaml/versions; made with PYTHON, by default python3, which must be one that the version has a build for. On
# Linux, PyPI's torch brings 3 GB of CUDA a version, torch's own index of CPU builds 0.2 GB:
#   PIP_EXTRA_INDEX_URL=https://download.pytorch.org/whl/cpu bash tests/versions.sh 2.8.0 2.14.1
set -euo pipefail
if [[ $# = 0 || $* = *[!0-9.\ ]* ]]; then
    echo "usage: bash $0 VERSION...   versions of torch; example: bash $0 2.8.0 2.14.1" >&2
    exit 2
fi
cd "$(dirname "${BASH_SOURCE[0]}")/.."
folder=${AMAML_VERSIONS:-${XDG_CACHE_HOME:-$HOME/.cache}/amaml/versions}
mkdir -p "$folder"
others=$(grep -hEv '^(torch|ruff)==' requirements.txt tests/requirements.txt)

# Makes or completes the environment of a version: install VERSION
install() {
    [ "$others" != "$(cat "$folder/$1/others" 2>/dev/null)" ] || return 0
    "${PYTHON:-python3}" -m venv "$folder/$1" &&
        "$folder/$1/bin/python" -m pip install --no-cache-dir "torch==$1" $others &&
        "$folder/$1/bin/python" -c "import torch" && # a CUDA build without its packages cannot be imported
        echo "$others" >"$folder/$1/others"
}

failed=0 program=$(echo tests/experiment/test_{run,resume,settings}.py)
export OMP_NUM_THREADS=${OMP_NUM_THREADS:-1}
for version; do
    log=$folder/$version.log
    if ! install "$version" >"$log" 2>&1; then
        outcome="not installed" failed=1
    else
        "$folder/$version/bin/python" -m pytest -n "${WORKERS:-auto}" tests/library $program >"$log" 2>&1 ||
            failed=1
        outcome=$(tail -n 1 "$log")
    fi
    echo "torch $version: $outcome ($log)"
done
exit $failed
