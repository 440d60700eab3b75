"""First and second derivatives of a loss, batched over tasks.

Every function takes apply and loss, parameters phi (tasks, P), inputs x (tasks, points, *input) and targets y, and
returns one row a task. Each is traced to a graph once and then replayed (amaml.flow.graphs). A network that branches on
its values, or draws random numbers, is refused with an error.
"""

from collections.abc import Callable

import torch
from torch import Tensor
from torch.autograd.function import FunctionCtx, once_differentiable
from torch.func import grad, grad_and_value, vjp, vmap

from amaml.flow import graphs
from amaml.flow.graphs import compiled, compiler_found
from amaml.losses import evaluate
from amaml.models import Apply

__all__ = [
    "Loss",
    "compiled",
    "compiler_found",
    "differentiable_gradients",
    "gradients",
    "gradients_and_losses",
    "hvps",
    "losses",
    "refresh",
]

Loss = Callable[[Tensor, Tensor], Tensor]  # (prediction, target) of one task -> scalar mean


def losses(apply: Apply, loss: Loss, phi: Tensor, x: Tensor, y: Tensor) -> Tensor:
    """loss(apply(phi, x), y) for every task, (tasks,). One forward pass. Serves metrics too."""
    return graphs.replay(_losses, _task_loss, apply, loss, phi, x, y)


def gradients(apply: Apply, loss: Loss, phi: Tensor, x: Tensor, y: Tensor) -> Tensor:
    """The gradient in phi of every task's loss, (tasks, P)."""
    return graphs.replay(_gradients, _task_loss, apply, loss, phi, x, y)


def gradients_and_losses(apply: Apply, loss: Loss, phi: Tensor, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    """gradients (tasks, P) and losses (tasks,) from one pass."""
    return graphs.replay(_gradients_and_losses, _task_loss, apply, loss, phi, x, y)


def hvps(apply: Apply, loss: Loss, phi: Tensor, v: Tensor, x: Tensor, y: Tensor) -> Tensor:
    """Hessian-vector products H(phi) v of every task's loss, (tasks, P), v (tasks, P).

    Reverse over reverse: the Hessian is symmetric, and more operators have a double reverse rule than a forward one.
    """
    return graphs.replay(_hvps, _task_loss, apply, loss, phi, v, x, y)


def differentiable_gradients(apply: Apply, loss: Loss, phi: Tensor, x: Tensor, y: Tensor) -> Tensor:
    """gradients with an autograd graph to phi: its backward pass is hvps, since the Hessian is symmetric.

    The graph holds phi, not the activations: these are computed again on the way back.
    """
    return _Gradients.apply(phi, apply, loss, x, y)


class _Gradients(torch.autograd.Function):
    @staticmethod
    def forward(ctx: FunctionCtx, phi: Tensor, apply: Apply, loss: Loss, x: Tensor, y: Tensor) -> Tensor:
        ctx.save_for_backward(phi, x, y)
        ctx.of = apply, loss
        return gradients(apply, loss, phi, x, y)

    @staticmethod
    @once_differentiable
    def backward(ctx: FunctionCtx, v: Tensor) -> tuple[Tensor, None, None, None, None]:
        phi, x, y = ctx.saved_tensors
        return hvps(*ctx.of, phi, v, x, y), None, None, None, None


def refresh(apply: Apply, loss: Loss, theta: Tensor) -> None:
    """Drop the graphs of apply and loss that are out of date at theta (P,), see amaml.flow.graphs.refresh."""
    graphs.refresh(_task_loss, apply, loss, theta)


def _task_loss(apply: Apply, loss: Loss) -> Callable[[Tensor, Tensor, Tensor], Tensor]:
    return lambda phi, x, y: evaluate(loss, apply(phi, x), y)


def _losses(apply: Apply, loss: Loss) -> Callable[..., Tensor]:
    return vmap(_task_loss(apply, loss))


def _gradients(apply: Apply, loss: Loss) -> Callable[..., Tensor]:
    return vmap(grad(_task_loss(apply, loss)))


def _gradients_and_losses(apply: Apply, loss: Loss) -> Callable[..., tuple[Tensor, Tensor]]:
    return vmap(grad_and_value(_task_loss(apply, loss)))


def _hvps(apply: Apply, loss: Loss) -> Callable[..., Tensor]:
    gradient = grad(_task_loss(apply, loss))
    return vmap(lambda phi, v, x, y: vjp(lambda p: gradient(p, x, y), phi)[1](v)[0])
