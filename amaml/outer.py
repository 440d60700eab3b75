"""What autograd sees of an adaptation: a loss or a path in its graph, whose gradients come from the adjoint."""

from typing import Any

import torch
from torch import Tensor

from amaml.engine.calling import returning
from amaml.engine.closures import Watched, spelled
from amaml.errors import InputError, changed_meanwhile


class Outer(torch.autograd.Function):
    """A value, and the tensors that its gradient is of: pull_back gives them from the sensitivity to the value, where
    what it uses is as it was."""

    @staticmethod
    def forward(ctx: Any, value: Tensor, pull_back: Any, used: Watched | None, *tensors: Tensor) -> Tensor:
        ctx.pull_back, ctx.used, ctx.tensors = pull_back, used, tensors  # of which no number is looked at
        return value.clone()

    @staticmethod
    def backward(ctx: Any, lam: Tensor) -> tuple[Tensor | None, ...]:
        if changed := ctx.used and ctx.used.changed():
            raise changed_meanwhile(spelled(changed[0]))
        token = returning.set(True)
        try:
            gradients = ctx.pull_back(lam.detach())
        finally:
            returning.reset(token)
        return None, None, None, *First.apply(*gradients, *ctx.tensors)


class First(torch.autograd.Function):
    """The gradients of as many tensors; raises on double backward."""

    @staticmethod
    def forward(ctx: Any, *gradients_and_tensors: Tensor) -> tuple[Tensor, ...]:
        count = len(gradients_and_tensors) // 2
        return tuple(gradient.clone() for gradient in gradients_and_tensors[:count])

    @staticmethod
    def backward(ctx: Any, *_: Tensor) -> None:
        raise InputError(
            "an Adaptation has first derivatives alone, and this backward pass goes through its meta-gradient; "
            "leave create_graph out, or detach the meta-gradient"
        )
