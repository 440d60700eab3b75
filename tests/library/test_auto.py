"""Solver auto: the steps themselves where the flow would be as dear, the flow where it is cheaper, looked at again."""

from dataclasses import replace

import pytest
import torch
from helpers.problems import mlp, regression, remembered, seeded
from torch import nn

from amaml import AMAML, OverBudget, half_mse
from amaml.flow.accuracy import Controller, Memory, Observation


def test_an_error_that_cannot_be_brought_below_rtol_is_refused_and_auto_descends(monkeypatch):
    (theta, apply), tasks = mlp(), regression()
    monkeypatch.setattr("amaml.flow.accuracy.relative_distance", lambda a, b: 0.5)
    with pytest.raises(OverBudget, match=r"measured relative error is inf, above 0.001, .* try a smaller inner_lr"):
        AMAML(apply, half_mse, 0.05, 40, solver="rk4", controller=Controller(first=300)).meta_gradient(theta, tasks)
    gradient = AMAML(apply, half_mse, 0.05, 100).meta_gradient(theta, tasks)
    assert (gradient.solver, gradient.error) == ("euler", None)


def relu(seed: int = 1):
    return seeded(
        lambda: nn.Sequential(nn.Linear(2, 24), nn.ReLU(), nn.Linear(24, 24), nn.ReLU(), nn.Linear(24, 1)), seed
    )


@pytest.mark.parametrize(
    ("network", "inner_lr", "steps"),
    [(mlp, 0.1, 5), (relu, 0.01, 10), (relu, 0.01, 20), (relu, 0.01, 200), (mlp, 0.8, 100)],
    ids=["few steps", "few steps with kinks", "kinks", "many kinks", "long steps"],
)
def test_auto_is_gradient_descent_at_its_price_where_the_flow_is_as_dear(network, inner_lr, steps):
    (theta, apply), tasks = network(), regression(shots=20)
    exact = AMAML(apply, half_mse, inner_lr, steps, solver="euler")
    learner = AMAML(apply, half_mse, inner_lr, steps)
    first = learner.gradient(theta, tasks, learner.init())
    assert (first.solver, first.error, first.measured) == ("euler", None, False)
    assert first.evaluations.total <= 2 * steps + 3 + 0.1 * steps
    assert torch.equal(first.value, exact.meta_gradient(theta, tasks).value)
    memory = learner.update(learner.init(), first)
    second = learner.gradient(theta, tasks, memory)
    assert second.solver == "euler"
    assert torch.equal(learner.adapt(theta, tasks, memory), exact.adapt(theta, tasks))
    assert torch.equal(learner.adapt(theta, tasks), exact.adapt(theta, tasks))


def test_auto_follows_a_smooth_flow_of_many_steps_and_remembers():
    (theta, apply), tasks = mlp(), regression(shots=20)
    learner = AMAML(apply, half_mse, 0.01, 500)
    memory = remembered(learner, theta, 6 * [tasks])
    later = learner.gradient(theta, tasks, memory)
    assert (memory.descended, later.solver) == (False, "auto")
    assert later.evaluations.total < 0.5 * 500


def test_auto_follows_the_flow_of_long_steps_where_that_is_the_cheaper():
    """Steps of inner_lr lambda_max = 1.3, and a slow direction that the gradient comes from."""
    (theta, apply), given = seeded(lambda: nn.Linear(2, 1, bias=False), 1), regression(shots=20)
    narrow = torch.tensor([1.0, 0.1], dtype=torch.float64)
    tasks = replace(given, support_x=given.support_x * narrow, query_x=given.query_x * narrow)
    learner = AMAML(apply, half_mse, 1.3 / 1.398, 200, rtol=1e-2)
    memory = remembered(learner, theta, 5 * [tasks])
    assert memory.leading.value * learner.inner_lr > 1.2
    later = learner.gradient(theta, tasks, memory)
    assert (later.solver, later.evaluations.total < 0.5 * 400) == ("auto", True)


def test_auto_looks_again_where_the_gradient_jumps():
    """From a network with kinks to one without: looks are rarer and rarer until the gradient is another one."""
    (theta, apply), tasks = mlp(), regression(shots=20)
    learner = AMAML(apply, half_mse, 0.01, 500)
    memory = Memory(learner.problem(theta), descended=True, interval=50.0)
    for norm, solver in (*(4 * [(1.0, "euler")]), (9.0, "auto")):
        seen = Observation(1000, norm=norm, descended=True)
        memory = learner.controller.update(memory, 1e-3, seen)
        assert learner.gradient(theta, tasks, memory).solver == solver
