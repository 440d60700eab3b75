"""What autograd sees of an adaptation: a loss or a path in its graph, whose gradients come from the adjoint."""

from typing import Any

import torch
from torch import Tensor

from amaml.errors import InputError


class Value(torch.autograd.Function):
    """The mean query loss, with the meta-gradients that were computed with it and the tensors these are of."""

    @staticmethod
    def forward(ctx: Any, value: Tensor, *gradients_and_tensors: Tensor) -> Tensor:
        ctx.save_for_backward(*gradients_and_tensors)
        return value.clone()

    @staticmethod
    def backward(ctx: Any, scale: Tensor) -> tuple[Tensor | None, ...]:
        gradients = First.apply(scale, *ctx.saved_tensors)
        return None, *(None for _ in gradients), *gradients


class Path(torch.autograd.Function):
    """The parameters along the inner loop; backward() pulls their sensitivities back."""

    @staticmethod
    def forward(ctx: Any, path: Tensor, pull_back: Any, *tensors: Tensor) -> Tensor:
        ctx.pull_back = pull_back
        ctx.save_for_backward(*tensors)
        return path.clone()

    @staticmethod
    def backward(ctx: Any, lam: Tensor) -> tuple[Tensor | None, ...]:
        gradients = ctx.pull_back(lam.detach())
        return None, None, *First.apply(lam.new_ones(()), *gradients, *ctx.saved_tensors)


class First(torch.autograd.Function):
    """scale times the gradients of as many tensors; raises on double backward."""

    @staticmethod
    def forward(ctx: Any, scale: Tensor, *gradients_and_tensors: Tensor) -> tuple[Tensor, ...]:
        count = len(gradients_and_tensors) // 2
        return tuple(scale * gradient for gradient in gradients_and_tensors[:count])

    @staticmethod
    def backward(ctx: Any, *_: Tensor) -> None:
        raise InputError(
            "an Adaptation has first derivatives alone, and this backward pass goes through its meta-gradient; "
            "leave create_graph out, or detach the meta-gradient"
        )
