"""Explicit Runge-Kutta schemes as data, taken step by step and transposed exactly; the adaptive ones by torchdiffeq.

A scheme is its tableau. What is kept of a step is what its transpose needs: the states at which the field was
evaluated. No autograd graph exists at any time.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple, Protocol

import torch
from torch import Tensor
from torchdiffeq import odeint

from amaml.errors import Diverged
from amaml.flow.field import GradientFlow
from amaml.flow.quadrature import Quadrature

Stages = tuple[Tensor, ...]  # the states Y_i (tasks, P) of one step at which the field was evaluated, Y_1 = u


class Move(NamedTuple):
    """One step of a trajectory, from a time to a later one; h is the size the scheme used, to the last bit."""

    scheme: "Scheme"
    start: float
    end: float
    h: float


Record = Callable[[Move, Stages], None]  # is told of every step, in order of time


class Scheme(Protocol):
    """How to take steps and how to transpose them.

    cost: gradients a step; order: of convergence; stability: the largest h * lambda_max.
    """

    cost: int
    order: int
    stability: float

    def march(self, flow: GradientFlow, moves: Sequence[Move], u: Tensor, record: Record) -> Tensor:
        """Take consecutive moves from u (tasks, P), recording each; the state at the end."""
        ...

    def transposed(self, sweep: Quadrature, h: float, stages: Stages, lam: Tensor) -> "Transposed":
        """The step's transpose, applied to the adjoint state at its end; sweep takes the products."""
        ...


class Transposed(NamedTuple):
    """lam (tasks, P) at the start of a step; and the last vector k that was multiplied by a Hessian, with the product
    H k: by their norms a lower bound of lambda_max."""

    lam: Tensor
    k: Tensor
    product: Tensor


@dataclass(frozen=True)
class RungeKutta:
    """u_next = u + h sum_i b_i f(Y_i),  Y_i = u + h sum_(j<i) a_ij f(Y_j).

    order: of convergence. stability: the real interval, h * lambda_max must stay below it. Costs a gradient a stage
    forward and at most one Hessian-vector product a stage back.
    """

    name: str
    a: tuple[tuple[float, ...], ...]
    b: tuple[float, ...]
    order: int
    stability: float

    @property
    def cost(self) -> int:
        return len(self.b)

    @torch.no_grad()
    def march(self, flow: GradientFlow, moves: Sequence[Move], u: Tensor, record: Record) -> Tensor:
        """Take consecutive moves from u, recording each; the state at the end."""
        for move in moves:
            stages, slopes = [], []
            for row in self.a:
                stages.append(_shifted(u, row, slopes, move.h))
                slopes.append(flow(0.0, stages[-1]))
            record(move, tuple(stages))
            u = _shifted(u, self.b, slopes, move.h)
        return u

    def transposed(self, sweep: Quadrature, h: float, stages: Stages, lam: Tensor) -> Transposed:
        """From the last stage to the first:
            k_i = h (b_i lam + sum_(j>i) a_ji w_j),    w_i = J_i' k_i,    lam <- lam + sum_i w_i,
        where J_i = -D H(Y_i).
        The products are taken with k_i / scale_i, where scale_i = h b_i (h where b_i is 0).
        """
        total, products = lam, {}  # products: H(Y_i) D k_i / scale_i
        scale = [h * b if b else h for b in self.b]
        for i in reversed(range(len(self.b))):
            weights = {j: h * self.a[j][i] * scale[j] / scale[i] for j in products if self.a[j][i]}
            if not weights and not self.b[i]:
                continue
            k = lam if self.b[i] else torch.zeros_like(lam)
            for j, weight in weights.items():
                k = torch.sub(k, products[j], alpha=weight)
            products[i] = sweep.product(stages[i], k, scale[i])
            total = torch.sub(total, products[i], alpha=scale[i])
        return Transposed(total, k, products[i])


@dataclass(frozen=True)
class Embedded(RungeKutta):
    """A scheme whose steps torchdiffeq chooses by an embedded error estimate; first same as last."""

    @torch.no_grad()
    def march(self, flow: GradientFlow, moves: Sequence[Move], u: Tensor, record: Record) -> Tensor:
        """Repeat moves once chosen, to the bit."""
        for move in moves:
            u = self.choose(flow, move.start, move.start + move.h, u, 1e30, record, max_step=move.h, first_step=move.h)
        return u

    @torch.no_grad()
    def choose(
        self,
        flow: GradientFlow,
        start: float,
        end: float,
        u: Tensor,
        tolerance: float,
        record: Record,
        **options: float,
    ) -> Tensor:
        """Steps from start to end that keep the local error within tolerance, absolute and relative, of every task.

        options are torchdiffeq's: max_step, first_step. Returns the state at the end.
        """
        times = torch.tensor([start, end], dtype=torch.float64, device=u.device)
        recorder = _ChoiceRecorder(flow, self, record)
        fixed = {"step_t": times[1:], "norm": _worst_task}
        try:
            odeint(recorder, u, times, rtol=tolerance, atol=tolerance, method=self.name, options=fixed | options)
        except AssertionError as fault:  # how torchdiffeq reports a step of size zero and non-finite states
            raise Diverged(f"{self.name} could not follow the flow ({fault}); try a smaller inner_lr") from fault
        return recorder.calls[-1]


EULER = RungeKutta("euler", ((),), (1.0,), order=1, stability=2.0)
MIDPOINT = RungeKutta("midpoint", ((), (1 / 2,)), (0.0, 1.0), order=2, stability=2.0)
RK4 = RungeKutta(  # Kutta's 3/8 rule, which is what torchdiffeq means by rk4
    "rk4", ((), (1 / 3,), (-1 / 3, 1.0), (1.0, -1.0, 1.0)), (1 / 8, 3 / 8, 3 / 8, 1 / 8), order=4, stability=2.785
)
RK3 = RungeKutta(  # Ralston 1962
    "rk3", ((), (1 / 2,), (0.0, 3 / 4)), (2 / 9, 1 / 3, 4 / 9), order=3, stability=2.51
)
BOSH3 = Embedded("bosh3", RK3.a, RK3.b, RK3.order, RK3.stability)  # Bogacki and Shampine 1989
DOPRI5 = Embedded(  # Dormand and Prince 1980
    "dopri5",
    (
        (),
        (1 / 5,),
        (3 / 40, 9 / 40),
        (44 / 45, -56 / 15, 32 / 9),
        (19372 / 6561, -25360 / 2187, 64448 / 6561, -212 / 729),
        (9017 / 3168, -355 / 33, 46732 / 5247, 49 / 176, -5103 / 18656),
    ),
    (35 / 384, 0.0, 500 / 1113, 125 / 192, -2187 / 6784, 11 / 84),
    order=5,
    stability=3.3,
)


def _shifted(u: Tensor, weights: Sequence[float], slopes: Sequence[Tensor], h: float) -> Tensor:
    """u + h times the weighted sum of the slopes."""
    for weight, slope in zip(weights, slopes, strict=True):
        if weight:
            u = torch.add(u, slope, alpha=h * weight)
    return u


class _ChoiceRecorder:
    """Passes an adaptive solver's calls on to the flow and records the steps it accepts."""

    def __init__(self, flow: GradientFlow, scheme: Embedded, record: Record) -> None:
        self.flow, self.scheme, self.record, self.calls = flow, scheme, record, []

    def callback_step(self, t: Tensor, u: Tensor, h: Tensor) -> None:
        self.calls = [u]  # the field at u is known from the step before

    def callback_accept_step(self, t: Tensor, u: Tensor, h: Tensor) -> None:
        move = Move(self.scheme, t.item(), (t + h).item(), h.item())
        self.record(move, tuple(self.calls[: self.scheme.cost]))

    def __call__(self, t: Tensor, u: Tensor) -> Tensor:
        self.calls.append(u)
        return self.flow(t, u)


def _worst_task(error: Tensor) -> Tensor:
    return error.square().mean(-1).sqrt().max()
