"""What a fresh machine meets: experiment.sh, reproduce.sh, tests/run.sh, env.Dockerfile and the requirements.

The shell scripts run with a stand-in for Python that records how it is called, so nothing is downloaded.
"""

import os
import re
import resource
import shutil
import subprocess
import sys
import tomllib
from importlib import metadata
from pathlib import Path
from unittest.mock import Mock

import pytest
from helpers.commands import ROOT
from packaging.requirements import Requirement

from experiment.grid import TARGETS
from experiment.machine import environment, packages

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
FIVE = ["Alpine2D", "100", "50", "200", "cpu"]
AS_FLAGS = ["--domain", "Alpine2D", "--shots", "100", "--queries", "50", "--inner-steps", "200", "--device", "cpu"]


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


@pytest.fixture
def machine(tmp_path):
    return Machine(tmp_path)


def test_too_few_arguments_get_the_usage_and_help_every_flag_as_well(machine):
    usage = "usage: bash experiment.sh DOMAIN SHOT QUERY INNER_STEPS DEVICE"
    for arguments in ([], FIVE[:4], [*FIVE[:4], "--seed"], ["Alpine2D", "--shots", *FIVE]):
        ended = machine.start("experiment.sh", *arguments, HAS=CORE)
        assert (ended.returncode, ended.stdout, machine.log.read_text()) == (2, "", "")
        assert usage in ended.stderr
    ended = machine.start("experiment.sh", "-h", HAS=CORE)
    assert (ended.returncode, ended.stderr) == (0, "")
    assert ended.stdout.startswith(usage)
    assert ended.stdout.endswith(f"in {machine.folder}\n--help\n")


DOWNLOAD = ["download", "Jester", "--data-root", "here"]


@pytest.mark.parametrize(
    ("arguments", "passed"),
    [
        ([*FIVE, "--out", "a b", "--resume"], [*AS_FLAGS, "--out", "a b", "--resume"]),
        (["--evaluate", "a run", "--shots", "5"], ["--evaluate", "a run", "--shots", "5"]),
        (DOWNLOAD, ["path {root}", "data.download", *DOWNLOAD[1:]]),
    ],
)
def test_a_python_that_has_everything_is_used_as_it_is(machine, arguments, passed):
    ended = machine.start("experiment.sh", *arguments, HAS=CORE)
    assert ended.stdout.splitlines() == [f"in {machine.folder}", *(word.format(root=machine.root) for word in passed)]
    assert (ended.returncode, ended.stderr) == (0, "")
    assert not (machine.root / ".venv").exists()


def test_a_mistake_in_a_flag_is_told_within_seconds(tmp_path):
    """In the processor time that the whole command takes, since other programs may be busy."""
    environment = {**os.environ, "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}
    command = ["bash", str(ROOT / "experiment.sh"), *FIVE, "--metod", "maml"]
    seconds = [sum(resource.getrusage(resource.RUSAGE_CHILDREN)[:2])]
    ended = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
    seconds.append(sum(resource.getrusage(resource.RUSAGE_CHILDREN)[:2]))
    assert (ended.returncode, ended.stdout) == (2, "")
    assert ended.stderr.startswith("run.py: unknown flag '--metod'; did you mean '--method'?")
    assert seconds[1] - seconds[0] < 5


def test_a_bare_python_gets_an_environment_once_which_all_scripts_share(machine):
    old = machine.start("experiment.sh", *FIVE, HAS=CORE, OLD="1")
    assert (old.returncode, "3.11" in old.stderr) == (2, True)
    failed = machine.start("experiment.sh", *FIVE, HAS="torch", OFFLINE="1")
    assert (failed.returncode, "could not install requirements.txt" in failed.stderr) == (2, True)
    assert f"(python3 has torch: python3 -m pip install {CORE.replace('torch ', '')})." in failed.stderr
    assert "run.py" not in machine.log.read_text()
    first = machine.start("experiment.sh", *FIVE, "--seed", "3", STATUS="2")  # tried again
    assert first.stdout.splitlines() == [f"in {machine.folder}", *AS_FLAGS, "--seed", "3"]
    assert (first.returncode, machine.installed()) == (2, ["requirements.txt"]), first.stderr
    assert machine.start("tests/run.sh").returncode == 0
    assert machine.installed() == ["requirements.txt", "tests/requirements.txt"]
    for script, *arguments in (["experiment.sh", *FIVE], ["tests/run.sh"], ["reproduce.sh", "methods", "--seeds", "0"]):
        assert machine.start(script, *arguments).returncode == 0
        assert machine.installed() == []
        assert "venv " not in machine.log.read_text()
    assert modules(machine) == ["experiment.reproduce methods --seeds 0"]


@pytest.mark.parametrize("variable", ["VIRTUAL_ENV", "CONDA_PREFIX"])
def test_the_active_environment_comes_first(machine, variable):
    machine.start("experiment.sh", *FIVE)  # leaves a .venv that would do
    python = machine.folder / "active env" / "bin" / "python"
    python.parent.mkdir(parents=True)
    python.write_text(STAND_IN.replace("*run.py*)", "*run.py*) echo the active one;"))
    python.chmod(0o755)
    active = {variable: str(python.parents[1])}
    assert machine.start("experiment.sh", *FIVE, HAS=CORE, **active).stdout.startswith("the active one\n")
    assert machine.start("experiment.sh", *FIVE, HAS="numpy", **active).stdout.startswith("in ")  # it lacks some
    assert machine.installed() == []


def modules(machine) -> list[str]:
    """The modules of the project that Python was told to run, with their arguments."""
    lines = machine.log.read_text().splitlines()
    return [line.partition(" -m ")[2] for line in lines if " -m experiment" in line or " -m benchmarks" in line]


def test_anything_but_a_target_gets_the_usage_with_all_targets(machine):
    for arguments in ([], ["--help"], ["methodz"], ["-n", "methods"]):
        ended = machine.start("reproduce.sh", *arguments, HAS=CORE)
        assert ended.returncode == 2
        assert "usage: bash reproduce.sh TARGET|GRID.toml" in ended.stderr
        for path in TARGETS.glob("*.toml"):
            (line,) = [line for line in ended.stderr.splitlines() if line.startswith(f"  {path.stem} ")]
            assert line.endswith(")")  # about how long it takes
        assert machine.log.read_text() == ""


def test_targets_make_their_tables_after_their_cells(machine):
    def made(target: str, *flags: str, **environment: str) -> list[str]:
        machine.start("reproduce.sh", target, *flags, HAS=CORE, **environment)
        return modules(machine)

    for target in ("paper-figure", "paper-tables", "horizons", "horizons-work"):
        assert made(target) == [f"experiment.reproduce {target}", "benchmarks.paper"]
        assert made(target, "--dry-run") == [f"experiment.reproduce {target} --dry-run"]
    first, *rest = made("efficiency")
    assert first == "experiment.reproduce efficiency --again"
    programs = [*["benchmarks.peers"] * 7, "benchmarks.peers.report", "benchmarks.scale", "benchmarks.accuracy"]
    assert [line.split()[0] for line in rest] == programs
    assert all("--libraries amaml" in line for line in rest[:7])
    assert all("--python another python" in line for line in made("efficiency", PEERS="another python")[1:8])
    assert made("efficiency", "--status") == ["experiment.reproduce efficiency --status --again"]


def test_a_grid_and_a_comparison_are_looked_for_where_the_user_is(machine):
    script = machine.bin / "python3"
    script.write_text(script.read_text().replace('"-m pytest")', '"-m experiment."*)'))  # says where it is
    for arguments in (["my grid.toml", "--dry-run"], ["compare", "a b", "--out", "c"]):
        ended = machine.start("reproduce.sh", *arguments, HAS=CORE)
        assert ended.stdout == f"in {machine.folder}\n"
    assert machine.start("reproduce.sh", "methods", "--dry-run", HAS=CORE).stdout == f"in {machine.root}\n"
    assert modules(machine) == ["experiment.reproduce methods --dry-run"]


def test_the_checks_are_ruff_and_pytest_and_stop_at_the_first_fault(machine):
    tools = CORE + " pytest xdist hatchling ruff skimage mypy"
    ended = machine.start("tests/run.sh", "-k", "a b", HAS=tools)
    assert (ended.returncode, ended.stdout) == (0, f"in {machine.root}\n")
    checks = ["ruff format --check .", "ruff check .", "pytest -n auto --dist worksteal -k a b"]
    assert machine.log.read_text().splitlines()[-3:] == [f"python3 -m {check}" for check in checks]
    assert machine.start("tests/run.sh", HAS=tools, RUFF="1").returncode == 1
    assert "-m pytest" not in machine.log.read_text()
    lines = [line for line in (ROOT / ".ci" / "run").read_text().splitlines() if not line.startswith("#")]
    assert lines == ['exec bash "$(dirname "${BASH_SOURCE[0]}")/../tests/run.sh"']
    assert all(os.access(ROOT / script, os.X_OK) for script in ("experiment.sh", "tests/run.sh", ".ci/run"))


def requirements(path: str) -> dict[str, Requirement]:
    lines = [line for line in (ROOT / path).read_text().splitlines() if line and not line.startswith("#")]
    return {parsed.name: parsed for parsed in map(Requirement, lines)}


def test_requirements_pin_what_the_library_asks_for():
    pins, project = requirements("requirements.txt"), tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    ranges = {parsed.name: parsed.specifier for parsed in map(Requirement, project["dependencies"])}
    assert packages() == list(pins)  # what a run writes down
    for name, pin in (pins | requirements("tests/requirements.txt")).items():
        (version,) = re.fullmatch(r"==([\d.]+)", str(pin.specifier)).groups()
        assert name not in ranges or ranges[name].contains(version)
    assert project["requires-python"] == ">=3.11"


def test_the_image_installs_as_experiment_sh_does_and_copies_nothing_else():
    steps = re.findall(r"^([A-Z]+) (.*)", (ROOT / "env.Dockerfile").read_text(), re.MULTILINE)
    assert {step for step, _ in steps} == {"FROM", "COPY", "RUN"}  # docker run gives the rest
    assert [words.split()[0] for step, words in steps if step == "COPY"] == ["requirements.txt"]
    (line,) = re.findall(r'"\$PYTHON" (-m pip install .*) "\$file"', (ROOT / "configs/environment.sh").read_text())
    for what in ("g++", f"cd /tmp && python {line} requirements.txt"):
        assert any(step == "RUN" and what in words for step, words in steps), what


def test_a_run_needs_no_pandas(monkeypatch):
    """Nor what else only the comparisons need: a machine that is lent may lack it."""
    with monkeypatch.context() as patch:
        patch.setattr(metadata, "version", Mock(side_effect=metadata.PackageNotFoundError))
        assert environment("cpu")["versions"]["pandas"] is None
    used = "import sys, run; sys.exit('pandas' in sys.modules)"
    assert subprocess.run([sys.executable, "-W", "ignore", "-c", used], cwd=ROOT).returncode == 0
