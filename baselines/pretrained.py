"""Pretrained: one network for all tasks together, the transfer learning that meta-learning is measured against."""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_map

from amaml.checks import validated
from amaml.engine import derivatives
from amaml.engine.derivatives import Loss
from amaml.flow.field import Evaluations
from amaml.learner import MetaGradient, check_inner_loop, gradient_descent, support_flow
from amaml.models import Apply
from amaml.points import Given
from amaml.tasks import Tasks


@dataclass(frozen=True)
class Pretrained:
    """Joint training on all tasks (the "pretrained" baseline of Finn et al. 2017, section 5.1).

    value = mean over tasks of grad L(theta),   L the loss on the support and query points together:
    no inner loop in training. Adapted at meta-test like the others, by K gradient steps from theta on L_support.
    query_loss is the one at theta itself. Costs one gradient.
    """

    apply: Apply
    loss: Loss
    inner_lr: float
    inner_steps: int

    def __post_init__(self) -> None:
        check_inner_loop(self.inner_lr, self.inner_steps)

    @validated
    def adapt(self, theta: Tensor, tasks: Tasks) -> Tensor:
        """phi for every task, (tasks, P)."""
        return gradient_descent(support_flow(self, theta, tasks), self.inner_lr, self.inner_steps)

    @validated
    def meta_gradient(self, theta: Tensor, tasks: Tasks) -> MetaGradient:
        """The mean gradient at theta of the loss on all points of a task."""
        start = theta.detach().expand(len(tasks), -1)  # (tasks, P)
        gradient = derivatives.gradients(self.apply, self.loss, start, *_joined(tasks.support, tasks.query))
        query_loss = derivatives.losses(self.apply, self.loss, start, *tasks.query)
        return MetaGradient(gradient.mean(0), query_loss, Evaluations(gradients=1))


def _joined(support: tuple[Any, Any], query: tuple[Any, Any]) -> tuple[Any, Any]:
    """The points x and y of both sets together, (tasks, shot + query, ...)."""
    (x, y), (query_x, query_y) = support, query
    if isinstance(x, Given):
        return Given(_concatenated(x.x, query_x.x), x.shared), _concatenated(y, query_y)
    return _concatenated(x, query_x), _concatenated(y, query_y)


def _concatenated(support: Any, query: Any) -> Any:
    return tree_map(lambda a, b: torch.cat([a, b], 1), support, query)
