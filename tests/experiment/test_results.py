"""What the pictures of a run show; the tables and pictures of results/ come out of its CSVs again, to the byte."""

import matplotlib
import numpy as np
import pandas as pd
import pytest
import torch
from helpers.commands import ROOT, content, start
from PIL import Image

import data
from benchmarks import paper, paper_pictures
from benchmarks.peers import report
from experiment import compare, figures, figures_compare, results
from experiment.evaluation import mean_and_interval
from experiment.grid import TARGETS, read_grid
from experiment.reproduce import main

RESULTS = ROOT / "results"


@pytest.fixture(scope="module")
def found():
    """The frame of every part of the paper."""
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(ROOT)
        return {part: paper.read(targets) for part, targets in paper.TARGETS.items()}


def test_the_tables_come_out_again(found):
    made = {
        "figure.md": paper.figure(found["figure"]),
        "tables.md": paper.tables(found["tables"]),
        "horizons.md": paper.horizons(found["horizons"]),
        "trials.md": paper.trials(found["trials"]),
        "../efficiency/peers.md": report.tables(pd.read_csv(RESULTS / "efficiency" / "peers.csv")),
    }
    for name, text in made.items():
        assert text == (RESULTS / "paper" / name).read_text(), name


def test_the_table_of_images_comes_out_again():
    """Of README.md: the mean over the seeds in %, its interval, and each seed."""
    frame = results.read(RESULTS / "images" / "images.csv")
    ends = results.marked(frame).query("end and final").set_index(["run", "domain", "seed"])["test"].sort_index() * 100
    text = (RESULTS / "images" / "README.md").read_text()
    rows = [[cell.strip() for cell in line.split("|")] for line in text.splitlines()]
    names = {"amaml, euler": "amaml", "imaml, damping 1": "imaml", "imaml, damping 10": "imaml-damping10"}
    seen = [row for row in rows if len(row) == 9 and names.get(row[1], row[1]) in ends.index.get_level_values("run")]
    assert len(seen) == 9
    for row in seen:
        for domain, column in (("Omniglot", 2), ("Glyphs", 5)):
            values = ends[names.get(row[1], row[1]), domain].to_numpy()
            assert row[column] == "{:.1f} +- {:.1f}".format(*mean_and_interval(values))
            assert row[column + 1] == ", ".join(f"{value:.1f}" for value in values)


def test_every_picture_and_the_comparison_of_tomography_come_out_again(found, tmp_path, monkeypatch, capsys):
    """To the byte; pictures in the version of matplotlib that they name."""
    monkeypatch.setattr(figures, "METADATA", {"svg": {"Date": None}})
    paper_pictures.draw(found["figure"], paper.along(found["horizons"]), paper.PAPER, tmp_path)
    figures.save(report.figure(pd.read_csv(RESULTS / "efficiency" / "peers.csv")), tmp_path / "meta-update")
    only = {"setting": ["ours"], "panel": ["CosMixture-50"], "seed": ["0"]}
    for panel in compare.panels(*compare.read_runs([RESULTS / "paper" / "paper-figure.csv"], only)):
        figures_compare.draw(panel, tmp_path)
    assert main(["compare", str(RESULTS / "tomography" / "tomography.csv"), "--out", str(tmp_path)]) == 0
    comparison = (RESULTS / "tomography" / "comparison.md").read_text()
    assert (tmp_path / "comparison.md").read_text() == comparison
    assert capsys.readouterr().out == f"{comparison}\n{tmp_path}\n"
    (tmp_path / "CosMixture-50-50-epochs-adaptation.svg").rename(tmp_path / "methods-CosMixture-50.svg")
    committed = {path.name: path.read_text() for path in RESULTS.rglob("*.svg")}
    for name, text in committed.items():
        same = text == (tmp_path / name).read_text()
        assert same or f"Matplotlib v{matplotlib.__version__}" not in text, name


@pytest.mark.parametrize("target", ["paper-figure", "paper-tables", "images"])
def test_what_stands_in_a_csv_counts_as_done_in_a_clone(target, capsys, monkeypatch):
    monkeypatch.chdir(ROOT)
    count = len(read_grid(TARGETS / f"{target}.toml").cells)
    assert main([target, "--status"]) == 0
    assert capsys.readouterr().out.startswith(f"{count} cells: {count} done\n")


TITLE = "Alpine2D, 4 shots, 4 queries, 2 inner steps: amaml, seed 7"


def entry(update: int, level: float, unit: str = "epoch") -> dict:
    support, test = ({"mean": [level + n, level + n - 1], "ci95": [0.1, None]} for n in (1, 2))
    place = {"update": update, "tasks": 5, "metric": "nRMSE", "unit": unit, "epochs": [0, 10]}
    return place | {"support": support, "test": test}


METRICS = [{"update": 1, "query_loss": 2.0}, {"update": 3, "query_loss": 1.0}]


def test_the_curves_show_every_protocol_every_meta_test_and_the_training(monkeypatch):
    drawn, tests = [], [entry(n, level) | {"also": [entry(n, level, "inner step")]} for n, level in ((2, 3), (3, 1))]
    monkeypatch.setattr(figures, "_png", lambda figure: drawn.append(figure) or b"png")
    tests[-1]["scratch"] = [entry(3, 5), None]  # it left the finite numbers by its own inner loop
    figures.draw_curves(TITLE, tests, METRICS)
    assert drawn[0].get_suptitle().startswith(TITLE)
    finetuned, inner, over_updates, training = drawn[0].axes
    assert (finetuned.get_xlabel(), inner.get_xlabel()) == ("fine-tuning epoch", "inner step")
    assert (len(finetuned.lines), len(inner.lines)) == (3, 2)
    for line, points in (
        (finetuned.lines[0], [[0, 3], [10, 2]]),  # of the last one, on test points
        (finetuned.lines[2], [[0, 7], [10, 6]]),
        (over_updates.lines[0], [[2, 4], [3, 2]]),
        (over_updates.lines[1], [[2, 3], [3, 1]]),
        (training.lines[0], [[1, 2.0], [3, 1.0]]),
    ):
        np.testing.assert_array_equal(line.get_xydata(), points)


@pytest.mark.parametrize(("domain", "panels"), [("CosMixture", 1), ("CosMixture2D", 4)])
def test_draw_shows_data_truth_and_both_fits_in_the_units_of_the_formula(tmp_path, monkeypatch, domain, panels):
    shown, png = [], figures._png
    monkeypatch.setattr(figures, "_png", lambda figure: shown.append(figure) or png(figure))
    assert start(tmp_path, "--domain", domain, "--draw", "2") == 0
    with Image.open(tmp_path / "fits.png") as picture:
        assert (picture.format, min(picture.size) > 400) == ("PNG", True)
    _, fits = shown
    assert fits.get_suptitle() == f"{domain}, 4 shots, 4 queries, 2 inner steps: fomaml, seed 0"
    axes = [a for a in fits.axes if a.get_label() != "<colorbar>"]
    assert len(axes) == 2 * panels
    family = data.make(domain, data.Sampling(4, 4, 2, 0))
    tasks = family.meta_test(2)
    support_x, support_y = family.in_units(tasks.support_x, tasks.support_y)
    _, truths = family.in_units(tasks.test_x, tasks.test_y)
    means = np.zeros(2)  # over both tasks, before and after
    for task, first in enumerate(axes[::panels]):
        if panels == 1:
            lines = {line.get_label(): torch.as_tensor(line.get_ydata()) for line in first.lines}
            assert torch.equal(lines.pop("support points"), support_y[task, :, 0])
            truth, *fitted = lines.values()
            labels = list(lines)[1:]
        else:
            own = axes[4 * task : 4 * task + 4]
            truth, *fitted, error = (torch.as_tensor(a.collections[0].get_array()).flatten() for a in own)
            assert torch.equal(error, (fitted[1] - truth).abs())
            assert torch.equal(torch.as_tensor(first.collections[1].get_offsets().data), support_x[task])
            labels = [a.get_title() for a in own[1:3]]
        assert torch.equal(truth, truths[task, :, 0])
        errors = [((fit - truth) / torch.as_tensor(family.y_scale[1])).square().mean().sqrt().item() for fit in fitted]
        said = zip(("before adaptation", "after 10 epochs"), errors, strict=True)
        assert labels == [f"{when}\nnRMSE {error:.3g}" for when, error in said]
        means += np.array(errors) / 2
    test = content(tmp_path, "test.json")[-1]["test"]["mean"]
    np.testing.assert_allclose(means, [test[0], test[-1]], rtol=1e-6)
