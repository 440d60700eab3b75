#!/usr/bin/env bash
# The whole check: ruff, then pytest. Sets up what is missing first, as experiment.sh does.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
source configs/environment.sh
find_environment requirements.txt tests/requirements.txt
"$PYTHON" -m ruff format --check .
"$PYTHON" -m ruff check .
exec "$PYTHON" -m pytest -n auto --dist worksteal "$@" # a process a core
