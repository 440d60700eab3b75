"""Whether a meta-gradient may be trusted: its error estimate, suspicion, refinement and refusal."""

import contextlib
import math

import pytest
import torch
from problems import mlp, regression, relative_error

import amaml
import data
from amaml import AMAML, Diverged, half_mse
from amaml.experiment.networks import initialise
from amaml.flow.adjoint import Adjoint, continuous, discrete
from amaml.flow.error import error_of_sample, most_suspect, relative_distance
from amaml.flow.field import Evaluations, GradientFlow
from amaml.flow.steps import solve
from amaml.learner import Chunked

refines = pytest.mark.filterwarnings("ignore:meta-gradients with an estimated error")
ROUGH = [("Alpine2D", 50, 8, 500, 6), ("CosMixture2D", 50, 32, 500, 9)]


def rough(domain: str, points: int, width: int, steps: int, seed: int):
    """A landscape with strong negative curvature: inputs times 10. The default learner, theta, tasks, reference."""
    tasks = data.make(domain, data.Sampling(points, points, 5, seed)).episode(0)
    tasks = amaml.Tasks(10 * tasks.support_x, tasks.support_y, 10 * tasks.query_x, tasks.query_y)
    theta, apply = initialise(lambda: amaml.mlp(2, 1, width), seed, torch.float64, "cpu")
    reference = AMAML(apply, half_mse, 0.01, steps, solver="rk4", rtol=1e-6).meta_gradient(theta, tasks).value
    return AMAML(apply, half_mse, 0.01, steps), theta, tasks, reference


def unsuspecting(monkeypatch) -> None:
    for name in ("GROWTH", "ACCELERATION"):
        monkeypatch.setattr(f"amaml.flow.error.{name}", math.inf)


@pytest.mark.parametrize("problem", ROUGH)
@refines
def test_errors_that_grow_unseen_are_found_and_mended(problem, monkeypatch):
    learner, theta, tasks, reference = rough(*problem)
    gradient = learner.meta_gradient(theta, tasks)
    assert gradient.error < 1e-2
    assert relative_error(gradient.value, reference) < 3e-3
    unsuspecting(monkeypatch)
    wrong = learner.meta_gradient(theta, tasks)
    assert wrong.error < 1e-2 < relative_error(wrong.value, reference)
    assert wrong.evaluations.gradients < gradient.evaluations.gradients / 2


def test_a_suspect_gradient_that_is_right_costs_one_task_more(monkeypatch):
    """Alpine2D over 1000 steps: lam doubles on its way back."""
    tasks = data.make("Alpine2D", data.Sampling(100, 100, 5, 0)).episode(0)
    theta, apply = initialise(lambda: amaml.mlp(2, 1), 0, torch.float64, "cpu")
    learner = AMAML(apply, half_mse, 0.01, 1000)
    looked = learner.meta_gradient(theta, tasks)
    unsuspecting(monkeypatch)
    plain = learner.meta_gradient(theta, tasks)
    assert torch.equal(looked.value, plain.value)
    assert 1.1 < looked.evaluations.gradients / plain.evaluations.gradients < 1.4
    reference = AMAML(apply, half_mse, 0.01, 1000, solver="rk4", rtol=1e-6).meta_gradient(theta, tasks).value
    assert relative_error(looked.value, reference) < looked.error < 1e-2


def test_the_error_estimate_follows_the_error():
    (theta, apply), tasks = mlp(), regression(shots=20)
    reference = AMAML(apply, half_mse, 0.01, 400, solver="rk4", rtol=1e-8).meta_gradient(theta, tasks).value
    for rtol in (1e-2, 1e-3, 1e-4):
        gradient = AMAML(apply, half_mse, 0.01, 400, solver="rk4", rtol=rtol).meta_gradient(theta, tasks)
        assert 0.1 < gradient.error / relative_error(gradient.value, reference) < 10


def saddle(theta, x):
    """As a loss: falls along the second parameter as it leaves 0, where that and lam grow like exp(t)."""
    return (theta[:1] ** 2 - theta[1:] ** 2).expand(len(x), 1) / 2 + 0 * x


def first(prediction, target):
    return prediction.mean()


@pytest.mark.parametrize("sweep", [discrete, continuous])
@pytest.mark.parametrize("horizon", [1.0, 2.0])
def test_negative_curvature_shows_in_both_sweeps(sweep, horizon):
    x = torch.ones(2, 3, 1, dtype=torch.float64)
    theta, tasks = torch.tensor([0.0, 1e-3], dtype=torch.float64), amaml.Tasks(x, x, x, x)
    flow = GradientFlow(saddle, first, tasks, theta)
    trajectory = solve(flow, "auto", 0.01, round(100 * horizon), 1e-5)
    one, *_, last = trajectory.moves
    speeds = [(math.exp(move.end) - math.exp(move.start)) / move.h for move in (one, last)]
    found = sweep(flow, trajectory, torch.tensor([[0.0, 1.0], [1.0, 0.0]], dtype=torch.float64))
    tolerance = {"rtol": 1e-2, "atol": 0}
    torch.testing.assert_close(found.growth, torch.tensor([math.exp(horizon), 1.0]).double(), **tolerance)
    torch.testing.assert_close(found.acceleration, torch.full((2,), speeds[1] / speeds[0]).double(), **tolerance)


@pytest.mark.parametrize("horizon", [0.25, 0.5, 1.0])
def test_growth_counts_in_the_estimate(horizon):
    """exp(T) of lam, and of the speed a little less: it is a mean over a step."""
    x = torch.ones(2, 3, 1, dtype=torch.float64)
    theta, tasks = torch.tensor([0.0, 1e-3], dtype=torch.float64), amaml.Tasks(x, x, x, x)
    error = AMAML(saddle, first, 0.01, round(100 * horizon)).meta_gradient(theta, tasks).error
    assert 0.99 * math.exp(horizon) < error / 1e-3 < 1.01 * math.exp(2 * horizon)


def test_the_tasks_that_are_looked_at_again_are_those_whose_errors_weigh_most():
    lam = torch.diag(torch.tensor([1.0, 2, 3, 4, 5, 6, 7, 8, 9, 10]))
    ones = torch.ones(10)
    growth, acceleration = ones.clone(), ones.clone()
    growth[3], acceleration[6] = 5.0, 3.0
    assert most_suspect(Adjoint(lam, lam, growth, acceleration)).tolist() == [6, 3]
    assert most_suspect(Adjoint(lam[:3], lam[:3], ones[:3], ones[:3])).tolist() == [2]


def test_the_error_of_a_sample_bounds_that_of_the_mean():
    """Independent errors of one size: the mean of B errs by about 1/sqrt(B) of a task's error."""
    generator = torch.Generator().manual_seed(0)
    exact = torch.ones(400, 50, dtype=torch.float64)
    found = exact + 1e-2 * torch.randn(exact.shape, generator=generator, dtype=torch.float64)
    true = relative_distance(found.mean(0), exact.mean(0))
    which = torch.arange(80)
    assert error_of_sample(found, which, exact[which]) == pytest.approx(3 * true, rel=0.2)
    assert error_of_sample(0 * found, which, exact[which]) == math.inf
    assert error_of_sample(0 * found, which, 0 * exact[which]) == 0.0


def test_a_share_of_the_tasks_counts_as_a_share_of_a_call():
    total = Evaluations(10, 20, 0)
    total.add(Evaluations(41, 40, 3), share=1 / 5)
    assert total == Evaluations(19, 28, 1)


def test_an_unstable_gradient_is_refined_with_a_warning(monkeypatch):
    """Steps far outside the stability interval, as a wrong estimate of lambda_max would make them."""
    (theta, apply), tasks = mlp(), regression(shots=20)
    tasks = amaml.Tasks(3 * tasks.support_x, tasks.support_y, 3 * tasks.query_x, tasks.query_y)
    monkeypatch.setattr("amaml.flow.steps.Curvature.at", lambda self, u: [0.5] * len(u))
    learner = AMAML(apply, half_mse, 0.05, 400, solver="rk4", rtol=1e-2)
    with pytest.warns(RuntimeWarning, match="computed again with finer steps"), contextlib.suppress(Diverged):
        assert learner.meta_gradient(theta, tasks).error <= 0.1


@refines
def test_a_gradient_on_which_no_two_resolutions_agree_is_refused(monkeypatch):
    (theta, apply), tasks = mlp(), regression(shots=20)
    monkeypatch.setattr("amaml.amaml.relative_distance", lambda a, b: 0.5)
    monkeypatch.setattr("amaml.amaml.doubts_of", lambda *found: amaml.flow.error.Doubts(0.02, 1.0, False))
    with pytest.raises(Diverged, match="estimated relative error is 0.5, above 0.01, and finer steps do not help"):
        AMAML(apply, half_mse, 0.01, 20).meta_gradient(theta, tasks)


def test_euler_has_no_error_and_nothing_to_refine():
    (theta, apply), tasks = mlp(), regression()
    assert AMAML(apply, half_mse, 0.05, 10, solver="euler").meta_gradient(theta, tasks).error is None


def test_finer_steps_tell_the_error():
    (theta, apply), tasks = mlp(), regression(shots=20)
    learner = AMAML(apply, half_mse, 0.01, 400, rtol=1e-2)
    reference = AMAML(apply, half_mse, 0.01, 400, solver="rk4", rtol=1e-8).meta_gradient(theta, tasks).value
    value, finer = (lr.meta_gradient(theta, tasks).value for lr in (learner, learner.finer()))
    assert relative_error(finer, reference) < relative_error(value, reference) / 4
    assert isinstance(Chunked(learner, 2).finer().learner, AMAML)
