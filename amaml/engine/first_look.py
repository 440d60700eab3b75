"""What is looked at before a loss gets a graph: whether it can have one, and whether the graph computes the loss."""

import contextlib
import functools
import warnings
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import BackwardCFunction
from torch.autograd.graph import Node, get_gradient_edge
from torch.utils._pytree import tree_leaves

from amaml.engine import task
from amaml.engine.calling import differentiable_twice
from amaml.engine.closures import find_requiring, spelled
from amaml.engine.compiling import ROUNDINGS
from amaml.engine.task import Definition, Result, called, row_of
from amaml.errors import InputError
from amaml.losses import of_points
from amaml.points import some_points, without_padding


def check_repeats(root: tuple, arguments: tuple) -> None:
    """Raise InputError for a loss that differs from call to call, here or at a phi nearby (what is random may begin
    with a factor of zero); arguments: phi, x and y of all tasks."""
    pairs = [[Definition(task.loss).of_row(*root, arguments, 0) for _ in range(2)]]
    with contextlib.suppress(Exception):  # the loss may not be defined there
        pairs.append([Definition(task.loss).of_row(*root, _moved(arguments), 0) for _ in range(2)])
    if not all(task.same(*pair) for pair in pairs):
        raise InputError(
            "apply or loss give another value every time they are called with the same tensors; such a loss has no "
            "deterministic gradient: take out what is random or counts its calls"
        )


def check_gradient(root: tuple, arguments: tuple) -> None:
    """Raise InputError for a loss that has no gradient in phi, or one in something that would not get it; warn of one
    whose gradient is zero; arguments: phi, x and y of all tasks."""
    theta, x, y = row_of(arguments, 0)
    leaf, held = theta.requires_grad_(), find_requiring(root) if hasattr(root[0], "module") else []
    reached = nodes(Definition(task.loss).recorded(*root, (leaf, x, y)))
    if get_gradient_edge(leaf).node not in reached:
        raise InputError(
            "the loss does not depend on the adapted parameters in a way that has a gradient (detached? argmax? "
            "torch.no_grad()?); there is nothing to adapt by"
        )
    for path, tensor in held:
        if get_gradient_edge(tensor).node in reached:
            raise InputError(
                f"the loss uses {spelled(path) or 'a tensor'} of shape {tuple(tensor.shape)}, which requires a "
                "gradient and would get none; make it a parameter of the module, give it with the tasks, beside "
                "support_y or support_x, or .detach() it; the parameters that adapt are read from the module itself, "
                "which amaml.Adaptation holds and amaml.flatten copies"
            )
    places = ((given, i) for given in (arguments, _moved(arguments)) for i in range(len(arguments[0])))
    if not any(Definition(task.gradient).of_row(*root, given, i).any() for given, i in places):
        warnings.warn(
            "the gradient of the loss in the adapted parameters is zero for every task (round? sign? a ReLU that is "
            "dead?); there is nothing to adapt by",
            RuntimeWarning,
            stacklevel=2,
        )


def check_twice(root: tuple, arguments: tuple) -> None:
    """Raise, as torch does in a backward pass to everything and not in one to phi, where a function that the loss uses
    is marked as differentiable once; and where its backward has left autograd, as by NumPy or torch.no_grad()."""
    theta, x, y = row_of(arguments, 0)

    def look(name: str, found: tuple, given: tuple) -> None:
        if any(f is not None and not f.requires_grad and f.any() for f in found) and any(
            g.requires_grad for g in given
        ):
            raise RuntimeError(f"{name} leaves autograd, and has no double backward")

    def gradient(vjp: Any, value: Callable, wanted: tuple, phi: Tensor, x: Any, y: Any) -> Tensor:
        loss = value(phi, x, y)
        for node in nodes(loss):
            if isinstance(node, BackwardCFunction):
                node.register_hook(functools.partial(look, node.name()))
        return vjp(lambda _: loss, phi)[1](torch.ones_like(loss))[0]

    found = Definition(gradient).recorded(*root, (theta.requires_grad_(), x, y))
    if any(node.name() == "torch::autograd::Error" for node in nodes(found)):
        raise RuntimeError("trying to differentiate twice a function that was marked with @once_differentiable")


def nodes(value: Tensor) -> set[Node]:
    """The nodes of value's graph."""
    seen, queue = set(), [value.grad_fn]
    while queue:
        node = queue.pop()
        if node is not None and node not in seen:
            seen.add(node)
            queue += [following for following, _ in node.next_functions]
    return seen


def points_meet(root: tuple, arguments: tuple, rounding: float) -> bool:
    """Whether the loss of a point depends on others of its task, before it or after: of that with the most points that
    are no padding, near its phi (a layer in which points meet may begin at zero). rounding: of what it computes."""
    count = (arguments[-1].weight != 0).sum(1)
    theta, *_, x, y = _moved(row_of(arguments, int(count.argmax())))

    def losses(which: slice) -> Tensor:
        return of_points(root[1], called(root[0], theta, some_points(which, x)), some_points(which, y))

    if len(y.weight) == 1:
        return False
    try:
        x, y = without_padding(x, y)
        with differentiable_twice():
            of_all, halves = losses(slice(None)), (slice(0, None, 2), slice(1, None, 2))
            return len(of_all) == 1 or not all(_close(losses(half), of_all[half], rounding) for half in halves)
    except Exception:  # so few points do not go through by themselves
        return True


def agrees(
    call: Callable[..., Result], define: Definition, root: tuple, arguments: tuple, expected: Result, rounding: float
) -> bool:
    """Whether a graph of such rounding gives the first task what autograd expects, here and at a phi nearby: here, what
    is symmetric or zero at the start may hide an error, and rounding may be all there is. An error is none where one
    rounding of phi changes as much."""
    places, nearby = [(arguments, expected)], _moved(arguments)
    with contextlib.suppress(Exception):  # the loss may not be defined there
        places.append((nearby, define.of_row(*root, nearby, 0)))
    pairs = []
    for given, right in places:
        of_results = enumerate(zip(tree_leaves(call(*given)), tree_leaves(right), strict=True))
        pairs.append([(i, f[0], e) for i, (f, e) in of_results if f.ndim > e.ndim])  # no sums over tasks
    sizes = [max(e.norm().nan_to_num(0.0, 0.0) for *_, e in of_result) for of_result in zip(*pairs, strict=True)]
    for (given, _), found in zip(places, pairs, strict=True):
        off = [(i, f, e) for (i, f, e), size in zip(found, sizes, strict=True) if not _close(f, e, rounding, size)]
        rounded = tree_leaves(define.of_row(*root, _moved(given, rounding), 0)) if off else ()
        if not all((f - e).norm() <= ROUNDINGS * (rounded[i] - e).norm() for i, f, e in off):
            return False
    return True


def _moved(arguments: tuple, relative: float | None = None) -> tuple:
    """The arguments at a phi (and v) nearby; relative: of so many parts of each number."""
    generator = torch.Generator().manual_seed(0)

    def moved(a: Tensor) -> Tensor:
        random = torch.randn(a.shape, generator=generator, device="cpu").to(a)
        return a + (0.1 * random if relative is None else relative * a * random)

    return *map(moved, arguments[:-2]), *arguments[-2:]


def _close(found: Tensor, expected: Tensor, rounding: float, size: Tensor | None = None) -> bool:
    """To half the digits of the expected size; where nothing finite is expected nothing can be told."""
    error, size = (found - expected).norm(), expected.norm() if size is None else size
    return bool((error <= max(rounding, torch.finfo(expected.dtype).eps) ** 0.5 * size) | ~expected.isfinite().all())
