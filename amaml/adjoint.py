"""From a trajectory and lam(T) to the meta-gradient, by Hessian-vector products on the stored states.

The adjoint state lam (tasks, P) is the sensitivity of a task's query loss to the state u(t). The meta-gradient of every
task is lam(0) + prox times the integral of lam over [0, T], since theta pulls on u along the whole way.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from amaml.flow import GradientFlow
from amaml.trajectory import Trajectory


class Adjoint(NamedTuple):
    """lam(0) and the integral of lam, by the scheme's own quadrature, (tasks, P); how often |lam(0)| holds the least
    |lam(t)|, (tasks,): by so much negative curvature made lam, and the errors it had, grow on the way back."""

    lam: Tensor
    integral: Tensor
    growth: Tensor


@torch.no_grad()
def discrete(flow: GradientFlow, trajectory: Trajectory, lam: Tensor) -> Adjoint:
    """The exact transpose of the forward scheme: the derivative of the numbers it computed, to rounding.

    Step by step from the last to the first, by the transpose of each step's own scheme; one Hessian-vector product
    a stage. Hager 2000, section 2; equals backpropagation through the steps.
    """
    pull, least = torch.zeros_like(lam), lam.norm(dim=-1)
    for move, stages in trajectory.backwards():
        lam, pulled = move.scheme.transposed(flow, move.h, stages, lam)
        if flow.prox:
            pull = pull + pulled
        least = torch.minimum(least, lam.norm(dim=-1))
    return Adjoint(lam, pull, lam.norm(dim=-1) / least)


@torch.no_grad()
def continuous(flow: GradientFlow, trajectory: Trajectory, lam: Tensor) -> Adjoint:
    """The paper's own backward pass: Heun's method for dlam/dt = H(u) lam on the stored states.

        lam~_n = lam_(n+1) - h H(u_(n+1)) lam_(n+1)
        lam_n  = lam_(n+1) - h/2 (H(u_(n+1)) lam_(n+1) + H(u_n) lam~_n)

    N steps for N intervals, two Hessian-vector products each. Second order in the step size whatever the forward
    scheme: it approximates the flow's gradient and is the derivative of no computed loss. The integral
    of lam is taken by the trapezoidal rule. A-MAML, section 3.
    """
    integral, later, least = torch.zeros_like(lam), trajectory.final, lam.norm(dim=-1)
    for move, stages in trajectory.backwards():
        slope = flow.hvp(later, lam)
        earlier = lam - move.h / 2 * (slope + flow.hvp(stages[0], lam - move.h * slope))
        lam, later, integral = earlier, stages[0], integral + move.h / 2 * (lam + earlier)
        least = torch.minimum(least, lam.norm(dim=-1))
    return Adjoint(lam, integral, lam.norm(dim=-1) / least)


ADJOINTS = {"discrete": discrete, "continuous": continuous}
