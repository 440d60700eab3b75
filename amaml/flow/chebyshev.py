"""Runge-Kutta-Chebyshev: explicit steps of second order that stay stable far beyond what a Runge-Kutta scheme allows.

Sommeijer, Shampine and Verwer 1997, "RKC: an explicit solver for parabolic PDEs", section 2. The stability interval on
the real axis grows with the square of the number of stages, about 0.65 s^2, and the spectrum of a gradient flow is
real: its Jacobian is minus a symmetric Hessian. What stiff components lose is damped, never amplified, also in the
transposed sweep.
"""

import functools
import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.polynomial import chebyshev
from torch import Tensor

from amaml.flow.field import GradientFlow
from amaml.flow.quadrature import Quadrature
from amaml.flow.schemes import Move, Record, Stages, Transposed

DAMPING = 2 / 13


@dataclass(frozen=True)
class Chebyshev:
    """One step with s >= 2 stages, f_j = f(Y_j):

        Y_1 = Y_0 + m_1 h f_0
        Y_j = (1 - mu_j - nu_j) Y_0 + mu_j Y_(j-1) + nu_j Y_(j-2) + m_j h f_(j-1) + g_j h f_0,    u_next = Y_s

    Costs s gradients forward and s Hessian-vector products back. Kept of a step: Y_0 to Y_(s-1).
    """

    stages: int
    order = 2

    @property
    def cost(self) -> int:
        return self.stages

    @property
    def stability(self) -> float:
        """The real interval: h * lambda_max must stay below it."""
        return _interval(self.stages)

    @torch.no_grad()
    def march(self, flow: GradientFlow, moves: Sequence[Move], u: Tensor, record: Record) -> Tensor:
        """Take the moves from u."""
        for move in moves:
            stages, u = self._step(flow, move.h, u)
            record(move, stages)
        return u

    def _step(self, flow: GradientFlow, h: float, start: Tensor) -> tuple[Stages, Tensor]:
        first, rest = _coefficients(self.stages)
        slope = flow(0.0, start)
        states = [start, start + first * h * slope]
        for mu, nu, m, g in rest:
            state = (1 - mu - nu) * start
            state.add_(states[-1], alpha=mu).add_(states[-2], alpha=nu)
            states.append(state.add_(flow(0.0, states[-1]), alpha=h * m).add_(slope, alpha=h * g))
        return tuple(states[:-1]), states[-1]

    def halved(self) -> "Chebyshev":
        """The cheapest step that is stable at half the size."""
        return fewest_stages(self.stability / 2)

    def transposed(self, sweep: Quadrature, h: float, stages: Stages, lam: Tensor) -> Transposed:
        """The recurrence run backwards."""
        first, rest = _coefficients(self.stages)
        to_start, to_slope, to_earlier = (torch.zeros_like(lam) for _ in range(3))
        for j in range(self.stages, 1, -1):  # lam is the sensitivity to Y_j, to_earlier that to Y_(j-1) so far
            mu, nu, m, g = rest[j - 2]
            to_start.add_(lam, alpha=1 - mu - nu)
            to_slope.add_(lam, alpha=h * g)
            product = sweep.product(stages[j - 1], lam, h * m)
            lam, to_earlier = to_earlier.add_(lam, alpha=mu).sub_(product, alpha=h * m), nu * lam
        to_slope.add_(lam, alpha=h * first)
        product = sweep.product(stages[0], to_slope, 1.0)
        return Transposed(to_start.add_(to_earlier).add_(lam).sub_(product), to_slope, product)


def fewest_stages(z: float) -> Chebyshev:
    """The cheapest step whose stability interval holds z = h * lambda_max."""
    stages = max(2, math.isqrt(int(z / 0.66)))
    while _interval(stages) < z:
        stages += 1
    return Chebyshev(stages)


def _values(s: int) -> tuple[float, np.ndarray, np.ndarray, np.ndarray]:
    """w0, and T_j(w0), T'_j(w0), T''_j(w0) for j = 0..s."""
    w0 = 1 + DAMPING / s**2
    unit = np.eye(s + 1)
    value = [chebyshev.chebval(w0, unit[j]) for j in range(s + 1)]
    first = [chebyshev.chebval(w0, chebyshev.chebder(unit[j], 1)) for j in range(s + 1)]
    second = [chebyshev.chebval(w0, chebyshev.chebder(unit[j], 2)) for j in range(s + 1)]
    return w0, np.array(value), np.array(first), np.array(second)


@functools.cache
def _interval(s: int) -> float:
    w0, _, first, second = _values(s)
    return float((w0 + 1) * second[s] / first[s])


@functools.cache
def _coefficients(s: int) -> tuple[float, tuple[tuple[float, float, float, float], ...]]:
    """m_1, and (mu_j, nu_j, m_j, g_j) for j = 2..s."""
    w0, value, first, second = _values(s)
    w1 = first[s] / second[s]
    b = np.empty(s + 1)
    b[2:] = second[2:] / first[2:] ** 2
    b[0], b[1] = b[2], 1 / w0
    rest = []
    for j in range(2, s + 1):
        mu, nu, m = 2 * b[j] * w0 / b[j - 1], -b[j] / b[j - 2], 2 * b[j] * w1 / b[j - 1]
        rest.append((float(mu), float(nu), float(m), float(-(1 - b[j - 1] * value[j - 1]) * m)))
    return float(b[1] * w1), tuple(rest)
