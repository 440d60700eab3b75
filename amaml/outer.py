"""What autograd sees of an adaptation: a loss or a path in its graph, whose gradients come from the adjoint."""

from typing import Any

import torch
from torch import Tensor

from amaml.engine.calling import check_transforms, returning
from amaml.engine.closures import Watched, spelled
from amaml.errors import InputError, changed_meanwhile

SECOND = (
    "an Adaptation has first derivatives alone, and this backward pass goes through its meta-gradient; leave "
    "create_graph out, or detach the meta-gradient"
)


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
        token = returning.set(True)
        try:
            gradients = ctx.pull_back(lam.detach())
        finally:
            returning.reset(token)
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
