"""Accuracy under feedback: when a learner measures its error, and how the measurement steers its steps.

Training makes thousands of similar calls, so a measurement now and then tells the error of all. The steps are chosen
for a tolerance of gain * rtol, to which errors are proportional. The gain is as large as the last measurements allow:
scaled to it, their median stays below TYPICAL * rtol and the largest of them below WORST * rtol, unless it is so far
from the others that it would cost them a multiple of their evaluations. Calls are measured in turn, at longer and
longer intervals once the gain has stopped growing, and out of turn where something jumped. A batch whose gradient is
much larger than usual is a rough one, with an error many times that of the others: it leaves the gain alone, its error
is carried to other rough ones, and where that is above TOLERATED * rtol they are measured too. Beside the error,
lambda_max at theta is carried on from call to call, with its direction, from where the next call looks for it. The
state is numbers and this direction: with it a run that was interrupted goes on as if it had not been.
"""

import math
import statistics
from dataclasses import dataclass, field, fields
from typing import Any, NamedTuple

from amaml.flow.curvature import Sharp

TYPICAL, WORST = 0.8, 2.5  # median and largest of the last measured errors, over rtol
REMEMBERED = 16  # measurements
LARGEST_CORRECTION = (1 / 20, 4.0)  # of the gain, by one measurement
GAINS = (1e-3, 8.0)  # bounds of the gain
TOLERATED = 3.0  # errors above so many rtol are not returned where they are known; in a first call above rtol
HELD = 0.5  # of the gain that the median allows: what the largest error leaves of it at least
TINY = 1e-9  # an error over rtol that is as good as none
STRETCH = 2.0  # of the number of calls from one turn to the next
LONGEST = 50  # such number
STEADY = 1.25  # the number grows only after a measurement that raises the gain by no more than this
SHARE = 0.08  # of all evaluations that measurements may take, before a jump asks for another one
JUMP = {"cost": 2.0, "sharpest": 2.0, "norm": 5.0}  # over the median of the last calls
WINDOW = 50  # calls whose medians are remembered
SETTLED = 5  # calls after which those medians mean something
BUDGET = 4.0  # evaluations of a solve, over the median of the last calls
FIRST_BUDGET = 8000, 4  # evaluations of the first calls: the larger of this, and so many times inner_steps


class Observation(NamedTuple):
    """What a call tells: evaluations of its first solve, the largest lambda_max seen, the gradient's norm, the measured
    relative error of the first solve (None: not measured), the evaluations that measuring it took, and lambda_max at
    theta.
    """

    cost: float
    sharpest: float
    norm: float
    error: float | None
    measuring: float
    known: Sharp | None = None


@dataclass
class Control:
    """What a learner of the flow remembers from call to call.

    problem: what the measurements are about; gain: tolerance of the steps over rtol; errors: the last measured ones,
    over rtol and the gain of their call, rough: the last one of a rough batch; interval: calls from one turn to the
    next, since: those already made; spent, measuring: evaluations of all calls, without and for their measurements;
    known: lambda_max at the theta of the last call.
    """

    problem: tuple = ()
    gain: float = 1.0
    rough: float | None = None
    errors: list[float] = field(default_factory=list)
    interval: float = 1.0
    since: int = 0
    spent: float = 0.0
    measuring: float = 0.0
    history: dict[str, list[float]] = field(default_factory=lambda: {name: [] for name in JUMP})
    known: Sharp | None = field(default=None, compare=False)

    def about(self, problem: tuple) -> "Control":
        """This state, or a new one where it is about another problem."""
        return self if self.problem == problem else Control(problem)

    def budget(self, inner_steps: int) -> float:
        """Evaluations that a solve of the next call may take."""
        costs = self.history["cost"]
        if len(costs) < SETTLED:
            least, times = FIRST_BUDGET
            return max(least, times * inner_steps)
        return BUDGET * statistics.median(costs)

    def due(self, cost: float, sharpest: float, norm: float) -> bool:
        """Whether this call's error is to be measured: in its turn, or since something jumped."""
        if self._in_turn() or not math.isfinite(norm):
            return True
        if self._is_rough(norm) and (self.rough is None or self.rough * self.gain > TOLERATED):
            return True
        now = {"cost": cost, "sharpest": sharpest, "norm": norm}
        jumped = any(self._jumped(name, value) for name, value in now.items())
        return jumped and self.measuring <= SHARE * (self.spent + self.measuring)

    def carried(self, rtol: float, norm: float) -> float | None:
        """The relative error of a call at this gain, by the last measurement of one that was like it."""
        last = self.rough if self._is_rough(norm) else self.errors[-1] if self.errors else None
        return None if last is None else last * rtol * self.gain

    def learn(self, problem: tuple, rtol: float, seen: Observation) -> None:
        """Take in what a call has told."""
        if problem != self.problem:
            vars(self).update(vars(Control(problem)))
        in_turn, rough = self._in_turn(), self._is_rough(seen.norm)
        self.spent += seen.cost
        self.measuring += seen.measuring
        self.history = {name: [*values, getattr(seen, name)][-WINDOW:] for name, values in self.history.items()}
        self.since, self.known = 0 if in_turn else self.since + 1, seen.known
        if seen.error is None:
            return
        before, found = self.gain, max(seen.error / (rtol * self.gain), TINY)
        if rough:
            self.rough = found
        else:
            self.errors = [*self.errors, found][-REMEMBERED:]
            self._steer()
        if in_turn and seen.error <= rtol and self.gain <= STEADY * before:
            self.interval = min(STRETCH * self.interval + 0.5, LONGEST)
        elif seen.error > WORST * rtol and not rough:
            self.interval = max(self.interval / STRETCH, 1)

    def _in_turn(self) -> bool:
        """Whether the next call is to be measured whatever it tells."""
        return self.since + 1 >= self.interval

    def _is_rough(self, norm: float) -> bool:
        return self._jumped("norm", norm)

    def _jumped(self, name: str, value: float) -> bool:
        values = self.history[name]
        return bool(values) and value > JUMP[name] * statistics.median(values)

    def _steer(self) -> None:
        """Choose the gain anew, a bounded correction away."""
        typical = TYPICAL / statistics.median(self.errors)
        wanted = min(typical, max(WORST / max(self.errors), HELD * typical))
        low, high = (factor * self.gain for factor in LARGEST_CORRECTION)
        self.gain = min(max(wanted, low, GAINS[0]), high, GAINS[1])

    def state_dict(self) -> dict[str, Any]:
        """Plain numbers and a tensor, for a checkpoint."""
        return vars(self) | {"known": self.known and tuple(self.known)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from a state_dict; of an older version, with what is still kept."""
        kept = {one.name: state[one.name] for one in fields(self) if one.name in state}
        known = Sharp(*kept["known"]) if kept.get("known") else None
        vars(self).update(vars(Control(**kept | {"problem": tuple(state["problem"]), "known": known})))
