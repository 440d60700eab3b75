"""The predictions of adapted parameters."""

import contextlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd.graph import disable_saved_tensors_hooks
from torch.func import vjp, vmap
from torch.utils._pytree import tree_flatten, tree_map, tree_unflatten

from amaml.engine.calling import batchable, differentiable_twice, no_random_draws
from amaml.engine.faults import described, go_apart, is_mistake, told
from amaml.errors import InputError
from amaml.models import Apply
from amaml.outer import Ending
from amaml.points import Points, check_tensor, first, named, take_apart

CHECKPOINTED = (
    "what is checkpointed in the module would be computed again on the way back through predict(), when the module has "
    "its own parameters again; predict without torch.utils.checkpoint"
)


def predict(apply: Apply, phi: Tensor, x: Points, *shared: Mapping[str, Tensor]) -> Any:
    """The predictions of adapted parameters phi (tasks, P) at x (tasks, points, *input), (tasks, points, *output).

    Where apply returns a structure (tuples, dicts, dataclasses), so does this, with a first axis of tasks in every
    tensor; what is no tensor is that of the first task. Where torch cannot batch apply, the tasks go one by one.
    shared: where apply takes one. Raises InputError where phi and x are not of equally many tasks, and for what apply
    cannot take.
    """
    for name, value in (("phi", phi), *named("x", x)):
        check_tensor(name, value)
    if phi.ndim != 2 or len(phi) != len(first(x)):
        raise InputError(
            f"phi must be (tasks, P) and x (tasks, points, *input), got {tuple(phi.shape)} and "
            f"{tuple(first(x).shape)}; of one task: predict(apply, phi[None], x[None])[0]"
        )
    put, graph = None, torch.is_grad_enabled()

    def of_one(row: Tensor, points: Points) -> list[Tensor]:
        nonlocal put
        tensors, place = take_apart(apply(row, points, *shared))
        put = put or place
        return tensors

    def batched(row: Tensor, points: Points) -> list[Tensor]:  # recurrent layers can be batched within vjp alone
        return vjp(lambda p: (p.sum(), of_one(p, points)), row, has_aux=True)[2]

    try:
        with batchable():
            stacked = vmap(batched)(phi, tree_map(Tensor.clone, x))  # which the network may write into
        return put(iter(stacked))
    except Exception as fault:
        if is_mistake(fault):
            raise
        reason = described(fault, apply)
    with told(apply), no_random_draws(phi.device), torch.enable_grad(), differentiable_twice():
        stacked = _one_by_one(of_one, phi, x, shared, graph)
    go_apart(apply, reason, len(phi))
    return put(iter(stacked if graph else [tensor.detach() for tensor in stacked]))


def _one_by_one(
    of_one: Callable[..., list[Tensor]], phi: Tensor, x: Points, shared: Sequence[Mapping[str, Tensor]], graph: bool
) -> Sequence[Tensor]:
    """of_one of every task, stacked. With a graph asked for, what would be checkpointed raises on the way back."""
    leaves, structure = tree_flatten(tree_map(Tensor.clone, x))

    def stacked() -> list[Tensor]:
        rows = [of_one(row, tree_unflatten(own, structure)) for row, *own in zip(phi, *leaves, strict=True)]
        return [torch.stack(column) for column in zip(*rows, strict=True)]

    try:
        with disable_saved_tensors_hooks(CHECKPOINTED) if graph else contextlib.nullcontext():
            return stacked()
    except RuntimeError as fault:
        if CHECKPOINTED not in str(fault):
            raise
    used = phi, *leaves, *(tensor for given in shared for tensor in given.values())
    found = stacked()
    return Ending.apply(CHECKPOINTED, len(found), *(tensor.detach() for tensor in found), *used)
