"""Cells on this machine and through srun: what is tried again, what is not, and kills that leave no trace."""

import contextlib
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from helpers.commands import ROOT, assert_same_run, content, metrics
from helpers.grids import TINY, scripts, wait_for, write_grid

import run
from amaml import InputError
from experiment import cells, parallel, results
from experiment.cells import Cell, record_path
from experiment.grid import read_grid
from experiment.parallel import Place

MODULE = [sys.executable, "-W", "ignore", "-m", "experiment.reproduce"]
ENVIRONMENT = {**os.environ, "PYTHONPATH": str(ROOT)}


@pytest.fixture(autouse=True)
def without_numbers(request, monkeypatch):
    """Scripts make no results; grids of runs do."""
    monkeypatch.setattr(parallel, "LOOK_SECONDS", 0.05)
    if "grid" not in request.node.name:
        monkeypatch.setattr(results, "collect", lambda grid, cells: None)


def test_what_may_pass_is_tried_again_and_nothing_else(tmp_path, capsys):
    grid = scripts(
        tmp_path,
        good="readlink /proc/$$/fd/* | grep -q good.lock && echo one $OMP_NUM_THREADS && echo > {made}",  # its lock
        mistake="echo a mistake >&2; echo 'srun: error: task 0: exit code 2' >&2; exit 2",
        broken="echo broken >&2; exit 1",
        lost="[ -e {made}.tried ] && exec touch {made}; touch {made}.tried; kill -9 $$",
    )
    assert parallel.run(grid, Place(workers=2)) == 2
    records = {cell.name: cells.read_record(record_path(grid, cell)) for cell in grid.cells}
    assert {name: record["attempts"] for name, record in records.items()} == {
        "good": 1,
        "mistake": 1,
        "broken": 3,
        "lost": 2,
    }
    assert [records[name]["state"] for name in ("good", "mistake", "lost")] == ["done", "failed", "done"]
    assert (tmp_path / ".cells/scripts/good.log").read_text() == "one 1\n"
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "scripts: 0 of 4 cells are done"
    assert any("mistake: failed: exit status 2: a mistake" in line for line in lines)
    assert any("broken: failed: exit status 1: broken" in line for line in lines)
    assert any("lost: done in" in line for line in lines)
    assert parallel.run(grid, Place(workers=2)) == 2
    again = cells.read_record(record_path(grid, grid.cells[1]))
    assert (again["attempts"], cells.read_record(record_path(grid, grid.cells[0]))["attempts"]) == (2, 1)
    assert again["seconds"] > records["mistake"]["seconds"]


def test_every_worker_has_a_gpu_for_itself(tmp_path, monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "4,7")
    texts = {f"cell{i}": "echo $CUDA_VISIBLE_DEVICES > {made}; sleep 0.3" for i in range(4)}
    assert parallel.run(scripts(tmp_path, **texts), Place(workers=2, gpus=2)) == 0
    used = [(tmp_path / name).read_text().strip() for name in texts]
    assert sorted(used[:2]) == ["4", "7"]
    assert set(used) == {"4", "7"}


@pytest.fixture
def srun(tmp_path, monkeypatch):
    """A stand-in for SLURM's: it writes down what it is asked for, and runs the command; one partition is not there."""
    path = tmp_path / "bin" / "srun"
    path.parent.mkdir()
    path.write_text(
        f"#!/usr/bin/env bash\necho $* >> {tmp_path}/asked\n"
        '[[ $* != *nowhere* ]] || { echo "srun: error: invalid partition" >&2; exit 1; }\n'
        "while [[ $1 == --* ]]; do shift; done; exec $@\n"
    )
    path.chmod(0o755)
    monkeypatch.setenv("PATH", f"{path.parent}:{os.environ['PATH']}")
    return tmp_path / "asked"


def test_slurm_is_asked_for_what_the_flags_say(tmp_path, srun):
    grid = scripts(tmp_path, one="touch {made}")
    grid.cells[0].steps[0].command[:] = ["touch", str(tmp_path / "one")]
    place = Place(3, gpus=4, partition="long", walltime="10:00:00", account="me")
    assert parallel.run(grid, place) == 0
    assert (tmp_path / "one").exists()
    asked = "--quiet --ntasks=1 --cpus-per-task=1 --partition=long --time=10:00:00 --account=me --gpus-per-node=1"
    assert srun.read_text().splitlines() == [f"{asked} --test-only true", f"{asked} touch {tmp_path}/one"]


def test_a_partition_that_is_not_there_gets_one_line_before_any_cell(tmp_path, srun):
    grid = scripts(tmp_path, one="touch {made}")
    with pytest.raises(InputError, match="no job can be started: srun: error: invalid partition"):
        parallel.run(grid, Place(1, partition="nowhere"))
    assert len(srun.read_text().splitlines()) == 1


def test_a_cell_waits_for_a_command_that_an_earlier_start_left_behind(tmp_path):
    grid = scripts(tmp_path, cell="echo again; echo > {made}")
    path = record_path(grid, grid.cells[0])
    path.parent.mkdir(parents=True)
    with open(f"{path}.lock", "a") as file:
        assert cells.locked(file)
        left = subprocess.Popen(["bash", "-c", f"sleep 0.5; echo end >> {path}.log"], pass_fds=[file.fileno()])
    assert cells.state(grid, grid.cells[0]).name == "running"
    assert parallel.run(grid, Place(1)) == 0
    assert Path(f"{path}.log").read_text() == "end\nagain\n"
    left.wait()


def test_a_stop_is_told_to_what_runs_and_starts_nothing_more(tmp_path):
    waits = "trap 'echo checkpoint; exit 143' TERM; touch {made}.runs; while true; do sleep 0.02; done"
    grid = scripts(tmp_path, first=waits, second="echo > {made}")

    def interrupt():
        wait_for(lambda: (tmp_path / "first.runs").exists(), "the command starts")
        time.sleep(0.1)
        os.kill(os.getpid(), signal.SIGINT)

    threading.Thread(target=interrupt).start()
    with pytest.raises(KeyboardInterrupt):
        parallel.run(grid, Place(1))
    assert Path(f"{record_path(grid, grid.cells[0])}.log").read_text() == "checkpoint\n"
    assert [state.name for state in cells.states(grid)] == ["stopped", "waiting"]


def launch(path: Path, *flags: str) -> subprocess.Popen:
    streams = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT}
    command = [*MODULE, str(path), "--workers", "2", *flags]
    return subprocess.Popen(command, env=ENVIRONMENT, cwd=path.parent, text=True, preexec_fn=_hear_ctrl_c, **streams)


def _hear_ctrl_c() -> None:
    """A shell lets its background processes, and so these tests perhaps, ignore it."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


def under_way(cell: Cell, folder: Path, updates: int) -> bool:
    with contextlib.suppress(OSError, ValueError):
        return len(metrics(folder / cell.folder)) >= updates
    return False


def test_ctrl_c_leaves_a_grid_that_goes_on(tmp_path):
    path = write_grid(tmp_path, TINY + 'method = ["fomaml"]\nmeta_updates = 100000')
    cell = read_grid(path).cells[0]
    program = launch(path)
    wait_for(lambda: under_way(cell, tmp_path, 20), "the run is under way")
    program.send_signal(signal.SIGINT)
    printed, _ = program.communicate(timeout=60)
    assert program.returncode == 130
    assert printed.splitlines()[-1] == "reproduce.sh: stopped; the same command goes on"
    record = tmp_path / record_path(read_grid(path), cell)
    assert cells.read_record(record)["state"] == "stopped"
    assert "go on with --resume" in Path(f"{record}.log").read_text()
    assert (tmp_path / cell.folder / "checkpoint.pt").exists()


def test_a_grid_killed_twice_ends_with_the_files_of_an_undisturbed_one(tmp_path):
    """SIGKILL for a run, which is started again, and for the program, whose runs live on until the next start."""
    path = write_grid(tmp_path, TINY + 'out = "{method}"\nmethod = ["fomaml", "reptile"]\nmeta_updates = 400')
    grid = read_grid(path)
    cell, record = grid.cells[0], tmp_path / record_path(grid, grid.cells[0])
    program = launch(path)
    wait_for(lambda: under_way(cell, tmp_path, 20), "a run is under way")
    runs = ["pgrep", "-P", str(program.pid), "-f", "method fomaml"]
    os.kill(int(subprocess.run(runs, capture_output=True, text=True).stdout), signal.SIGKILL)
    wait_for(lambda: cells.read_record(record).get("attempts") == 2, "it is started again")
    program.kill()
    program.communicate()
    assert not (tmp_path / cell.folder / "summary.json").exists()
    printed, _ = launch(path).communicate(timeout=600)
    assert "[2/2] " in printed or "2 of 2 cells are done" in printed  # where the runs have ended by then
    assert "fomaml,0,400,2,nRMSE" in (tmp_path / "grid.csv").read_text()
    for cell in grid.cells:
        other = tmp_path / "whole" / cell.name
        assert run.main([*cell.steps[0].command[2:], "--out", str(other)]) == 0
        assert_same_run(tmp_path / cell.folder, other)
        assert content(tmp_path / cell.folder, "config.json")["settings"]["out"] == str(cell.folder)
