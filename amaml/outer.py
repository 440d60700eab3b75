"""What autograd sees of an adaptation: a loss or a path in its graph, whose gradients come from the adjoint."""

import functools
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from torch.autograd.graph import Node

from amaml.engine.calling import check_transforms, returning, setting
from amaml.engine.closures import Watched, spelled
from amaml.engine.first_look import nodes
from amaml.errors import InputError, changed_meanwhile

SECOND = (
    "an Adaptation has first derivatives alone, and this backward pass goes through its meta-gradient; leave "
    "create_graph out, or detach the meta-gradient"
)


def requiring(entering: Mapping[str, Any]) -> dict[str, Tensor]:
    """What of it requires a gradient, by name; nothing where autograd is off.

    Raises InputError for a tensor whose graph a backward pass has freed.
    """
    if not torch.is_grad_enabled():
        return {}
    request = {name: t for name, t in entering.items() if isinstance(t, Tensor) and t.requires_grad}
    for name, tensor in request.items():
        if any(map(_is_freed, nodes(tensor))):
            raise InputError(
                f"{name} was computed once, and backward() has freed its graph; compute it for every update, as in "
                "meta(tasks, inner_lr=log_lr.exp()), or .detach() it"
            )
    return request


class Outer(torch.autograd.Function):
    """A value, and the tensors that its gradient is of: pull_back gives them from the sensitivity to the value, where
    what it uses is as it was."""

    @staticmethod
    def forward(ctx: Any, value: Tensor, pull_back: Any, used: Watched | None, *tensors: Tensor) -> Tensor:
        ctx.pull_back, ctx.used, ctx.tensors = pull_back, used, tensors  # of which no number is looked at
        return value.clone()

    @staticmethod
    def backward(ctx: Any, lam: Tensor) -> tuple[Tensor | None, ...]:
        check_transforms()
        if torch._C._functorch.is_legacy_batchedtensor(lam):
            raise InputError("is_grads_batched and vectorize=True cannot batch this backward pass; take row by row")
        if changed := ctx.used and ctx.used.changed():
            raise changed_meanwhile(spelled(changed[0]))
        with setting(returning, True):
            gradients = ctx.pull_back(lam.detach())
        if torch.is_grad_enabled():  # create_graph=True
            gradients = Ending.apply(SECOND, len(gradients), *gradients, *ctx.tensors, lam)
        return None, None, None, *gradients


class Ending(torch.autograd.Function):
    """So many tensors as they are, in a graph with the others, through which no backward pass goes: it raises."""

    @staticmethod
    def forward(ctx: Any, reason: str, count: int, *tensors: Tensor) -> tuple[Tensor, ...]:
        ctx.reason = reason
        return tuple(tensor.clone() for tensor in tensors[:count])

    @staticmethod
    def backward(ctx: Any, *_: Tensor) -> None:
        raise InputError(ctx.reason)


def _is_freed(node: Node) -> bool:
    """Whether a backward pass has freed what the node saved; of what hooks keep, and may compute again, that is not
    looked at."""
    try:
        for name in _saved_by(type(node)):
            kept = getattr(node, name)
            if not any(getattr(one, "unpack_hook", None) for one in (kept if isinstance(kept, tuple) else (kept,))):
                getattr(node, name.removeprefix("_raw"), None)
    except RuntimeError as fault:
        return "second time" in str(fault)
    return False


@functools.lru_cache
def _saved_by(kind: type) -> list[str]:
    return [name for name in dir(kind) if name.startswith("_raw_saved_")]
