"""Scratch: no meta-learning at all, the reference that every method has to beat."""

from dataclasses import dataclass

import torch
from torch import Tensor

from amaml.checks import validated
from amaml.engine import derivatives
from amaml.engine.derivatives import Loss
from amaml.flow.field import Evaluations
from amaml.learner import MetaGradient, check_inner_loop, gradient_descent, support_flow
from amaml.models import Apply
from amaml.tasks import Tasks


@dataclass(frozen=True)
class Scratch:
    """A random initialisation that stays as it is: value = 0, so one meta-update is as good as many.

    It is adapted like the others, by K gradient steps from theta on L_support. query_loss is the one at theta itself.
    Costs no gradient.
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
        """Zero (P,)."""
        start = theta.detach().expand(len(tasks), -1)
        query_loss = derivatives.losses(self.apply, self.loss, start, *tasks.query)
        return MetaGradient(torch.zeros_like(theta), query_loss, Evaluations())
