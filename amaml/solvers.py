"""Explicit Runge-Kutta schemes as data, and the trajectories they make through torchdiffeq.

A scheme is its tableau. torchdiffeq takes the steps; what is kept of each is what its exact transpose needs: the step
size and the states at which the field was evaluated. No autograd graph exists at any time.
"""

import math
from dataclasses import dataclass, field

import torch
from torch import Tensor
from torchdiffeq import odeint

from amaml import calculus
from amaml.errors import Diverged, unknown
from amaml.flow import GradientFlow


@dataclass(frozen=True)
class Scheme:
    """u_next = u + h sum_i b_i f(Y_i),  Y_i = u + h sum_(j<i) a_ij f(Y_j).

    order: of convergence. stability: the real interval, h * lambda_max must stay below it. adaptive: torchdiffeq
    chooses the steps by the embedded error estimate.
    """

    name: str
    a: tuple[tuple[float, ...], ...]
    b: tuple[float, ...]
    order: int
    stability: float
    adaptive: bool = False


SCHEMES = {
    scheme.name: scheme
    for scheme in (
        Scheme("euler", ((),), (1.0,), order=1, stability=2.0),
        Scheme("midpoint", ((), (1 / 2,)), (0.0, 1.0), order=2, stability=2.0),
        Scheme(  # Kutta's 3/8 rule, which is what torchdiffeq means by rk4
            "rk4", ((), (1 / 3,), (-1 / 3, 1.0), (1.0, -1.0, 1.0)), (1 / 8, 3 / 8, 3 / 8, 1 / 8), 4, 2.785
        ),
        Scheme(  # Bogacki and Shampine 1989
            "bosh3",
            ((), (1 / 2,), (0.0, 3 / 4)),
            (2 / 9, 1 / 3, 4 / 9),
            order=3,
            stability=2.51,
            adaptive=True,
        ),
        Scheme(  # Dormand and Prince 1980
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
            adaptive=True,
        ),
    )
}


@dataclass(frozen=True)
class Step:
    """One accepted step: its size and the states Y_i (tasks, P) at which the field was evaluated, Y_1 = u."""

    h: float
    stages: tuple[Tensor, ...]


@dataclass
class Trajectory:
    """The flow from u(0) = theta to u(horizon): the steps in order of time, and the last state (tasks, P)."""

    scheme: Scheme
    steps: list[Step] = field(default_factory=list)
    final: Tensor | None = None


class _GridRecorder:
    """Passes a fixed-step solver's calls on to the flow and files their states by step."""

    def __init__(self, flow: GradientFlow) -> None:
        self.flow, self.stages = flow, []

    def callback_step(self, t: Tensor, u: Tensor, h: Tensor) -> None:
        self.stages.append([])

    def __call__(self, t: Tensor, u: Tensor) -> Tensor:
        self.stages[-1].append(u)
        return self.flow(t, u)


class _AdaptiveRecorder:
    """Passes an adaptive solver's calls on to the flow and keeps the states of the steps it accepts."""

    def __init__(self, flow: GradientFlow, stages: int) -> None:
        self.flow, self.count, self.calls, self.steps = flow, stages, [], []

    def callback_step(self, t: Tensor, u: Tensor, h: Tensor) -> None:
        self.calls = [u]  # the field at u is known from the step before

    def callback_accept_step(self, t: Tensor, u: Tensor, h: Tensor) -> None:
        self.steps.append(Step(h.item(), tuple(self.calls[: self.count])))

    def __call__(self, t: Tensor, u: Tensor) -> Tensor:
        self.calls.append(u)
        return self.flow(t, u)


@torch.no_grad()
def fixed_steps(flow: GradientFlow, scheme: Scheme, horizon: float, count: int) -> Trajectory:
    """count equal steps of a scheme over [0, horizon]."""
    u = flow.start
    times = torch.linspace(0.0, horizon, count + 1, dtype=torch.float64, device=u.device)
    recorder = _GridRecorder(flow)
    options = {"grid_constructor": lambda field, u0, ends: times}
    final = odeint(recorder, u, times[[0, -1]], method=scheme.name, options=options)[-1]
    return Trajectory(scheme, [Step(horizon / count, tuple(s)) for s in recorder.stages], final)


@torch.no_grad()
def adaptive_steps(flow: GradientFlow, scheme: Scheme, horizon: float, rtol: float, max_step: float) -> Trajectory:
    """Steps chosen by the scheme's embedded error estimate, the worst task deciding, none above max_step."""
    u = flow.start
    recorder = _AdaptiveRecorder(flow, len(scheme.b))
    ends = torch.tensor([0.0, horizon], dtype=torch.float64, device=u.device)
    options = {"step_t": ends[1:], "max_step": max_step, "norm": _worst_task}
    try:
        final = odeint(recorder, u, ends, rtol=rtol, atol=rtol, method=scheme.name, options=options)[-1]
    except AssertionError as fault:  # how torchdiffeq reports a step of size zero and non-finite states
        raise Diverged(f"{scheme.name} could not follow the flow ({fault}); try a smaller inner_lr") from fault
    return Trajectory(scheme, recorder.steps, final)


def _worst_task(error: Tensor) -> Tensor:
    return error.square().mean(-1).sqrt().max()


MARGIN = 0.9  # of the stability interval that a step may use, since the eigenvalue is estimated from below
REFINEMENTS = 6


@torch.no_grad()
def solve(flow: GradientFlow, solver: str, inner_lr: float, inner_steps: int, rtol: float) -> Trajectory:
    """The flow over the horizon T = inner_lr * inner_steps.

    "euler" makes exactly inner_steps steps and so is gradient descent. Every other scheme follows the flow itself
    and chooses its steps: for the accuracy rtol, and such that h * lambda_max stays inside its stability interval.
    The state would survive a step outside, but the transposed sweep would amplify at every such step and the
    meta-gradient explode, so lambda_max is estimated at both ends of the path and the steps are halved until stable.

    Raises Diverged where the state is not finite or no step is small enough.
    """
    if solver not in SCHEMES:
        raise unknown("solver", solver, SCHEMES)
    scheme, horizon = SCHEMES[solver], inner_lr * inner_steps
    if solver == "euler":
        return fixed_steps(flow, scheme, horizon, inner_steps)
    curvature, vectors = _curvature(flow, flow.start, flow(0.0, flow.start), iterations=4)
    for _ in range(REFINEMENTS):
        trajectory = _follow(flow, scheme, horizon, rtol, curvature)
        end, vectors = _curvature(flow, trajectory.final, vectors, iterations=2)
        if max(step.h for step in trajectory.steps) * end <= MARGIN * scheme.stability:
            return trajectory
        curvature = max(2 * curvature, end)
    raise Diverged(
        f"{solver} found no stable step over the horizon {horizon:g} (lambda_max about {curvature:g}); "
        "try a smaller inner_lr or fewer inner steps"
    )


def _follow(flow: GradientFlow, scheme: Scheme, horizon: float, rtol: float, curvature: float) -> Trajectory:
    limit = MARGIN * scheme.stability
    if scheme.adaptive:
        return adaptive_steps(flow, scheme, horizon, rtol / 10, max_step=limit / curvature)
    accurate = 8 * rtol ** (1 / scheme.order)  # h * lambda_max that gave the error rtol in measurements with rk4
    count = math.ceil(horizon * curvature / min(limit, accurate))
    return fixed_steps(flow, scheme, horizon, max(count, 1))


def _curvature(flow: GradientFlow, u: Tensor, start: Tensor, iterations: int) -> tuple[float, Tensor]:
    values, vectors = calculus.largest_eigenvalue(lambda v: flow.hvp(u, v), start, iterations)
    largest = values.max().item()
    if not math.isfinite(largest):
        raise Diverged("the inner loop left the finite numbers; try a smaller inner_lr or fewer inner steps")
    return max(largest, torch.finfo(u.dtype).eps), vectors
