"""MAML: the exact meta-gradient of K inner steps, by backpropagation through all of them."""

from dataclasses import dataclass

import torch
from torch import Tensor

from amaml.checks import validated
from amaml.descending import Descending
from amaml.engine import derivatives
from amaml.flow.field import Evaluations
from amaml.learner import MetaGradient
from amaml.robust import Lengths
from amaml.tasks import Tasks


@dataclass(frozen=True, eq=False)
class MAML(Descending):
    """Model-Agnostic Meta-Learning (Finn et al. 2017, algorithm 1), the plain form that others are compared with.

    value = d/dtheta mean over tasks of L_query(phi_K),   phi_0 = theta,   phi_(k+1) = phi_k - inner_lr grad L(phi_k).
    Costs K gradients, K Hessian-vector products and the query gradient. Backpropagation goes step by step: autograd
    keeps phi of every step, not the activations, and one Hessian-vector product leads back through a step. The
    memory grows with K. With inner_steps=1 this is the paper's MAML-1. With flat memory, other inner optimisers and
    batches: amaml.AMAML(solver="euler").
    """

    @validated
    @torch.enable_grad()
    def gradient(self, theta: Tensor, tasks: Tasks, memory: Lengths) -> MetaGradient:
        """The gradient in theta of the query loss of phi_K."""
        start = theta.detach().expand(len(tasks), -1).clone().requires_grad_()
        phi = start
        for _ in range(self.inner_steps):
            gradient = derivatives.differentiable_gradients(self.apply, self.loss, phi, *tasks.detach().support)
            phi = phi - self.inner_lr * gradient
        query = tasks.detach().query
        query_loss, to_phi = derivatives.losses_and_gradients(self.apply, self.loss, phi.detach(), *query)
        (to_theta,) = torch.autograd.grad(phi, start, to_phi)
        return self.averaged(memory, to_theta, query_loss, Evaluations(self.inner_steps, self.inner_steps))
