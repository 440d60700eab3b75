"""Meta-test: fine-tuning, what is recorded of it, and how it is summed up."""

import math

import numpy as np
import pytest
import scipy.stats
import torch

from amaml import Diverged, Tasks, flatten, half_mse, mlp, rmse
from baselines import FOMAML
from experiment import report
from experiment.evaluation import Curves, Model, fine_tune, in_chunks, inner_loop, mean_and_interval


@pytest.fixture
def problem():
    """A small network to adapt, its parameters, and three tasks of different scales, with test points."""
    torch.manual_seed(0)
    theta, apply = flatten(mlp(2, 1, 5).double())
    scale = torch.tensor([1.0, 3.0, 0.2], dtype=torch.float64)[:, None, None]

    def points(count):
        x = torch.randn(3, count, 2, dtype=torch.float64)
        return x, scale * x.sin().sum(-1, keepdim=True)

    return (
        Model(apply, half_mse, rmse, lambda steps: FOMAML(apply, half_mse, 0.1, steps or 3)),
        theta,
        Tasks(*points(6), *points(4), *points(9)),
    )


def by_hand(theta, apply, tasks, task, epochs):
    """One task's fine-tuning with plain autograd: the errors at every epoch and the last parameters."""
    phi = theta.clone().requires_grad_()
    optimizer = torch.optim.Adam([phi], lr=1e-3, weight_decay=1e-6)
    rows = []
    for epoch in range(epochs + 1):
        with torch.no_grad():
            residuals = [
                apply(phi, tasks.support_x[task]) - tasks.support_y[task],
                apply(phi, tasks.test_x[task]) - tasks.test_y[task],
            ]
        rows.append([math.sqrt(sum(r * r for r in part.flatten().tolist()) / part.numel()) for part in residuals])
        if epoch < epochs:
            optimizer.zero_grad()
            (0.5 * (apply(phi, tasks.support_x[task]) - tasks.support_y[task]).square().mean()).backward()
            optimizer.step()
    return np.array(rows), phi.detach()


def test_all_tasks_at_once_are_what_each_would_be_alone(problem):
    model, theta, tasks = problem
    kept = theta.clone()
    curves, phi = fine_tune(model, theta, tasks, epochs=25)
    assert curves.epochs == [0, 10, 20, 25]
    assert torch.equal(theta, kept)
    assert phi.shape == (3, len(theta))
    for task in range(3):
        rows, alone = by_hand(theta, model.apply, tasks, task, 25)
        np.testing.assert_allclose(curves.support[:, task], rows[curves.epochs, 0], rtol=1e-12)
        np.testing.assert_allclose(curves.test[:, task], rows[curves.epochs, 1], rtol=1e-12)
        torch.testing.assert_close(phi[task], alone, rtol=1e-12, atol=1e-14)


def test_query_points_play_no_part(problem):
    model, theta, tasks = problem
    other = Tasks(tasks.support_x, tasks.support_y, tasks.query_x, 7 * tasks.query_y, tasks.test_x, tasks.test_y)
    one, two = (fine_tune(model, theta, t, epochs=10)[1] for t in (tasks, other))
    assert torch.equal(one, two)


def test_no_epochs_measure_theta_itself(problem):
    model, theta, tasks = problem
    curves, phi = fine_tune(model, theta, tasks, epochs=0)
    assert curves.epochs == [0]
    assert torch.equal(phi, theta.expand(3, -1))


def test_records_come_every_tenth_epoch_once_and_are_announced(problem):
    model, theta, tasks = problem
    announced = []
    curves, _ = fine_tune(model, theta, tasks, epochs=20, on_record=announced.append)
    assert curves.epochs == announced == [0, 10, 20]
    assert curves.test.shape == curves.support.shape == (3, 3)


@pytest.mark.parametrize("part", ["support_y", "test_y"])
def test_errors_that_are_not_finite_are_reported(problem, part):
    model, theta, tasks = problem
    getattr(tasks, part)[1, 0] = torch.inf
    with pytest.raises(Diverged, match="not finite"):
        fine_tune(model, theta, tasks, epochs=0)


def test_the_interval_is_students():
    values = np.array([1.0, 2.0, 4.0, 4.0, 9.0])
    mean, half = mean_and_interval(values)
    assert mean == 4.0
    assert half == pytest.approx(2.776445105 * math.sqrt(38 / 4) / math.sqrt(5), rel=1e-9)  # t(0.975, 4) = 2.776
    low, high = scipy.stats.ttest_1samp(values, 0).confidence_interval(0.95)
    assert (mean - half, mean + half) == pytest.approx((low, high))


def test_one_value_has_no_interval():
    mean, half = mean_and_interval(np.array([3.0]))
    assert mean == 3.0
    assert math.isnan(half)


def test_an_entry_averages_over_tasks_and_not_over_epochs():
    curves = Curves([0, 10], np.array([[1.0, 3.0], [0.5, 0.5]]), np.array([[2.0, 4.0], [1.0, 2.0]]))
    entry = report.test_entry(7, curves, {"zero": np.array([1.0, 2.0])}, "nRMSE")
    assert (entry["update"], entry["tasks"], entry["epochs"]) == (7, 2, [0, 10])
    assert entry["support"]["mean"] == [2.0, 0.5]
    assert entry["predictors"]["zero"] == pytest.approx((1.5, 6.353102368))
    assert entry["test"]["mean"] == [3.0, 1.5]
    assert entry["test"]["ci95"] == pytest.approx([12.706204736, 6.353102368])  # t(0.975, 1) = 12.706
    single = report.test_entry(7, Curves([0], np.array([[1.0]]), np.array([[2.0]])), {}, "nRMSE")
    assert single["test"]["ci95"] == [None]


@pytest.mark.parametrize(
    ("last", "expected"),
    [(1000, [0, 10, 100, 500, 1000]), (120, [0, 10, 100, 120]), (2000, [0, 10, 100, 500, 1000, 2000]), (0, [0])],
)
def test_the_summary_shows_the_papers_epochs_and_the_last(last, expected):
    epochs = sorted({*range(0, last + 1, 10), last})
    curve = {"mean": [float(e) for e in epochs], "ci95": [e / 2 for e in epochs]}
    rows = report.at_epochs({"unit": "epoch", "epochs": epochs, "support": curve, "test": curve})
    assert [row["epoch"] for row in rows] == expected
    assert all(row["test"] == row["epoch"] and row["support_ci95"] == row["epoch"] / 2 for row in rows)


def test_the_table_lists_every_row_in_columns():
    entry = {
        "metric": "nRMSE",
        "unit": "inner step",
        "epochs": [0, 3],
        "support": {"mean": [0.5, 0.5], "ci95": [0.1, 0.1]},
        "test": {"mean": [1.25, 1.25], "ci95": [0.2, None]},
        "predictors": {"user mean": (0.9, 0.1)},
        "also": [],
    }
    title, header, first, second, predictor = report.table("what ran", entry).splitlines()
    assert title == "what ran"
    assert header.split() == ["inner", "step", "nRMSE", "on", "support", "nRMSE", "on", "test", "points"]
    assert first.split() == ["0", "0.5000", "+-", "0.1000", "1.2500", "+-", "0.2000"]
    assert second.split() == ["3", "0.5000", "+-", "0.1000", "1.2500"]
    assert len({len(line) for line in (header, first, second)}) == 1
    assert predictor.split() == ["user", "mean", "0.9000", "+-", "0.1000"]


def steps_by_hand(theta, apply, tasks, task, steps):
    """Parameters of one task after so many steps of gradient descent of size 0.1, with plain autograd."""
    phi = theta.clone().requires_grad_()
    for _ in range(steps):
        loss = 0.5 * (apply(phi, tasks.support_x[task]) - tasks.support_y[task]).square().mean()
        phi = (phi - 0.1 * torch.autograd.grad(loss, phi)[0]).detach().requires_grad_()
    return phi.detach()


@pytest.mark.parametrize(("steps", "expected"), [(7, [0, 1, 5, 7]), (None, [0, 1, 3]), (1, [0, 1])])
def test_the_inner_loop_is_measured_on_the_test_points_after_each_number_of_steps(problem, steps, expected):
    model, theta, tasks = problem
    curves, phi = inner_loop(model, theta, tasks, steps)
    assert (curves.epochs, curves.unit) == (expected, "inner step")
    for task in range(3):
        for record, n in enumerate(expected):
            by_hand = steps_by_hand(theta, model.apply, tasks, task, n)
            for name in ("support", "test"):
                x, y = getattr(tasks, f"{name}_x")[task], getattr(tasks, f"{name}_y")[task]
                error = rmse(model.apply(by_hand, x), y).item()
                assert getattr(curves, name)[record, task] == pytest.approx(error, rel=1e-12)
        torch.testing.assert_close(phi[task], by_hand, rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("adapt", [fine_tune, inner_loop])
@pytest.mark.parametrize("chunk", [1, 2, 3])
def test_chunks_change_nothing_and_no_more_tasks_are_there_at_once(problem, adapt, chunk):
    model, theta, tasks = problem
    sizes, options = [], {"epochs": 15} if adapt is fine_tune else {"steps": 4}

    def draw(count, first):
        sizes.append(count)
        return tasks[first : first + count]

    whole, _ = adapt(model, theta, tasks, **options)
    curves = in_chunks(lambda part: adapt(model, theta, part, **options)[0], draw, 3, chunk)
    assert sizes == {1: [1, 1, 1], 2: [2, 1], 3: [3]}[chunk]
    assert (curves.epochs, curves.unit) == (whole.epochs, whole.unit)
    np.testing.assert_allclose(curves.support, whole.support, rtol=1e-12)
    np.testing.assert_allclose(curves.test, whole.test, rtol=1e-12)
