# Sourced from the repository's root by experiment.sh, reproduce.sh and tests/run.sh.

CORE=$(sed "s/[^a-z].*//" requirements.txt | tr "\n" " ") # the packages are imported by their own names

# find_environment MODULES REQUIREMENTS...: sets PYTHON to an interpreter that can import the modules (separated by
# blanks): that of .venv where an earlier start has filled it and no other is activated, else the current one if it can,
# else that of .venv, which is then made and filled from the requirement files.
find_environment() {
    local modules=$1 candidate base="" file
    shift
    PYTHON=.venv/bin/python
    if [ -z "${VIRTUAL_ENV:-}" ] && installed "$@" && [ "$(suits "$PYTHON" $modules)" = all ]; then
        return
    fi
    for candidate in "${CANDIDATES[@]}"; do
        case $(suits "$candidate" $modules) in
        all)
            PYTHON=$candidate
            return
            ;;
        version) base=${base:-$candidate} ;;
        esac
    done
    PYTHON=.venv/bin/python
    if [ "$(suits "$PYTHON" $modules)" = all ] && installed "$@"; then
        return
    fi
    if [ -z "$base" ]; then
        no_python
    fi
    announce "$@"
    if ! "$base" -m venv .venv; then
        echo "$0: $base cannot make a virtual environment; install its venv module (Debian: python3-venv)" >&2
        exit 2
    fi
    for file in "$@"; do
        if ! "$PYTHON" -m pip install --no-cache-dir -r "$file"; then
            echo "$0: could not install $file into .venv; see above, and start again" >&2
            exit 2
        fi
        cp "$file" ".venv/installed-${file//\//-}"
    done
}

# find_python: sets PYTHON to an interpreter that is new enough; what it can import does not matter.
find_python() {
    for PYTHON in "${CANDIDATES[@]}" .venv/bin/python; do
        if [ -n "$(suits "$PYTHON")" ]; then
            return
        fi
    done
    no_python
}

CANDIDATES=(${VIRTUAL_ENV:+"$VIRTUAL_ENV/bin/python"} python3 python python3.13 python3.12 python3.11)

# suits PYTHON MODULES...: prints "all" where it is new enough and has the modules, "version" where it lacks some.
suits() {
    "$1" - "${@:2}" 2>/dev/null <<'PYTHON' || true
import sys
if sys.version_info >= (3, 11):
    from importlib.util import find_spec
    print("all" if all(find_spec(name) for name in sys.argv[1:]) else "version")
PYTHON
}

no_python() {
    echo "$0: no Python of version 3.11 or newer was found; install one and start again" >&2
    exit 2
}

# What is about to be installed, and how much disk it takes.
announce() {
    cat >&2 <<TEXT
$0: installing into .venv, once: $(sed '/^#/d' "$@" | tr "\n" " ")
  This downloads and unpacks 5 GB with torch's CUDA libraries, 1 GB where .venv holds torch's CPU build already.
  A Python that has these packages is used as it is: activate its environment and start again.
TEXT
}

# Whether .venv holds what the files ask for, as they are now.
installed() {
    local file
    for file in "$@"; do
        cmp -s "$file" ".venv/installed-${file//\//-}" || return 1
    done
}
