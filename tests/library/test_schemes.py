"""The tableaus: torchdiffeq's own steps, order and stability."""

import math

import pytest
import torch
from helpers.problems import cubic_step, mlp, regression, stability_value
from torchdiffeq import odeint

from amaml import half_mse
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


@pytest.mark.parametrize("scheme", [EULER, MIDPOINT, RK3, RK4], ids=lambda scheme: scheme.name)
def test_a_scheme_is_of_its_order_on_a_nonlinear_flow(scheme):
    errors = [abs(cubic_step(scheme, h) - 1 / (1 + h)) for h in (0.02, 0.01)]
    assert math.log2(errors[0] / errors[1]) == pytest.approx(scheme.order + 1, abs=0.2)


@pytest.mark.parametrize("scheme", [EULER, MIDPOINT, RK3, RK4], ids=lambda scheme: scheme.name)
def test_a_scheme_is_stable_on_its_interval_and_not_beyond(scheme):
    for share, stable in ((0.99, True), (1.01, False)):
        assert (abs(stability_value(scheme, share * scheme.stability)) <= 1) == stable
