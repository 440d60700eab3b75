"""MAML: the exact meta-gradient of K gradient steps, by backpropagation through all of them."""

from dataclasses import dataclass

import torch
from torch import Tensor

from amaml.calculus import Loss, batch_losses
from amaml.flow import Evaluations, GradientFlow
from amaml.learner import MetaGradient, check_inner_loop, gradient_descent
from amaml.models import Apply
from amaml.tasks import Tasks


@dataclass(frozen=True)
class MAML:
    """Model-Agnostic Meta-Learning (Finn et al. 2017, algorithm 1).

    value = d/dtheta mean over tasks of L_query(phi_K),   phi_0 = theta,   phi_(k+1) = phi_k - inner_lr grad L(phi_k).
    Costs K + 1 gradients and K Hessian-vector products; the graph, and with it the memory, grows with K.
    With inner_steps=1 this is the paper's MAML-1.
    """

    apply: Apply
    loss: Loss
    inner_lr: float
    inner_steps: int

    def __post_init__(self) -> None:
        check_inner_loop(self.inner_lr, self.inner_steps)

    def adapt(self, theta: Tensor, tasks: Tasks) -> Tensor:
        """phi_K for every task, (tasks, P), without a graph."""
        flow = GradientFlow(self.apply, self.loss, tasks, theta.detach())
        return gradient_descent(flow, self.inner_lr, self.inner_steps)

    def meta_gradient(self, theta: Tensor, tasks: Tasks) -> MetaGradient:
        """The gradient in theta of the mean query loss of phi_K."""
        losses = batch_losses(self.apply, self.loss)
        theta = theta.detach().requires_grad_()
        phi = theta.expand(len(tasks), -1)
        for _ in range(self.inner_steps):
            support_loss = losses(phi, tasks.support_x, tasks.support_y).sum()
            (gradient,) = torch.autograd.grad(support_loss, phi, create_graph=True)
            phi = phi - self.inner_lr * gradient
        query_loss = losses(phi, tasks.query_x, tasks.query_y)
        (value,) = torch.autograd.grad(query_loss.mean(), theta)
        return MetaGradient(value, query_loss.detach(), Evaluations(self.inner_steps, self.inner_steps))
