"""From a trajectory and lam(T) to the meta-gradient, by Hessian-vector products on the stored states.

The adjoint state lam (tasks, P) is the sensitivity of a task's query loss to the state u(t). Both functions return
lam(0) and the integral of lam over [0, T], by the same quadrature as the scheme's, both (tasks, P): the meta-gradient
of every task is lam(0) + prox times the integral, since theta pulls on u along the whole way.
"""

import torch
from torch import Tensor

from amaml.flow import GradientFlow
from amaml.trajectory import Trajectory


@torch.no_grad()
def discrete(flow: GradientFlow, trajectory: Trajectory, lam: Tensor) -> tuple[Tensor, Tensor]:
    """The exact transpose of the forward scheme: the derivative of the numbers it computed, to rounding.

    Step by step from the last to the first, by the transpose of each step's own scheme; one Hessian-vector product
    a stage. Hager 2000, section 2; equals backpropagation through the steps.
    """
    pull = torch.zeros_like(lam)
    for move, stages in trajectory.backwards():
        lam, pulled = move.scheme.transposed(flow, move.h, stages, lam)
        if flow.prox:
            pull = pull + pulled
    return lam, pull


@torch.no_grad()
def continuous(flow: GradientFlow, trajectory: Trajectory, lam: Tensor) -> tuple[Tensor, Tensor]:
    """The paper's own backward pass: Heun's method for dlam/dt = H(u) lam on the stored states.

        lam~_n = lam_(n+1) - h H(u_(n+1)) lam_(n+1)
        lam_n  = lam_(n+1) - h/2 (H(u_(n+1)) lam_(n+1) + H(u_n) lam~_n)

    N steps for N intervals, two Hessian-vector products each. Second order in the step size whatever the forward
    scheme: it approximates the flow's gradient and is the derivative of no computed loss. The integral
    of lam is taken by the trapezoidal rule. A-MAML, section 3.
    """
    integral, later = torch.zeros_like(lam), trajectory.final
    for move, stages in trajectory.backwards():
        slope = flow.hvp(later, lam)
        earlier = lam - move.h / 2 * (slope + flow.hvp(stages[0], lam - move.h * slope))
        lam, later, integral = earlier, stages[0], integral + move.h / 2 * (lam + earlier)
    return lam, integral


ADJOINTS = {"discrete": discrete, "continuous": continuous}
