# Sourced from the repository's root by experiment.sh, reproduce.sh and tests/run.sh.
#
# find_environment FILE...: sets PYTHON to an interpreter that has every package of the requirement files, each of
# which is imported under its own name: the current one if it has them, else that of .venv, made and filled once.

find_environment() {
    local modules candidate lacking base="" hint=""
    modules=$(sed 's/[^[:alnum:]_-].*//; s/-/_/g' "$@" | tr '\n' ' ')
    for candidate in "${VIRTUAL_ENV:+$VIRTUAL_ENV/bin/python}" python3 python python3.13 python3.12 python3.11; do
        if [ -n "$candidate" ] && "$candidate" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then
            base=${base:-$candidate}
            if lacking=$(lacks "$candidate" "$modules"); then
                PYTHON=$candidate
                return
            fi
            case " $lacking " in
                *" torch "*) ;;
                *) hint=${hint:-"$candidate has torch: $candidate -m pip install $lacking"} ;;
            esac
        fi
    done
    PYTHON=.venv/bin/python
    if lacks "$PYTHON" "$modules" >/dev/null && installed "$@"; then
        return
    fi
    if [ -z "$base" ]; then
        echo "$0: no Python of version 3.11 or newer was found; install one and start again" >&2
        exit 2
    fi
    announce "${hint:-none here has torch}" "$@"
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

# What the set-up downloads, what room it takes, and how to do with less: announce HINT FILE...
announce() {
    cat >&2 <<TEXT
$0: installing ${*:2} into $PWD/.venv, once
  With the CUDA build of torch, PyPI's on Linux, this is a download of 3 GB and 5 GB on disk; with a CPU build, 0.3 GB
  and 1.2 GB: start again with PIP_EXTRA_INDEX_URL=https://download.pytorch.org/whl/cpu for that.
  A Python that has all packages is used as it is, first in PATH or as the active environment ($1).
TEXT
}

# Whether .venv holds what the files ask for, as they are now.
installed() {
    local file
    for file in "$@"; do
        cmp -s "$file" ".venv/installed-${file//\//-}" || return 1
    done
}

# Prints the modules that a Python cannot import; succeeds where there are none.
lacks() {
    "$1" - $2 2>/dev/null <<'PYTHON'
import importlib.util, sys
missing = [name for name in sys.argv[1:] if importlib.util.find_spec(name) is None]
print(*missing)
sys.exit(bool(missing))
PYTHON
}
