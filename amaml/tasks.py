"""A batch of tasks, the only form in which data reaches a learner."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves, tree_map

from amaml.errors import InputError
from amaml.points import Given, Points, Weighted, check_tensor, first, named

SETS = ("support_x", "support_y", "query_x", "query_y", "test_x", "test_y", "support_weight", "query_weight")


@dataclass(frozen=True)
class Tasks:
    """Support and query sets of a batch of tasks; the first axis of every tensor counts the tasks.

    Tensors that require a gradient get their meta-gradient. Inputs and targets may be dicts or tuples of tensors, where
    the network (x) or the loss (y) takes one.

    Args:
        support_x: inputs to adapt to, (tasks, shot, *input).
        support_y: their targets, (tasks, shot, *output).
        query_x: inputs to judge the adapted parameters by, (tasks, query, *input).
        query_y: their targets.
        test_x: inputs of a meta-test, on which the adapted parameters are judged at last.
        test_y: their targets.
        support_weight: (tasks, shot); the loss of a task is then sum w_i loss_i / sum w_i over its points, and the loss
            must keep them apart: loss(prediction, target) -> (points, ...), as with reduction="none". A point of weight
            zero is padding.
        query_weight: (tasks, query), likewise; where only one of the two is given, the other is one for all points.
        shared: tensors that are the same for all tasks, by name; apply(theta, x) then is apply(theta, x, shared).

    Raises:
        InputError: where the tensors do not fit together.
    """

    support_x: Points
    support_y: Points
    query_x: Points
    query_y: Points
    test_x: Points | None = None
    test_y: Points | None = None
    support_weight: Tensor | None = None
    query_weight: Tensor | None = None
    shared: Mapping[str, Tensor] | None = None

    def __post_init__(self) -> None:
        leaves = [leaf for name in SETS for leaf in named(name, getattr(self, name))]
        for name, value in leaves:
            if value is not None or name not in SETS[4:]:
                check_tensor(name, value)
        counts = {name: tuple(t.shape[:1]) for name, t in leaves if t is not None}
        if len(set(counts.values())) != 1 or () in counts.values() or (0,) in counts.values():
            raise InputError(f"every tensor of Tasks needs the same first axis (tasks >= 1), got {counts}")
        for x, y in ((self.support_x, self.support_y), (self.query_x, self.query_y), (self.test_x, self.test_y)):
            tensors = isinstance(x, Tensor) and isinstance(y, Tensor)
            if x is not None and (y is None or (tensors and x.shape[:2] != y.shape[:2])):
                shapes = [tuple(part.shape) if isinstance(part, Tensor) else part for part in (x, y)]
                raise InputError(
                    f"inputs and targets disagree: {shapes[0]} and {shapes[1]}; both begin with (tasks, points)"
                )
            if tensors and 0 in x.shape[1:2]:
                raise InputError(
                    f"a set of shape {tuple(x.shape)} has no points, whose mean loss is none; take 1 or more"
                )
        for part in ("support", "query"):
            weight, points = getattr(self, f"{part}_weight"), first(getattr(self, f"{part}_x")).shape[:2]
            if weight is not None and (not weight.is_floating_point() or weight.shape != points):
                raise InputError(
                    f"{part}_weight must hold a floating-point number for each point, {tuple(points)}, got "
                    f"{tuple(weight.shape)} of {weight.dtype}"
                )

    @classmethod
    def ragged(cls, tasks: Iterable[tuple[Points, Points, Points, Points]]) -> Tasks:
        """Tasks of different numbers of points as one batch with weights: one for points, zero for padding.

        Sets are padded to a power of two, so that batches of many sizes share a few graphs. Padding repeats the first
        point of its set; neither the loss nor layers in which points meet, as batch norm, see it. The loss must keep
        the points apart (reduction="none").

        Args:
            tasks: of each task (support_x, support_y, query_x, query_y), support_x (shot, *input) and so on, without an
                axis of tasks. Tensors without axes, as arguments of the loss, are stacked.
        """
        tasks = list(tasks)
        if not tasks or any(not isinstance(task, tuple | list) or len(task) != 4 for task in tasks):
            raise InputError(
                "ragged takes tuples (support_x, support_y, query_x, query_y), one for each of 1 or more tasks"
            )
        support_x, support_y, query_x, query_y = zip(*tasks, strict=True)
        support, query = _counts("support", support_x, support_y), _counts("query", query_x, query_y)
        sets = (support_x, support), (support_y, support), (query_x, query), (query_y, query)
        padded = [_padded(rows, counts) for rows, counts in sets]
        weights = (_weights(first(rows[0]), counts) for rows, counts in sets[::2])
        return cls(*padded, None, None, *weights)

    def __repr__(self) -> str:
        shapes = ", ".join(f"{name} {tuple(tensor.shape)}" for name, tensor in self.leaves().items())
        return f"Tasks({len(self)} tasks: {shapes})"

    def __len__(self) -> int:
        return len(first(self.support_x))

    @property
    def shot(self) -> int:
        """The number of support points of a task."""
        return first(self.support_x).shape[1]

    @property
    def device(self) -> torch.device:
        """Where the tensors are."""
        return first(self.support_x).device

    @property
    def support(self) -> tuple[Any, Any]:
        """x and y of the support sets as amaml.engine.derivatives takes them, with what is shared and the weights."""
        return self._set(self.support_x, self.support_y, self.support_weight)

    @property
    def query(self) -> tuple[Any, Any]:
        """x and y of the query sets likewise."""
        return self._set(self.query_x, self.query_y, self.query_weight)

    def _set(self, x: Points, y: Points, weight: Tensor | None) -> tuple[Any, Any]:
        other = self.query_weight if self.support_weight is None else self.support_weight
        if weight is None and other is not None:
            weight = torch.ones(first(x).shape[:2], dtype=other.dtype, device=other.device)
        given = x if self.shared is None else Given(x, dict(self.shared))
        return given, y if weight is None else Weighted(y, weight)

    def names(self, part: str) -> list[str]:
        """The names of the tensors in .support or .query (part), in the order of tree_flatten."""
        x, y, weight = f"{part}_x", f"{part}_y", f"{part}_weight"
        found = [name for name, _ in named(x, getattr(self, x))] + [f"shared.{name}" for name in self.shared or ()]
        return [*found, *(name for name, _ in named(y, getattr(self, y))), weight]

    def leaves(self) -> dict[str, Tensor]:
        """Every tensor of support and query, and the shared ones, by name: "support_x", "query_x.mask", "shared.w"."""
        sets = [name for name in SETS if "test" not in name]
        found = {leaf: t for name in sets for leaf, t in named(name, getattr(self, name)) if t is not None}
        return found | {f"shared.{name}": tensor for name, tensor in (self.shared or {}).items()}

    def support_leaves(self) -> dict[str, Tensor]:
        """Those of leaves() that enter the inner loop."""
        return {name: tensor for name, tensor in self.leaves().items() if name.startswith(("support_", "shared."))}

    def __getitem__(self, which: slice | Tensor) -> Tasks:
        """The tasks of a slice, as views, or those of a tensor of indices, copied."""
        if isinstance(which, int):
            raise InputError(f"tasks[{which}] would lose the axis of tasks; take tasks[{which} : {which + 1}]")
        return self._map(lambda tensor: tensor[which])

    def to(self, *args, **kwargs) -> Tasks:
        """As torch.nn.Module.to: every tensor moves to the device, and those of floating-point numbers to the dtype."""

        def move(tensor: Tensor) -> Tensor:
            moved = tensor.to(*args, **kwargs)
            return moved if tensor.is_floating_point() else tensor.to(moved.device)  # class numbers stay what they are

        return self._map(move, move)

    def detach(self) -> Tasks:
        """The same numbers without their graphs."""
        return self._map(Tensor.detach, Tensor.detach)

    def _map(self, change: Callable[[Tensor], Tensor], of_shared: Callable[[Tensor], Tensor] | None = None) -> Tasks:
        changed = {name: tree_map(change, value) for name in SETS if (value := getattr(self, name)) is not None}
        if of_shared and self.shared is not None:
            changed["shared"] = {name: of_shared(tensor) for name, tensor in self.shared.items()}
        return replace(self, **changed)


def _counts(name: str, xs: Sequence[Points], ys: Sequence[Points]) -> list[int]:
    """The numbers of points of the tasks."""
    for leaf in tree_leaves((xs, ys)):
        if not isinstance(leaf, Tensor):
            raise InputError(f"the {name} sets of ragged tasks must hold torch.Tensors, got {type(leaf).__name__}")
    found = [{len(t) for t in tree_leaves(task) if t.ndim} for task in zip(xs, ys, strict=True)]
    wrong = [i for i, counts in enumerate(found) if len(counts) != 1 or 0 in counts]
    if wrong:
        raise InputError(
            f"the {name} set of task {wrong[0]} (from 0) has tensors of {sorted(found[wrong[0]])} points; every one "
            "begins with the points (1 or more) and has no axis of tasks"
        )
    return [counts.pop() for counts in found]


def _padded(rows: Sequence[Points], counts: list[int]) -> Points:
    """The sets of all tasks in one tree of tensors (tasks, room, ...)."""

    def stack(*leaves: Tensor) -> Tensor:
        if not leaves[0].ndim:
            return torch.stack(leaves)
        most = _room(counts)
        return torch.stack([torch.cat([t, t[:1].expand(most - len(t), *t.shape[1:])]) for t in leaves])

    try:
        return tree_map(stack, *rows)
    except (RuntimeError, ValueError) as fault:
        raise InputError(
            f"ragged tasks differ in their numbers of points alone, not in keys, other sizes or device: {fault}"
        ) from fault


def _weights(x: Tensor, counts: list[int]) -> Tensor:
    """One for every point, zero for padding, (tasks, room)."""
    dtype = x.dtype if x.is_floating_point() else torch.get_default_dtype()
    number = torch.tensor(counts, device=x.device)[:, None]
    return (torch.arange(_room(counts), device=x.device) < number).to(dtype)


def _room(counts: list[int]) -> int:
    """For sets of so many points: a power of two, or nothing more where all have as many."""
    most = max(counts)
    return most if min(counts) == most else 1 << (most - 1).bit_length()
