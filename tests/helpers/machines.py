"""A machine for the shell scripts, with a stand-in for Python that records how it is called: nothing is downloaded."""

import re
import shutil
import subprocess
from pathlib import Path

from experiment.grid import TARGETS
from experiment.machine import packages
from helpers.commands import ROOT

SCRIPTS = ["experiment.sh", "reproduce.sh", "tests/run.sh", "configs/environment.sh"]
SCRIPTS += ["requirements.txt", "tests/requirements.txt"]
NAMES = ("python3", "python", "python3.13", "python3.12", "python3.11")
STAND_IN = """#!/usr/bin/env bash
# A Python that has the packages in $HAS, or, inside .venv, those that pip was told to install there.
here=$(dirname "$0")
echo "${0##*/} $*" >> "$LOG"
case "$0" in .venv/*|*/.venv/*) has=$(cat "$here/packages" 2>/dev/null) ;; *) has=$HAS ;; esac
case "$1 $2" in
    "- "*|"- ") [ -z "${OLD:-}" ] || exit 3; shift; lacking=""
        for module in "$@"; do case " $has " in *" $module "*) ;; *) lacking="$lacking $module" ;; esac; done
        echo $lacking; [ -z "$lacking" ] ;;
    "-m data.download") printf '%s\\n' "in $PWD" "path $PYTHONPATH" "${@:2}" ;;
    "-m venv") mkdir -p "$3/bin" && cp "$0" "$3/bin/python" ;;
    "-m pip") [ -z "${OFFLINE:-}" ] || exit 1
        sed 's/==.*//; s/pytest-xdist/xdist/; s/scikit-image/skimage/' "${@: -1}" | tr '\\n' ' ' >> "$here/packages" ;;
    "-m ruff") exit "${RUFF:-0}" ;;
    "-m pytest") echo "in $PWD" ;;
    *run.py*) printf '%s\\n' "in $PWD" "${@:2}"; exit "${STATUS:-0}" ;;
esac
"""
CORE = " ".join(packages())


class Machine:
    """A checkout of the scripts on a machine with stand-ins for Python."""

    def __init__(self, folder: Path) -> None:
        self.root, self.bin, self.log = folder / "check out", folder / "bin", folder / "log"
        shutil.copytree(TARGETS, self.root / "configs" / "targets")
        for name in SCRIPTS:
            (self.root / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / name, self.root / name)
        self.bin.mkdir()
        for name in NAMES:
            (self.bin / name).write_text(STAND_IN)
            (self.bin / name).chmod(0o755)
        self.folder = folder

    def start(self, script: str, *arguments: str, **environment: str) -> subprocess.CompletedProcess:
        self.log.write_text("")
        return subprocess.run(
            ["bash", str(self.root / script), *arguments],
            env={"PATH": f"{self.bin}:/usr/bin:/bin", "HOME": str(self.folder), "LOG": str(self.log), "HAS": ""}
            | environment,
            cwd=self.folder,
            capture_output=True,
            text=True,
        )

    def installed(self) -> list[str]:
        """The requirement files that pip was given in the last start."""
        return re.findall(r"^python -m pip install --no-cache-dir -r (\S+)$", self.log.read_text(), re.MULTILINE)
