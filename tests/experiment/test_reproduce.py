"""reproduce.sh with a stand-in for Python: what it sets up, what it starts, and where."""

import shutil

import pytest
from helpers.commands import ROOT
from helpers.machines import CORE, Machine

from experiment.grid import TARGETS


@pytest.fixture
def machine(tmp_path):
    machine = Machine(tmp_path)
    shutil.copy(ROOT / "reproduce.sh", machine.root)
    shutil.copytree(TARGETS, machine.root / "configs" / "targets")
    return machine


def modules(machine) -> list[str]:
    """The modules of the project that Python was told to run, with their arguments."""
    lines = machine.log.read_text().splitlines()
    return [line.partition(" -m ")[2] for line in lines if " -m experiment" in line or " -m benchmarks" in line]


@pytest.mark.parametrize("arguments", [[], ["--help"], ["methodz"], ["-n", "methods"]], ids=str)
def test_anything_but_a_target_gets_the_usage_with_all_targets(machine, arguments):
    ended = machine.start("reproduce.sh", *arguments, HAS=CORE)
    assert ended.returncode == 2
    assert "usage: bash reproduce.sh TARGET|GRID.toml" in ended.stderr
    for path in TARGETS.glob("*.toml"):
        (line,) = [line for line in ended.stderr.splitlines() if line.startswith(f"  {path.stem} ")]
        assert line.endswith(")")  # about how long it takes
    assert machine.log.read_text() == ""


def test_what_is_missing_is_set_up_once(machine):
    ended = machine.start("reproduce.sh", "methods", "--seeds", "0", "1")
    assert ended.returncode == 0, ended.stderr
    assert machine.installed() == ["requirements.txt"]
    assert modules(machine) == ["experiment.reproduce methods --seeds 0 1"]
    assert machine.start("reproduce.sh", "methods", "--status").returncode == 0
    assert machine.installed() == []
    assert modules(machine) == ["experiment.reproduce methods --status"]


def test_the_papers_targets_make_their_tables_after_their_cells(machine):
    for target in ("paper-figure", "paper-tables", "horizons", "horizons-maml", "horizons-on"):
        machine.log.unlink(missing_ok=True)
        machine.start("reproduce.sh", target, HAS=CORE)
        directions = ["benchmarks.directions"] if target == "horizons" else []
        assert modules(machine) == [f"experiment.reproduce {target}", *directions, "benchmarks.paper"]
        machine.log.unlink()
        machine.start("reproduce.sh", target, "--dry-run", HAS=CORE)
        assert modules(machine) == [f"experiment.reproduce {target} --dry-run"]


def test_a_grid_and_a_comparison_are_looked_for_where_the_user_is(machine):
    script = machine.bin / "python3"
    script.write_text(script.read_text().replace('"-m pytest")', '"-m experiment."*)'))  # says where it is
    for arguments in (["my grid.toml", "--dry-run"], ["compare", "a b", "--out", "c"]):
        ended = machine.start("reproduce.sh", *arguments, HAS=CORE)
        assert ended.stdout == f"in {machine.folder}\n"
    assert machine.start("reproduce.sh", "methods", "--dry-run", HAS=CORE).stdout == f"in {machine.root}\n"
    assert modules(machine) == ["experiment.reproduce methods --dry-run"]


def test_the_efficiency_target_measures_after_its_cells(machine):
    machine.start("reproduce.sh", "efficiency", HAS=CORE)
    first, *rest = modules(machine)
    assert first == "experiment.reproduce efficiency --again"
    assert [line.split()[0] for line in rest] == [*["benchmarks.peers"] * 7, "benchmarks.accuracy"]
    assert all("--libraries amaml" in line for line in rest[:-1])
    machine.start("reproduce.sh", "efficiency", HAS=CORE, PEERS="another python")
    assert all("--python another python" in line for line in modules(machine)[1:-1])
    machine.start("reproduce.sh", "efficiency", "--status", HAS=CORE)
    assert modules(machine) == ["experiment.reproduce efficiency --status --again"]
