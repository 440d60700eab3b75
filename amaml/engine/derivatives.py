"""First and second derivatives of a loss, batched over tasks.

Every function takes apply and loss, parameters phi (tasks, P), inputs x (tasks, points, *input) and targets y, which
may be trees (amaml.points), and returns one row a task. Each is traced to a graph once and then replayed
(amaml.engine.graphs). A network that branches on its values, or draws random numbers, is refused with an error.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import FunctionCtx, once_differentiable
from torch.func import grad, grad_and_value, vjp, vmap
from torch.utils._pytree import tree_flatten, tree_unflatten

from amaml.engine import graphs
from amaml.engine.graphs import compiled, compiler_found
from amaml.losses import evaluate
from amaml.models import Apply
from amaml.points import Given, task_axis

__all__ = [
    "Loss",
    "compiled",
    "compiler_found",
    "differentiable_gradients",
    "gradients",
    "gradients_and_losses",
    "hvps",
    "losses",
    "losses_and_gradients",
    "pull_backs",
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


def pull_backs(
    apply: Apply, loss: Loss, phi: Tensor, v: Tensor, x: Any, y: Any, wanted: tuple[int, ...]
) -> tuple[Tensor, ...]:
    """The gradient (tasks, P), its Hessian-vector product with v, and v' d(gradient)/d(leaf) for every wanted leaf.

    wanted: numbers of leaves of the tree (x, y). Each result has its leaf's shape: one row a task, or the sum over the
    tasks where the leaf is shared.
    """
    return graphs.replay(_PullBacks(wanted), _task_loss, apply, loss, phi, v, x, y)


def losses_and_gradients(
    apply: Apply, loss: Loss, phi: Tensor, x: Any, y: Any, wanted: tuple[int, ...]
) -> tuple[Tensor, ...]:
    """losses (tasks,), gradients (tasks, P), and those of the losses' sum in the wanted leaves, see pull_backs."""
    return graphs.replay(_LossesAndGradients(wanted), _task_loss, apply, loss, phi, x, y)


def differentiable_gradients(apply: Apply, loss: Loss, phi: Tensor, x: Any, y: Any) -> Tensor:
    """gradients with an autograd graph to phi: its backward pass is hvps, since the Hessian is symmetric.

    The graph holds phi, not the activations: these are computed again on the way back.
    """
    return _Gradients.apply(phi, apply, loss, x, y)


class _Gradients(torch.autograd.Function):
    @staticmethod
    def forward(ctx: FunctionCtx, phi: Tensor, apply: Apply, loss: Loss, x: Any, y: Any) -> Tensor:
        ctx.save_for_backward(phi)
        ctx.of, ctx.points = (apply, loss), (x, y)
        return gradients(apply, loss, phi, x, y)

    @staticmethod
    @once_differentiable
    def backward(ctx: FunctionCtx, v: Tensor) -> tuple[Tensor, None, None, None, None]:
        (phi,) = ctx.saved_tensors
        return hvps(*ctx.of, phi, v, *ctx.points), None, None, None, None


def refresh(apply: Apply, loss: Loss, theta: Tensor) -> None:
    """Drop the graphs of apply and loss that are out of date at theta (P,), see amaml.engine.graphs.refresh."""
    graphs.refresh(_task_loss, apply, loss, theta)


def _task_loss(apply: Apply, loss: Loss) -> Callable[[Tensor, Any, Any], Tensor]:
    def task_loss(phi: Tensor, x: Any, y: Any) -> Tensor:
        return evaluate(loss, apply(phi, *x) if isinstance(x, Given) else apply(phi, x), y)

    return task_loss


def _batched(function: Callable[..., Any]) -> Callable[..., Any]:
    """A function of one task's tensors as one of all tasks'; what is shared has no axis of tasks."""
    return lambda *arguments: vmap(function, in_dims=tuple(map(task_axis, arguments)))(*arguments)


def _losses(apply: Apply, loss: Loss) -> Callable[..., Tensor]:
    return _batched(_task_loss(apply, loss))


def _gradients(apply: Apply, loss: Loss) -> Callable[..., Tensor]:
    return _batched(grad(_task_loss(apply, loss)))


def _gradients_and_losses(apply: Apply, loss: Loss) -> Callable[..., tuple[Tensor, Tensor]]:
    return _batched(grad_and_value(_task_loss(apply, loss)))


def _hvps(apply: Apply, loss: Loss) -> Callable[..., Tensor]:
    gradient = grad(_task_loss(apply, loss))
    return _batched(lambda phi, v, x, y: vjp(lambda p: gradient(p, x, y), phi)[1](v)[0])


@dataclass(frozen=True)
class _PullBacks:
    wanted: tuple[int, ...]

    def __call__(self, apply: Apply, loss: Loss) -> Callable[..., tuple[Tensor, ...]]:
        gradient = grad(_task_loss(apply, loss))

        def pull(phi: Tensor, v: Tensor, x: Any, y: Any) -> tuple[Tensor, ...]:
            value, back = vjp(*_of_leaves(gradient, phi, x, y, self.wanted))
            return value, *back(v)

        return _summing(_batched(pull), self.wanted)


@dataclass(frozen=True)
class _LossesAndGradients:
    wanted: tuple[int, ...]

    def __call__(self, apply: Apply, loss: Loss) -> Callable[..., tuple[Tensor, ...]]:
        task_loss = _task_loss(apply, loss)

        def pull(phi: Tensor, x: Any, y: Any) -> tuple[Tensor, ...]:
            value, back = vjp(*_of_leaves(task_loss, phi, x, y, self.wanted))
            return value, *back(torch.ones_like(value))

        return _summing(_batched(pull), self.wanted)


def _of_leaves(function: Callable[..., Tensor], phi: Tensor, x: Any, y: Any, wanted: tuple[int, ...]) -> tuple:
    """function(phi, x, y) as a function of phi and the wanted leaves of (x, y), and what it is to be called with."""
    leaves, structure = tree_flatten((x, y))

    def of_leaves(phi: Tensor, *chosen: Tensor) -> Tensor:
        now = dict(enumerate(leaves)) | dict(zip(wanted, chosen, strict=True))
        return function(phi, *tree_unflatten(list(now.values()), structure))

    return of_leaves, phi, *(leaves[i] for i in wanted)


def _summing(batched: Callable[..., tuple[Tensor, ...]], wanted: tuple[int, ...]) -> Callable[..., tuple[Tensor, ...]]:
    """The last results of a batched function, one for each wanted leaf, with the leaf's shape: summed over the tasks
    where the leaf has no axis of tasks. (The derivative is taken inside of vmap: taken of the batched function, torch
    2.13 gets that of batch norm wrong.)"""

    def summed(*arguments: Any) -> tuple[Tensor, ...]:
        leaves = tree_flatten(arguments[-2:])[0]
        value, to_phi, *pulled = batched(*arguments)
        pairs = zip(pulled, (leaves[i] for i in wanted), strict=True)
        return value, to_phi, *(p if p.shape == leaf.shape else p.sum(0) for p, leaf in pairs)

    return summed
