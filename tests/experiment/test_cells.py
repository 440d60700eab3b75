"""How cells stand, by the grid's CSV and by their files, and what is said of them."""

import csv

import pytest
from filelock import FileLock
from helpers.grids import TINY, write_grid

from experiment import cells, reproduce, results
from experiment.grid import Cell, Grid, read_grid

METHODS = TINY + 'method = ["fomaml", "reptile"]\n'


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def finish(grid: Grid, *finished: Cell, lines: int = 99) -> None:
    """A CSV that holds the first lines of these cells' meta-tests, a line a step."""
    grid.csv.parent.mkdir(exist_ok=True)
    with grid.csv.open("w") as file:
        writer = csv.DictWriter(file, [*grid.axes, *results.FACTS], restval="0")
        writer.writeheader()
        for cell in finished:
            for n, step in enumerate(cell.steps[:lines]):
                writer.writerow(cell.labels | {"then": n, "command": results.command_of(step)})


def printed(capsys, *arguments: str) -> list[str]:
    """What reproduce.sh prints."""
    assert reproduce.main([*arguments]) == 0
    return capsys.readouterr().out.splitlines()


def test_dry_run_prints_the_commands_of_what_is_not_done(tmp_path, capsys):
    path = write_grid(tmp_path, METHODS + "seed = [0, 1]")
    grid = read_grid(path)
    finish(grid, grid.cells[0])
    for conditions in (["method=reptile", "seed=1"], ["method=reptile", "--only", "seed=1"]):
        (line,) = printed(capsys, str(path), "--dry-run", "--only", *conditions)
        assert "--out results/grid/reptile/seed1 " in line
    lines = printed(capsys, str(path), "--dry-run")
    assert all("run.py --domain CosMixture" in line for line in lines)
    assert [line.split("--out ")[1] for line in lines] == [f"{cell.folder} --resume" for cell in grid.cells[1:]]


def test_what_stands_in_the_csv_is_done_unless_it_is_asked_for_otherwise(tmp_path, capsys):
    text = METHODS + 'then = [{ out = "{out}-5", shots = 5 }]\n'
    grid = read_grid(write_grid(tmp_path, text))

    def status(more: str = "", lines: int = 2) -> str:
        finish(grid, grid.cells[0], lines=lines)
        return printed(capsys, str(write_grid(tmp_path, text + more)), "--status")[0]

    assert status() == "2 cells: 1 done, 1 waiting"
    assert status(lines=1) == "2 cells: 2 waiting"  # its evaluation is not there
    assert status("inner_lr = 0.01") == "2 cells: 1 done, 1 waiting"  # the default
    assert status("inner_lr = 0.02") == "2 cells: 2 waiting"
    assert len(printed(capsys, str(write_grid(tmp_path, text)), "--dry-run")) == 2
    assert len(printed(capsys, str(write_grid(tmp_path, text)), "--dry-run", "--again")) == 4


def test_status_counts_and_estimates_from_the_finished_cells_most_alike(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(cells.time, "time", lambda: 1000.0)
    path = write_grid(tmp_path, TINY + 'method = ["fomaml", "imaml"]\nseed = [0, 1, 2]')
    grid, unknown = read_grid(path), "time left: unknown until the first cell is done"
    assert printed(capsys, str(path), "--status") == ["6 cells: 6 waiting", unknown]
    by_name = {cell.name: cell for cell in grid.cells}
    for name, values in {
        "fomaml/seed0": {"state": "done", "seconds": 3600},
        "imaml/seed0": {"state": "done", "seconds": 7200},
        "fomaml/seed1": {"state": "failed", "status": 2, "seconds": 5, "line": "run.py: too much"},
        "imaml/seed1": {"state": "started", "seconds": 1800},  # killed with its program
        "imaml/seed2": {"state": "started", "seconds": 500, "started": 900.0},
    }.items():
        grid.file(by_name[name], "json").parent.mkdir(parents=True, exist_ok=True)
        grid.write_record(by_name[name], **values)
    finish(grid, by_name["fomaml/seed0"], by_name["imaml/seed0"])
    by_name["imaml/seed2"].folder.mkdir(parents=True)
    with FileLock(by_name["imaml/seed2"].folder / ".lock"):
        lines = printed(capsys, str(path), "--status")
        assert lines[0] == "6 cells: 2 done, 1 running, 1 failed, 1 stopped, 1 waiting"
        assert lines[1:3] == ["  failed   fomaml/seed1: run.py: too much", "  running  imaml/seed2: 10 min"]
        # 1800 of imaml/seed1's 7200 s and 600 of imaml/seed2's are spent, fomaml/seed2 takes 3600
        assert lines[3].startswith("time left: 4 h 20 min;")
    grid.done.update(results.done(grid))
    hours = (7200 - 1800 + 7200 - 500 + 3600) / 3600
    for workers in (1, 4):
        assert cells.hours_left(cells.states(grid), workers) == pytest.approx(hours / workers)
