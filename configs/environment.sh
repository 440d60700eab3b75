# Sourced from the repository's root by experiment.sh, reproduce.sh and tests/run.sh.
#
# find_environment MODULES REQUIREMENTS...: sets PYTHON to an interpreter that can import the modules (separated by
# blanks): the current one if it can, else that of .venv, which is made and filled from the requirement files once.

find_environment() {
    local modules=$1 candidate base=""
    shift
    for candidate in "${VIRTUAL_ENV:+$VIRTUAL_ENV/bin/python}" python3 python python3.13 python3.12 python3.11; do
        if [ -n "$candidate" ] && "$candidate" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then
            base=${base:-$candidate}
            if imports_all "$candidate" "$modules"; then
                PYTHON=$candidate
                return
            fi
        fi
    done
    PYTHON=.venv/bin/python
    if imports_all "$PYTHON" "$modules" && installed "$@"; then
        return
    fi
    if [ -z "$base" ]; then
        echo "$0: no Python of version 3.11 or newer was found; install one and start again" >&2
        exit 2
    fi
    echo "$0: installing $* into .venv (once)" >&2
    if ! "$base" -m venv .venv; then
        echo "$0: $base cannot make a virtual environment; install its venv module (Debian: python3-venv)" >&2
        exit 2
    fi
    local file
    for file in "$@"; do
        if ! "$PYTHON" -m pip install --no-cache-dir -r "$file"; then
            echo "$0: could not install $file into .venv; see above, and start again" >&2
            exit 2
        fi
        cp "$file" ".venv/installed-${file//\//-}"
    done
}

# Whether .venv holds what the files ask for, as they are now.
installed() {
    local file
    for file in "$@"; do
        cmp -s "$file" ".venv/installed-${file//\//-}" || return 1
    done
}

imports_all() {
    "$1" - $2 >/dev/null 2>&1 <<'PYTHON'
import importlib.util, sys
sys.exit(any(importlib.util.find_spec(name) is None for name in sys.argv[1:]))
PYTHON
}

CORE=$(sed "s/[^a-z].*//" requirements.txt | tr "\n" " ")  # the packages are imported by their own names
