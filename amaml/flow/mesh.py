"""Which steps to take: accurate enough for the meta-gradient, stable for the transposed sweep, and as few as possible.

Stability. The flow may survive a step with h * lambda_max outside the scheme's real interval, but the transposed sweep
amplifies at every such step and the meta-gradient explodes. So lambda_max is estimated by power iteration along the
path, extrapolated at the rate it grew, and every step keeps a margin; a block of steps that it outran is taken again.

Accuracy. A component of the state with curvature mu decays like exp(-mu t) from the start; by symmetry a component of
the adjoint state decays like exp(-mu (T - t)) away from the end. A step of size h errs by C (mu h)^(p+1) exp(-mu t) on
it, with C and p the scheme's error constant and order. The worst mu is (p + 1) / t, and the stiffest one lambda_max;
a step at a distance d from the nearer end therefore adds no more than its share of the tolerance where

    h <= growth d + z / lambda_max,    z = (tolerance / C)^(1/p),    growth = z (e / (p + 1))^((p + 1) / p).

What error this leads to is measured in use, and the tolerance steered by it (amaml.flow.accuracy).
"""

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Protocol

import numpy as np

from amaml.errors import Diverged
from amaml.flow.chebyshev import Chebyshev
from amaml.flow.curvature import LEFT, Curvature
from amaml.flow.schemes import DOPRI5, MIDPOINT, RK3, RK4, Move, Scheme, Within, cost
from amaml.flow.trajectory import Trajectory


class Mesh(Protocol):
    """The steps of a trajectory."""

    def follow(self, trajectory: Trajectory, times: Sequence[float], curvature: Curvature) -> Trajectory:
        """Extend a trajectory, to be read at these times, from wherever it stands to the last one, the horizon; it.

        Raises Diverged where the state is not finite, OverBudget where the flow's budget does not suffice.
        """


@dataclass(frozen=True)
class GivenMesh:
    """Moves that were chosen before; where they turn out to be unstable, the steps of another mesh from there."""

    moves: tuple[Move, ...]
    beyond: "GradedMesh"

    def follow(self, trajectory: Trajectory, times: Sequence[float], curvature: Curvature) -> Trajectory:
        if trajectory.moves:
            return self.beyond.follow(trajectory, times, curvature)
        trajectory.begin(self, times)
        trajectory.flow.check_budget(cost(self.moves))
        trajectory.extend(self.moves)
        return trajectory


@dataclass(frozen=True)
class GradedMesh:
    """Steps of whichever scheme is the cheapest at each, for a relative error tolerance of the meta-gradient.

    backward: the scheme of the way back where it is not each step's own transpose; the steps must suit it too.
    most: evaluations, of the way there and back, beyond which steps are longer than the tolerance asks for.
    late: how many times longer a step may be for its distance from T than for that from 0. A component of lam that
    decays fast near T has died out long before t = 0, and reaches lam(0) only through a change of the Hessian, which is
    slow by then. 1: +15% evaluations; 8: larger errors of single batches at a trained theta.
    handicap: a scheme of higher order may cost so much more for each order, since it errs less than asked for. 1: +5%;
    1.5: +10%.
    safety: the share of a stability interval that is used, since lambda_max is estimated from below (as dom_eig_safety
    of SUNDIALS' LSRKStep). Not varied.
    frequency: gradients between two estimates of lambda_max (dom_eig_frequency there, in steps). Not varied.
    factormax: the most that lambda_max is taken to have grown by, where a block is taken again. Without it one batch in
    five of Alpine2D, T = 10, was given up.
    """

    schemes: tuple[Scheme, ...]
    tolerance: float
    backward: Scheme | None = None
    most: float = math.inf
    late: float = 4.0
    handicap: float = 1.2
    safety: float = 0.9
    frequency: int = 28
    factormax: float = 4.0

    def finer(self, trajectory: Trajectory, times: float) -> "GivenMesh":
        """So many times the steps of a trajectory; should they be left, steps as fine."""
        return GivenMesh(divided(trajectory, times), replace(self, tolerance=self.tolerance / times**2))

    def follow(self, trajectory: Trajectory, times: Sequence[float], curvature: Curvature) -> Trajectory:
        """Block by block. One is taken again where it left the finite numbers, or where lambda_max at its end turns out
        too large for its last step."""
        trajectory.begin(self, times)
        t, end, rate, now = trajectory.time, times[-1], 0.0, curvature.at(trajectory.final)
        trajectory.at_start = trajectory.at_start or curvature.leading
        sharp, mesh, planned = max(now), self, 0.0
        while t < end:
            trajectory.sharpest = max(trajectory.sharpest, sharp)
            least = self._least_cost((end - t) * sharp)
            trajectory.flow.check_budget(least + cost(trajectory.moves) + least)  # the rest, and all of the way back
            start, u, count = trajectory.at_start.value, trajectory.final, len(trajectory.moves)
            if sharp > planned:
                left = self.most - trajectory.flow.evaluations.total - cost(trajectory.moves)
                mesh, planned = self._affordable(t, end, start, sharp, left), sharp
                if mesh is not self:
                    own, longer = (one._count(t, end, start, sharp) for one in (self, mesh))
                    trajectory.saved = max(trajectory.saved, 2 * (own - longer))
            trajectory.extend(mesh.block(t, end, start, sharp, rate, times))
            last = trajectory.moves[-1]
            if not trajectory.final.isfinite().all():  # waits for the device
                if last.end == t:
                    raise Diverged(LEFT)
                trajectory.rewind(count, u)
                sharp *= self.factormax
                continue
            if last.end < end:
                later = curvature.at(trajectory.final)
                rate = max(abs(math.log(b / a)) for a, b in zip(now, later, strict=True)) / (last.end - t)
                if last.h * max(later) > last.scheme.stability:
                    trajectory.rewind(count, u)
                    sharp = min(max(later), self.factormax * sharp)  # a state gone astray may lie where it is larger
                    continue
                now, sharp = later, max(later)
            t = last.end
        return trajectory

    def forecast(self, horizon: float, sharp: float, most: float = math.inf) -> int:
        """Gradients of the steps to the horizon, should lambda_max stay as it is at the start; counted up to most."""
        return self._affordable(0.0, horizon, sharp, sharp, self.most)._count(0.0, horizon, sharp, sharp, most)

    def _affordable(self, t: float, end: float, start: float, sharp: float, left: float) -> "GradedMesh":
        """This mesh, or one of longer steps of at most so many evaluations to the end and back, if any is stable."""
        mesh = self
        while left < math.inf and mesh.tolerance < 1 and mesh._count(t, end, start, sharp, left / 2) > left / 2:
            mesh = replace(mesh, tolerance=2 * mesh.tolerance)
        return mesh

    def _count(self, t: float, end: float, start: float, sharp: float, most: float = math.inf) -> int:
        total = 0
        while t < end and total <= most:
            block = self.block(t, end, start, sharp)
            t, total = block[-1].end, total + cost(block)
        return total

    def block(
        self, t: float, end: float, start: float, sharp: float, rate: float = 0.0, times: Sequence[float] = ()
    ) -> list[Move]:
        """The next moves from t towards the end, until lambda_max is worth another look.

        It was start at time 0 and is sharp now; rate: of change of log lambda_max as seen last, 1 / time. times: at
        which states are read.
        """
        sizes, total, reached = [], 0, t
        while reached < end and total < self.frequency:
            read = next((time for time in times if time > reached), end)
            options = [self._longest(one, t, reached, end, start, sharp, rate, read) for one in self.schemes]
            scheme, h = min(options, key=lambda option: self._price(*option, end - reached))
            sizes.append((scheme, h))
            reached, total = reached + h, total + scheme.cost
        shorter = (end - t) / (reached - t) if reached > end else 1.0  # so that the last step ends on the end
        moves = []
        for i, (scheme, h) in enumerate(sizes, 1):
            after = end if reached >= end and i == len(sizes) else t + h * shorter
            moves.append(Move(scheme, t, after, after - t))
            t = after
        return moves

    def _price(self, scheme: Scheme, h: float, left: float) -> float:
        """Of time, by steps of size h where no more than left is left."""
        return scheme.cost / min(h, left) / self.handicap**scheme.order

    def _longest(
        self, family: Scheme, since: float, t: float, end: float, start: float, sharp: float, rate: float, read: float
    ) -> tuple[Scheme, float]:
        """The longest accurate and stable step of a family from t, with lambda_max as known since an earlier time.

        It goes beyond the time read next where the state within it is as accurate as it is to be itself.
        """
        scheme, larger = None, family
        while larger != scheme:  # more stages err less, and so allow longer steps, for which these take more
            scheme = larger
            h = self._accurate(scheme, t, end, start, sharp, rate)
            if t < read < t + h:
                h = min(h, max(self._accurate(scheme.within, t, end, start, sharp, rate), read - t))
            sharpest = sharp * math.exp(min(rate * (t + h - since), 1.0))
            larger = scheme.covering(h * sharpest / self.safety)
        return scheme, min(h, self._limit(scheme) / sharpest)

    def _accurate(
        self, scheme: Scheme | Within, t: float, end: float, start: float, sharp: float, rate: float
    ) -> float:
        """By the law above. Where lambda_max changes fast the Hessian is another one after 1 / rate, which then takes
        the place of the distance from the start."""
        z, growth, late = self._law(scheme, start * end)
        unchanged = min(t, 1 / rate) if rate else t
        forward = growth * unchanged + z / start
        backward = late * (growth * (end - t) + z / sharp) / (1 + late * growth)
        return min(forward, backward)

    def _law(self, scheme: Scheme | Within, x: float) -> tuple[float, float, float]:
        """z and growth; and by how much steps may be longer towards T, where the stiffest modes, of lambda_max T = x,
        are so many times faster than those, of p + 1, that err most over the whole horizon; twice, for both ends."""
        both = [scheme] if self.backward is None else [scheme, self.backward]
        p, constant = min(one.order for one in both), max(one.error_constant for one in both)
        z = (self.tolerance / constant) ** (1 / p)
        return z, z * (math.e / (p + 1)) ** ((p + 1) / p), min(max(x / (2 * (p + 1)), 1.0), self.late)

    def _limit(self, scheme: Scheme) -> float:
        """The largest h * lambda_max of a step."""
        usable = min(self.safety * scheme.stability, scheme.usable)
        return usable if self.backward is None else min(usable, self.safety * self.backward.stability)

    def _least_cost(self, z: float) -> float:
        """Gradients that stability alone asks for, over a time of z / lambda_max."""
        largest = [scheme.covering(z) for scheme in self.schemes]
        return min(scheme.cost * z / self._limit(scheme) for scheme in largest)


def divided(trajectory: Trajectory, times: float) -> tuple[Move, ...]:
    """So many times the steps of a trajectory, rounded up, sized as its own are.

    Seen as a function of the number of a step, time is linear in between. A step takes the scheme of the longest one
    that it has a part of, which is stable for it, and with as many stages: errors fall at its order.
    """
    moves, steps = [], len(trajectory.moves)
    count = math.ceil(times * steps)
    known = [0.0, *(move.end for move in trajectory.moves)]
    ends = np.interp(np.arange(count + 1) * steps / count, np.arange(steps + 1), known).tolist()
    for i, (start, end) in enumerate(itertools.pairwise(ends)):
        parts = trajectory.moves[i * steps // count : -(-(i + 1) * steps // count)]
        moves.append(Move(max(parts, key=lambda move: move.h).scheme, start, end, end - start))
    return tuple(moves)


SOLVERS: dict[str, tuple[Scheme, ...]] = {
    "auto": (RK4, RK3, Chebyshev()),
    "euler": (),  # gradient descent: a FixedMesh
    "midpoint": (MIDPOINT,),
    "rk3": (RK3,),
    "rk4": (RK4,),
    "rkc": (Chebyshev(),),
    "bosh3": (RK3,),
    "dopri5": (DOPRI5,),
}
