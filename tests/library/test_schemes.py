"""Steps of Runge-Kutta and of Runge-Kutta-Chebyshev: torchdiffeq's own, order, stability, the cheapest one."""

import math

import pytest
import torch
from helpers.problems import cubic_step, mlp_flow, stability_value
from torchdiffeq import odeint

from amaml.flow.chebyshev import Chebyshev
from amaml.flow.schemes import DOPRI5, EULER, MIDPOINT, RK3, RK4, Move
from amaml.flow.trajectory import Trajectory


@pytest.mark.parametrize("scheme", [EULER, MIDPOINT, RK4], ids=lambda scheme: scheme.name)
def test_fixed_steps_are_torchdiffeqs(scheme):
    flow, times = mlp_flow(), torch.tensor([0.0, 0.3, 0.4, 1.0], dtype=torch.float64)
    trajectory = Trajectory(flow)
    ends = times.tolist()
    trajectory.extend([Move(scheme, a, b, b - a) for a, b in zip(ends[:-1], ends[1:], strict=True)])
    expected = odeint(lambda t, u: flow(u), flow.start, times, method=scheme.name)[-1]
    torch.testing.assert_close(trajectory.final, expected, rtol=1e-13, atol=1e-15)


def test_order_stability_and_error_constant_follow_from_the_tableau():
    """Of Hairer and Wanner's tables; the constants of methods with as many stages as their order are 1 / (p + 1)!."""
    known = {EULER: (1, 2.0, 1 / 2), MIDPOINT: (2, 2.0, 1 / 6), RK3: (3, 2.513, 1 / 24), RK4: (4, 2.785, 1 / 120)}
    known[DOPRI5] = (5, 3.307, 1 / 3600)  # |1/720 - 1/600| on linear problems
    for scheme, (order, stability, constant) in known.items():
        assert scheme.order == order
        assert scheme.stability == pytest.approx(stability, abs=1e-3)
        assert scheme.error_constant == pytest.approx(constant)


@pytest.mark.parametrize("scheme", [EULER, MIDPOINT, RK3, RK4, DOPRI5], ids=lambda scheme: scheme.name)
def test_a_scheme_is_of_its_order_on_a_nonlinear_flow(scheme):
    errors = [abs(cubic_step(scheme, h) - 1 / (1 + h)) for h in (0.02, 0.01)]
    assert math.log2(errors[0] / errors[1]) == pytest.approx(scheme.order + 1, abs=0.3)


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
