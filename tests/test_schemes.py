"""The tableaus: torchdiffeq's own steps, order and stability."""

import math

import pytest
import torch
from problems import Quadratic, mlp, regression
from torchdiffeq import odeint

from amaml import Tasks, half_mse
from amaml.flow.field import GradientFlow
from amaml.flow.schemes import EULER, MIDPOINT, RK3, RK4, Move
from amaml.flow.trajectory import Trajectory


@pytest.mark.parametrize("scheme", [EULER, MIDPOINT, RK4], ids=lambda scheme: scheme.name)
def test_fixed_steps_are_torchdiffeqs(scheme):
    (theta, apply), tasks = mlp(), regression()
    flow = GradientFlow(apply, half_mse, tasks, theta)
    times = torch.tensor([0.0, 0.3, 0.4, 1.0], dtype=torch.float64)
    trajectory = Trajectory(flow)
    ends = times.tolist()
    trajectory.extend([Move(scheme, a, b, b - a) for a, b in zip(ends[:-1], ends[1:], strict=True)])
    expected = odeint(flow, flow.start, times, method=scheme.name)[-1]
    torch.testing.assert_close(trajectory.final, expected, rtol=1e-13, atol=1e-15)


def end(scheme, apply, loss, x: float, h: float) -> float:
    """One step from u = 1 with one task of one point."""
    x = torch.full((1, 1, 1), x, dtype=torch.float64)
    flow = GradientFlow(apply, loss, Tasks(x, 0 * x, x, 0 * x), torch.ones(1, dtype=torch.float64))
    return scheme.march(flow, [Move(scheme, 0.0, h, h)], flow.start, lambda move, stages: None).item()


@pytest.mark.parametrize("scheme", [EULER, MIDPOINT, RK3, RK4], ids=lambda scheme: scheme.name)
def test_a_scheme_is_of_its_order_on_a_nonlinear_flow(scheme):
    """The flow of u^3 / 3 from 1 is 1 / (1 + t)."""
    steps = (0.02, 0.01)
    ends = [end(scheme, lambda u, x: u**3 / 3 + 0 * x, lambda value, target: value.sum(), 0.0, h) for h in steps]
    errors = [abs(u - 1 / (1 + h)) for u, h in zip(ends, steps, strict=True)]
    assert math.log2(errors[0] / errors[1]) == pytest.approx(scheme.order + 1, abs=0.2)


@pytest.mark.parametrize("scheme", [EULER, MIDPOINT, RK3, RK4], ids=lambda scheme: scheme.name)
def test_a_scheme_is_stable_on_its_interval_and_not_beyond(scheme):
    for share, stable in ((0.99, True), (1.01, False)):
        u = end(scheme, Quadratic.apply, half_mse, math.sqrt(share * scheme.stability), 1.0)
        assert (abs(u) <= 1) == stable
