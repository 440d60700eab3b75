"""The points of tasks as trees: tensors, or dicts and tuples of tensors, with what is given beside them."""

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

from torch import Tensor
from torch.utils._pytree import tree_flatten, tree_map

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


def first(points: Points) -> Tensor:
    """One of the tensors."""
    return points if isinstance(points, Tensor) else tree_flatten(points)[0][0]


def map_points(change: Callable[[Tensor], Tensor], points: Any) -> Any:
    """The tree with every tensor changed that has an axis of tasks; shared ones stay."""
    if isinstance(points, Given):
        return Given(map_points(change, points.x), points.shared)
    return tree_map(change, points)


def task_axis(points: Any) -> Any:
    """The axis of the tasks in every tensor, as in_dims of torch.vmap."""
    return Given(0, None) if isinstance(points, Given) else 0
