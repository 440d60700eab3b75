#!/usr/bin/env bash
# One experiment, on a machine that has only Python >= 3.11: sets up what is missing, then runs run.py.
set -euo pipefail

usage() {
    cat >&2 <<'TEXT'
usage: bash experiment.sh DOMAIN SHOT QUERY INNER_STEPS DEVICE [any run.py flag ...]
  DOMAIN       a task family: Alpine2D, CosMixture, CosMixture2D, Sinusoid, ... (README, Domains)
  SHOT         support points a task          QUERY   query points a task
  INNER_STEPS  inner steps of adaptation      DEVICE  cpu, cuda, cuda:0, ...
example: bash experiment.sh Alpine2D 100 100 200 cpu --method maml --meta-updates 200
TEXT
    exit 2
}

[ $# -ge 5 ] || usage
for argument in "${@:1:5}"; do
    case $argument in -*) usage ;; esac
done

caller=$PWD
root=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
cd "$root"
source configs/environment.sh
find_environment requirements.txt
case $PYTHON in .venv/*) PYTHON=$root/$PYTHON ;; esac
cd "$caller"
# threads that wait for one another do so actively; for less long, they stand in their own way less on a busy machine
export GOMP_SPINCOUNT=${GOMP_SPINCOUNT:-20000}
exec "$PYTHON" "$root/run.py" --domain "$1" --shots "$2" --queries "$3" --inner-steps "$4" --device "$5" "${@:6}"
