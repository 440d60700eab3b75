#!/usr/bin/env bash
# The door to every command, on a machine that has only Python >= 3.11: sets up what is missing, then starts Python.
set -euo pipefail

usage() {
    cat <<'TEXT'
usage: bash experiment.sh DOMAIN SHOT QUERY INNER_STEPS DEVICE [flag ...]   meta-train, meta-test and report
       bash experiment.sh --evaluate RUN [flag ...]                         meta-test a run's folder or a checkpoint
       bash experiment.sh download NAME [--data-root DIR]                   fetch a data set from its publisher
       bash experiment.sh --help                                            every flag
  DOMAIN       a task family: Alpine2D, CosMixture, Sinusoid, ... (docs/reference/domains.md), or package.module:Name
  SHOT         support points a task          QUERY   query points a task
  INNER_STEPS  inner steps of adaptation      DEVICE  cpu, cuda, cuda:0, ...
example: bash experiment.sh Alpine2D 100 100 200 cpu --method maml --meta-updates 200
TEXT
}

caller=$PWD
root=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
cd "$root"
source configs/environment.sh
# threads that wait for one another do so actively; for less long, they stand in their own way less on a busy machine
export GOMP_SPINCOUNT=${GOMP_SPINCOUNT:-20000}

start() { # in the caller's folder: start ARGUMENTS of Python
    find_environment requirements.txt
    case $PYTHON in .venv/*) PYTHON=$root/$PYTHON ;; esac
    cd "$caller"
    exec "$PYTHON" "$@"
}

case ${1:-} in
-h | --help)
    usage
    start "$root/run.py" --help
    ;;
-*) start "$root/run.py" "$@" ;;
download) PYTHONPATH=$root${PYTHONPATH:+:$PYTHONPATH} start -m data.download "${@:2}" ;;
esac
if [ $# -lt 5 ] || [[ " ${*:1:5}" = *" -"* ]]; then
    usage >&2
    exit 2
fi
start "$root/run.py" --domain "$1" --shots "$2" --queries "$3" --inner-steps "$4" --device "$5" "${@:6}"
