# Sourced from the repository's root by experiment.sh, reproduce.sh and tests/run.sh.
#
# find_environment FILE...: sets PYTHON to an interpreter that has every package of the requirement files: that of the
# active environment if it has them, else that of .venv if it was filled from the files as they are now, else one in
# PATH, else .venv's, after the set-up. Starts as few as it can.

find_environment() {
    local active=${VIRTUAL_ENV:-${CONDA_PREFIX:-}} modules candidate lacking status base="" hint=""
    modules=$(as_modules "$@")
    for candidate in ${active:+"$active/bin/python"} .venv/bin/python python3 python python3.13 python3.12 python3.11; do
        [ "$candidate" != .venv/bin/python ] || installed "$@" || continue
        status=0
        lacking=$(lacks "$candidate" "$modules") || status=$?
        case $status in
            0) PYTHON=$candidate && return ;;
            1) [ "$candidate" = .venv/bin/python ] || base=${base:-$candidate} ;;
            *) continue ;; # not there, or too old
        esac
        case " $lacking " in
            *" torch "*) ;;
            *) hint=${hint:-"$candidate has torch: $candidate -m pip install $lacking"} ;;
        esac
    done
    [ -n "$base" ] || no_python
    announce "${hint:-none here has torch}" "$@"
    PYTHON=.venv/bin/python
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

# The modules of the packages in requirement files: the same names but for a few.
as_modules() {
    sed 's/[^[:alnum:]_-].*//; s/pytest-xdist/xdist/; s/scikit-image/skimage/; s/mkdocs-material/material/
        s/mkdocstrings-python/mkdocstrings_handlers/; s/-/_/g' "$@" | tr '\n' ' '
}

no_python() {
    echo "$0: no Python of version 3.11 or newer was found; install one and start again" >&2
    exit 2
}

# What the set-up downloads, what room it takes, and how to do with less: announce HINT FILE...
announce() {
    cat >&2 <<TEXT
$0: installing ${*:2} into $PWD/.venv, once
  With the CUDA build of torch, PyPI's on Linux, this is a download of 3 GB and 5 GB on disk; with a CPU build, 0.3 GB
  and 1.2 GB: start again with PIP_EXTRA_INDEX_URL=https://download.pytorch.org/whl/cpu for that.
  A Python that has all packages is used as it is: activate its environment, or put it first in PATH ($1).
TEXT
}

# Whether .venv holds what the files ask for, as they are now.
installed() {
    local file
    for file in "$@"; do
        cmp -s "$file" ".venv/installed-${file//\//-}" || return 1
    done
}

# Prints the modules that a Python cannot import. Status 0: none, 1: some, another: it is too old or not there.
lacks() {
    "$1" - $2 2>/dev/null <<'PYTHON'
import sys
if sys.version_info < (3, 11):
    sys.exit(3)
import importlib.util
missing = [name for name in sys.argv[1:] if importlib.util.find_spec(name) is None]
print(*missing)
sys.exit(bool(missing))
PYTHON
}
