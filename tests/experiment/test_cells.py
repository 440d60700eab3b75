"""What becomes of cells that end well, badly or not at all."""

import io
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from helpers.commands import ROOT, into_a_closed_pipe
from test_grid import write_grid

from experiment import cells, parallel, reproduce, supervise
from experiment.grid import Cell, Grid, read_grid

TINY = """
domain = "CosMixture"
shots = 4
queries = 4
inner_steps = 2
meta_batch = 2
test_tasks = 2
test_epochs = 5
test_interval = 0
width = 4
compile = "off"
"""


def test_a_closed_pipe_ends_quietly(tmp_path):
    command = [sys.executable, "-m", "experiment.reproduce", str(write_grid(tmp_path, TINY)), "--dry-run"]
    assert into_a_closed_pipe(command, ROOT) == (141, "")


def test_dry_run_prints_the_commands_of_what_is_not_done(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    path = write_grid(tmp_path, TINY + 'method = ["fomaml", "reptile"]\nseed = [0, 1]')
    grid = read_grid(path)
    _finish(grid.cells[0])
    assert reproduce.main([str(path), "--dry-run", "--only", "method=fomaml"]) == 0
    assert "seed 1 --test-interval 0" in capsys.readouterr().out
    for conditions in (["method=reptile", "seed=1"], ["method=reptile", "--only", "seed=1"]):
        assert reproduce.main([str(path), "--dry-run", "--only", *conditions]) == 0
        (line,) = capsys.readouterr().out.splitlines()
        assert "--method reptile" in line
        assert "--seed 1" in line
    assert reproduce.main([str(path), "--dry-run"]) == 0
    printed = capsys.readouterr().out.splitlines()
    assert len(printed) == 3
    assert all("run.py --domain CosMixture" in line and "--resume" in line for line in printed)
    assert {line.split("--out ")[1] for line in printed} == {f"{cell.folder} --resume" for cell in grid.cells[1:]}


def _finish(cell: Cell, **changes) -> None:
    """The files of a finished run, as far as anybody looks at them."""
    for step in cell.steps:
        step.makes.parent.mkdir(parents=True, exist_ok=True)
        Path(str(step.makes).replace("*", "")).write_text("{}")
    (cell.folder / "config.json").write_text(json.dumps({"settings": cell.settings | changes}))


def _write_record(grid: Grid, cell: Cell, **record) -> Path:
    path = cells.record_path(grid, cell)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.with_name(path.name + ".json").write_text(json.dumps(record))
    return path


def test_a_cell_is_done_when_its_files_are_there_and_its_run_is_the_one_asked_for(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    cell = read_grid(write_grid(tmp_path, TINY + 'then = [{ out = "{out}-5", shots = 5 }]')).cells[0]
    assert not cells.done(cell)
    _finish(cell)
    assert cells.done(cell)
    _finish(cell, width=5)  # a run of another grid: run.py is to say so
    assert not cells.done(cell)
    (cell.folder / "config.json").unlink()  # results kept without it
    assert cells.done(cell)
    (cell.steps[1].makes.parent / "evaluation.json").unlink()
    assert not cells.done(cell)


def test_status_counts_and_estimates_from_the_finished_cells_most_alike(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    text = TINY + 'method = ["fomaml", "imaml"]\nseed = [0, 1, 2]'
    path = write_grid(tmp_path, text)
    grid = read_grid(path)
    assert reproduce.main([str(path), "--status"]) == 0
    assert capsys.readouterr().out.splitlines() == [
        "6 cells: 6 waiting",
        "time left: unknown until the first cell is done",
    ]
    by_name = {cell.name: cell for cell in grid.cells}
    for name, seconds in (("fomaml/seed0", 3600), ("imaml/seed0", 7200)):
        _finish(by_name[name])
        _write_record(grid, by_name[name], state="done", seconds=seconds)
    _write_record(grid, by_name["fomaml/seed1"], state="failed", status=2, seconds=5, line="run.py: too much")
    _write_record(grid, by_name["imaml/seed1"], state="started", seconds=1800)  # killed with its supervisor
    running = _write_record(grid, by_name["imaml/seed2"], state="started", seconds=600)
    with supervise.locked(running.with_name(running.name + ".lock")):
        assert reproduce.main([str(path), "--status"]) == 0
        lines = capsys.readouterr().out.splitlines()
        assert lines[0] == "6 cells: 2 done, 1 running, 1 failed, 1 stopped, 1 waiting"
        assert lines[1:3] == ["  failed   fomaml/seed1: run.py: too much", "  running  imaml/seed2: 10 min"]
        # 1800 of imaml/seed1's 7200 s and 600 of imaml/seed2's are spent, fomaml/seed2 takes 3600
        assert lines[3].startswith("time left: 4 h 20 min;")
    hours = (7200 - 1800 + 7200 - 600 + 3600) / 3600
    assert cells.hours_left(cells.states(grid), 1) == pytest.approx(hours)
    assert cells.hours_left(cells.states(grid), 4) == pytest.approx(hours / 4)


def test_a_terminal_gets_a_bar_and_a_batch_log_a_line_a_cell(tmp_path, capsys, monkeypatch):
    class Terminal(io.StringIO):
        def isatty(self):
            return True

    monkeypatch.chdir(tmp_path)
    grid = read_grid(write_grid(tmp_path, TINY + "seed = [0, 1, 2, 3]"))
    for cell, seconds in zip(grid.cells, (60, 60, 0), strict=False):
        _write_record(grid, cell, state="failed" if not seconds else "done", seconds=seconds, status=2, line="why")
    for cell in grid.cells[:2]:
        _finish(cell)
    fault = RuntimeError("lost")
    fault.exitcode = 2
    log = parallel.Progress(grid, parallel.Place(workers=1))
    log.ended(grid.cells[2], fault)
    assert capsys.readouterr().out.splitlines() == [
        "grid: 2 of 4 cells are done",
        "[3/4] seed2: failed: exit status 2: why; 60 s left",
    ]
    monkeypatch.setattr(sys, "stderr", terminal := Terminal())
    monkeypatch.setattr("tqdm.std.TMonitor", None, raising=False)
    bar = parallel.Progress(grid, parallel.Place(workers=1))
    bar.ended(grid.cells[2], fault)
    bar.refresh()
    bar.close()
    assert "grid 3/4 cells" in terminal.getvalue()
    assert "60 s left, 1 failed" in terminal.getvalue()
    assert capsys.readouterr().out == "seed2: failed: exit status 2: why\n"


def supervised(record: Path, *commands: list[str], owner: int | None = None) -> subprocess.Popen:
    arguments = [str(record), f"{os.uname().nodename}:{owner or os.getpid()}", json.dumps(commands)]
    return subprocess.Popen([sys.executable, supervise.__file__, *arguments])


def shell(text: str) -> list[str]:
    return ["bash", "-c", text]


def wait_for(condition, what: str, seconds: float = 60.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, f"timed out: {what}"
        time.sleep(0.02)


def test_a_supervisor_writes_down_how_its_commands_went(tmp_path):
    record = tmp_path / "below" / "cell"
    assert supervised(record, shell("echo one $OMP_NUM_THREADS"), shell("echo two")).wait() == 0
    said = supervise.read_record(record)
    assert (said["state"], said["status"], said["attempts"]) == ("done", 0, 1)
    assert record.with_name("cell.log").read_text() == "one 1\ntwo\n"
    assert supervised(record, shell("echo why >&2; exit 2"), shell("echo never")).wait() == 2
    again = supervise.read_record(record)
    assert (again["state"], again["status"], again["attempts"], again["line"]) == ("failed", 2, 2, "why")
    assert again["seconds"] > said["seconds"]
    assert supervised(record, shell("kill -9 $$")).wait() == 137
    assert supervise.read_record(record)["state"] == "stopped"


def test_a_folder_in_use_is_waited_for(tmp_path, monkeypatch):
    monkeypatch.setattr(supervise, "IN_USE_SECONDS", 0.1)
    monkeypatch.setattr(signal, "signal", lambda *_: None)  # the tests keep their own handlers
    twice = shell(f"[ -e {tmp_path}/tried ] && exit 0; touch {tmp_path}/tried; echo it is in use by process 7; exit 2")
    assert supervise.cell(tmp_path / "cell", supervise.Guard(f"elsewhere:{os.getpid()}"), [twice]) == 0
    assert (tmp_path / "tried").exists()


@pytest.mark.parametrize("end", ["signal", "owner"])
def test_a_command_is_told_to_stop_with_its_supervisor_or_its_owner(tmp_path, end):
    record, owner = tmp_path / "cell", subprocess.Popen(["sleep", "60"])
    waits = shell("trap 'echo checkpoint; exit 143' TERM; echo ready; for i in $(seq 1000); do sleep 0.02; done")
    process = supervised(record, waits, owner=owner.pid)
    log = record.with_name("cell.log")
    wait_for(lambda: log.exists() and log.read_text(), "the command starts")
    assert supervise.locked(record.with_name("cell.lock")) is None
    process.terminate() if end == "signal" else owner.kill()
    if end == "owner":
        owner.wait()
    assert process.wait(10) == 143
    assert log.read_text() == "ready\ncheckpoint\n"
    assert supervise.read_record(record)["state"] == "stopped"
    owner.kill()
    owner.wait()


def test_a_cell_is_not_started_while_a_command_of_an_earlier_attempt_lives(tmp_path):
    record, log = tmp_path / "cell", tmp_path / "cell.log"
    first = supervised(record, shell("echo begin; sleep 1; echo end"))
    wait_for(lambda: log.exists() and log.read_text(), "the command starts")
    first.kill()  # and its command goes on
    first.wait()
    assert supervised(record, shell("echo again")).wait() == 0
    assert log.read_text() == "begin\nend\nagain\n"
