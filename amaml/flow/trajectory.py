"""What is kept of a forward pass for the backward one: states, never graphs, and fewer of them where asked."""

import bisect
import math
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import pad

from amaml.flow.field import GradientFlow
from amaml.flow.schemes import Move, Stages

SMALL = 80 * 2**20  # bytes that the states of a trajectory may take by default: a fifth of what a process takes anyway


Record = Callable[[Move, Stages, Tensor], None]  # is told of every step and its end, in order of time


class Reading(NamedTuple):
    """A state that is read: in which move, -1 for the start, after what share of it, and by what weights of the move's
    stages and end; none at the end itself."""

    state: Tensor
    index: int = -1
    share: float = 1.0
    weights: Sequence[float] = ()


@torch.no_grad()
def march(flow: GradientFlow, moves: Sequence[Move], u: Tensor, record: Record) -> Tensor:
    """Take consecutive moves from u (tasks, P), recording each; the state at the end."""
    for move in moves:
        stages, u = move.scheme.step(flow, move.h, u)
        record(move, stages, u)
    return u


class Trajectory:
    """The flow from u(0) = theta to u(T): recorded move by move, then read backwards, once.

    checkpoints: a number keeps at most so many states, from which the others are computed again, by a binomial
    schedule (Griewank and Walther 2000, "revolve") between states kept at even distances. None keeps the states of
    every stage while they take at most SMALL bytes; otherwise as many whole-step states as fit in SMALL bytes, or about
    twice the square root of the number of steps if that is more. What is read backwards is the same to the bit either
    way.
    """

    def __init__(self, flow: GradientFlow, checkpoints: int | None = None) -> None:
        self.flow, self.checkpoints = flow, checkpoints
        self.moves: list[Move] = []
        self.final = flow.start
        self.sharpest, self.at_start = 0.0, None  # lambda_max at its largest, and a Leading: as it was found first
        self.saved = 0  # evaluations, by steps that are longer than the tolerance asks for
        self.times: Sequence[float] = ()
        self.at: dict[float, Reading] = {}  # the states at these times
        self.whole, self.was_read = checkpoints is None, False
        self._stages: list[Stages] = []  # of every step, while the trajectory is whole
        self._states: dict[int, Tensor] = {}  # at the start of every _stride-th step, otherwise
        self._stride = 1
        self._bytes = 0  # of _stages

    @property
    def time(self) -> float:
        """Up to where it goes."""
        return self.moves[-1].end if self.moves else 0.0

    @property
    def order(self) -> int:
        """The lowest of its schemes, and of what is read within a step: a single local error is as large as all of them
        together of an order less."""
        within = {read.index for read in self.at.values() if read.share < 1}
        schemes = [move.scheme for move in self.moves]
        return min([one.order for one in schemes] + [schemes[i].within.order + 1 for i in within])

    def begin(self, mesh: object, times: Sequence[float]) -> None:
        """Be made by a mesh from here on, to the last of these times; the states at all of them are kept apart."""
        self.mesh, self.times = mesh, times
        if times[0] == 0:
            self.at[0.0] = Reading(self.flow.start)

    def extend(self, moves: Sequence[Move]) -> None:
        """Take and record more moves."""
        self.final = march(self.flow, moves, self.final, self.record)

    def record(self, move: Move, stages: Stages, after: Tensor) -> None:
        """Keep what the memory allows of a step, and what is to be read of it."""
        self.moves.append(move)
        for time in self.times[bisect.bisect_right(self.times, move.start) : bisect.bisect_right(self.times, move.end)]:
            self.at[time] = _read(len(self.moves) - 1, move, time, stages, after)
        if not self.whole:
            self._keep(len(self.moves) - 1, stages[0])
            return
        self._stages.append(stages)
        self._bytes += _size(stages)
        if self._bytes > SMALL:
            self.whole = False
            for i, kept in enumerate(self._stages):
                self._keep(i, kept[0])
            self._stages = []

    def rewind(self, count: int, u: Tensor) -> None:
        """Forget all but the first count moves, after which the state was u."""
        del self.moves[count:], self._stages[count:]
        self._states = {i: state for i, state in self._states.items() if i < count}
        self.at = {time: read for time, read in self.at.items() if read.index < count}
        self._bytes = sum(map(_size, self._stages))
        self.final = u

    def path(self, size: int) -> Tensor:
        """The parameters at its times, (times, tasks, size): the first numbers of a state, which may hold more."""
        return torch.stack([read.state[..., :size] for read in self.at.values()])

    def jumps(self, lam: Tensor) -> dict[int, list[tuple[Reading, Tensor]]]:
        """Sensitivities to the path (times, tasks, size) as those to the states, with these, by the move that they were
        read in; in order of time."""
        found: dict[int, list[tuple[Reading, Tensor]]] = {}
        for read, one in zip(self.at.values(), lam, strict=True):
            jump = pad(one, (0, read.state.shape[-1] - one.shape[-1]))
            found.setdefault(read.index, []).append((read, jump))
        return found

    def again(self) -> "Trajectory":
        """The same moves once more, whatever the budget, to be read another time."""
        other = Trajectory(self.flow.limited(math.inf), self.checkpoints)
        other.at_start = self.at_start
        other.begin(self.mesh, self.times)
        other.extend(self.moves)
        return other

    def backwards(self) -> Iterator[tuple[int, Move, Stages]]:
        """Every move with its number and stages, from the last to the first; forgets them on the way."""
        self.was_read = True
        if self.whole:
            for i in reversed(range(len(self.moves))):
                yield i, self.moves[i], self._stages.pop()
            return
        end = len(self.moves)
        for start in sorted(self._states, reverse=True):
            yield from self._again(start, end, self._states[start], max(self._budget() - len(self._states), 0))
            del self._states[start]
            end = start

    def _budget(self) -> int:
        last = next(reversed(self._states.values()))  # the first holds no state of an optimiser
        return self.checkpoints or max(8, 2 * math.isqrt(len(self.moves)), SMALL // _size([last]))

    def _keep(self, index: int, u: Tensor) -> None:
        if index % self._stride == 0:
            self._states[index] = u
        # the way back between two of these states takes a few more
        while len(self._states) > max(1, self._budget() - (self._stride - 1).bit_length()):
            self._stride *= 2
            self._states = {i: state for i, state in self._states.items() if i % self._stride == 0}

    def _again(self, start: int, end: int, u: Tensor, spare: int) -> Iterator[tuple[int, Move, Stages]]:
        """The moves from start to end backwards, from the state u at start, with room for spare more states."""
        if end - start == 1 or not spare:
            for i in reversed(range(start, end)):
                yield self._stages_of(i, self._recompute(start, i, u))
            return
        middle = start + _split(end - start, spare + 1)
        yield from self._again(middle, end, self._recompute(start, middle, u), spare - 1)
        yield from self._again(start, middle, u, spare)

    def _stages_of(self, i: int, u: Tensor) -> tuple[int, Move, Stages]:
        """Move i, which starts at u, with its stages; of a single one u itself is it."""
        kept = [(u,)]
        if self.moves[i].scheme.cost > 1:
            self._recompute(i, i + 1, u, lambda move, stages, after: kept.append(stages))
        return i, self.moves[i], kept[-1]

    def _recompute(self, start: int, end: int, u: Tensor, record: Record = lambda *step: None) -> Tensor:
        spent = self.flow.evaluations
        before = spent.gradients
        u = march(self.flow, self.moves[start:end], u, record)
        spent.recomputations += spent.gradients - before
        spent.gradients = before
        return u


def _read(index: int, move: Move, time: float, stages: Stages, after: Tensor) -> Reading:
    """The state at a time within a step, or at its end."""
    if time == move.end:
        return Reading(after, index)
    share = (time - move.start) / (move.end - move.start)
    *weights, last = move.scheme.within.weights(share).tolist()
    state = sum((weight * stage for weight, stage in zip(weights, stages, strict=True)), last * after)
    return Reading(state, index, share, (*weights, last))


def _size(stages: Sequence[Tensor]) -> int:
    """Bytes of states."""
    return stages[0].numel() * stages[0].element_size() * len(stages)


def _split(steps: int, states: int) -> int:
    """Where to keep the next state among steps >= 2, when states >= 2 may be kept, the one at the start included.

    comb(states + r, r) steps can be reversed with at most r computations of each (Griewank and Walther 2000).
    """
    repeats = 1
    while math.comb(states + repeats, repeats) < steps:
        repeats += 1
    return min(math.comb(states + repeats - 1, repeats - 1), steps - 1)
