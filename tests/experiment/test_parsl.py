"""Cells as tasks of Parsl, on this machine: what is tried again, what is not, and kills that leave no trace."""

import contextlib
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from helpers.commands import ROOT, assert_same_run, content, metrics
from test_cells import TINY, wait_for
from test_grid import write_grid

import run
from experiment import cells, supervise
from experiment.cells import Cell
from experiment.grid import read_grid

pytest.importorskip("parsl")
MODULE = [sys.executable, "-W", "ignore", "-m", "experiment.reproduce"]
ENVIRONMENT = {**os.environ, "PYTHONPATH": str(ROOT)}


STAND_INS = """
import sys
from pathlib import Path
from experiment import parallel
from experiment.cells import Cell, Grid, Step

folder = Path(sys.argv[1])
scripts = {
    "good": "echo '{{}}' > {made}",
    "mistake": "echo a mistake >&2; exit 2",
    "broken": "echo broken >&2; exit 1",
    "lost": "if [ -e {made}.tried ]; then echo '{{}}' > {made}; else touch {made}.tried; "
    "kill -9 $(ps -o ppid= -p $PPID); exec sleep 60; fi",  # the first attempt kills its worker
}
grid = Grid("stand-ins", [], folder / ".cells")
for name, script in scripts.items():
    made = folder / name
    grid.cells.append(Cell(name, {"cell": name}, {}, folder, (Step(["bash", "-c", script.format(made=made)], made),)))
print(parallel.run(grid, parallel.Place(workers=2)), "failed")
"""


def test_parsl_retries_what_may_pass_and_nothing_else(tmp_path):
    command = [sys.executable, "-W", "ignore", "-c", STAND_INS, str(tmp_path)]
    ended = subprocess.run(command, env=ENVIRONMENT, cwd=tmp_path, capture_output=True, text=True, timeout=120)
    assert ended.returncode == 0, ended.stderr
    attempts = {
        name: supervise.read_record(tmp_path / ".cells" / name)["attempts"]
        for name in ("good", "mistake", "broken", "lost")
    }
    assert attempts == {"good": 1, "mistake": 1, "broken": 3, "lost": 2}
    lines = ended.stdout.splitlines()
    assert lines[0] == "stand-ins: 0 of 4 cells are done"
    assert lines[-1] == "2 failed"
    assert any("mistake: failed: exit status 2: a mistake" in line for line in lines)
    assert any("broken: failed: exit status 1: broken" in line for line in lines)
    assert any("lost: done in" in line for line in lines)


CONFIGURATION = """
from pathlib import Path
from experiment import parallel
from experiment.cells import Grid

grid = Grid("none", [], Path("records"))
executor = parallel._config(grid, parallel.Place(workers=2, gpus=2), "host:1").executors[0]
print(executor.available_accelerators, executor.max_workers_per_node, executor.provider.label)
cluster = parallel.Place(workers=3, gpus=4, partition="long", walltime="10:00:00", account="me", jobs=5)
executor = parallel._config(grid, cluster, "host:1").executors[0]
print(executor.max_workers_per_node, executor.provider.walltime, executor.provider.max_blocks)
print(executor.provider.scheduler_options)
"""


def test_gpus_are_pinned_and_slurm_is_asked_for_what_the_flags_say(tmp_path):
    command = [sys.executable, "-W", "ignore", "-c", CONFIGURATION]
    ended = subprocess.run(command, env=ENVIRONMENT, cwd=tmp_path, capture_output=True, text=True)
    assert ended.stdout.splitlines()[:2] == ["['0', '1'] 2 local", "3 10:00:00 5"], ended.stderr
    for option in ("--partition=long", "--account=me", "--gpus-per-node=4"):
        assert f"#SBATCH {option}" in ended.stdout
    assert "--exclusive" not in ended.stdout


def test_a_partition_that_is_not_there_gets_one_line(tmp_path):
    program = launch(write_grid(tmp_path, TINY), "--slurm", "no-such-partition")
    printed, _ = program.communicate(timeout=120)
    assert program.returncode == 2
    assert printed.splitlines()[0] == "grid: 0 of 1 cells are done"
    assert printed.splitlines()[1].startswith("reproduce.sh: no worker could be started: ")
    assert len(printed.splitlines()) == 2


def launch(path: Path, *flags: str) -> subprocess.Popen:
    command = [*MODULE, str(path), "--workers", "2", *flags]
    streams = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT}
    return subprocess.Popen(command, env=ENVIRONMENT, cwd=path.parent, text=True, preexec_fn=_hear_ctrl_c, **streams)


def _hear_ctrl_c() -> None:
    """A shell lets its background processes, and so these tests perhaps, ignore it."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


def under_way(cell: Cell, folder: Path, updates: int) -> bool:
    with contextlib.suppress(OSError, ValueError):
        return len(metrics(folder / cell.folder)) >= updates
    return False


def test_ctrl_c_ends_the_workers_and_leaves_their_cells_resumable(tmp_path):
    path = write_grid(tmp_path, TINY + 'out = "run"\nmethod = "fomaml"\nmeta_updates = 1000000')
    (cell,) = read_grid(path).cells
    program = launch(path)
    wait_for(lambda: under_way(cell, tmp_path, 20), "the run is under way")
    program.send_signal(signal.SIGINT)
    printed, _ = program.communicate(timeout=60)
    assert program.returncode == 130
    assert printed.splitlines()[-1] == "reproduce.sh: stopped; the same command goes on"
    record = tmp_path / cells.record_path(read_grid(path), cell)
    assert supervise.read_record(record)["state"] == "stopped"
    assert "go on with --resume" in supervise.last_line(record)
    assert (tmp_path / cell.folder / "checkpoint.pt").exists()


def worker_of(record: Path) -> int:
    """The process of Parsl's that a cell's supervisor belongs to."""
    stat = Path(f"/proc/{supervise.read_record(record)['pid']}/stat").read_text()
    return int(stat.rpartition(")")[2].split()[1])


def kill_twice(path: Path) -> None:
    """Run a grid to its end, with SIGKILL for the program once, and for a worker once."""
    folder = path.parent
    grid = read_grid(path)
    program = launch(path)
    wait_for(lambda: any(under_way(c, folder, 20) for c in grid.cells), "a run is under way")
    program.kill()
    program.communicate()
    assert not all((folder / c.folder / "summary.json").exists() for c in grid.cells)
    program = launch(path)

    def again(cell: Cell) -> bool:
        attempts = supervise.read_record(folder / cells.record_path(grid, cell)).get("attempts", 0)
        return attempts == 2 and under_way(cell, folder, 21)

    wait_for(lambda: any(map(again, grid.cells)), "a run goes on")
    record = next(folder / cells.record_path(grid, c) for c in grid.cells if again(c))
    os.kill(worker_of(record), signal.SIGKILL)
    printed, _ = program.communicate(timeout=600)
    assert program.returncode == 0, printed
    assert supervise.read_record(record)["attempts"] == 3


@pytest.mark.skipif(not Path("/proc").exists(), reason="looks for the worker in /proc")
def test_a_grid_killed_twice_ends_with_the_files_of_an_undisturbed_one(tmp_path):
    text = TINY + 'out = "{method}"\nmethod = ["fomaml", "reptile"]\nmeta_updates = 400'
    kill_twice(write_grid(tmp_path, text))
    for cell in read_grid(tmp_path / "grid.toml").cells:
        other = tmp_path / "whole" / cell.name
        assert run.main([*cell.steps[0].command[2:], "--out", str(other)]) == 0
        assert_same_run(tmp_path / cell.folder, other)
        assert content(tmp_path / cell.folder, "config.json")["settings"]["out"] == str(cell.folder)
