"""The tableaus against torchdiffeq's own steps."""

import pytest
import torch
from problems import mlp, regression
from torchdiffeq import odeint

from amaml import half_mse
from amaml.flow.field import GradientFlow
from amaml.flow.schemes import EULER, MIDPOINT, RK4, Move
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
