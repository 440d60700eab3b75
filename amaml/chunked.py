"""A learner that sees few tasks at once, for networks of which a whole batch does not fit."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TypeVar

import torch
from torch import Tensor

from amaml.arguments import check_count
from amaml.flow.accuracy import Observation
from amaml.flow.field import Evaluations
from amaml.learner import AnyMemory, MetaGradient, MetaLearner, compact, with_own_memory
from amaml.robust import Weighing
from amaml.tasks import Tasks

Part, Result = TypeVar("Part"), TypeVar("Result")
Each = Callable[[Callable[[Part], Result], list[Part]], list[Result]]


def in_turn(solve: Callable[[Part], Result], parts: list[Part]) -> list[Result]:
    """solve of every part, in their order, one after the other."""
    return [solve(part) for part in parts]


@dataclass(frozen=True, eq=False)
class Chunked:
    """A learner that sees at most size tasks at once.

    The meta-gradient is the mean over all tasks: to rounding for methods that make the same steps for every batch, to
    rtol for A-MAML's flow, whose steps are chosen for the tasks that are solved together. A-MAML learns once, from all
    chunks: each begins from the same state, so that it does not matter where or in which order they are solved.

    each: how the meta-gradients of the chunks are taken: in_turn, or spread over processes, to the same bits.
    """

    learner: MetaLearner
    size: int
    each: Each = in_turn

    def __post_init__(self) -> None:
        check_count("task_chunk", self.size)

    def adapt(self, theta: Tensor, tasks: Tasks) -> Tensor:
        """As the learner's, chunk by chunk."""
        return torch.cat([self.learner.adapt(theta, chunk) for chunk in chunks(tasks, self.size)])

    def init(self) -> AnyMemory:
        """As the learner's."""
        return self.learner.init()

    def gradient(self, theta: Tensor, tasks: Tasks, memory: AnyMemory) -> MetaGradient:
        """As the learner's, every chunk from the same memory; error: the most that the chunks' errors add up to."""
        parts, memory = chunks(tasks, self.size), getattr(memory, "of_parts", memory)
        found = self.each(lambda part: self.learner.gradient(theta, part, memory), parts)
        return fold(found, [len(part) / len(tasks) for part in parts])

    def update(self, memory: AnyMemory, seen: MetaGradient) -> AnyMemory:
        """As the learner's, once, from all chunks."""
        return self.learner.update(memory, seen)

    meta_gradient = with_own_memory


def chunks(tasks: Tasks, size: int | None) -> list[Tasks]:
    """The tasks, at most size at a time; None: all at once."""
    if size is None:
        return [tasks]
    with torch.enable_grad():  # a slice of a tensor that requires a gradient requires one
        return [tasks[i : i + size] for i in range(0, len(tasks), size)]


def fold(parts: list[MetaGradient], shares: list[float]) -> MetaGradient:
    """The meta-gradient of a batch from those of its parts, in their order; shares: of the tasks, that add up to 1."""
    weighing = Weighing(*(_joined([getattr(part, name) for part in parts]) for name in ("weights", "lengths")))
    if all(len(part.of_tasks) == len(part.query_loss) for part in parts):
        mean = compact(torch.cat([part.of_tasks for part in parts]), weighing)
    else:
        of_tasks = sum(part.value * share for part, share in zip(parts, shares, strict=True))[None]
        mean = compact(of_tasks, Weighing(None, weighing.lengths))
    losses = torch.cat([part.query_loss for part in parts])
    gradients = {name: _of_whole(name, parts, shares) for name in parts[0].gradients}
    spent = Evaluations.of_parts([part.evaluations for part in parts], shares)
    seen = [part.observation for part in parts]
    names = {part.solver for part in parts}
    solver = names.pop() if len(names) == 1 else "auto"
    whole = MetaGradient(query_loss=losses, evaluations=spent, gradients=gradients, solver=solver, **mean)
    if None in seen:
        return whole
    folded = _fold_seen(seen, shares, whole.value.norm().item())
    exact = [part.error is None and part.solver == "euler" for part in parts]
    errors = [0.0 if known else part.error for known, part in zip(exact, parts, strict=True)]
    error = None if all(exact) else _added(errors, seen, shares, folded.norm)
    return replace(whole, error=error, measured=all(part.measured for part in parts), observation=folded)


def _joined(parts: list[Tensor | None]) -> Tensor | None:
    return None if any(part is None for part in parts) else torch.cat(parts)


def _of_whole(name: str, parts: list[MetaGradient], shares: list[float]) -> torch.Tensor:
    """The gradient of the whole batch's loss in one tensor; those of support and query have rows of each part."""
    of_parts = [part.gradients[name] * share for part, share in zip(parts, shares, strict=True)]
    return torch.cat(of_parts) if name.startswith(("support_", "query_")) else sum(of_parts)


def _fold_seen(seen: list[Observation], shares: list[float], norm: float) -> Observation:
    def mean(name: str) -> float:
        return sum(getattr(one, name) * share for one, share in zip(seen, shares, strict=True))

    errors, estimates = ([getattr(one, name) for one in seen] for name in ("error", "estimate"))
    leading = max((one.leading for one in seen if one.leading), key=lambda leading: leading.value, default=None)
    return Observation(
        cost=mean("cost"),
        sharpest=max(one.sharpest for one in seen),
        estimate=_added(estimates, seen, shares, norm),
        norm=norm,
        error=_added(errors, seen, shares, norm),
        measuring=mean("measuring"),
        saved=mean("saved"),
        refused=any(one.refused for one in seen),
        descended=any(one.descended for one in seen),
        leading=leading,
        problem=seen[0].problem,
    )


def _added(errors: list[float | None], seen: list[Observation], shares: list[float], norm: float) -> float | None:
    """The relative error of the mean, if those of the parts point the same way; None where one is not known."""
    if None in errors:
        return None
    total = sum(e * one.norm * share for e, one, share in zip(errors, seen, shares, strict=True))
    return total / norm if norm else (0.0 if total == 0 else float("inf"))
