"""What a meta-learning method is, and the pieces that several of them share."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cached_property, partial
from typing import Any, NamedTuple, Protocol
from weakref import WeakKeyDictionary

import torch
from torch import Tensor

from amaml.engine import derivatives
from amaml.engine.derivatives import Loss
from amaml.errors import Diverged, InputError
from amaml.flow.accuracy import Observation
from amaml.flow.field import Evaluations
from amaml.robust import Weighing, weighted_mean
from amaml.tasks import Tasks

LARGE = 2**26  # bytes of (tasks, P) above which the tasks' gradients are averaged at once
AnyMemory = Any  # what a learner remembers from call to call; () where it remembers nothing


@dataclass(frozen=True)
class MetaGradient:
    """What a learner hands to the optimiser of theta.

    Attributes:
        of_tasks: the direction of each task, (tasks, P), of which value (P,) is the mean; where that many numbers are
            large (LARGE), their mean alone, (1, P).
        query_loss: of each task's adapted parameters on its query set, (tasks,).
        evaluations: what it cost.
        error: the relative error of value, |value - exact| / |exact|: of this very gradient where measured is true,
            otherwise as it was measured last on a call like this; None where value is exact or is no gradient at all.
        measured: whether error is of this very gradient.
        observation: what the learner's update() learns from the call.
        gradients: of the mean query loss in everything else that was requested, by name: "inner_lr", "prox", and the
            names of Tasks.leaves(); each has the shape of its tensor.
        solver: what A-MAML followed the inner loop with; "euler" where it made the steps of gradient descent.
        weights: of a robust mean (amaml.robust), how often each task counts, (tasks,); None for the plain mean, and
            where they have gone into of_tasks.
        lengths: of the tasks' directions, (tasks,), where the mean is robust.
    """

    of_tasks: Tensor
    query_loss: Tensor | None
    evaluations: Evaluations
    error: float | None = None
    measured: bool = False
    observation: Observation | None = None
    gradients: dict[str, Tensor] = field(default_factory=dict)
    solver: str | None = None
    weights: Tensor | None = None
    lengths: Tensor | None = None

    @cached_property
    def value(self) -> Tensor:
        """The direction to descend, the mean over the tasks, (P,)."""
        return weighted_mean(self.of_tasks, self.weights)


class Followed(NamedTuple):
    """An inner loop that was run: phi after some of its steps, (times, tasks, P), and what its pull_back needs."""

    path: Tensor
    kept: Any


class MetaLearner(Protocol):
    """A method: pure functions of theta (P,), a batch of tasks and a memory. None of them is ever modified."""

    def init(self) -> AnyMemory:
        """The memory before the first call."""

    def adapt(self, theta: Tensor, tasks: Tasks) -> Tensor:
        """The parameters adapted to the support set of each task, (tasks, P)."""

    def gradient(self, theta: Tensor, tasks: Tasks, memory: AnyMemory) -> MetaGradient:
        """The direction in which an optimiser descends the mean query loss of the adapted parameters."""

    def update(self, memory: AnyMemory, seen: MetaGradient) -> AnyMemory:
        """The memory after a call that gave the gradient seen."""

    def meta_gradient(self, theta: Tensor, tasks: Tasks) -> MetaGradient:
        """gradient() with a memory that belongs to this object, for those who call it in a loop."""


class Differentiable(MetaLearner, Protocol):
    """A method of which phi is a differentiable function: what an outer loss of one's own needs."""

    def follow(self, theta: Tensor, tasks: Tasks, memory: AnyMemory, at: Sequence[int]) -> Followed:
        """The parameters after `at` inner steps."""

    def pull_back(self, followed: Followed, lam: Tensor, memory: AnyMemory) -> MetaGradient:
        """From lam (times, tasks, P), the sensitivities of any loss to followed.path, to its gradients.

        The loss takes the place of the mean query loss times the number of tasks; query_loss is empty.
        """


def followed(learner: MetaLearner, theta: Tensor, tasks: Tasks, memory: AnyMemory, at: Sequence[int]) -> Followed:
    """The inner loop, of a learner that may know its end alone; raises InputError for other steps of such a one."""
    if hasattr(learner, "follow"):
        return learner.follow(theta, tasks, memory, at)
    if tuple(at) != (learner.inner_steps,):
        raise InputError(f"this method knows the end of its inner loop alone, {learner.inner_steps} steps, got {at!r}")
    return Followed(learner.adapt(theta, tasks)[None], None)


def with_own_memory(learner: MetaLearner, theta: Tensor, tasks: Tasks) -> MetaGradient:
    """gradient(theta, tasks, memory) with the memory of this learner object, which lives as long as the object."""
    memory = _memories[learner] if learner in _memories else learner.init()
    keep = partial(_memories.__setitem__, learner)
    return remembered(learner, memory, partial(learner.gradient, theta, tasks), keep)


_memories: WeakKeyDictionary[Any, AnyMemory] = WeakKeyDictionary()


def remembered(
    learner: MetaLearner,
    memory: AnyMemory,
    make: Callable[[AnyMemory], MetaGradient],
    keep: Callable[[AnyMemory], None],
) -> MetaGradient:
    """What is made with a memory; keep is given the one afterwards, which learns from what is refused as well."""
    try:
        made = make(memory)
    except Diverged as refused:
        keep(learner.update(memory, refused))
        raise
    keep(learner.update(memory, made))
    return made


def compact(of_tasks: Tensor, weighing: Weighing) -> dict[str, Tensor | None]:
    """The fields of a MetaGradient that are its direction; of_tasks is the mean (1, P) where it is LARGE."""
    weights, lengths = weighing
    if of_tasks.numel() * of_tasks.element_size() > LARGE:
        of_tasks, weights = weighted_mean(of_tasks, weights)[None], None
    return {"of_tasks": of_tasks, "weights": weights, "lengths": lengths}


def outer_loss(learner: MetaLearner) -> Loss:
    """That of the query sets: the inner one, or another."""
    return getattr(learner, "query_loss", None) or learner.loss


def outer_steps(learner: MetaLearner) -> tuple[Sequence[int], Sequence[float]]:
    """After which inner steps the outer loss looks, and its weights: the last step alone, equal parts by default."""
    steps = getattr(learner, "query_steps", None) or (learner.inner_steps,)
    return steps, getattr(learner, "query_weights", None) or [1 / len(steps)] * len(steps)


def query_along(
    learner: MetaLearner, path: Tensor, tasks: Tasks, leaves: tuple[int, ...]
) -> tuple[Tensor, Tensor, list[Tensor]]:
    """The outer loss of the parameters after outer_steps, path (times, tasks, P): its gradient in the path, its value
    (tasks,), and its gradients in those leaves of tasks.query, summed over the tasks."""
    (_, weights), loss, query = outer_steps(learner), outer_loss(learner), tasks.query
    found = (derivatives.losses_and_gradients(learner.apply, loss, phi, *query, leaves) for phi in path)
    losses, gradients, *direct = zip(*found, strict=True)
    lam = torch.stack([w * gradient for w, gradient in zip(weights, gradients, strict=True)])
    return lam, _weighted_sum(weights, losses), [_weighted_sum(weights, parts) for parts in direct]


def evaluated(learner: MetaLearner, theta: Tensor, tasks: Tasks, memory: AnyMemory) -> Tensor:
    """The outer loss of every task, (tasks,), without gradients: it costs the inner loop alone."""
    steps, weights = outer_steps(learner)
    path, loss = followed(learner, theta, tasks, memory, steps).path, outer_loss(learner)
    return _weighted_sum(weights, [derivatives.losses(learner.apply, loss, phi, *tasks.query) for phi in path])


def _weighted_sum(weights: Sequence[float], parts: Sequence[Tensor]) -> Tensor:
    return sum(weight * part for weight, part in zip(weights, parts, strict=True))
