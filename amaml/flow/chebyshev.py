"""Runge-Kutta-Chebyshev: explicit steps of second order that stay stable far beyond what a Runge-Kutta scheme allows.

The stages are those of Sommeijer, Shampine and Verwer 1997, "RKC: an explicit solver for parabolic PDEs", section 2.
The stability interval on the real axis grows with the square of their number s, and the spectrum of a gradient flow is
real: its Jacobian is minus a symmetric Hessian. What stiff components lose is damped, never amplified, also in the
transposed sweep.

RKC's step ends in its last stage. Here it ends in a combination of all of them, of the same cost, that damps more and
errs less. Of all combinations of second order whose stability polynomial P stays within DAMPED on an interval of WIDTH
(s^2 - 1), it is the one with the largest third derivative P'''(0), which a scheme of third order would have at 1 (a
linear program). The other condition of third order, on what is not linear, is then missed in about the same proportion.
RKC itself stays within 0.95 on 0.65 (s^2 - 1), and has P'''(0) = 0.6; here it is 0.55 with 3 stages, 0.83 with 5, 0.93
with 9 and 0.97 with 30.
"""

import functools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from numpy.polynomial import chebyshev
from scipy.optimize import linprog
from torch import Tensor

from amaml.flow.field import GradientFlow
from amaml.flow.quadrature import Quadrature
from amaml.flow.schemes import Stages, Transposed, Within

SHIFT = 2 / 13  # of the argument of the Chebyshev polynomials beyond 1, over 1 / s^2
WIDTH = 0.5  # of the stability interval, over s^2 - 1
DAMPED = 0.9  # largest |P| on it, from where exp(-z) has decayed on
DECAYED = 3.0
FEWEST, MOST = 3, 64  # stages


@dataclass(frozen=True)
class Chebyshev:
    """One step with s >= FEWEST stages, f_j = f(Y_j):

        Y_1 = Y_0 + m_1 h f_0
        Y_j = (1 - mu_j - nu_j) Y_0 + mu_j Y_(j-1) + nu_j Y_(j-2) + m_j h f_(j-1) + g_j h f_0
        u_next = w_0 Y_0 + ... + w_s Y_s

    Costs s gradients forward and s Hessian-vector products back. Kept of a step: Y_0 to Y_(s-1).
    """

    stages: int = FEWEST
    order = 2

    @property
    def cost(self) -> int:
        return self.stages

    @property
    def stability(self) -> float:
        """The real interval: h * lambda_max must stay below it."""
        return WIDTH * (self.stages**2 - 1)

    usable = stability  # all of it: stiff components are damped up to its end

    @property
    def error_constant(self) -> float:
        """(1 - P'''(0)) / 6."""
        return _coefficients(self.stages).within.error_constant

    @property
    def within(self) -> Within:
        """With a third Taylor coefficient as the whole step's, so that its states err no more and are damped as well.
        The stiffest components may be 1.13 times as large in them as at the start."""
        return _coefficients(self.stages).within

    def covering(self, z: float) -> "Chebyshev":
        """The cheapest step whose stability interval holds z = h * lambda_max, as far as MOST stages go."""
        return Chebyshev(min(max(FEWEST, math.ceil(math.sqrt(z / WIDTH + 1))), MOST))

    def slope(self, h: float, stages: Stages, after: Tensor) -> Tensor:
        """The field at the start of a step, from its stages."""
        return (stages[1] - stages[0]) / (h * _coefficients(self.stages).first)

    def step(self, flow: GradientFlow, h: float, u: Tensor) -> tuple[Stages, Tensor]:
        """One step of size h from u."""
        first, rest, weights, _ = _coefficients(self.stages)
        slope = flow(u)
        states = [u, u + first * h * slope]
        end = (weights[0] * u).add_(states[1], alpha=weights[1])
        for (mu, nu, m, g), weight in zip(rest, weights[2:], strict=True):
            state = (1 - mu - nu) * u
            state.add_(states[-1], alpha=mu).add_(states[-2], alpha=nu)
            states.append(state.add_(flow(states[-1]), alpha=h * m).add_(slope, alpha=h * g))
            end.add_(state, alpha=weight)
        return tuple(states[:-1]), end

    def transposed(
        self, sweep: Quadrature, h: float, stages: Stages, lam: Tensor, direct: Sequence[Tensor]
    ) -> Transposed:
        """The recurrence run backwards."""
        first, rest, weights, _ = _coefficients(self.stages)
        to_end, lam = lam, weights[-1] * lam
        to_start, to_slope, to_earlier = weights[0] * to_end, torch.zeros_like(lam), torch.zeros_like(lam)
        for j in range(self.stages, 1, -1):  # lam is the sensitivity to Y_j, to_earlier that to Y_(j-1) so far
            mu, nu, m, g = rest[j - 2]
            to_start.add_(lam, alpha=1 - mu - nu)
            to_slope.add_(lam, alpha=h * g)
            product = sweep.product(stages[j - 1], lam, h * m)
            to_earlier.add_(lam, alpha=mu).sub_(product, alpha=h * m).add_(to_end, alpha=weights[j - 1])
            if direct:
                to_earlier.add_(direct[j - 1])
            lam, to_earlier = to_earlier, nu * lam
        to_slope.add_(lam, alpha=h * first)
        product = sweep.product(stages[0], to_slope, 1.0)
        if direct:
            to_start.add_(direct[0])
        return Transposed(to_start.add_(to_earlier).add_(lam).sub_(product), to_slope, product)


class Coefficients(NamedTuple):
    """m_1; (mu_j, nu_j, m_j, g_j) for j = 2..s; w_0 to w_s; and the states within the step."""

    first: float
    rest: tuple[tuple[float, float, float, float], ...]
    weights: tuple[float, ...]
    within: Within


@functools.cache
def _coefficients(s: int) -> Coefficients:
    w0 = 1 + SHIFT / s**2
    w1 = (w0 + 1) / (WIDTH * (s**2 - 1))
    derivatives = [chebyshev.chebval(w0, chebyshev.chebder(np.eye(s + 1), n)) for n in range(4)]
    value, first, second, _ = derivatives
    b = np.empty(s + 1)
    b[2:] = second[2:] / first[2:] ** 2
    b[0], b[1] = b[2], 1 / w0
    rest = []
    for j in range(2, s + 1):
        mu, nu, m = 2 * b[j] * w0 / b[j - 1], -b[j] / b[j - 2], 2 * b[j] * w1 / b[j - 1]
        rest.append((float(mu), float(nu), float(m), float(-(1 - b[j - 1] * value[j - 1]) * m)))
    taylor = np.stack([np.ones(s + 1), *(b * w1**n * derivatives[n] for n in (1, 2, 3))])
    weights = _weights(s, w0, w1, b, value, taylor)
    ends = np.column_stack([taylor[:, :s], taylor @ weights])  # Y_s is not kept
    within = Within(ends, np.arange(4), 2, abs(1 - float(ends[3, -1])) / 6)
    return Coefficients(float(b[1] * w1), tuple(rest), tuple(weights.tolist()), within)


def _weights(s: int, w0: float, w1: float, b: np.ndarray, value: np.ndarray, taylor: np.ndarray) -> np.ndarray:
    """Of the combination, by a linear program: the stability polynomial of Y_j is 1 - b_j T_j(w0) + b_j T_j(w0 + w1 z).

    At z = 0 that of the combination has the value and the first two derivatives of exp, for second order. value: of T_j
    at w0, for j = 0..s; taylor: the value and three derivatives at 0 of each stage's polynomial.
    """
    x = np.cos(np.linspace(0, np.pi, 12 * s + 1))
    x = x[x < w0 - w1 * DECAYED]
    stiff = 1 - b * value + b * chebyshev.chebvander(x, s)
    conditions, third = taylor[:3], taylor[3]
    weights = linprog(
        -third,
        A_ub=np.concatenate([stiff, -stiff]),
        b_ub=np.full(2 * len(x), DAMPED),
        A_eq=conditions,
        b_eq=np.ones(3),
        bounds=(None, None),
    ).x
    return weights + np.linalg.lstsq(conditions, 1 - conditions @ weights, rcond=None)[0]  # to rounding
