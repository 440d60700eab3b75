"""results/paper is made of the cells' files: every line of cells.csv, every number beside the paper's."""

import csv
import dataclasses
import io
import json

import pytest
from matplotlib.figure import Figure

from benchmarks import paper, paper_pictures
from experiment.grid import read_grid

GRID = """
about = "small"
out = "runs/{panel}/{steps}steps/{run}/seed{seed}"
seed = [3, 4]
panel = [{ label = "Jester-10-15", domain = "Jester", shots = 10, queries = 15 }]
steps = [{ label = "50", inner_steps = 50 }]
run = [{ label = "amaml", method = "amaml" }]
protocol = "inner"
then = [{ out = "{out}-finetune", protocol = "finetune", test_epochs = 100 }]
"""


def entry(epochs: list[int], support: list[float], test: list[float], unit: str, also=()) -> dict:
    return {
        "update": 300,
        "unit": unit,
        "epochs": epochs,
        "support": {"mean": support},
        "test": {"mean": test},
        "predictors": {"item mean": [0.85, 0.05]},
        "also": list(also),
    }


@pytest.fixture
def cells(tmp_path, monkeypatch):
    """The results of a small grid of two seeds, the first of them as read from its files."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "small.toml").write_text(GRID)
    for cell, level in zip(read_grid(tmp_path / "small.toml").cells, (0.0, 0.2), strict=True):
        cell.folder.mkdir(parents=True)
        (cell.folder / "summary.json").write_text(json.dumps({"seconds_per_update": 0.5}))
        inner = entry([0, 50], [0.8, 0.6 + level], [0.9, 0.7 + level], "inner step")
        (cell.folder / "test.json").write_text(json.dumps([inner | {"update": 100}, inner]))
        tuned = cell.steps[1].makes
        tuned.parent.mkdir()
        low = 0.07 if level else 0.08  # the paper's number is 0.074
        evaluation = entry([0, 10, 20, 100, 110], [0.8, low, 0.077, 0.01, 0], [0.9, 0.75, 0.7, 0.8 + level, 1], "epoch")
        (tuned.parent / "evaluation-Jester.json").write_text(json.dumps(evaluation))
    monkeypatch.setattr(paper, "target_path", lambda name: tmp_path / "small.toml")
    return paper.read("small")


def test_every_cell_is_read_by_every_protocol_with_its_command(cells):
    assert [(r.seed, r.protocol, len(r.tests)) for r in cells] == [
        (3, "inner", 2),
        (3, "finetune", 1),
        (4, "inner", 2),
        (4, "finetune", 1),
    ]
    assert cells[0].command.startswith("python run.py --domain Jester --shots 10 --queries 15 --inner-steps 50")
    assert cells[1].command.startswith("python run.py --protocol finetune --test-epochs 100 --out runs/")
    assert cells[1].command.endswith("--evaluate runs/Jester-10-15/50steps/amaml/seed3")
    assert "--resume" not in cells[0].command


def test_the_table_sets_means_over_seeds_beside_the_papers_numbers(cells):
    text = paper.tables(cells)
    row = next(line for line in text.splitlines() if line.startswith("| amaml"))
    _, _, published, unseen, seen, tuned_unseen, tuned_seen, epoch, verdict, _ = (
        part.strip() for part in row.split("|")
    )
    assert published == "0.074 ± 0.005"
    half = 12.706 * 0.1  # Student's t with one degree of freedom, standard error of 0 and 0.2
    assert unseen == f"0.800 ± {half:.3f}"
    assert seen == f"0.700 ± {half:.3f}"
    assert tuned_unseen == f"0.900 ± {half:.3f}"
    assert tuned_seen == "0.010 ± 0.000"
    assert epoch == "10 to 100"  # where the seen error is first below 0.074
    assert verdict == "seen only, Adam"
    assert "| *item mean* |  | 0.850 ± 0.000 |" in text
    assert "| amaml | 0.094 ± 0.008 |  |  |  |  |  | not run: no data |" in text  # MovieLens1M
    lines = [line for line in text.splitlines() if line.startswith("|")]
    assert {line.count("|") for line in lines} == {9}


def test_a_line_of_cells_csv_for_every_epoch_of_the_tables(cells):
    lines = list(csv.DictReader(io.StringIO(paper.cells_csv([("tables", r) for r in cells]))))
    assert [(line["seed"], line["protocol"], line["epoch"]) for line in lines[:6]] == [
        ("3", "inner", "0"),
        ("3", "inner", "50"),
        ("3", "finetune", "0"),
        ("3", "finetune", "10"),
        ("3", "finetune", "100"),
        ("3", "finetune", "110"),  # the last
    ]
    assert lines[1] | {"command": ""} == {
        "panel": "Jester-10-15",
        "method": "amaml",
        "setting": "50 steps",
        "seed": "3",
        "protocol": "inner",
        "epoch": "50",
        "support": "0.6",
        "test": "0.7",
        "command": "",
    }


def result(points: dict[str, list[float]], unit: str = "epoch", **labels: str) -> paper.Result:
    epochs = [0, 10, 1000] if unit == "epoch" else [0, 1, 200]
    tests = [entry(epochs, points["support"], points["test"], unit)]
    return paper.Result({"seed": "0"} | labels, tests, 0.25, "python run.py", None)


def test_the_figure_keeps_support_and_test_apart_and_leaves_out_empty_panels():
    points = {"support": [0.9, 0.5, 0.1], "test": [1.1, 0.8, 0.7]}
    text = paper.figure([result(points, panel="Alpine2D-100", method="amaml", setting="ours")])
    assert text.count("## ") == 1
    assert "## Alpine2D-100 (seed 0; the paper's Alpine 100/100)" in text
    assert "| amaml | 0.70 → 0.35 |  |  | 0.900 → 0.100 | 1.100 → 0.700 | not run; not run |" in text


@pytest.mark.parametrize(
    ("support", "test", "verdict"),
    [
        (0.346, 0.45, "reproduced"),  # 0.35 at two digits
        (0.344, 0.45, "test points only"),
        (0.44, 0.46, "support set only"),
        (0.2, 0.3, "not: ours lower"),
        (0.5, 0.6, "not: ours higher"),
        (0.3, 0.6, "not: between our two"),
    ],
)
def test_a_number_of_the_figure_is_reproduced_where_both_errors_are_near(support, test, verdict):
    """Two seeds whose mean counts; the paper's number is 0.40."""
    found = [result({"support": [0, 0, support + d], "test": [0, 0, test - d]}) for d in (0.2, -0.2)]
    assert paper._verdict(0.4, found, 1000) == verdict


@pytest.mark.parametrize(
    ("unseen", "seen", "passed", "verdict"),
    [
        (0.11, 0.5, [10.0], "reproduced"),
        (0.13, 0.09, [10.0], "seen only, inner loop"),
        (0.13, 0.11, [10.0, 20.0], "seen only, Adam"),
        (0.13, 0.11, [10.0, float("inf")], "not"),
    ],
)
def test_a_number_of_the_tables_is_reproduced_where_unseen_ratings_have_it(unseen, seen, passed, verdict):
    inner = [result({"support": [1, 1, seen], "test": [1, 1, unseen]}, "inner step")]
    assert paper._table_verdict((0.1, 0.01), inner, passed) == verdict


def test_the_horizons_table_has_both_protocols_in_its_columns():
    place = {"domain": "Alpine2D", "method": "fomaml", "inner_steps": "200"}
    inner = result({"support": [0.9, 0.6, 0.3], "test": [1.1, 0.8, 0.4]}, "inner step", **place)
    tuned = result({"support": [0.9, 0.5, 0.1], "test": [1.1, 0.35, 0.7]}, **place)
    assert inner.until(300) == inner
    text = paper.horizons([inner, tuned])
    assert "| fomaml | 200 | 300 | 1 | 0.25 | 1.100 | 0.400 | 0.300 | 0.350 |" in text


def test_seeds_of_different_lengths_are_compared_where_all_have_been():
    """Two seeds of 300 updates, one of them trained on to 900."""
    place = {"domain": "Alpine2D", "method": "fomaml", "inner_steps": "1000"}
    pairs = []
    for unit in ("inner step", "epoch"):
        short = result({"support": [0.9, 0.6, 0.3], "test": [1.1, 0.8, 0.4]}, unit, **place)
        long = result({"support": [0.9, 0.6, 0.3], "test": [1.1, 0.8, 0.6]}, unit, **place | {"seed": "1"})
        last = {**long.last, "update": 900, "test": {"mean": [1.1, 0.8, 0.2]}}
        pairs += [short, dataclasses.replace(long, tests=[*long.tests, last])]
    text = paper.horizons(pairs)
    assert "| fomaml | 1000 | 300 | 2 | 0.25 | 1.100 ± 0.000 | 0.500 ± 1.271 |" in text
    assert "| fomaml | 1000 | 900 | 1 | 0.25 | 1.100 | 0.200 |" in text
    left = paper_pictures._horizons(pairs[:2], "Alpine2D", 900).axes[0]
    assert [list(line.get_ydata()) for line in left.lines] == [[0.5], [0.5]]  # one of them the open mark


def test_what_reptiles_theta_becomes_stands_beside_it():
    points, place = {"support": [0.9, 0.6, 0.3], "test": [1.1, 0.8, 0.4]}, {"domain": "Alpine2D", "seed": "1"}
    before = result(points, "inner step", method="reptile", inner_steps="200", **place)
    others = [
        result(points, "inner step", method=m, inner_steps=k, **place) for m, k in (("reptile", "50"), ("amaml", "200"))
    ]
    ends = {"amaml": 0.2, "reptile": 0.3}
    after = [result(points | {"test": [0.4, 0.3, end]}, "inner step", method=m, **place) for m, end in ends.items()]
    text = paper.trained_on(after, [*others, before])
    assert "| domain | seed | Reptile | then amaml | updates | seconds | then reptile | updates | seconds |" in text
    assert "| Alpine2D | 1 | 0.400 | 0.200 | 300 | 75 | 0.300 | 300 | 75 |" in text
    text = paper.trained_on(after[:1], [*others, before])
    assert "| Alpine2D | 1 | 0.400 | 0.200 | 300 | 75 |" in text


def test_seeds_that_were_tested_at_other_updates_share_a_curve():
    """A run that was made longer in steps has been tested where the others were not."""
    place = {"domain": "Alpine2D", "method": "amaml", "inner_steps": "200"}
    once = result({"support": [0.9, 0.6, 0.3], "test": [1.1, 0.8, 0.4]}, "inner step", **place)
    both = dataclasses.replace(once, tests=[{**once.tests[0], "update": 50}, *once.tests])
    axis = Figure().subplots()
    end = paper_pictures._over_seconds(axis, [both, once], paper_pictures.STYLES["amaml"])
    assert axis.lines[0].get_ydata().tolist() == [0.4]
    assert end == (axis.lines[0].get_xdata()[0], 0.4)


def test_what_was_trained_on_starts_where_reptile_ends():
    points, place = {"support": [0.9, 0.6, 0.3], "test": [1.1, 0.8, 0.4]}, {"domain": "Alpine2D", "inner_steps": "200"}
    reptile = result(points, "inner step", method="reptile", **place)
    after = result(points | {"test": [0.4, 0.3, 0.2]}, "inner step", method="amaml", domain="Alpine2D")
    right = paper_pictures._horizons([reptile], "Alpine2D", 300, [after]).axes[1]
    assert [line.get_xdata().tolist() for line in right.lines] == [[75.0], [75.0, 150.0]]
    assert [line.get_ydata().tolist() for line in right.lines] == [[0.4], [0.4, 0.2]]


def test_the_horizons_picture_says_which_runs_were_shorter():
    points = {"support": [0.9, 0.6, 0.3], "test": [1.1, 0.8, 0.4]}
    runs = [result(points, "inner step", method=m, inner_steps="200", domain="Alpine2D") for m in ("maml", "amaml")]
    longer = dataclasses.replace(runs[1], tests=[*runs[1].tests, {**runs[1].tests[0], "update": 900}])
    assert paper_pictures._exceptions([runs[0], longer], 900) == "\n(open marks: MAML 300 with 200 steps)"
    assert paper_pictures._exceptions([longer], 900) == ""
    left = paper_pictures._horizons([runs[0], longer], "Alpine2D", 900).axes[0]
    assert sorted(line.get_markerfacecolor() for line in left.lines).count("white") == 1
    names = {text.get_text(): text.xyann[1] for text in left.texts}
    assert names.keys() == {"A-MAML", "MAML"}  # whose ends are at one place
    assert abs(names["A-MAML"] - names["MAML"]) > 0.05


def test_a_picture_says_how_many_seeds_its_curves_have():
    points = {"support": [0.9, 0.6, 0.3], "test": [1.1, 0.8, 0.4]}
    runs = [result(points, seed=str(seed), method="amaml") for seed in range(3)]
    assert paper_pictures._seeds(runs[:1]) == "one seed"
    assert paper_pictures._seeds(runs) == "mean and range of 3 seeds"
    assert paper_pictures._seeds([*runs, result(points, method="maml")]) == "mean and range of 1 to 3 seeds"


def test_an_error_that_is_never_reached_is_said_to_be(cells):
    assert cells[0].passes("support", 0.5) == float("inf")
    assert paper._epochs([float("inf"), 10.0]) == "10 to never"


def test_the_papers_numbers_are_those_of_its_tables():
    tables = paper.PAPER["tables"]
    assert tables["50"]["MovieLens100K-20-30"]["maml"] == [0.050, 0.003]
    assert tables["100"]["MovieLens1M-10-15"]["reptile"] == [0.408, 0.011]
    assert sum(len(panel) for steps in tables.values() for panel in steps.values()) == 60
    assert sum(len(curves) for curves in paper.PAPER["figure"].values()) == 24
    assert set(paper.PAPER["panels"].values()) == set(paper.PAPER["figure"])
