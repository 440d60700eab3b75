"""Grids in TOML, the cells that they are and how these stand; mistakes in them and on the command line."""

import csv
import itertools
import sys
from pathlib import Path

import pytest
from filelock import FileLock
from helpers.commands import GRID, ROOT, error_line, write_grid

import run
from amaml import InputError
from experiment import grid as grids
from experiment import parallel, reproduce, results
from experiment.grid import TARGETS, Cell, Grid, read_grid


def test_a_grid_is_the_product_of_its_axes_with_the_seed_slowest(tmp_path):
    text = """
        out = "results/mine/{panel}/{method}-{width}/seed{seed}"
        method = ["fomaml", { label = "imaml", method = "imaml" }]
        panel = [{ label = "cos", domain = "CosMixture", shots = 7 }, { domain = "Alpine2D", shots = 9 }]
        seed = [3, 4]
        width = 8
        deterministic = false
        start_from = "results/first/seed{seed}"
        override = [
            { when = { method = "imaml", panel = ["cos"] }, prox = 0.5 },
            { when = { domain = "Alpine2D" }, inner_steps = 6 },
        ]
        then = [{ out = "{out}-{shots}shot-5", shots = 5, draw = 1 }]
    """
    grid = read_grid(write_grid(tmp_path, text))
    places = itertools.product(("3", "4"), ("fomaml", "imaml"), ("cos", "Alpine2D-9"))
    assert [tuple(cell.labels.values()) for cell in grid.cells] == list(places)
    assert [cell.settings.get("prox") for cell in grid.cells[:4]] == [None, None, 0.5, None]
    assert [cell.settings.get("inner_steps") for cell in grid.cells[:2]] == [None, 6]
    cell = grid.cells[2]
    assert cell.name == "cos/imaml-8/seed3"
    assert grid.records == Path("results/mine/.cells/grid")
    assert grid.csv == Path("results/grid.csv")
    program, out = f"{sys.executable} {ROOT / 'run.py'}", "results/mine/cos/imaml-8/seed3"
    flags = "--domain CosMixture --shots 7 --method imaml --prox 0.5 --start-from results/first/seed3"
    flags = f"{flags} --seed 3 --width 8 --out {out} --resume"
    assert " ".join(cell.steps[0].command) == f"{program} {flags}"
    assert cell.steps[0].makes == Path(out, "summary.json")
    flags = f"--shots 5 --out {out}-7shot-5 --evaluate {out} --draw 1"
    assert " ".join(cell.steps[1].command) == f"{program} {flags}"
    assert cell.steps[1].makes == Path(f"{out}-7shot-5", "evaluation*.json")


def test_a_grid_without_a_folder_gets_one_that_says_what_ran(tmp_path):
    path = write_grid(tmp_path, 'seed = [0]\nrtol = [0.01, 0.1]\nmethod = ["amaml"]\ndomain = "CosMixture"', "sweep")
    folders = [str(cell.folder) for cell in read_grid(path).cells]
    assert folders == [f"results/sweep/rtol{rtol}/amaml/seed0" for rtol in (0.01, 0.1)]
    assert [cell.labels["seed"] for cell in read_grid(path, seeds=[5, 6]).cells] == ["5", "5", "6", "6"]
    on_gpu = read_grid(path, device="cuda").cells[0]
    assert "--device cuda " in " ".join(on_gpu.steps[0].command)
    assert on_gpu.settings["device"] == "cuda"  # by which it is found to be done


@pytest.mark.parametrize("path", sorted(TARGETS.glob("*.toml")), ids=lambda path: path.stem)
def test_every_target_makes_commands_that_run_py_accepts(path, monkeypatch):
    grid, seen = read_grid(path), []
    monkeypatch.setattr(run, "experiment", lambda settings, group: seen.append(settings))
    assert run.main(grid.cells[0].steps[0].command[2:]) == 0
    assert str(seen[0].folder()) == str(grid.cells[0].folder)
    assert path.read_text().startswith('about = "')


MISTAKES = [
    ("seed = []", "seed must be a value, or a list of at least one value"),
    ("update = [{ shots = 3 }]", "update is a column of the results, and no name for an axis"),
    ("panel = [1, 2]", "panel must be a value, or a list of at least one value or table"),
    ('methods = "maml"', "unknown key in .*'methods'; did you mean 'method'"),
    ('method = ["maml", "maml2"]', "cell maml2: unknown method 'maml2'"),
    ("panel = [{ shot = 3 }]", "cell 3: unknown setting 'shot'"),
    ("width = 0", "--width must be a positive integer"),
    ("overwrite = true", "overwrite is not for a grid"),
    ('out = "a"\nseed = [1, 2]', "two cells share the folder a; put {seed} in out"),
    ("then = [{ shots = 5 }, { shots = 6 }]", "entries of `then` share a folder"),
    ('out = "{sead}"', "unknown {name} in the folder of .*'sead'"),
    ('override = [{ when = { mehtod = "a" } }]', "unknown axis or flag .*'mehtod'"),
    ("then = [{ shots = -1 }]", "--shots must be a positive integer"),
    ("shots = ", "cannot read the grid .*grid.toml.*TOML"),
]


@pytest.mark.parametrize(("text", "message"), MISTAKES)
def test_a_mistake_in_a_grid_gets_one_line_before_anything_runs(tmp_path, capsys, text, message):
    path = write_grid(tmp_path, f'domain = "CosMixture"\n{text}')
    with pytest.raises(InputError, match=message):
        read_grid(path)
    assert reproduce.main([str(path)]) == 2
    assert error_line(capsys, "reproduce.sh")


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["paper-figur"], "unknown target 'paper-figur'; did you mean 'paper-figure'"),
        (["methods", "--worker", "2"], "unrecognized arguments: --worker 2"),
        (["methods", "--workers", "0"], "--workers must be a positive integer, got 0"),
        (["methods", "--gpus", "2", "--workers", "3"], "--workers 3 is more than the 2 GPUs"),
        (["methods", "--only", "metod=maml"], "unknown axis of --only 'metod'; did you mean 'method'"),
        (["methods", "--only", "method=mml"], "unknown method of --only 'mml'; did you mean 'maml'"),
        (["methods", "--slurm", "nowhere"], "there is no srun here"),
        (["compare", "nowhere", "--out", "out"], "nowhere holds no finished run"),
        (["compare", "a.csv", "--out", "out", "--only", "method=mml"], "'mml'; did you mean 'maml'"),
    ],
)
def test_a_mistake_on_the_command_line_gets_one_line(capsys, monkeypatch, flags, message):
    Path("a.csv").write_text(f"{','.join(['method', *results.FACTS])}\nmaml{',' * len(results.FACTS)}\n")
    monkeypatch.setattr(parallel, "run", None)
    monkeypatch.setenv("PATH", "")
    assert reproduce.main(flags) == 2
    assert message in error_line(capsys, "reproduce.sh")


METHODS = GRID + 'method = ["fomaml", "reptile"]\n'


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
    monkeypatch.setattr(grids.time, "time", lambda: 1000.0)
    path = write_grid(tmp_path, GRID + 'method = ["fomaml", "imaml"]\nseed = [0, 1, 2]')
    grid, unknown = read_grid(path), "time left: unknown until the first cell is done"
    assert printed(capsys, str(path), "--status") == ["6 cells: 6 waiting", unknown]
    by_name = {cell.name: cell for cell in grid.cells}
    for name, values in {
        "fomaml/seed0": {"status": 0, "seconds": 3600},
        "imaml/seed0": {"status": 0, "seconds": 7200},
        "fomaml/seed1": {"status": 2, "seconds": 5},
        "imaml/seed1": {"status": None, "seconds": 1800},  # killed with its program
        "imaml/seed2": {"status": None, "seconds": 500, "started": 900.0},
    }.items():
        grid.file(by_name[name], "json").parent.mkdir(parents=True, exist_ok=True)
        grid.write_record(by_name[name], **values)
    grid.file(by_name["fomaml/seed1"], "log").write_text("run.py: too much\n")
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
        assert grids.hours_left(grids.states(grid), workers) == pytest.approx(hours / workers)
