"""The pictures of a single run: what they show, read off the figures before they are saved."""

import numpy as np
import pytest
import torch
from helpers.commands import start
from PIL import Image

import data
from experiment import figures
from experiment.build import build
from experiment.distributed import Group
from experiment.figures import Fits, draw_curves, draw_fits
from experiment.settings import merged

TITLE = "Alpine2D, 4 shots, 4 queries, 2 inner steps: amaml, seed 7"


@pytest.fixture
def drawn(monkeypatch):
    """The figures, which are not made into files."""
    shown = []
    monkeypatch.setattr(figures, "_png", lambda figure: shown.append(figure) or b"png")
    return shown


def entry(update: int, level: float, unit: str = "epoch") -> dict:
    points = {"mean": [level + 1, level], "ci95": [0.1, None]}
    return {
        "update": update,
        "tasks": 5,
        "metric": "nRMSE",
        "unit": unit,
        "epochs": [0, 10],
        "support": points,
        "test": {"mean": [level + 2, level + 1], "ci95": [0.2, 0.2]},
    }


METRICS = [{"update": 1, "query_loss": 2.0}, {"update": 3, "query_loss": 1.0}]


def test_the_curves_show_every_protocol_every_meta_test_and_the_training(drawn):
    tests = [
        entry(update, level) | {"also": [entry(update, level, "inner step")]} for update, level in ((2, 3), (3, 1))
    ]
    scratch = entry(3, 5)
    tests[-1]["scratch"] = [scratch, None]  # it left the finite numbers by its own inner loop
    draw_curves(TITLE, tests, METRICS)
    assert drawn[0].get_suptitle().startswith(TITLE)
    finetuned, inner, over_updates, training = drawn[0].axes
    assert (finetuned.get_xlabel(), inner.get_xlabel()) == ("fine-tuning epoch", "inner step")
    np.testing.assert_array_equal(finetuned.lines[0].get_xydata(), [[0, 3], [10, 2]])  # of the last one, on test points
    np.testing.assert_array_equal(finetuned.lines[2].get_xydata(), [[0, 7], [10, 6]])
    assert (len(finetuned.lines), len(inner.lines)) == (3, 2)
    np.testing.assert_array_equal(over_updates.lines[0].get_xydata(), [[2, 4], [3, 2]])
    np.testing.assert_array_equal(over_updates.lines[1].get_xydata(), [[2, 3], [3, 1]])
    np.testing.assert_array_equal(training.lines[0].get_xydata(), [[1, 2.0], [3, 1.0]])


def test_a_single_meta_test_is_no_curve_over_updates(drawn):
    draw_curves(TITLE, [entry(3, 1) | {"also": []}], METRICS)
    assert len(drawn[0].axes) == 2


@pytest.mark.parametrize("dimensions", [1, 2])
def test_a_fitted_task_carries_its_errors(drawn, dimensions):
    x = np.linspace(0, 1, 9 * dimensions).reshape(1, 9, dimensions)
    y = np.zeros((1, 9, 1))
    draw_fits(TITLE, Fits(x, y, x, y, y, y, np.array([0.75]), np.array([0.25]), "nRMSE", "7 inner steps"))
    figure = drawn[0]
    texts = [axis.get_title() for axis in figure.axes]
    texts += [text.get_text() for axis in figure.axes if axis.get_legend() for text in axis.get_legend().get_texts()]
    assert figure.get_suptitle() == TITLE
    for text in ("before adaptation\nnRMSE 0.75", "after 7 inner steps\nnRMSE 0.25"):
        assert text in texts


def test_fitted_tasks_are_in_the_units_of_the_formula_with_their_errors(monkeypatch):
    flags = {"domain": "CosMixture", "shots": 5, "queries": 5, "test_epochs": 3, "test_tasks": 2, "draw": 2, "width": 4}
    s, shown = merged(flags | {"dtype": "float64"}), []
    monkeypatch.setattr("experiment.figures.draw_fits", lambda title, fits: shown.append((title, fits)))
    e = build(s, Group())
    e.picture()
    title, fits = shown[0]
    assert title == "CosMixture, 5 shots, 5 queries, 200 inner steps: amaml, seed 0"
    np.testing.assert_allclose(fits.x[0, [0, -1], 0], [-1, 1], rtol=1e-12)  # the ends of the grid
    deviation = e.domain.y_scale[1]
    for predictions, errors in ((fits.before, fits.errors_before), (fits.after, fits.errors_after)):
        in_deviations = (predictions - fits.truth) / deviation
        np.testing.assert_allclose(np.sqrt((in_deviations**2).mean((1, 2))), errors, rtol=1e-9)
    assert (fits.errors_after < fits.errors_before).all()


@pytest.mark.parametrize(("domain", "panels"), [("CosMixture", 1), ("CosMixture2D", 4)])
def test_draw_shows_data_truth_and_both_fits(tmp_path, monkeypatch, domain, panels):
    shown = []
    png = figures._png
    monkeypatch.setattr(figures, "_png", lambda figure: shown.append(figure) or png(figure))
    assert start(tmp_path / "run", "--domain", domain, "--draw", "2") == 0
    with Image.open(tmp_path / "run" / "fits.png") as picture:
        assert picture.format == "PNG"
        assert min(picture.size) > 400
    curves, fits = shown
    axes = [a for a in fits.axes if a.get_label() != "<colorbar>"]
    assert len(axes) == 2 * panels
    family = data.make(domain, data.Sampling(4, 4, 2, 0))
    tasks = family.meta_test(2)
    (support_x, support_y), (_, truths) = (
        family.in_units(*pair) for pair in ((tasks.support_x, tasks.support_y), (tasks.test_x, tasks.test_y))
    )
    for task, first in enumerate(axes[::panels]):
        support, truth = support_x[task], truths[task, :, 0]
        if panels == 1:
            lines = {line.get_label(): line.get_ydata() for line in first.lines}
            assert torch.equal(torch.as_tensor(lines["truth"]), truth)
            assert torch.equal(torch.as_tensor(lines["support points"]), support_y[task, :, 0])
            before, after = (y for name, y in lines.items() if "nRMSE" in name)
            assert abs(before - after).max() > 1e-4
        else:
            surfaces = [torch.as_tensor(a.collections[0].get_array()).flatten() for a in axes[4 * task : 4 * task + 4]]
            assert torch.equal(surfaces[0], truth)
            assert (surfaces[1] - surfaces[2]).abs().max() > 1e-4
            assert torch.equal(surfaces[3], (surfaces[2] - surfaces[0]).abs())
            assert torch.equal(torch.as_tensor(first.collections[1].get_offsets().data), support)
    assert len(curves.axes) == 2
