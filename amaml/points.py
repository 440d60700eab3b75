"""The points of tasks as trees: tensors, or dicts and tuples of tensors, with what is given beside them."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import fields, is_dataclass, replace
from typing import Any, NamedTuple

import numpy as np
from torch import Tensor
from torch.utils._pytree import tree_flatten, tree_leaves, tree_map, tree_unflatten

from amaml.errors import InputError

Points = Any  # a tensor (tasks, points, ...), or a dict or tuple of such tensors


class Given(NamedTuple):
    """x of tasks with shared tensors, which are the same for all of them: apply(theta, x, shared)."""

    x: Points
    shared: dict[str, Tensor]


class Weighted(NamedTuple):
    """Targets, and a weight for each point (tasks, points)."""

    y: Points
    weight: Tensor


def named(name: str, points: Any) -> Iterator[tuple[str, Any]]:
    """Every leaf with its name, such as "support_x.mask" or "support_x.0", in the order of tree_flatten."""
    if isinstance(points, dict):
        for key, value in points.items():
            yield from named(f"{name}.{key}", value)
    elif isinstance(points, tuple):
        for i, value in enumerate(points):
            yield from named(f"{name}.{i}", value)
    else:
        yield name, points


def check_tensor(name: str, value: object) -> None:
    """Raise InputError for what is no tensor with axes of tasks and points."""
    if not isinstance(value, Tensor):
        raise InputError(
            f"{name} must be a torch.Tensor, got {type(value).__name__}; torch.as_tensor({name}) makes one"
        )
    if value.is_nested:
        raise InputError(f"{name} is nested; amaml.Tasks.ragged takes the sets of every task, of different sizes")


def call(function: Callable[..., Any], x: Points) -> Any:
    """function at x: a tuple gives its positional arguments, a dict its keywords."""
    if isinstance(x, dict):
        return function(**x)
    return function(*x) if isinstance(x, tuple) else function(x)


def first(points: Points) -> Tensor:
    """One of the tensors; raises InputError where there is none."""
    if isinstance(points, Tensor):
        return points
    if not (leaves := tree_leaves(points)):
        raise InputError(f"points without a tensor, {points!r}; give a tensor, or a tuple or dict of tensors")
    return leaves[0]


def map_points(change: Callable[[Tensor], Tensor], points: Any) -> Any:
    """The tree with every tensor changed that has an axis of tasks; shared ones stay."""
    if isinstance(points, Given):
        return Given(map_points(change, points.x), points.shared)
    return tree_map(change, points)


def task_axis(points: Any) -> Any:
    """The axis of the tasks in every tensor, as in_dims of torch.vmap."""
    return Given(0, None) if isinstance(points, Given) else 0


def without_padding(x: Points, y: Any) -> tuple[Points, Any]:
    """Those of one task's points that have a weight; all where targets are not Weighted.

    Raises InputError where they cannot be told from the rest, as the nodes of a graph from its edges.
    """
    if not isinstance(y, Weighted):
        return x, y
    kept = y.weight != 0
    for name, tensor in named("x", x.x if isinstance(x, Given) else x):
        if tensor.ndim and len(tensor) != len(kept):
            raise InputError(
                f"points of weight zero are left out where points meet, and {name} of a task {tuple(tensor.shape)} has "
                f"no axis of {len(kept)} points; give a mask beside support_y and query_y instead, for the loss"
            )
    return some_points(kept, x), some_points(kept, y)


def some_points(which: Any, points: Any) -> Any:
    """The points of one task that an index chooses; tensors without points stay."""
    return map_points(lambda tensor: tensor[which] if tensor.ndim else tensor, points)


def take_apart(value: Any) -> tuple[list[Tensor], Callable[[Iterator[Tensor]], Any]]:
    """The tensors in a structure of tuples, lists, dicts, dataclasses and anything else, and what puts others there.

    Raises InputError for other objects that hold tensors, arrays of NumPy and iterators.
    """
    if isinstance(value, Tensor):
        return [value], next
    leaves, structure = tree_flatten(value)
    if len(leaves) == 1 and leaves[0] is value:
        held = value.values() if isinstance(value, Mapping) else getattr(value, "__dict__", {}).values()
        held = value if isinstance(value, set | frozenset) else held
        if not is_dataclass(value):
            if isinstance(value, Iterator | np.ndarray) or any(isinstance(part, Tensor) for part in held):
                raise InputError(
                    f"the module returns a {type(value).__name__}, in which the tensors of a task are not found; "
                    "return tensors, or tuples, dicts or dataclasses of them"
                )
            return [], lambda tensors: value
        content = {field.name: getattr(value, field.name) for field in fields(value) if field.init}
        found, put = take_apart(content)
        return found, lambda tensors: replace(value, **put(tensors))
    parts = [take_apart(leaf) for leaf in leaves]
    found = [tensor for part, _ in parts for tensor in part]
    return found, lambda tensors: tree_unflatten([put(tensors) for _, put in parts], structure)
