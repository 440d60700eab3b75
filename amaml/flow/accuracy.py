"""What the error of a meta-gradient is, by measurement, and how it steers the steps of the calls that follow.

Measured: let g_h be the gradient on a mesh and g_(h/r) the one on a mesh of r times the steps. For a scheme of order p
the error of g_(h/r) is |g_h - g_(h/r)| / (r^p - 1) (Richardson; Shampine and Watts 1976 for whole meshes). With three
resolutions the ratio of the two distances shows the order that is really had, and a lower one is believed.

Carried: every solve comes with an estimate from the local errors of its steps (amaml.flow.adjoint), which is off by a
factor that hardly changes from batch to batch. Training makes thousands of similar calls, so a measurement now and then
tells that factor for all of them. Calls are measured in turn, at longer and longer intervals. In between a call carries
its estimate times the factor of the measured calls that it is like: whose cost, lambda_max and estimate over gain are
about its own. One that is like none of them is measured out of turn or, where measuring has taken its share, has no
error.

Steered: the steps are chosen for a tolerance of gain * rtol, to which errors are proportional. The gain is as large as
the last measurements that came in turn allow. The memory is plain numbers and one direction, in which the next call
begins to look for lambda_max: with it a run that was interrupted goes on as if it had not been.
"""

import math
import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any, NamedTuple, TypeVar

import torch
from torch import Tensor

from amaml.errors import OverBudget
from amaml.flow.curvature import Leading
from amaml.robust import Lengths


def relative_distance(a: Tensor, b: Tensor) -> float:
    """|a - b| / |b|; infinite where either is not finite. Waits for the device."""
    part, whole = torch.stack([(a - b).norm(), b.norm()]).tolist()
    if not math.isfinite(part + whole):
        return math.inf
    return part / whole if whole else (0.0 if part == 0 else math.inf)


def error_of_finest(distances: Sequence[float], order: int, times: float) -> float:
    """The relative error of the finest gradient, from the distances between each resolution and the next finer one.

    order: the lowest of the schemes involved, believed where there is one distance; with more, a distance that shrank
    by less than that order promises is believed instead, and one that did not shrink tells nothing. times: the steps of
    the finest over those of the one before.
    """
    shrinking, last = times**-order, distances[-1]
    if len(distances) > 1:
        before = distances[-2]
        shrinking = max(shrinking, last / before if 0 < before < math.inf else 1.0)
    if last == 0:
        return 0.0
    if not (math.isfinite(last) and shrinking < 1):
        return math.inf
    return last * shrinking / (1 - shrinking)  # the sum of all the distances to come


Solved = TypeVar("Solved")


def refined(
    first: Solved,
    finer: Callable[[Solved], Solved],
    read: Callable[[Solved], tuple[Tensor, int]],
    order: int,
    enough: float,
    ceiling: float,
    known: bool = False,
    noise: Callable[[Solved], float] = lambda one: 0.0,
) -> tuple[Solved, float, float]:
    """A solution with finer steps, once or until the relative error of its value is enough.

    read: the value of a solution, and how many steps it took. known: whether errors like it were measured before; if
    not, a distance above enough is not divided by what the order promises before a second one has shown that order.
    noise: below which distances are rounding.
    Returns it, its error, and that of the first one as the order promises it from the resolution whose error is nearest
    to enough: steps that are much too long err by more, and would be shortened too far. Raises OverBudget where finer
    does, unless the error is below the ceiling by then.
    """
    found, distances, coarse, error = [read(first)], [], first, math.inf
    while True:
        try:
            fine = finer(coarse)
        except OverBudget as fault:
            if error <= ceiling:
                break
            raise OverBudget(
                f"the measured relative error is {error:.2g}, above {enough:g}, and bringing it there takes too much: "
                f"{fault}"
            ) from None
        found.append(read(fine))
        (before, less), (value, more) = found[-2:]
        distances.append(relative_distance(before, value))
        error, coarse = error_of_finest(distances, order, more / less), fine
        shown = known or len(distances) > 1 or distances[-1] <= enough
        if (error <= enough and shown) or distances[-1] <= noise(fine):
            break
    errors = [relative_distance(one, value) + error for one, _ in found[:-1]]
    nearest = min(range(len(errors)), key=lambda i: max(errors[i] / enough, enough / max(errors[i], 1e-300)))
    return coarse, error, errors[nearest] * (found[nearest][1] / found[0][1]) ** order


class Observation(NamedTuple):
    """What a call tells: evaluations of its first solve, the largest lambda_max seen, an estimate of the gradient's
    relative error (to a factor), its norm, the measured relative error of the first solve (None: not measured), the
    evaluations that measuring took, whether it was refused, whether it made the steps of gradient descent in place of
    the flow's, the leading eigenpair of the Hessian at theta, what problem the call was of, and the evaluations that
    longer steps than its error asks for saved.
    """

    cost: float
    sharpest: float = 0.0
    estimate: float = 0.0
    norm: float = 0.0
    error: float | None = None
    measuring: float = 0.0
    refused: bool = False
    descended: bool = False
    leading: Leading | None = None
    problem: tuple = ()
    saved: float = 0.0  # last: a checkpoint that was made before it has the others


@dataclass(frozen=True)
class Controller:
    """When the error is measured, and what follows from it.

    target: the median of the errors measured last, over rtol. 0.7: 3 to 11% more evaluations.
    finer: steps of a measuring solve over those of the one before, but 2 in a first call. 2 in all: 8 carried errors of
    280 below a third of the true one in place of 4, and measured calls take 3 usual ones in place of 2.5.
    ceiling: what nine in ten of them stay below, over rtol; above it an error that is known is not returned. With 1 for
    what is returned 11 of 5000 updates of Alpine2D took more than 4 median calls, up to 10; with 3 up to 7.
    every: calls between two measurements at most. 30: 3 to 10% more evaluations.
    share: of all evaluations, what measurements out of turn may lead to. Not varied.
    factormin, factormax: of the gain, by one measurement. Not varied.
    outlier: calls are alike where their features are within this factor. 2: three uneven chunks of a batch of five had
    no error in 6 of 8 calls.
    budget: evaluations of a solve over those of the median call; of the first, over those of gradient descent. 5000
    updates of Alpine2D: first solves took 1.2 medians at most.
    first: the same of a first call, at least. Not varied.
    peak: of a robust mean, evaluations of a solve over those of the median call, beyond which its steps are longer than
    its error asks for. In 25,000 updates of Alpine2D solves take up to 2.3 medians of the 200 around; without it 5.1.
    window: measurements and calls that are remembered. 12: 5% of the errors above 3.2 rtol in place of 2.8, where they
    scatter by a factor of e.
    rounding: in units of the dtype, what is left of a relative accuracy. Not varied.
    """

    target: float = 0.8
    finer: float = 1.5
    ceiling: float = 3.0
    every: int = 50
    share: float = 0.08
    factormin: float = 1 / 20
    factormax: float = 8.0
    outlier: float = 3.0
    budget: float = 4.0
    first: int = 8000
    peak: float = 2.25
    window: int = 16
    rounding: float = 1e3

    def noise(self, values: Tensor) -> float:
        """The relative accuracy that rounding leaves in a dtype."""
        return self.rounding * torch.finfo(values.dtype).eps

    def limit(self, memory: "Memory", steps: int) -> float:
        """Evaluations that a solve of the next call may take; a call that was refused at a limit doubles it."""
        refused = max((2 * seen.cost for seen in memory.calls if seen.refused and not seen.descended), default=0.0)
        known = statistics.median(seen.cost for seen in memory.calls) if memory.errors else 2 * steps
        return max(self.budget * known, refused, 0 if memory.errors else self.first)

    def most(self, memory: "Memory") -> float:
        """Evaluations of a call of a robust mean, which a batch that is stiffer than others needs no more of."""
        asked = [seen.cost + seen.saved for seen in memory.calls]
        return self.peak * statistics.median(asked) if memory.errors else math.inf

    def due(self, memory: "Memory", rtol: float, seen: Observation, robust: bool = False) -> bool:
        """Whether a call's error is to be measured: in its turn, where it is unlike all that were, or carries too much.

        Measuring takes another, dearer solve: a call that is not among the cheapest quarter leaves its turn to the
        next, for as long as another interval. Once measurements out of turn have taken their share, only calls that are
        far from everything known are, and those whose estimate is far too large. Of a robust mean, to which a task adds
        its part whatever it is, a call that is not cheap is measured only where none was for so long that every call is
        dearer than those before, as theta grows stiffer.
        """
        costs = sorted(one.cost for one in memory.calls)
        dear = memory.errors and seen.cost > costs[len(costs) // 4]
        waits = dear and memory.since + 1 < memory.interval + (self.every if robust else memory.interval)
        if not math.isfinite(seen.norm):
            return True
        if robust and waits:
            return False
        if memory.in_turn and not waits:
            return True
        carried, far = self.carried(memory, seen), self.outlier**2
        if memory.measuring <= self.share * (memory.spent + memory.measuring):
            return carried is None or carried > self.ceiling * rtol
        guess = self.carried(memory, seen, math.inf) or 0.0
        return not memory.like(seen, far) or guess > far * self.ceiling * rtol

    def carried(self, memory: "Memory", seen: Observation, outlier: float | None = None) -> float | None:
        """The relative error of a call by its estimate and the measured calls that it is like; None without such.

        Of what their errors were over their estimates the upper quartile: too large more often than too small.
        """
        like = memory.like(seen, outlier or self.outlier)
        errors = sorted(one.error * (seen.estimate / one.estimate if one.estimate else 1.0) for one in like)
        return errors[3 * len(errors) // 4] if errors else None

    def update(self, memory: "Memory", rtol: float, seen: Observation) -> "Memory":
        """The memory after a call."""
        in_turn, calls = memory.in_turn, (*memory.calls, seen._replace(leading=None, problem=()))[-self.window :]
        # a refused call costs three to four times the steps of gradient descent, and most cost less than these
        rarely = seen.refused and 4 * sum(one.refused for one in calls) < len(calls)
        memory = replace(
            memory,
            calls=calls,
            since=0 if in_turn and (seen.descended or seen.error is not None) else memory.since + 1,
            spent=memory.spent + seen.cost,
            measuring=memory.measuring + seen.measuring,
            descended=seen.descended and not rarely,
            leading=seen.leading or memory.leading,
        )
        if seen.descended:
            return replace(memory, interval=self._next_look(memory, seen, in_turn))
        if seen.error is None:
            return memory
        known = Known(*seen[:3], memory.gain, seen.error, in_turn)
        alike = [one for one in memory.errors if one.in_turn == in_turn]  # each kind has a window of its own
        dropped = alike[0] if len(alike) == self.window else None
        memory = replace(memory, errors=(*(one for one in memory.errors if one is not dropped), known))
        if not in_turn:
            return memory
        good = seen.error <= self.ceiling * rtol
        interval = self._longer(memory) if good else max(memory.interval / 2, 1)
        return replace(memory, gain=self._gain(memory, rtol), interval=interval)

    def _next_look(self, memory: "Memory", seen: Observation, in_turn: bool) -> float:
        """At whether the flow is the cheaper: at once where the gradient's length jumped, whichever way, unless the
        flow was tried of late and refused."""
        usual = statistics.median(one.norm for one in memory.calls)
        jumped = not usual <= self.outlier * seen.norm <= self.outlier**2 * usual
        if jumped and not any(one.refused for one in memory.calls):
            return 1.0
        return self._longer(memory) if in_turn else memory.interval

    def _longer(self, memory: "Memory") -> float:
        return min(2 * memory.interval, self.every)

    def _gain(self, memory: "Memory", rtol: float) -> float:
        """A bounded correction; a tolerance gain * rtol above 1 would mean nothing."""
        errors = sorted(max(one.error / one.gain / rtol, 1e-300) for one in memory.errors if one.in_turn)
        high = max(min(9 * len(errors) // 10, len(errors) - 2), 0)  # of two or more the largest may be a wild one
        wanted = min(self.target / statistics.median_low(errors), self.ceiling / errors[high])
        least, most = self.factormin * memory.gain, self.factormax * memory.gain
        return min(max(wanted, least), most, 1 / rtol)


class Known(NamedTuple):
    """A measured call: as in its Observation, with the gain it was made at and whether it was measured in turn."""

    cost: float
    sharpest: float
    estimate: float
    gain: float
    error: float
    in_turn: bool


@dataclass(frozen=True)
class Memory:
    """What a learner of the flow remembers from call to call.

    problem: what it is about; gain: tolerance of the steps over rtol; calls: the last ones; errors: the last measured
    ones, in turn and out of turn; interval: calls from one turn to the next, since: those already made; spent,
    measuring: evaluations of all calls, without and for their measurements; descended: whether the last call made the
    steps of gradient descent instead of the flow's; leading: the eigenpair at the theta of the last call;
    lengths: of the tasks' last gradients, for a robust mean.
    """

    problem: tuple = ()
    gain: float = 1.0
    calls: tuple[Observation, ...] = ()
    errors: tuple[Known, ...] = ()
    interval: float = 1.0
    since: int = 0
    spent: float = 0.0
    measuring: float = 0.0
    descended: bool = False
    leading: Leading | None = None
    lengths: Lengths = Lengths()

    def about(self, problem: tuple) -> "Memory":
        """This memory, or an empty one where it is about another problem."""
        return self if self.problem == problem else Memory(problem)

    @property
    def in_turn(self) -> bool:
        """Whether the next call is to be measured whatever it tells."""
        return self.since + 1 >= self.interval

    @property
    def of_parts(self) -> "Memory":
        """This memory for the parts of a call, of which none waits for a cheaper one: in its turn all are measured."""
        return replace(self, since=math.inf) if self.in_turn else self

    def like(self, seen: Observation, factor: float) -> list[Known]:
        """The measured calls whose cost, lambda_max and estimate over gain are within a factor of the next call's."""

        def alike(a: float, b: float) -> bool:
            return a <= factor * b and b <= factor * a

        def features(one: Observation | Known, gain: float) -> tuple[float, ...]:
            return one.cost, one.sharpest, one.estimate / gain

        return [one for one in self.errors if all(map(alike, features(one, one.gain), features(seen, self.gain)))]

    def state_dict(self) -> dict[str, Any]:
        """Plain numbers and a tensor, for a checkpoint."""
        state = {one.name: getattr(self, one.name) for one in fields(self)}
        plain = {name: [tuple(one) for one in state[name]] for name in ("calls", "errors")}
        return state | plain | {"leading": self.leading and tuple(self.leading), "lengths": self.lengths.state_dict()}

    @staticmethod
    def of(state: dict[str, Any]) -> "Memory":
        """From a state_dict."""
        made = {
            "problem": tuple(state["problem"]),
            "calls": tuple(Observation(*one) for one in state["calls"]),
            "errors": tuple(Known(*one) for one in state["errors"]),
            "leading": state["leading"] and Leading(*state["leading"]),
            "lengths": Lengths.of(state["lengths"]),
        }
        return Memory(**state | made)
