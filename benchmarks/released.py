"""The released A-MAML code's algorithm, task by task: what its users would get from it.

Forward: RK4 steps of size inner_lr, the states kept. Backward: N + 1 explicit Euler steps of the adjoint equation over
the N intervals, each a Hessian-vector product by autograd. Written from the method's description for the benchmark
alone; its gradient is that of neither scheme.
"""

import torch
from torch import Tensor

from amaml import MetaGradient, Tasks
from amaml.flow import Evaluations


class Released:
    """inner_steps RK4 steps forward (4 gradients each), inner_steps + 1 Hessian-vector products back, for each task."""

    def __init__(self, apply, loss, inner_lr: float, inner_steps: int) -> None:
        self.apply, self.loss, self.h, self.steps = apply, loss, inner_lr, inner_steps

    def meta_gradient(self, theta: Tensor, tasks: Tasks) -> MetaGradient:
        results = [
            self._task(theta, *(getattr(tasks[i : i + 1], name)[0] for name in FIELDS)) for i in range(len(tasks))
        ]
        value, losses = torch.stack([r[0] for r in results]).mean(0), torch.stack([r[1] for r in results])
        return MetaGradient(value, losses, Evaluations(4 * self.steps, self.steps + 1))

    def _task(self, theta, support_x, support_y, query_x, query_y):
        def field(u: Tensor) -> Tensor:
            u = u.detach().requires_grad_()
            return -torch.autograd.grad(self.loss(self.apply(u, support_x), support_y), u)[0]

        states, h = [theta.detach()], self.h
        for _ in range(self.steps):
            u = states[-1]
            k1 = field(u)
            k2 = field(u + h / 2 * k1)
            k3 = field(u + h / 2 * k2)
            k4 = field(u + h * k3)
            states.append(u + h / 6 * (k1 + 2 * k2 + 2 * k3 + k4))
        final = states[-1].requires_grad_()
        query_loss = self.loss(self.apply(final, query_x), query_y)
        lam = torch.autograd.grad(query_loss, final)[0]
        for u in reversed(states):
            u = u.detach().requires_grad_()
            gradient = torch.autograd.grad(self.loss(self.apply(u, support_x), support_y), u, create_graph=True)[0]
            lam = lam - h * torch.autograd.grad(gradient, u, lam)[0]
        return lam, query_loss.detach()


FIELDS = ("support_x", "support_y", "query_x", "query_y")
