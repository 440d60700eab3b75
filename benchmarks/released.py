"""The released A-MAML code's algorithm with the tools it uses, task by task: what its users would get from it.

Forward: torchdiffeq's rk4, steps of size inner_lr, gradients by torch.autograd.functional.jacobian, all states kept.
Backward: N + 1 explicit Euler steps of the adjoint equation over the N intervals, each a Hessian-vector product by
torch.autograd.functional.vhp. Written from the method's description, for the benchmark alone; its gradient is that of
neither scheme. The proximal term that the released script adds to the support loss is left out, which favours it.
"""

import torch
from torch import Tensor
from torch.autograd.functional import jacobian, vhp
from torchdiffeq import odeint

from amaml import MetaGradient, Tasks
from amaml.flow.field import Evaluations


class Released:
    """inner_steps RK4 steps forward (4 gradients each), inner_steps + 1 Hessian-vector products back, for each task."""

    def __init__(self, apply, loss, inner_lr: float, inner_steps: int) -> None:
        self.apply, self.loss, self.h, self.steps = apply, loss, inner_lr, inner_steps

    def meta_gradient(self, theta: Tensor, tasks: Tasks) -> MetaGradient:
        points = zip(tasks.support_x, tasks.support_y, tasks.query_x, tasks.query_y, strict=True)
        values, losses = zip(*(self._task(theta.detach(), *task) for task in points), strict=True)
        spent = Evaluations(4 * self.steps, self.steps + 1)
        return MetaGradient(torch.stack(values), torch.stack(losses), spent)

    def _task(self, theta, support_x, support_y, query_x, query_y):
        def support_loss(u: Tensor) -> Tensor:
            return self.loss(self.apply(u, support_x), support_y)

        def query_loss(u: Tensor) -> Tensor:
            return self.loss(self.apply(u, query_x), query_y)

        times = torch.linspace(0, self.h * self.steps, self.steps + 1, dtype=theta.dtype, device=theta.device)
        states = odeint(lambda t, u: -jacobian(support_loss, u), theta, times, method="rk4")
        lam = jacobian(query_loss, states[-1])
        for u in reversed(states):
            lam = lam - self.h * vhp(support_loss, u, lam)[1]
        return lam, query_loss(states[-1]).detach()
