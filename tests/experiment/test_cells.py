"""How cells stand, by their files and by the grid's CSV, and what is said of them."""

import csv
import json
from pathlib import Path

import pytest
from helpers.grids import TINY, write_grid

from experiment import cells, parallel, reproduce, results
from experiment.grid import Cell, Grid, read_grid


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
    path = grid.record(cell)
    path.parent.mkdir(parents=True, exist_ok=True)
    cells.write_record(path, record)
    return path


def test_a_cell_is_done_when_its_files_are_there_and_its_run_is_the_one_asked_for(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    grid = read_grid(write_grid(tmp_path, TINY + 'then = [{ out = "{out}-5", shots = 5 }]'))
    cell = grid.cells[0]
    assert not cells.done(grid, cell)
    _finish(cell)
    assert cells.done(grid, cell)
    _finish(cell, width=5)  # a run of another grid: run.py is to say so
    assert not cells.done(grid, cell)
    (cell.folder / "config.json").unlink()  # results kept without it
    assert cells.done(grid, cell)
    (cell.steps[1].makes.parent / "evaluation.json").unlink()
    assert not cells.done(grid, cell)


def test_what_stands_in_the_csv_is_done_unless_it_is_asked_for_otherwise(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    text = TINY + 'method = ["fomaml", "reptile"]\nthen = [{ out = "{out}-5", shots = 5 }]\n'
    grid = read_grid(write_grid(tmp_path, text))
    grid.csv.parent.mkdir()

    def status(more: str = "", *flags: str, lines: int = 2) -> str:
        with grid.csv.open("w") as file:
            writer = csv.DictWriter(file, ["method", *results.FACTS], restval="0")
            writer.writeheader()
            for n, step in enumerate(grid.cells[0].steps[:lines]):
                writer.writerow({"method": "fomaml", "then": n, "command": results.command_of(step)})
        assert reproduce.main([str(write_grid(tmp_path, text + more)), "--status", *flags]) == 0
        return capsys.readouterr().out.splitlines()[0]

    assert status() == "2 cells: 1 done, 1 waiting"
    assert status(lines=1) == "2 cells: 2 waiting"  # its evaluation is not there
    assert status("inner_lr = 0.01") == "2 cells: 1 done, 1 waiting"  # the default
    assert status("inner_lr = 0.02") == "2 cells: 2 waiting"
    assert status("", "--again") == "2 cells: 2 waiting"
    _finish(grid.cells[0])
    assert status("", "--again") == "2 cells: 1 done, 1 waiting"


def test_status_counts_and_estimates_from_the_finished_cells_most_alike(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(cells.time, "time", lambda: 1000.0)
    path = write_grid(tmp_path, TINY + 'method = ["fomaml", "imaml"]\nseed = [0, 1, 2]')
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
    _write_record(grid, by_name["imaml/seed1"], state="started", seconds=1800)  # killed with its program
    running = _write_record(grid, by_name["imaml/seed2"], state="started", seconds=500, started=900.0)
    with open(f"{running}.lock", "a") as file:
        assert cells.locked(file)
        assert reproduce.main([str(path), "--status"]) == 0
        lines = capsys.readouterr().out.splitlines()
        assert lines[0] == "6 cells: 2 done, 1 running, 1 failed, 1 stopped, 1 waiting"
        assert lines[1:3] == ["  failed   fomaml/seed1: run.py: too much", "  running  imaml/seed2: 10 min"]
        # 1800 of imaml/seed1's 7200 s and 600 of imaml/seed2's are spent, fomaml/seed2 takes 3600
        assert lines[3].startswith("time left: 4 h 20 min;")
    hours = (7200 - 1800 + 7200 - 500 + 3600) / 3600
    assert cells.hours_left(cells.states(grid), 1) == pytest.approx(hours)
    assert cells.hours_left(cells.states(grid), 4) == pytest.approx(hours / 4)


def test_every_cell_that_ends_gets_a_line_with_the_time_left(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(results, "collect", lambda grid, cells: None)
    grid = read_grid(write_grid(tmp_path, TINY + "seed = [0, 1, 2]"))
    for cell in grid.cells[:2]:
        _finish(cell)
        _write_record(grid, cell, state="done", seconds=60)
    grid.cells[2].steps[0].command[:] = ["bash", "-c", "echo why; exit 2"]
    assert parallel.run(grid, parallel.Place(1)) == 1
    assert capsys.readouterr().out.splitlines() == [
        "grid: 2 of 3 cells are done",
        "[3/3] seed2: failed: exit status 2: why; 0 s left",
    ]
