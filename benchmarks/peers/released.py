"""The released A-MAML code's algorithm with the tools it uses, task by task: what its users would get from it.

Forward: torchdiffeq's rk4, steps of size inner_lr, gradients by torch.autograd.functional.jacobian, all states kept.
Backward: N + 1 explicit Euler steps of the adjoint equation over the N intervals, each a Hessian-vector product by
torch.autograd.functional.vhp. Written from the method's description, for the benchmark alone; its gradient is that of
neither scheme. The proximal term that the released script adds to the support loss is left out, which favours it.
"""

import torch
from torch import Tensor
from torch.autograd.functional import jacobian, vhp

from benchmarks.peers.problems import Problem


def released(p: Problem, steps: int) -> Tensor:
    """The meta-gradient (P,): 4 gradients forward a step, steps + 1 Hessian-vector products back, for each task."""
    t = p.tasks
    points = zip(t.support_x, t.support_y, t.query_x, t.query_y, strict=True)
    return torch.stack([_of_task(p, steps, *task) for task in points]).mean(0)


def _of_task(p: Problem, steps: int, support_x: Tensor, support_y: Tensor, query_x: Tensor, query_y: Tensor) -> Tensor:
    from torchdiffeq import odeint

    def support_loss(u: Tensor) -> Tensor:
        return p.loss(p.apply(u, support_x), support_y)

    times = p.inner_lr * torch.arange(steps + 1).to(p.theta)
    states = odeint(lambda t, u: -jacobian(support_loss, u), p.theta, times, method="rk4")
    lam = jacobian(lambda u: p.loss(p.apply(u, query_x), query_y), states[-1])
    for u in reversed(states):
        lam = lam - p.inner_lr * vhp(support_loss, u, lam)[1]
    return lam
