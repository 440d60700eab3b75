"""Runge-Kutta-Chebyshev steps: stability, order, the cheapest one."""

import math

import pytest
import torch
from helpers.problems import cubic_step, stability_value

from amaml.flow.chebyshev import Chebyshev


@pytest.mark.parametrize("stages", [3, 4, 5, 9, 20, 64])
def test_chebyshev_steps_are_damped_over_their_whole_interval_and_not_beyond(stages):
    scheme = Chebyshev(stages)
    assert scheme.stability == (stages**2 - 1) / 2
    for share in torch.linspace(0.005, 1.0, 200).tolist():
        z = share * scheme.stability
        assert abs(stability_value(scheme, z)) <= (0.92 if z > 3 else 1.0)
    assert abs(stability_value(scheme, 1.4 * scheme.stability)) > 1


@pytest.mark.parametrize(("stages", "most"), [(3, 0.5), (5, 0.2), (9, 0.08), (30, 0.035)])
def test_chebyshev_steps_miss_the_third_order_by_little_and_on_what_is_not_linear_by_about_as_little(stages, most):
    """RKC's error is 0.4 of the Taylor series' third term."""
    h, scheme = 1e-3, Chebyshev(stages)
    linear = abs(stability_value(scheme, h) - math.exp(-h)) / (h**3 / 6)
    assert linear < most
    assert scheme.error_constant * 6 == pytest.approx(linear, rel=0.01)
    assert abs(cubic_step(scheme, h) - 1 / (1 + h)) / h**3 == pytest.approx(linear, rel=0.2)


def test_the_covering_step_is_the_cheapest_stable_one():
    for z in (0.1, 3.9, 4.1, 7.5, 40.0, 1000.0):
        scheme = Chebyshev().covering(z)
        assert scheme.stability >= z
        assert scheme.stages == 3 or Chebyshev(scheme.stages - 1).stability < z
