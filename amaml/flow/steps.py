"""Which steps to take: accurate enough for the meta-gradient, stable for the transposed sweep, and as few as possible.

Stability. The flow may survive a step with h * lambda_max outside the scheme's real interval, but the transposed sweep
amplifies at every such step and the meta-gradient explodes. So lambda_max is estimated by power iteration along the
path, extrapolated as it grows, and every step keeps a margin; a block of steps that lambda_max outran is taken again.

Accuracy. A component of the state with curvature mu decays like exp(-mu t) from the start; by symmetry a component of
the adjoint state decays like exp(-mu (T - t)) away from the end. Errors are made in these two layers. A step at a
distance d from the nearer end is therefore accurate when it is a fixed part of d, and of 1/lambda_max at the end
itself: h <= growth * d + z / lambda_max. The constants of this law were measured (benchmarks/README.md); what holds
for the single gradient is the error estimate that A-MAML computes afterwards.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

from amaml.errors import Diverged, unknown
from amaml.flow.chebyshev import Chebyshev, fewest_stages
from amaml.flow.curvature import Curvature
from amaml.flow.field import GradientFlow
from amaml.flow.schemes import BOSH3, DOPRI5, EULER, MIDPOINT, RK4, Embedded, Move, Scheme
from amaml.flow.trajectory import Trajectory

MARGIN = 0.9  # of a stability interval, since lambda_max is estimated from below
SHARPENING = 3.0  # lambda_max is taken to grow like t + SHARPENING / lambda_max(0), or at the rate it had, if faster
MOST_STEPS = 50_000  # of a flow, at the least
LOOKAHEAD = 20  # blocks that are planned ahead
STRETCH = 1.1  # steps may be so much longer where that saves one; within MARGIN
PREFERENCE = 1.2  # a scheme of higher order may cost so much more for each order: it errs less than asked for
RETAKEN = 4.0  # lambda_max is taken to be so many times larger at most, when a block is taken again
BLOCK = 28  # gradients between two estimates of lambda_max
LAYER = {2: 6.0, 4: 2.0}  # z = h * lambda_max of the steps at both ends, over rtol^(1/order): long horizons
SHORT = {2: 0.7, 4: 5.0}  # the same for short ones: the constant of Law._layer
LONG = 8.0  # horizon * lambda_max at which a horizon begins to be long
GROWTH = {2: 4.0, 4: 1.3}  # of h with the distance from the nearer end, over rtol^(1/order)


@dataclass(frozen=True)
class Candidate:
    """A family of schemes: the one to use for h * lambda_max = z, and the largest z it can be used for."""

    order: int
    scheme: Callable[[float], Scheme]
    limit: float


def _single(scheme: Scheme) -> Candidate:
    return Candidate(scheme.order, lambda z: scheme, MARGIN * scheme.stability)


CHEBYSHEV = Candidate(2, lambda z: fewest_stages(z / MARGIN), MARGIN * Chebyshev(64).stability)
SOLVERS: dict[str, tuple[Candidate, ...] | Embedded | None] = {
    "auto": (_single(RK4), CHEBYSHEV),
    "euler": None,
    "midpoint": (_single(MIDPOINT),),
    "rk4": (_single(RK4),),
    "rkc": (CHEBYSHEV,),
    "bosh3": BOSH3,
    "dopri5": DOPRI5,
}


def solve(
    flow: GradientFlow,
    solver: str,
    inner_lr: float,
    inner_steps: int,
    rtol: float,
    checkpoints: int | None = None,
    heun_backward: bool = False,
) -> Trajectory:
    """The flow over the horizon T = inner_lr * inner_steps.

    "euler" makes exactly inner_steps steps and so is gradient descent. Every other solver follows the flow itself,
    for a relative error rtol of the meta-gradient: "auto" with whatever is cheapest of rk4 and rkc at each step.
    heun_backward: the steps will be gone back by Heun's method (the continuous adjoint), not by their own transpose,
    and must suit it too. Raises Diverged where the state is not finite.
    """
    if solver not in SOLVERS:
        raise unknown("solver", solver, SOLVERS)
    choice, horizon = SOLVERS[solver], inner_lr * inner_steps
    trajectory = Trajectory(flow, checkpoints)
    if choice is None:
        times = [horizon * i / inner_steps for i in range(inner_steps + 1)]
        trajectory.extend([Move(EULER, a, b, b - a) for a, b in zip(times[:-1], times[1:], strict=True)])
    elif isinstance(choice, Embedded):
        _embedded(trajectory, choice, horizon, rtol)
    else:
        if heun_backward:
            heun = _single(MIDPOINT)  # of the same order and stability
            choice = tuple(Candidate(heun.order, c.scheme, min(c.limit, heun.limit)) for c in choice)
        _graded(trajectory, choice, horizon, rtol)
    return trajectory


def _graded(trajectory: Trajectory, candidates: tuple[Candidate, ...], horizon: float, rtol: float) -> None:
    """Block by block. One at whose end lambda_max turns out too large for its last step is taken again."""
    estimate, t, rate = Curvature(trajectory.flow), 0.0, 0.0
    now = estimate.at(trajectory.final)
    sharp = max(now)
    law = Law(candidates, horizon, rtol, start=sharp)
    while t < horizon:
        u, count = trajectory.final, len(trajectory.moves)
        moves = _block(law.plan(t, sharp, rate))
        trajectory.extend(moves)
        last = moves[-1]
        if last.end < horizon:
            later = estimate.at(trajectory.final)
            rate = max(abs(math.log(b / a)) for a, b in zip(now, later, strict=True)) / (last.end - t)
            if last.h * max(later) > last.scheme.stability:
                trajectory.rewind(count, u)
                sharp = min(max(later), RETAKEN * sharp)
                continue
            now, sharp = later, max(later)
        t = last.end


def _block(moves: list[Move]) -> list[Move]:
    """The first moves of a plan, as many as it takes before lambda_max is worth another look."""
    cost, count = 0, 0
    while count < len(moves) and cost < BLOCK:
        cost, count = cost + moves[count].scheme.cost, count + 1
    return moves[:count]


@dataclass(frozen=True)
class Law:
    """The sizes of the steps; start is lambda_max at time 0."""

    candidates: tuple[Candidate, ...]
    horizon: float
    rtol: float
    start: float

    def plan(self, t: float, now: float, rate: float = 0.0) -> list[Move]:
        """The moves from t, where lambda_max is now, towards the horizon; far ones will be planned again.

        rate: of change of log lambda_max as seen last, 1 / time. Where it is fast the Hessian is another one after
        1 / rate, which then takes the place of the distance from the start.
        """
        steps = self.horizon * now / max(c.limit for c in self.candidates)
        if not steps < MOST_STEPS:
            raise Diverged(
                f"the flow over T = {self.horizon:g} with lambda_max {now:g} takes more than {MOST_STEPS} steps; try a "
                "smaller inner_lr, fewer inner steps or a larger rtol"
            )
        chosen, reached, cost = [], t, 0
        while reached < self.horizon and cost < LOOKAHEAD * BLOCK:
            options = [self._longest(c, t, reached, now, rate) for c in self.candidates]
            scheme, h = min(options, key=lambda option: option[0].cost / option[1] / PREFERENCE ** option[0].order)
            chosen.append((scheme, h))
            reached += h
            cost += scheme.cost
        if reached < self.horizon:
            return _moves(chosen, t, 1.0, None)
        if len(chosen) > 1 and self.horizon - t <= STRETCH * (reached - chosen[-1][1] - t):
            reached -= chosen.pop()[1]  # a little longer each, and one fewer
        stretch = (self.horizon - t) / (reached - t)  # so that the last step ends on the horizon
        return _moves(chosen, t, stretch, self.horizon)

    def _longest(self, c: Candidate, since: float, t: float, now: float, rate: float) -> tuple[Scheme, float]:
        """The longest accurate and stable step from t, with lambda_max as known since an earlier time."""
        growth = GROWTH[c.order] * self.rtol ** (1 / c.order)
        left = self.horizon - t
        unchanged = min(t, 1 / rate) if rate else t
        forward = growth * unchanged + self._layer(c.order, self.start) / self.start
        backward = (growth * left + self._layer(c.order, now) / now) / (1 + growth)
        h = min(forward, backward, left)
        unit = SHARPENING / self.start
        sharpest = now * max((t + h + unit) / (since + unit), math.exp(min(rate * (t + h - since), 1.0)))
        h = min(h, c.limit / sharpest)
        return c.scheme(h * sharpest), h

    def _layer(self, order: int, curvature: float) -> float:
        """z at the ends: a mode of curvature mu arrives with the weight exp(-mu T) and an error mu T (mu h)^order.

        Over a long horizon the stiffest modes die out before their errors matter; over a short one they do not.
        """
        x = max(curvature * self.horizon, 1e-30)
        peak = min(x, order + 1)
        worst = peak ** (order + 1) * math.exp(-peak)
        long, short = LAYER[order] * (1 + (LONG / x) ** 2), x * (SHORT[order] / worst) ** (1 / order)
        return min(long, short) * self.rtol ** (1 / order)


def _moves(chosen: list[tuple[Scheme, float]], t: float, stretch: float, last: float | None) -> list[Move]:
    moves = []
    for i, (scheme, h) in enumerate(chosen):
        end = last if last is not None and i + 1 == len(chosen) else t + h * stretch
        moves.append(Move(scheme, t, end, end - t))
        t = end
    return moves


def _embedded(trajectory: Trajectory, scheme: Embedded, horizon: float, rtol: float) -> None:
    """In four parts, since lambda_max, which bounds the step, grows along the path; retaken like the blocks above."""
    estimate = Curvature(trajectory.flow)
    sharp, part = max(estimate.at(trajectory.final)), 0
    while part < 4:
        u, count = trajectory.final, len(trajectory.moves)
        start, end, bound = horizon * part / 4, horizon * (part + 1) / 4, MARGIN * scheme.stability / sharp
        trajectory.final = scheme.choose(trajectory.flow, start, end, u, rtol / 10, trajectory.record, max_step=bound)
        later = max(estimate.at(trajectory.final))
        if max(move.h for move in trajectory.moves[count:]) * later > scheme.stability:
            trajectory.rewind(count, u)
            sharp = min(later, RETAKEN * sharp)
        else:
            sharp, part = later, part + 1
