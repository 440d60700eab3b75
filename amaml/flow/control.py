"""Accuracy under feedback: when a learner measures its error, and how the measurement steers its steps.

Training makes thousands of similar calls, so a measurement now and then tells the error of all. The steps are chosen
for a tolerance of gain * rtol, to which errors are proportional. The gain is as large as the last measurements allow:
scaled to it, their median stays below TYPICAL * rtol and the largest of them below WORST * rtol. The state is plain
numbers: with it a run that was interrupted goes on as if it had not been.
"""

import math
import statistics
from dataclasses import asdict, dataclass, field
from typing import Any, NamedTuple

TYPICAL, WORST = 0.7, 2.0  # of the errors of the last measured calls, over rtol
REMEMBERED = 8  # measurements
LARGEST_CORRECTION = (1 / 20, 4.0)  # of the gain, by one measurement
GAINS = (1e-3, 8.0)  # bounds of the gain
TINY = 1e-9  # an error over rtol that is as good as none
STRETCH = 2.0  # of the number of calls from one measurement to the next
LONGEST = 30  # such number
SHARE = 0.08  # of all evaluations that measurements may take, before a jump asks for another one
JUMP = {"cost": 2.0, "sharpest": 2.0, "norm": 5.0}  # over the median of the last calls
WINDOW = 50  # calls whose medians are remembered
SETTLED = 5  # calls after which those medians mean something
BUDGET = 4.0  # evaluations of a call, over the median of the last ones
FIRST_BUDGET = 8000, 4  # evaluations of the first calls: the larger of this, and so many times inner_steps


class Observation(NamedTuple):
    """What a call tells: evaluations of its first solve, the largest lambda_max seen, the gradient's norm, the measured
    relative error of the first solve (None: not measured) and the evaluations that measuring it took.
    """

    cost: float
    sharpest: float
    norm: float
    error: float | None
    measuring: float


@dataclass
class Control:
    """What a learner of the flow remembers from call to call.

    problem: what the measurements are about; gain: tolerance of the steps over rtol; error: of a call at this gain, as
    measured last, relative; errors: the last measured ones, over rtol and the gain of their call; interval: calls from
    the last measurement to the next, since: those already made.
    """

    problem: tuple = ()
    gain: float = 1.0
    error: float | None = None
    errors: list[float] = field(default_factory=list)
    interval: float = 1.0
    since: int = 0
    spent: float = 0.0
    measuring: float = 0.0
    history: dict[str, list[float]] = field(default_factory=lambda: {name: [] for name in JUMP})

    def about(self, problem: tuple) -> "Control":
        """This state, or a new one where it is about another problem."""
        return self if self.problem == problem else Control(problem)

    def budget(self, inner_steps: int) -> float:
        """Evaluations that the next call may take, besides its measurement."""
        costs = self.history["cost"]
        if len(costs) < SETTLED:
            least, times = FIRST_BUDGET
            return max(least, times * inner_steps)
        return BUDGET * statistics.median(costs)

    def due(self, cost: float, sharpest: float, norm: float) -> bool:
        """Whether this call's error is to be measured: in its turn, or since something jumped."""
        if self.since + 1 >= self.interval or not math.isfinite(norm):
            return True
        now = {"cost": cost, "sharpest": sharpest, "norm": norm}
        jumped = any(now[name] > JUMP[name] * statistics.median(self.history[name]) for name in JUMP)
        return jumped and self.measuring <= SHARE * (self.spent + self.measuring)

    def learn(self, problem: tuple, rtol: float, seen: Observation) -> None:
        """Take in what a call has told."""
        if problem != self.problem:
            vars(self).update(vars(Control(problem)))
        self.spent += seen.cost
        self.measuring += seen.measuring
        self.history = {name: [*values, getattr(seen, name)][-WINDOW:] for name, values in self.history.items()}
        self.since += 1
        if seen.error is None:
            return
        self.since = 0
        self.interval = min(STRETCH * self.interval + 0.5, LONGEST) if seen.error <= rtol else max(self.interval / 2, 1)
        self.errors = [*self.errors, max(seen.error / (rtol * self.gain), TINY)][-REMEMBERED:]
        wanted = min(TYPICAL / statistics.median(self.errors), WORST / max(self.errors))
        low, high = (factor * self.gain for factor in LARGEST_CORRECTION)
        before, self.gain = self.gain, min(max(wanted, low, GAINS[0]), high, GAINS[1])
        self.error = seen.error * self.gain / before

    def state_dict(self) -> dict[str, Any]:
        """Plain numbers, for a checkpoint."""
        return asdict(self)

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from a state_dict."""
        vars(self).update(vars(Control(**state | {"problem": tuple(state["problem"])})))
