#!/usr/bin/env bash
# Builds the documentation into site/, its programs executed; a warning is an error. Sets up what is missing first, as
# experiment.sh does; after that it needs no network. The pages can be read from the folder: site/index.html.
#   bash docs/build.sh                         DOCS_EXECUTE=false bash docs/build.sh    without the programs
#   bash docs/build.sh serve                   at http://127.0.0.1:8000, built anew at every change
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
source configs/environment.sh
find_environment requirements.txt docs/requirements.txt
export PATH=$(cd "$(dirname "$(command -v "$PYTHON")")" && pwd):$PATH PYTHONPATH=$PWD:$PWD/examples OMP_NUM_THREADS=${OMP_NUM_THREADS:-1}
export MPLBACKEND=agg NO_MKDOCS_2_WARNING=1 DISABLE_MKDOCS_2_WARNING=true
exec "$PYTHON" -m mkdocs "${1:-build}" --strict --config-file configs/mkdocs.yml "${@:2}"
