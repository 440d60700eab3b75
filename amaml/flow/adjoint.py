"""From a trajectory and lam(T) to the meta-gradient, by Hessian-vector products on the stored states.

The adjoint state lam (tasks, P) is the sensitivity of a task's query loss to the state u(t). The meta-gradient of every
task is lam(0) + prox times the integral of D lam over [0, T], since theta pulls on u along the whole way. A Quadrature
takes the products of the sweep and sums this integral, and those of whatever else enters the field.

Stability is watched on the way: |H k| / |k| never exceeds lambda_max, for any vector k. Where a product that is taken
anyway shows that a step is outside its scheme's stability interval, the sweep ends there.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor
from torch.linalg import vector_norm

from amaml.flow.field import GradientFlow
from amaml.flow.quadrature import NOTHING, Quadrature, Requested
from amaml.flow.schemes import HEUN, Move, Stages
from amaml.flow.trajectory import Reading, Trajectory


class Adjoint(NamedTuple):
    """lam(0) (tasks, P), the integrals of the sweep by the scheme's own quadrature, and what the steps' local errors
    may have moved the query loss of each task by, (tasks,)."""

    lam: Tensor
    sweep: Quadrature
    estimate: Tensor


@dataclass(frozen=True)
class Unstable:
    """A step that lambda_max outran: its number, the state at its start, and the stiff directions (tasks, P)."""

    index: int
    state: Tensor
    stiff: Tensor


class LocalErrors:
    """Of a sweep: the sum over the steps of |<lam, d>|, with d what a step misses of the trapezoidal rule on its ends.

    d is a local error of third order from states that are kept anyway; of the last step, whose end has no slope, none.
    A guess of the error's size from batch to batch, not of the error.
    """

    def __init__(self, final: Tensor) -> None:
        self.after, self.later, self.total = final, None, final.new_zeros(len(final))

    def add(self, move: Move, stages: Stages, lam: Tensor) -> None:
        """Of a step, from the last to the first; lam at its end."""
        slope = move.scheme.slope(move.h, stages, self.after)
        if self.later is not None:
            missed = self.after - stages[0] - move.h / 2 * (slope + self.later)
            self.total = self.total + (lam * missed).sum(-1).abs()
        self.after, self.later = stages[0], slope


Jumps = Mapping[int, Sequence[tuple[Reading, Tensor]]]  # what lam gains by states on the way, by the number of the move


@torch.no_grad()
def discrete(
    flow: GradientFlow, trajectory: Trajectory, lam: Tensor, requested: Requested = NOTHING, jumps: Jumps | None = None
) -> Adjoint | Unstable:
    """The exact transpose of the forward scheme: the derivative of the numbers it computed, to rounding.

    Step by step from the last to the first, by the transpose of each step's own scheme; one Hessian-vector product
    a stage. Hager 2000, section 2; equals backpropagation through the steps.
    """
    sweep, local, jumps = Quadrature(flow, requested), LocalErrors(trajectory.final), jumps or {}
    for index, move, stages in trajectory.backwards():
        lam, direct = _jumped(lam, jumps.get(index, ()))
        if watched := move.scheme.stability < math.inf:
            local.add(move, stages, lam)
        back = move.scheme.transposed(sweep, move.h, stages, lam, direct)
        if watched and _outran(flow, move.h, back.k, back.product, move.scheme.stability):
            return Unstable(index, stages[0], flow.symmetric(back.product))
        lam = back.lam
    return Adjoint(_from_start(lam, jumps), sweep, local.total)


@torch.no_grad()
def continuous(
    flow: GradientFlow, trajectory: Trajectory, lam: Tensor, requested: Requested = NOTHING, jumps: Jumps | None = None
) -> Adjoint | Unstable:
    """The paper's own backward pass: Heun's method for dlam/dt = H(u) lam on the stored states.

        lam~_n = lam_(n+1) - h H(u_(n+1)) lam_(n+1)
        lam_n  = lam_(n+1) - h/2 (H(u_(n+1)) lam_(n+1) + H(u_n) lam~_n)

    N steps for N intervals, and one more where lam jumps within one; two Hessian-vector products each. Second order in
    the step size whatever the forward scheme: it approximates the flow's gradient and is the derivative of no computed
    loss. The integrals are taken by the trapezoidal rule on (u_n, lam_n). A-MAML, section 3.
    """
    sweep, local, jumps = Quadrature(flow, requested), LocalErrors(trajectory.final), jumps or {}
    later, before = trajectory.final, 0.0
    for index, move, stages in trajectory.backwards():
        end = 1.0
        if watched := move.scheme.stability < math.inf:
            local.add(move, stages, lam)
        for read, jump in (*reversed(jumps.get(index, ())), (Reading(stages[0], share=0.0), None)):
            if h := (end - read.share) * move.h:
                slope = sweep.product(later, lam, (before + h) / 2)
                predicted = lam - h * slope
                product = flow.hvp(read.state, flow.scaled(predicted))
                if watched and _outran(flow, h, predicted, product, HEUN.stability):
                    return Unstable(index, stages[0], flow.symmetric(product))
                lam, later, before, end = lam - h / 2 * (slope + product), read.state, h, read.share
            if jump is not None:
                sweep.add(later, lam, before / 2)
                lam, before = lam + jump, 0.0
    sweep.add(later, lam, before / 2)
    return Adjoint(_from_start(lam, jumps), sweep, local.total)


def _jumped(lam: Tensor, jumps: Sequence[tuple[Reading, Tensor]]) -> tuple[Tensor, list[Tensor]]:
    """lam at the end of a move with what it gains by the states there and before; the sensitivities to its stages."""
    direct: list[Tensor] = []
    for read, jump in jumps:
        if not read.weights:
            lam = lam + jump
            continue
        *weights, last = read.weights
        lam, more = lam + last * jump, [weight * jump for weight in weights]
        direct = [a + b for a, b in zip(direct, more, strict=True)] if direct else more
    return lam, direct


def _from_start(lam: Tensor, jumps: Jumps) -> Tensor:
    """lam(0) with what it gains by theta itself."""
    return lam + jumps[-1][0][1] if -1 in jumps else lam


def _outran(flow: GradientFlow, h: float, k: Tensor, product: Tensor, stability: float) -> bool:
    """Whether lambda_max is known to exceed stability / h for some task; waits for the device."""
    k, product = flow.symmetric(k), flow.symmetric(product)
    return bool((h * vector_norm(product, dim=-1) > stability * vector_norm(k, dim=-1)).any())


ADJOINTS = {"discrete": discrete, "continuous": continuous}
