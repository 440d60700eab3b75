"""First and second derivatives of a loss, of all tasks at once.

Every function takes apply and loss, parameters phi (tasks, P), inputs x (tasks, points, *input) and targets y, which
may be trees (amaml.points), and returns one row a task. Each is traced to a graph once and then replayed, or computed
task by task where torch cannot batch it (amaml.engine.graphs). A loss that draws random numbers is refused.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import FunctionCtx, once_differentiable

from amaml.engine import graphs, task
from amaml.engine.graphs import Bound
from amaml.engine.task import Definition
from amaml.models import Apply

LOSS, GRADIENT, HVP = map(Definition, (task.loss, task.gradient, task.hvp))
Loss = Callable[[Tensor, Tensor], Tensor]  # (prediction, target) of one task -> scalar mean


def losses(apply: Apply, loss: Loss, phi: Tensor, x: Tensor, y: Tensor) -> Tensor:
    """loss(apply(phi, x), y) for every task, (tasks,). One forward pass. Serves metrics too."""
    return graphs.replay(LOSS, apply, loss, phi, x, y)


def gradients(apply: Apply, loss: Loss, phi: Tensor, x: Tensor, y: Tensor, bound: Bound | None = None) -> Tensor:
    """The gradient in phi of every task's loss, (tasks, P). bound: see graphs.replay."""
    return graphs.replay(GRADIENT, apply, loss, phi, x, y, bound=bound)


def hvps(apply: Apply, loss: Loss, phi: Tensor, v: Tensor, x: Tensor, y: Tensor, bound: Bound | None = None) -> Tensor:
    """Hessian-vector products H(phi) v of every task's loss, (tasks, P), v (tasks, P). bound: see graphs.replay.

    Reverse over reverse: the Hessian is symmetric, and more operators have a double reverse rule than a forward one.
    """
    return graphs.replay(HVP, apply, loss, phi, v, x, y, bound=bound)


def pull_backs(
    apply: Apply, loss: Loss, phi: Tensor, v: Tensor, x: Any, y: Any, wanted: tuple[int, ...]
) -> tuple[Tensor, ...]:
    """The gradient (tasks, P), its Hessian-vector product with v, and v' d(gradient)/d(leaf) for every wanted leaf.

    wanted: numbers of leaves of the tree (x, y). Each result has its leaf's shape: one row a task, or the sum over the
    tasks where the leaf is shared.
    """
    return graphs.replay(Definition(task.pull_back, wanted), apply, loss, phi, v, x, y)


def losses_and_gradients(
    apply: Apply, loss: Loss, phi: Tensor, x: Any, y: Any, wanted: tuple[int, ...] = ()
) -> tuple[Tensor, ...]:
    """losses (tasks,) and gradients (tasks, P) from one pass, and those of the losses' sum in the wanted leaves, see
    pull_backs."""
    return graphs.replay(Definition(task.loss_and_gradients, wanted), apply, loss, phi, x, y)


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
