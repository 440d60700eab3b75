"""The error of a meta-gradient: what distances tell, and that no wrong order goes unseen."""

import math
from dataclasses import replace

import pytest
import torch
from helpers.problems import mlp, regression, relative_error

from amaml import AMAML, OverBudget, half_mse
from amaml.flow import steps
from amaml.flow.accuracy import error_of_finest, relative_distance, rounding
from amaml.flow.mesh import Candidate
from amaml.flow.schemes import RK4


def test_the_relative_distance():
    a = torch.tensor([3.0, 4.0], dtype=torch.float64)
    assert relative_distance(2 * a, a) == 1
    assert relative_distance(a, a) == 0
    assert relative_distance(0 * a, 0 * a) == 0
    assert relative_distance(a, 0 * a) == math.inf
    assert relative_distance(a * math.nan, a) == math.inf
    assert relative_distance(a, a * math.inf) == math.inf


@pytest.mark.parametrize("order", [1, 2, 4])
def test_the_error_of_the_finest_of_three_is_that_of_the_order_they_show(order):
    """Gradients 1 + c h^p at h = 1, 1/2, 1/4."""
    g = [1 + 0.01 * h**order for h in (1, 1 / 2, 1 / 4)]
    distances = [abs(g[0] - g[1]) / g[1], abs(g[1] - g[2]) / g[2]]
    found, true = error_of_finest(distances, 2), g[2] - 1
    assert found == pytest.approx(true, rel=0.1) if order <= 2 else true < found < 5.1 * true


def test_one_distance_is_read_with_the_order_of_the_scheme_up_to_three():
    assert error_of_finest([0.03], order=2) == pytest.approx(0.01)
    assert error_of_finest([0.07], order=4) == pytest.approx(0.01)


@pytest.mark.parametrize("distances", [[0.1, 0.1], [0.1, 0.3], [0.1, 0.06], [math.inf, 0.1]])
def test_distances_that_do_not_shrink_are_no_smaller_than_the_error(distances):
    assert error_of_finest(distances, 2) > distances[-1]


def test_a_gradient_that_is_not_finite_has_no_error():
    assert error_of_finest([math.inf], 2) == math.inf
    assert error_of_finest([0.1, math.inf], 2) == math.inf


def test_rounding_is_relative_to_the_value():
    terminal, value = torch.ones(3, 4, dtype=torch.float64), torch.full((4,), 1e-3, dtype=torch.float64)
    eps = torch.finfo(torch.float64).eps
    assert rounding(value, terminal) == pytest.approx(100 * eps * 1e3)
    assert rounding(0 * value, terminal) == math.inf


@pytest.mark.parametrize("b", [(0.4, 0.1, 0.1, 0.4), (1.0, 0.0, 0.0, 0.0)])
def test_a_scheme_of_the_wrong_order_is_found_out(monkeypatch, b):
    """RK4 whose weights are those of a scheme of first order, planned and trusted as if of fourth."""
    (theta, apply), tasks = mlp(), regression(shots=20)
    reference = AMAML(apply, half_mse, 0.01, 200, solver="dopri5", rtol=1e-6).meta_gradient(theta, tasks).value
    stub = replace(RK4, b=b)
    monkeypatch.setitem(steps.SOLVERS, "rk4", (Candidate(4, lambda z: stub, 0.9 * stub.stability),))
    learner = AMAML(apply, half_mse, 0.01, 200, solver="rk4", rtol=1e-2)
    try:
        gradient = learner.meta_gradient(theta, tasks)
    except OverBudget:
        return
    error = relative_error(gradient.value, reference)
    assert error < 3e-2
    assert error < 3 * gradient.error
    assert learner.control.gain < 0.5  # steps planned for fourth order are far too long
