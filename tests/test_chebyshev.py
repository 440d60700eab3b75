"""Runge-Kutta-Chebyshev steps: stability, order, the cheapest one."""

import math

import pytest
import torch
from problems import Quadratic

import amaml
from amaml import half_mse
from amaml.flow.chebyshev import Chebyshev, fewest_stages
from amaml.flow.field import GradientFlow
from amaml.flow.schemes import Move


def stability_value(scheme, z: float) -> float:
    """R(-z): one step of size 1 on du/dt = -z u from u = 1."""
    x = torch.full((1, 1, 1), math.sqrt(z), dtype=torch.float64)
    flow = GradientFlow(Quadratic.apply, half_mse, amaml.Tasks(x, 0 * x, x, 0 * x), torch.ones(1, dtype=torch.float64))
    return scheme.march(flow, [Move(scheme, 0.0, 1.0, 1.0)], flow.start, lambda move, stages: None).item()


@pytest.mark.parametrize("stages", [2, 3, 5, 9, 20, 64])
def test_chebyshev_steps_are_damped_over_their_whole_interval_and_not_beyond(stages):
    scheme = Chebyshev(stages)
    assert scheme.stability > 0.62 * (stages**2 - 1)
    for share in torch.linspace(0.02, 1.0, 40).tolist():
        assert abs(stability_value(scheme, share * scheme.stability)) <= 1 + 1e-12
    assert abs(stability_value(scheme, 1.4 * scheme.stability)) > 1


@pytest.mark.parametrize("stages", [2, 3, 5, 9])
def test_chebyshev_steps_are_of_second_order(stages):
    errors = [abs(stability_value(Chebyshev(stages), z) - math.exp(-z)) for z in (0.02, 0.01)]
    assert abs(math.log2(errors[0] / errors[1]) - 3) < 0.1


def test_fewest_stages_is_the_cheapest_stable_step():
    for z in (0.1, 1.9, 2.1, 5.0, 40.0, 1000.0):
        scheme = fewest_stages(z)
        assert scheme.stability >= z
        assert scheme.stages == 2 or Chebyshev(scheme.stages - 1).stability < z


@pytest.mark.parametrize("stages", [2, 3, 8, 30])
def test_half_a_step_takes_the_fewest_stages_that_are_stable_for_it(stages):
    half = Chebyshev(stages).halved()
    assert half.stability >= Chebyshev(stages).stability / 2
    assert half.stages < stages or stages <= 3
