"""Cells on this machine and through srun: what is tried again, what is not, and kills that leave no trace."""

import os
import re
import signal
import subprocess
import threading
import time
from pathlib import Path

import pytest
from filelock import FileLock
from helpers.commands import GRID, assert_same_run, content, has_checkpoint, scripts, wait_for, write_grid

import run
from amaml import InputError
from experiment import parallel, reproduce, results
from experiment.grid import read_grid, states
from experiment.parallel import Place


@pytest.fixture(autouse=True)
def without_numbers(request, monkeypatch):
    """Scripts make no results; grids of runs do."""
    if "grid" not in request.node.name:
        monkeypatch.setattr(results, "collect", lambda grid, cell: grid.done.setdefault(cell.name, 1.0))


ERROR = "srun: error: task 0: exit code 2"


def test_what_may_pass_is_tried_again_and_nothing_else(tmp_path, capsys):
    def log(name: str) -> list[str]:
        return (tmp_path / ".cells/scripts" / f"{name}.log").read_text().splitlines()

    grid = scripts(
        tmp_path,
        good="echo one $OMP_NUM_THREADS && echo > {made}",
        mistake=f"echo a mistake >&2; echo '{ERROR}' >&2; exit 2",
        broken="echo broken >&2; exit 1",
        lost="[ -e {made}.tried ] && exec touch {made}; touch {made}.tried; kill -9 $$",
    )
    assert parallel.run(grid, Place(workers=2)) == 2
    seconds = grid.record(grid.cells[1])["seconds"]
    assert [state.name for state in states(grid)] == ["done", "failed", "failed", "done"]
    assert [log("good"), log("mistake"), log("broken")] == [["one 1"], ["a mistake", ERROR], ["broken"] * 3]
    printed = capsys.readouterr().out
    assert printed.startswith("scripts: 0 of 4 cells are done\n")
    for said in ("mistake: failed: exit status 2: a mistake", "broken: failed: exit status 1: broken", "lost: done in"):
        assert said in printed
    assert re.search(r"^\[4/4] .*; 0 s left$", printed, re.MULTILINE)
    assert parallel.run(grid, Place(workers=2)) == 2
    assert [log("good"), log("mistake")] == [["one 1"], ["a mistake", ERROR] * 2]
    assert grid.record(grid.cells[1])["seconds"] > seconds


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


def test_slurm_is_asked_for_what_the_flags_say_before_any_cell(tmp_path, srun):
    grid = scripts(tmp_path, one="touch {made}")
    grid.cells[0].steps[0].command[:] = ["touch", str(tmp_path / "one")]
    with pytest.raises(InputError, match="no job can be started: srun: error: invalid partition"):
        parallel.run(grid, Place(1, partition="nowhere"))
    assert len(srun.read_text().splitlines()) == 1
    place = Place(3, gpus=4, partition="long", walltime="10:00:00", account="me")
    assert parallel.run(grid, place) == 0
    assert (tmp_path / "one").exists()
    asked = "--quiet --ntasks=1 --cpus-per-task=1 --partition=long --time=10:00:00 --account=me --gpus-per-node=1"
    assert srun.read_text().splitlines()[1:] == [f"{asked} --test-only true", f"{asked} touch {tmp_path}/one"]


@pytest.mark.parametrize("place", [".lock", ".cells/scripts/cell.lock"], ids=["a run", "a start"])
def test_a_cell_waits_for_another_start_and_for_a_run_that_a_killed_one_left_behind(tmp_path, place):
    grid = scripts(tmp_path, cell="echo again; echo > {made}")
    log, held = grid.file(grid.cells[0], "log"), FileLock(tmp_path / place, thread_local=False)
    log.parent.mkdir(parents=True)
    held.acquire()
    assert [state.name for state in states(grid)] == ["running"]
    threading.Timer(0.5, lambda: (log.write_text("end\n"), held.release())).start()
    assert parallel.run(grid, Place(1)) == 0
    assert log.read_text() == "end\nagain\n"


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_stop_is_told_to_what_runs_starts_nothing_more_and_ends_with_one_line(tmp_path, monkeypatch, capsys, number):
    waits = "trap 'echo checkpoint; exit 143' TERM; touch {made}.runs; while true; do sleep 0.02; done"
    grid = scripts(tmp_path, first=waits, second="echo > {made}")
    monkeypatch.setattr(reproduce, "read_grid", lambda *given: grid)

    def interrupt():
        wait_for(lambda: (tmp_path / "first.runs").exists(), "the command starts")
        time.sleep(0.1)
        os.kill(os.getpid(), number)

    handlers = [(n, signal.getsignal(n)) for n in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)]
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a job in the background of a shell begins without
    threading.Thread(target=interrupt).start()
    assert reproduce.main(["scripts.toml", "--workers", "1"]) == 130
    for restored in handlers:
        signal.signal(*restored)
    assert capsys.readouterr().err == "reproduce.sh: stopped; the same command goes on\n"
    assert grid.file(grid.cells[0], "log").read_text() == "checkpoint\n"
    assert [state.name for state in states(grid)] == ["stopped", "waiting"]


def test_a_grid_whose_run_is_killed_ends_with_the_files_of_an_undisturbed_one(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    grid = read_grid(write_grid(tmp_path, GRID + 'out = "{method}"\nmethod = ["fomaml"]\nmeta_updates = 400'))
    (cell,) = grid.cells

    def kill():
        wait_for(has_checkpoint(cell.folder), "checkpoint")
        command = ["pgrep", "-P", str(os.getpid()), "-f", "method fomaml"]
        os.kill(int(subprocess.run(command, capture_output=True).stdout), signal.SIGKILL)

    threading.Thread(target=kill).start()
    assert parallel.run(grid, Place(1)) == 0
    assert "fomaml,0,400,2,nRMSE" in grid.csv.read_text()
    assert run.main([*cell.steps[0].command[2:], "--out", "whole"]) == 0
    assert_same_run(cell.folder, Path("whole"))
    assert content(cell.folder, "config.json")["settings"]["out"] == str(cell.folder)
