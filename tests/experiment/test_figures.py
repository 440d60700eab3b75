"""The pictures of a single run: what they show, read off the figures before they are saved."""

import numpy as np
import pytest
import torch
from helpers.commands import content, start
from PIL import Image

import data
from experiment import figures
from experiment.figures import draw_curves

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
    draw_curves(TITLE, tests, METRICS)
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
