"""Which steps to take: accurate enough for the meta-gradient, stable for the transposed sweep, and as few as possible.

Stability. The flow may survive a step with h * lambda_max outside the scheme's real interval, but the transposed sweep
amplifies at every such step and the meta-gradient explodes. So lambda_max is estimated by power iteration along the
path, extrapolated as it grows, and every step keeps a margin; a block of steps that lambda_max outran is taken again.

Accuracy. A component of the state with curvature mu decays like exp(-mu t) from the start; by symmetry a component of
the adjoint state decays like exp(-mu (T - t)) away from the end. Errors are made in these two layers. A step at a
distance d from the nearer end is therefore accurate when it is a fixed part of d, and of 1/lambda_max at the end
itself: h <= growth * d + z / lambda_max. Over a long horizon steps may be up to LATE times longer for their distance
from the end: a component of lam that decays fast there has died out long before t = 0, and could reach lam(0) only
through a change of the Hessian, which is slow by then. Components that decay over the whole horizon are damped nowhere:
a step errs on them by its h^(order + 1), wherever it lies. So no step of second order is longer than a part of the
horizon. The constants of this law were measured (benchmarks/README.md); what error they lead to is measured in use, and
the tolerance steered by it (amaml.flow.control).
"""

import functools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from torch import Tensor

from amaml.errors import Diverged
from amaml.flow.chebyshev import Chebyshev, fewest_stages
from amaml.flow.curvature import LEFT, Curvature, Sharp
from amaml.flow.schemes import BOSH3, DOPRI5, EULER, MIDPOINT, RK3, RK4, Embedded, Move, Scheme
from amaml.flow.trajectory import Trajectory

MARGIN = 0.9  # of a stability interval, since lambda_max is estimated from below
DAMPING = 0.7  # the same for a scheme that damps stiff components less and less towards the end of its interval
SHARPENING = 10.0  # lambda_max is taken to grow like t + SHARPENING / lambda_max(0), or at the rate it had, if faster
LOOKAHEAD = 20  # blocks that are planned ahead
STRETCH = 1.1  # steps may be so much longer where that saves one; within MARGIN
PREFERENCE = 1.2  # a scheme of higher order may cost so much more for each order: it errs less than asked for
RETAKEN = 4.0  # lambda_max is taken to be so many times larger at most, when a block is taken again
LOST = 5  # times that a block which left the finite numbers is taken again
BLOCK = 28  # gradients between two estimates of lambda_max
LAYER = {2: 9.0, 3: 3.5, 4: 2.5}  # z = h * lambda_max of the first step, over rtol^(1/order): very long horizons
MORE = {2: 1.0, 3: 1.5, 4: 1.4}  # times LAYER over horizons that are long but not very long
SHORT = {2: 0.7, 3: 3.5, 4: 5.0}  # the same for short ones: the constant of StepLaw._layer
LONG, VERY_LONG = 8.0, 100.0  # horizon * lambda_max at which a horizon begins to be long, and very long
LATE = 4.0  # the most that StepLaw._late may be
GROWTH = {2: 6.0, 3: 2.5, 4: 1.3}  # of h with the distance from the nearer end, over rtol^(1/order)
PART = {2: 2.0, 3: math.inf, 4: math.inf}  # of the horizon, over rtol^(1/order), that a step may take


@dataclass(frozen=True)
class Candidate:
    """A family of schemes: the one to use for h * lambda_max = z, and the largest z it can be used for."""

    order: int
    scheme: Callable[[float], Scheme]
    limit: float

    def limited_by(self, other: Scheme) -> "Candidate":
        """For steps that another scheme takes as well: of its order, within its stability."""
        return Candidate(other.order, self.scheme, min(self.limit, MARGIN * other.stability))


def _single(scheme: Scheme) -> Candidate:
    return Candidate(scheme.order, lambda z: scheme, DAMPING * scheme.stability)


CHEBYSHEV = Candidate(2, lambda z: fewest_stages(z / MARGIN), MARGIN * Chebyshev(64).stability)
HEUN = MIDPOINT  # of the same order and stability
SOLVERS: dict[str, tuple[Candidate, ...] | Embedded | None] = {
    "auto": (_single(RK4), _single(RK3), CHEBYSHEV),
    "euler": None,
    "midpoint": (_single(MIDPOINT),),
    "rk4": (_single(RK4),),
    "rkc": (CHEBYSHEV,),
    "bosh3": BOSH3,
    "dopri5": DOPRI5,
}


@dataclass(frozen=True)
class Plan:
    """How the flow is to be followed over the horizon T = inner_lr * inner_steps.

    "euler" makes exactly inner_steps steps and so is gradient descent. Every other solver follows the flow itself, with
    steps that aim at the relative error tolerance of the meta-gradient: "auto" with whatever is cheapest of rk4, rk3
    and rkc at each step. heun_backward: the steps will be gone back by Heun's method (the continuous adjoint), not by
    their own transpose, and must suit it too. known: lambda_max as the last batch had it at the start, to begin the
    search from.
    """

    solver: str
    inner_lr: float
    inner_steps: int
    tolerance: float = 1e-3
    heun_backward: bool = False
    known: Sharp | None = None

    @property
    def horizon(self) -> float:
        return self.inner_lr * self.inner_steps

    def follow(self, trajectory: Trajectory, stiff: Tensor | None = None) -> None:
        """Extend a trajectory from wherever it stands to the horizon.

        stiff (tasks, P): directions in which the Hessian is known to be large, to begin the search for lambda_max from.
        Raises Diverged where the state is not finite, OverBudget where the flow's budget does not suffice.
        """
        choice, curvature = SOLVERS[self.solver], Curvature(trajectory.flow, stiff, self.known)
        if choice is None:
            times = [self.horizon * i / self.inner_steps for i in range(self.inner_steps + 1)]
            moves = [Move(EULER, a, b, b - a) for a, b in zip(times[:-1], times[1:], strict=True)]
            trajectory.extend(moves[len(trajectory.moves) :])
        elif isinstance(choice, Embedded):
            self._adaptive(trajectory, choice, curvature)
        else:
            self._graded(trajectory, choice, curvature)

    def _graded(self, trajectory: Trajectory, choice: tuple[Candidate, ...], curvature: Curvature) -> None:
        """Block by block. One is taken again where it left the finite numbers, or where lambda_max at its end turns out
        too large for its last step."""
        candidates = tuple(c.limited_by(HEUN) for c in choice) if self.heun_backward else choice
        t, rate, now, lost = trajectory.time, 0.0, curvature.at(trajectory.final), 0
        sharp, trajectory.at_start = max(now), trajectory.at_start or curvature.sharpest
        law = StepLaw(candidates, self.horizon, self.tolerance, trajectory.at_start.value)
        while t < self.horizon:
            trajectory.sharpen(sharp)
            trajectory.flow.check_budget(law.least_cost(self.horizon - t, sharp))
            u, count = trajectory.final, len(trajectory.moves)
            trajectory.extend(_block(law.plan(t, sharp, rate)))
            last = trajectory.moves[-1]
            if not trajectory.final.isfinite().all():  # waits for the device
                if lost == LOST:
                    raise Diverged(LEFT)
                trajectory.rewind(count, u)
                sharp, lost = RETAKEN * sharp, lost + 1
                continue
            if last.end < self.horizon:
                later = curvature.at(trajectory.final)
                rate = max(abs(math.log(b / a)) for a, b in zip(now, later, strict=True)) / (last.end - t)
                if last.h * max(later) > last.scheme.stability:
                    trajectory.rewind(count, u)
                    sharp = min(max(later), RETAKEN * sharp)
                    continue
                now, sharp = later, max(later)
            t, lost = last.end, 0

    def _adaptive(self, trajectory: Trajectory, scheme: Embedded, curvature: Curvature) -> None:
        """In four parts, since lambda_max, which bounds the step, grows along the path; retaken like the blocks."""
        limit = min(scheme.stability, HEUN.stability) if self.heun_backward else scheme.stability
        sharp, t = max(curvature.at(trajectory.final)), trajectory.time
        trajectory.at_start = trajectory.at_start or curvature.sharpest
        while t < self.horizon:
            trajectory.sharpen(sharp)
            trajectory.flow.check_budget((self.horizon - t) * sharp / limit * scheme.cost)
            u, count, end = trajectory.final, len(trajectory.moves), self._next_part(t)
            longest = MARGIN * limit / sharp
            tolerance = self.tolerance / 10
            trajectory.final = scheme.choose(trajectory.flow, t, end, u, tolerance, trajectory.record, max_step=longest)
            later = max(curvature.at(trajectory.final))
            if max(move.h for move in trajectory.moves[count:]) * later > limit:
                trajectory.rewind(count, u)
                sharp = min(later, RETAKEN * sharp)
            else:
                sharp, t = later, end

    def _next_part(self, t: float) -> float:
        """The next multiple of a fourth of the horizon."""
        part = math.floor(4 * t / self.horizon + 1e-9) + 1
        return self.horizon * min(part, 4) / 4


def bisected(moves: Sequence[Move]) -> list[Move]:
    """Every step as two of half the size by the same scheme: errors fall at its order. Fewer stages would be stable."""
    halves = []
    for move in moves:
        h, middle = move.h / 2, move.start + move.h / 2
        halves += [Move(move.scheme, move.start, middle, h), Move(move.scheme, middle, move.end, h)]
    return halves


def _block(moves: list[Move]) -> list[Move]:
    """The first moves of a plan, as many as it takes before lambda_max is worth another look."""
    cost, count = 0, 0
    while count < len(moves) and cost < BLOCK:
        cost, count = cost + moves[count].scheme.cost, count + 1
    return moves[:count]


@dataclass(frozen=True)
class StepLaw:
    """The sizes of the steps; start is lambda_max at time 0."""

    candidates: tuple[Candidate, ...]
    horizon: float
    tolerance: float
    start: float

    def least_cost(self, duration: float, now: float) -> float:
        """Gradients that stability alone asks for."""
        return min(c.scheme(c.limit).cost * duration * now / c.limit for c in self.candidates)

    def plan(self, t: float, now: float, rate: float = 0.0) -> list[Move]:
        """The moves from t, where lambda_max is now, towards the horizon; far ones will be planned again.

        rate: of change of log lambda_max as seen last, 1 / time. Where it is fast the Hessian is another one after
        1 / rate, which then takes the place of the distance from the start.
        """
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
        unit = self.tolerance ** (1 / c.order)
        growth, left = GROWTH[c.order] * unit, self.horizon - t
        unchanged = min(t, 1 / rate) if rate else t
        forward = growth * unchanged + self._layer(c.order, self.start) / self.start
        backward = self._late * (growth * left + self._layer(c.order, now) / now) / (1 + self._late * growth)
        h = min(forward, backward, left, PART[c.order] * unit * self.horizon)
        early = SHARPENING / self.start
        sharpest = now * max((t + h + early) / (since + early), math.exp(min(rate * (t + h - since), 1.0)))
        h = min(h, c.limit / sharpest)
        return c.scheme(h * sharpest), h

    @functools.cached_property
    def _late(self) -> float:
        """How many times longer steps may be for their distance from the end than for that from the start."""
        return min(max(self.start * self.horizon / LONG, 1.0), LATE)

    def _layer(self, order: int, curvature: float) -> float:
        """z at the ends: a mode of curvature mu arrives with the weight exp(-mu T) and an error mu T (mu h)^order.

        Over a long horizon the stiffest modes die out before their errors matter; over a short one they do not.
        """
        x = max(curvature * self.horizon, 1e-30)
        peak = min(x, order + 1)
        worst = peak ** (order + 1) * math.exp(-peak)
        grown = min(max(VERY_LONG / x, 1.0), MORE[order])
        long, short = grown * LAYER[order] * (1 + (LONG / x) ** 2), x * (SHORT[order] / worst) ** (1 / order)
        return min(long, short) * self.tolerance ** (1 / order)


def _moves(chosen: list[tuple[Scheme, float]], t: float, stretch: float, last: float | None) -> list[Move]:
    moves = []
    for i, (scheme, h) in enumerate(chosen):
        end = last if last is not None and i + 1 == len(chosen) else t + h * stretch
        moves.append(Move(scheme, t, end, end - t))
        t = end
    return moves
