"""A-MAML as a user meets it: a fresh learner's error is true, nothing right is refused, nothing absurd goes on."""

import math
import time
from dataclasses import replace
from itertools import product

import pytest
import torch
from amaml.flow.control import Control
from helpers.problems import Quadratic, generator, mlp, regression, relative_error, seeded
from torch import nn

import amaml
import data
from amaml import AMAML, Diverged, InputError, OverBudget, Tasks, half_mse
from amaml.amaml import FURTHER
from amaml.flow.curvature import Curvature
from amaml.flow.trajectory import Trajectory
from benchmarks import reference as fine
from experiment import networks


def converged(learner: AMAML, theta, tasks) -> torch.Tensor:
    return fine.converged(learner, theta, tasks, still=1e-5).value


def rough(seed: int):
    """Inputs times 10: a stiff landscape with strong negative curvature."""
    tasks = data.make("Alpine2D", data.Sampling(30, 30, 3, seed)).episode(0)
    tasks = Tasks(10 * tasks.support_x, tasks.support_y, 10 * tasks.query_x, tasks.query_y)
    return *amaml.flatten(networks.seeded(lambda: amaml.mlp(2, 1, 12), seed).double()), tasks


def smooth(seed: int):
    return *seeded(lambda: nn.Sequential(nn.Linear(2, 8), nn.Softplus(), nn.Linear(8, 1)), seed), regression(seed=seed)


@pytest.mark.parametrize("make", [rough, smooth])
@pytest.mark.parametrize("steps", [60, 300])
def test_a_fresh_learner_tells_its_error(make, steps):
    theta, apply, tasks = make(3)
    expected = converged(AMAML(apply, half_mse, 0.01, steps), theta, tasks)
    for options in ({}, {"solver": "rk4"}, {"solver": "dopri5"}, {"adjoint": "continuous"}):
        gradient = AMAML(apply, half_mse, 0.01, steps, **options).meta_gradient(theta, tasks)
        error = relative_error(gradient.value, expected)
        assert gradient.measured, options
        assert error < 3 * gradient.error, options
        assert error < 3e-3, options
        assert gradient.error < 50 * error + 1e-6, options


def diagonal(values, theta, target) -> tuple:
    """One task whose support Hessian is diagonal and whose query gradient holds every direction."""
    values = torch.tensor(values, dtype=torch.float64)
    n = len(values)
    x = (n * values).sqrt().diag()[None]
    q = torch.eye(n, dtype=torch.float64)[None] * n**0.5
    target = torch.tensor(target, dtype=torch.float64)
    tasks = Tasks(x, x @ target[:, None], q, q @ (target[:, None] + 1))
    return torch.tensor(theta, dtype=torch.float64), tasks, values


@pytest.mark.parametrize("values", [[4.0, 0.5], [50.0, 5.0], [30.0, 1.0, 1.0, 1.0, 0.2]])
@pytest.mark.parametrize("offset", [0.0, 1.0])
def test_a_stiff_direction_in_which_theta_is_optimal_does_not_spoil_the_gradient(values, offset):
    """offset 0: theta is optimal in all directions, the field vanishes; 1: in the stiff one alone."""
    target = [1.0] * len(values)
    theta, tasks, hessian = diagonal(values, [1.0, *[1.0 + offset] * (len(values) - 1)], target)
    learner = AMAML(Quadratic.apply, half_mse, 0.01, 200)
    gradient = learner.meta_gradient(theta, tasks)
    decay = torch.exp(-2 * hessian)
    final = 1 + decay * (theta - 1)
    expected = decay * (final - 2)
    assert relative_error(gradient.value, expected) < 3e-3


@pytest.mark.parametrize("solver", ["rk4", "auto", "dopri5"])
@pytest.mark.parametrize("adjoint", ["discrete", "continuous"])
def test_a_step_that_lambda_max_outran_is_found_on_the_way_back(monkeypatch, solver, adjoint):
    """Power iteration that misses the stiff direction: the products of the way back show it."""
    theta, tasks, hessian = diagonal([60.0, 4.0], [1.0, 2.0], [1.0, 1.0])
    at, rewinds, rewind = Curvature.at, [], Trajectory.rewind

    def blind(self, u):
        """Sees nothing above 4, unless it is told where to look."""
        if self.told is not None:
            return at(self, u)
        self.vectors, self.found = u, [4.0]
        return [4.0]

    class Told(Curvature):
        def __init__(self, flow, start=None, known=None):
            super().__init__(flow, start, known)
            self.told = start

    monkeypatch.setattr("amaml.flow.mesh.Curvature", Told)
    monkeypatch.setattr(Curvature, "at", blind)
    monkeypatch.setattr(Trajectory, "rewind", lambda self, count, u: (rewinds.append(count), rewind(self, count, u)))
    gradient = AMAML(Quadratic.apply, half_mse, 0.01, 200, solver, adjoint).meta_gradient(theta, tasks)
    decay = torch.exp(-2 * hessian)
    assert rewinds
    assert relative_error(gradient.value, decay * (decay * (theta - 1) - 1)) < 3e-3


def test_a_converged_loop_is_a_success():
    """A proximal term and a long horizon: the flow stands still, and |du/dt| is rounding noise."""
    (theta, apply), tasks = mlp(), regression()
    expected = AMAML(apply, half_mse, 0.1, 200, prox=1.0, rtol=1e-6).meta_gradient(theta, tasks).value
    for solver, dtype in product(("auto", "dopri5", "rk4"), (torch.float32, torch.float64)):
        learner = AMAML(apply, half_mse, 0.1, 200, solver=solver, prox=1.0)
        gradient = learner.meta_gradient(theta.to(dtype), tasks.to(dtype))
        assert relative_error(gradient.value.double(), expected) < 3e-3, (solver, dtype)


def test_linear_regression_over_a_long_horizon_is_a_success():
    g = generator(4)
    x, q = (torch.randn(3, 6, 8, generator=g, dtype=torch.float64) for _ in range(2))  # fewer points than parameters
    y = torch.randn(3, 6, 1, generator=g, dtype=torch.float64)
    theta = torch.linspace(-1, 1, 8, dtype=torch.float64)
    gradient = AMAML(Quadratic.apply, half_mse, 0.1, 5000).meta_gradient(theta, Tasks(x, y, q, y))
    hessian = x.mT @ x / 6
    decay = torch.matrix_exp(-500 * hessian)
    minimum = torch.linalg.pinv(hessian) @ (x.mT @ y / 6)
    final = decay @ (theta[:, None] - minimum) + minimum
    expected = (decay @ (q.mT @ (q @ final - y) / 6)).mean(0)[:, 0]
    assert relative_error(gradient.value, expected) < 3e-3


@pytest.mark.parametrize("solver", ["dopri5", "bosh3", "rk4"])
def test_the_continuous_adjoint_suits_every_solver(solver):
    """Its error is of second order, whatever the solver's."""
    theta, apply, tasks = rough(1)
    learner = AMAML(apply, half_mse, 0.01, 200, solver=solver, adjoint="continuous", rtol=1e-2)
    gradient = learner.meta_gradient(theta, tasks)
    error = relative_error(gradient.value, converged(learner, theta, tasks))
    assert error < 3e-2
    assert error < 1.5 * gradient.error


def test_euler_with_the_continuous_adjoint_is_compared_with_the_gradient_of_its_steps():
    (theta, apply), tasks = mlp(), regression()
    exact = AMAML(apply, half_mse, 0.1, 30, solver="euler").meta_gradient(theta, tasks)
    learner = AMAML(apply, half_mse, 0.1, 30, solver="euler", adjoint="continuous")
    gradient = learner.meta_gradient(theta, tasks)
    assert exact.error is None
    assert gradient.measured
    assert gradient.error == pytest.approx(relative_error(gradient.value, exact.value))
    assert gradient.error > 1e-4
    later = [learner.meta_gradient(theta, tasks) for _ in range(3)][-1]
    assert later.error == pytest.approx(gradient.error)
    assert torch.equal(later.value, gradient.value)


@pytest.mark.parametrize("solver", ["auto", "rk4", "rkc", "dopri5", "bosh3", "midpoint"])
def test_an_absurd_inner_lr_ends_in_seconds_with_a_clear_line(solver):
    (theta, apply), tasks = mlp(), regression()
    start = time.monotonic()
    learner = AMAML(apply, half_mse, 1000.0, 200, solver=solver)
    for call in (learner.meta_gradient, learner.adapt):
        with pytest.raises(OverBudget, match="more than the 8000 evaluations .* try a smaller inner_lr"):
            call(theta, tasks)
    assert time.monotonic() - start < 20


def test_a_batch_that_costs_four_times_the_median_is_left_out():
    theta, apply, tasks = rough(0)
    learner = AMAML(apply, half_mse, 0.01, 60)
    for _ in range(6):
        learner.meta_gradient(theta, tasks)
    state = learner.control.state_dict()
    stiff = Tasks(30 * tasks.support_x, tasks.support_y, tasks.query_x, tasks.query_y)
    with pytest.raises(OverBudget, match="more than the .* evaluations of its budget"):
        learner.meta_gradient(theta, stiff)
    assert learner.control.state_dict() == state


def test_an_error_that_cannot_be_brought_below_rtol_is_refused(monkeypatch):
    (theta, apply), tasks = mlp(), regression()
    monkeypatch.setattr("amaml.amaml.relative_distance", lambda a, b: 0.5)
    monkeypatch.setattr(Control, "budget", lambda control, inner_steps: 500)
    with pytest.raises(OverBudget, match=r"measured relative error is 2, above rtol 0.001, .* try a smaller inner_lr"):
        AMAML(apply, half_mse, 0.05, 40).meta_gradient(theta, tasks)


def settled_on_a_rough_batch(monkeypatch, distances):
    """A learner, theta and tasks; what it measures next are these distances, at once: those between one resolution and
    the next, then that between the first and the last."""
    theta, apply, tasks = rough(0)
    learner = AMAML(apply, half_mse, 0.01, 60, solver="rkc")
    for _ in range(8):
        learner.meta_gradient(theta, tasks)
    found = iter(distances)
    monkeypatch.setattr("amaml.amaml.relative_distance", lambda a, b: next(found))
    monkeypatch.setattr(Control, "due", lambda *arguments: True)
    return learner, theta, tasks


def test_a_settled_learner_takes_an_error_of_up_to_three_rtol_and_a_fresh_one_does_not(monkeypatch):
    learner, theta, tasks = settled_on_a_rough_batch(monkeypatch, [0.006, 0, 0.006, 0.0001, 0])
    assert learner.meta_gradient(theta, tasks).error == pytest.approx(2e-3)
    fresh = replace(learner, control=Control())
    assert fresh.meta_gradient(theta, tasks).error < 1e-3


def test_every_finer_solve_has_a_budget_of_its_own(monkeypatch):
    """An error of 7 rtol is brought below rtol by a third resolution within budgets of just its price."""
    learner, theta, tasks = settled_on_a_rough_batch(monkeypatch, [0.002, 0, *2 * [0.02, 0.0001, 0], 0.02])
    once, twice = learner.look(theta, tasks), limited(monkeypatch, learner, math.inf).look(theta, tasks)
    assert twice.error < 1e-3
    needed = twice.evaluations.total - once.evaluations.total
    assert limited(monkeypatch, learner, needed / FURTHER).look(theta, tasks).error < 1e-3
    with pytest.raises(OverBudget, match="measured relative error is 0.0067"):
        limited(monkeypatch, learner, (needed - 1) / FURTHER).look(theta, tasks)


def limited(monkeypatch, learner, budget):
    monkeypatch.setattr(Control, "budget", lambda *arguments: budget)
    return learner


def test_a_batch_that_no_solve_within_the_budget_makes_accurate_is_left_out(monkeypatch):
    learner, theta, tasks = settled_on_a_rough_batch(monkeypatch, [0.5] * 20)
    state = learner.control.state_dict()
    with pytest.raises(OverBudget, match="measured relative error is 2, above rtol 0.001, and .* do not suffice"):
        learner.meta_gradient(theta, tasks)
    assert learner.control.state_dict() == state


def test_the_error_is_relative_to_the_mean_over_the_tasks():
    """Two tasks whose gradients nearly cancel: the mean is held to rtol of its own size."""
    theta, apply, tasks = rough(2)
    one = tasks[:1]
    single = AMAML(apply, half_mse, 0.01, 60).meta_gradient(theta, one)
    mirrored = one.query_y + 2 * (
        apply(AMAML(apply, half_mse, 0.01, 60).adapt(theta, one)[0], one.query_x[0]) - one.query_y
    )
    pair = Tasks(
        one.support_x.repeat(2, 1, 1),
        one.support_y.repeat(2, 1, 1),
        one.query_x.repeat(2, 1, 1),
        torch.cat([one.query_y, mirrored + 0.02]),
    )
    learner = AMAML(apply, half_mse, 0.01, 60)
    gradient = learner.meta_gradient(theta, pair)
    assert gradient.value.norm() < 0.1 * single.value.norm()
    error = relative_error(gradient.value, converged(learner, theta, pair))
    assert error < 3e-3
    assert error < 3 * gradient.error


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_refused(dtype):
    (theta, apply), tasks = mlp(), regression()
    with pytest.raises(InputError, match="whose rounding spoils the adjoint; use float32 or float64"):
        AMAML(apply, half_mse, 0.05, 4).meta_gradient(theta.to(dtype), tasks.to(dtype))


def test_a_tolerance_that_a_dtype_cannot_reach_is_refused_with_the_one_it_can():
    (theta, apply), tasks = mlp(), regression()
    with pytest.raises(
        InputError, match="rtol 1e-05 is more than torch.float32 can reach; use 0.0001 or more, or float64"
    ):
        AMAML(apply, half_mse, 0.05, 4, rtol=1e-5).meta_gradient(theta.float(), tasks.to(torch.float32))
    gradient = AMAML(apply, half_mse, 0.05, 40, rtol=2e-4).meta_gradient(theta.float(), tasks.to(torch.float32))
    reference = AMAML(apply, half_mse, 0.05, 40, rtol=1e-7).meta_gradient(theta, tasks)
    assert relative_error(gradient.value.double(), reference.value) < 6e-4


def test_steps_that_leave_the_finite_numbers_are_taken_again_where_the_flow_does_not():
    """A predicted variance that falls as the mean fits: lambda_max grows a hundredfold within a few steps."""

    def negative_log_likelihood(prediction, target):
        mean, log_variance = prediction.chunk(2, -1)
        return (log_variance + (mean - target) ** 2 * torch.exp(-log_variance)).mean() / 2

    theta, apply = seeded(lambda: nn.Sequential(nn.Linear(2, 16), nn.Tanh(), nn.Linear(16, 2)), 2)
    tasks = regression(tasks=1)
    gradient = AMAML(apply, negative_log_likelihood, 0.01, 250, rtol=3e-2).meta_gradient(theta, tasks)
    reference = AMAML(apply, negative_log_likelihood, 0.01, 250, rtol=1e-3).meta_gradient(theta, tasks)
    assert relative_error(gradient.value, reference.value) < 3e-2


def test_a_flow_that_leaves_the_finite_numbers_is_an_error():
    def exploding(prediction, target):
        return -prediction.exp().mean()

    (theta, apply), tasks = mlp(), regression()
    with pytest.raises(Diverged):
        AMAML(apply, exploding, 0.5, 200).meta_gradient(theta, tasks)
