"""What compare says of many runs, against numbers worked out by hand; the runs are files written for the purpose."""

import csv
import itertools
import json
from dataclasses import asdict
from pathlib import Path

import pytest
from helpers.commands import write_grid

from experiment import compare, figures_compare, reproduce, results
from experiment.compare import Panel, read_runs
from experiment.grid import read_grid
from experiment.settings import merged
from experiment.tables import costs, differences, errors, predictors

SIZES = {"domain": "CosMixture", "shots": 10, "queries": 10, "inner_steps": 5, "meta_updates": 20, "test_tasks": 4}


def write_run(folder: Path, test, support, unit="epoch", **flags) -> None:
    """The files of a finished run; test and support are the last meta-test's curves, 1 higher at the one before."""
    settings, tests = asdict(merged(SIZES | flags)), []
    for update, more in ((10, 1), (20, 0)):
        mean, also = {"mean": [float(settings["seed"]), 0.25]}, {"ci95": [0.5] * len(test)}
        curves = {k: {"mean": [v + more for v in curve]} | also for k, curve in (("support", support), ("test", test))}
        entry = {"update": update, "tasks": 4, "unit": unit, "epochs": [0, 10, 100][: len(test)]}
        tests.append(entry | curves | {"predictors": mean})
    folder.mkdir(parents=True)
    costs = {"query_loss": 1.0, "gradients": 3, "hvps": 3}
    lines = [{"update": n, "recomputations": 1 + n % 2} | costs for n in range(1, 21)]
    (folder / "metrics.jsonl").write_text("\n".join(map(json.dumps, lines)) + "\n")
    config = {"settings": settings, "command": ["--seed", str(settings["seed"])]}
    summary = {"metric": "nRMSE", "updates": 20, "seconds_per_update": 0.25}
    for name, content in (("config", config), ("test", tests), ("summary", summary)):
        (folder / f"{name}.json").write_text(json.dumps(content))


@pytest.fixture
def runs(tmp_path):
    """amaml on seeds 0 to 2, maml on seeds 0, 1 and 7, two rates of fomaml on seed 0."""
    folder = tmp_path / "runs"
    for seed, value in enumerate((0.5, 0.6, 0.7)):
        write_run(folder / f"amaml{seed}", [0.9, 0.8, value], [0.9, 0.5, 0.1], method="amaml", seed=seed)
    for seed, value in ((0, 0.8), (1, 0.7), (7, 0.9)):
        write_run(folder / f"maml{seed}", [0.9, 0.8, value], [0.9, 0.5, 0.2], method="maml", seed=seed)
    for rate in (0.01, 0.02):
        write_run(folder / f"fomaml-{rate}", [1, 1, 1], [1, 1, 1], method="fomaml", inner_lr=rate)
    return folder


def panels(*paths: Path) -> list[Panel]:
    return compare.panels(*read_runs(list(paths)))


def seeds(panel: Panel) -> list[tuple[str, list[int]]]:
    """Of every variant."""
    return [(label, sorted({*own["seed"]})) for label, own in panel.frame.groupby("variant", observed=True)]


def test_runs_are_gathered_by_their_test_and_by_what_differs_between_them(runs):
    (panel,) = panels(runs)
    assert panel.title == "CosMixture, 10 shots, 10 queries, 5 inner steps, fine-tuned, 4 seeds"
    fomaml = [("fomaml, inner_lr 0.01", [0]), ("fomaml, inner_lr 0.02", [0])]
    assert seeds(panel) == [("amaml", [0, 1, 2]), ("maml", [0, 1, 7]), *fomaml]
    assert panel.differences[0].startswith("inner_lr: 0.01 (amaml, maml, fomaml, inner_lr 0.01); 0.02 (fomaml, ")
    write_run(runs / "other", [1.0], [1.0], method="amaml", shots=20)
    write_run(runs / "inner", [1.0], [1.0], method="amaml", protocol="inner", unit="inner step")
    sizes = {"10-10-epochs": 4, "10-10-inner-steps": 1, "20-10-epochs": 1}
    assert {p.name.removeprefix("CosMixture-"): len(p.labels) for p in panels(runs)} == sizes


def test_seeds_that_start_from_the_same_seed_of_other_runs_are_one_variant(tmp_path):
    for seed, other in itertools.product((0, 1), ("reptile", "fomaml")):
        start = f"results/{other}/seed{seed}"
        write_run(tmp_path / f"{other}{seed}", [1.0], [1.0], method="amaml", seed=seed, start_from=start)
    (panel,) = panels(tmp_path)
    variants = [f"amaml, start_from results/{other}/seed*" for other in ("fomaml", "reptile")]
    assert seeds(panel) == [(variant, [0, 1]) for variant in variants]


def test_differences_pair_the_seeds_that_both_have(runs):
    (panel,) = panels(runs)
    _, maml, *fomaml = differences(panel, "amaml")
    # of two seeds both: 0.8 - 0.5 and 0.7 - 0.6 at the end
    assert maml == ["maml", "2", "+0.000, +0.000", "+0.000, +0.000", "+0.300, +0.100"]
    assert [row[1:] for row in fomaml] == [["1", "+0.100", "+0.200", "+0.500"]] * 2
    write_run(runs / "maml2", [0.9, 0.8, 0.9], [1.0] * 3, method="maml", seed=2)
    (panel,) = panels(runs)
    assert differences(panel, "amaml")[1][4] == "+0.200 ± 0.248"  # of 0.3, 0.1 and 0.2: t(0.975, 2) 0.1 / 3^0.5


def test_a_test_by_both_protocols_is_two_and_one_of_an_earlier_theta_is_none(runs):
    file = runs / "amaml0" / "test.json"
    entries = json.loads(file.read_text())

    def read(*changed) -> dict:
        file.write_text(json.dumps(changed))
        frame, _ = read_runs([runs / "amaml0"])
        return {key: list(own["epoch"]) for key, own in frame.groupby(["unit", "update"])}

    assert read(entries[0], entries[1] | INNER) == {("inner step", 20): [0, 1, 5]}
    other = entries[0] | {"epochs": [0, 10, 50], "also": []}  # by a protocol that the run was asked for before
    both = [entry | {"also": [entry | INNER]} for entry in entries]
    ends = {"epoch": [0, 10, 100], "inner step": [0, 1, 5]}
    assert read(other, *both) == {(unit, update): ends[unit] for unit in ends for update in (10, 20)}


INNER = {"unit": "inner step", "epochs": [0, 1, 5]}


def evaluated(run: Path, folder: Path, which: int = -1, **changes) -> Path:
    """What --evaluate writes, of one of the run's meta-tests but for what changes."""
    settings = json.loads((run / "config.json").read_text())["settings"]
    settings |= {"protocol": "inner"} if "unit" in changes else {}
    entry = json.loads((run / "test.json").read_text())[which] | {"metric": "nRMSE", "settings": settings} | changes
    folder.mkdir()
    (folder / "evaluation.json").write_text(json.dumps(entry))
    return folder


def test_an_evaluation_is_another_test_of_its_run_and_one_of_an_earlier_checkpoint_does_not_stand_for_it(runs):
    early = evaluated(runs / "amaml0", runs.parent / "early", which=0)
    evaluated(runs / "amaml0", runs / "amaml0-inner", **INNER, evaluated=str(runs / "amaml0"))
    for paths in ([early, runs], [runs, early]):
        epochs, inner = sorted(panels(*paths), key=lambda panel: panel.unit)
        assert len(epochs.labels) == 4
        assert errors(epochs, "test")[1][4].startswith("0.600")  # not the 1.5 of the earlier theta
        assert (inner.metric, inner.unit, inner.columns) == ("nRMSE", "inner step", [0, 1, 5])
        assert costs(inner)[1][2:] == ["0.2500", "4.5", "3.0"]  # gradients computed again count


def test_variants_with_other_lengths_of_test_keep_their_own_end(runs):
    write_run(runs / "short", [1.0, 0.4], [1.0, 0.4], method="reptile")
    (panel,) = panels(runs)
    assert panel.columns == [0, 10, 100, None]
    row = next(row for row in errors(panel, "test") if row[0] == "reptile")
    assert row[4:] == ["", "0.400 (± 0.500)"]


def test_the_cells_are_a_line_a_run_and_record(runs, tmp_path):
    assert reproduce.main(["compare", str(runs), "--out", str(tmp_path)]) == 0
    cells = list(csv.DictReader((tmp_path / "cells.csv").read_text().splitlines()))
    assert len(cells) == 8 * 3
    place = {
        "panel": "CosMixture-10-10-epochs",
        "method": "amaml",
        "setting": "",
        "seed": "0",
        "protocol": "finetune",
        "epoch": "100",
    }
    assert cells[2] == place | {"support": "0.1", "test": "0.5", "command": "python run.py --seed 0"}


def test_a_curve_that_leaves_the_frame_says_where_it_ends(runs):
    write_run(runs / "far", [0.9, 5.0, 9.0], [0.9, 5.0, 9.0], method="reptile")
    (panel,) = panels(runs)
    test, _ = figures_compare.adaptation(panel).axes
    assert test.get_ylim()[1] < 2
    assert "reptile (9)" in [line.get_label() for line in test.lines]


GRID = """
out = "grid/{method}/seed{seed}"
seed = [0, 1, 2]
method = ["amaml", "maml"]
then = [{ out = "{out}-inner", protocol = "inner" }]
"""
GRID += "\n".join(f"{name} = {value!r}" for name, value in SIZES.items())


def test_a_csv_says_what_the_runs_say_that_it_was_made_of(tmp_path, monkeypatch):
    """By the tables, which are the same for both; and a run that stands in both counts once."""
    monkeypatch.chdir(tmp_path)
    grid = read_grid(write_grid(tmp_path, GRID))
    for i, cell in enumerate(grid.cells):
        flags = {"method": cell.labels["method"], "seed": int(cell.labels["seed"])}
        write_run(cell.folder, [0.9, 0.8, 0.5 + i / 7], [0.9, 0.5, i / 3], **flags)
        evaluated(cell.folder, cell.steps[1].makes.parent, **INNER, evaluated=str(cell.folder))
    for cell in (*grid.cells[::-1], *grid.cells[:2]):  # two once more: in the place of what stands there
        results.collect(grid, cell)
    assert len(grid.csv.read_text().splitlines()) == 1 + 6 * 3

    def said(*paths: Path) -> list:
        tables = (lambda p: errors(p, "support"), predictors, costs)
        return [(p.title, seeds(p), p.differences, *(make(p) for make in tables)) for p in panels(*paths)]

    assert said(grid.csv) == said(Path("grid"), grid.csv) == said(Path("grid"))
    (first, _) = compare.panels(*read_runs([grid.csv], {"method": ["maml"], "seed": ["0", "2"]}))
    assert seeds(first) == [("maml", [0, 2])]
