"""From a trajectory and lam(T) to the meta-gradient, by Hessian-vector products on the stored states.

The adjoint state lam (tasks, P) is the sensitivity of a task's query loss to the state u(t). The meta-gradient of every
task is lam(0) + prox times the integral of lam over [0, T], since theta pulls on u along the whole way.
"""

from typing import NamedTuple

import torch
from torch import Tensor
from torch.linalg import vector_norm

from amaml.flow.field import GradientFlow
from amaml.flow.schemes import Move
from amaml.flow.trajectory import Trajectory


class Adjoint(NamedTuple):
    """lam(0) and the integral of lam, by the scheme's own quadrature, (tasks, P); and two signs of negative curvature,
    which makes the errors of earlier steps grow, (tasks,): how often |lam| on its way back exceeds what it was before,
    and how often the speed |du/dt| does so on the way there. Both are 1 where the curvature is positive."""

    lam: Tensor
    integral: Tensor
    growth: Tensor
    acceleration: Tensor


class _Norms:
    """|lam| at the ends of the steps and the speed of every step, from the last to the first."""

    def __init__(self, final: Tensor, lam: Tensor) -> None:
        self.later, self.sizes, self.speeds = final, [vector_norm(lam, dim=-1)], []

    def step(self, move: Move, u: Tensor, lam: Tensor) -> None:
        """A step that starts at u, where the adjoint state is lam."""
        self.sizes.append(vector_norm(lam, dim=-1))
        self.speeds.append(vector_norm(self.later - u, dim=-1) / move.h)
        self.later = u

    def growths(self) -> tuple[Tensor, Tensor]:
        """Of lam and of the speed, (tasks,) each."""
        return _growth(self.sizes), _growth(self.speeds[::-1])


def _growth(values: list[Tensor]) -> Tensor:
    """The largest ratio of a value to an earlier one, at least 1."""
    series = torch.stack(values)
    return (series / series.cummin(0).values).nan_to_num(1.0).amax(0)


@torch.no_grad()
def discrete(flow: GradientFlow, trajectory: Trajectory, lam: Tensor) -> Adjoint:
    """The exact transpose of the forward scheme: the derivative of the numbers it computed, to rounding.

    Step by step from the last to the first, by the transpose of each step's own scheme; one Hessian-vector product
    a stage. Hager 2000, section 2; equals backpropagation through the steps.
    """
    pull, norms = torch.zeros_like(lam), _Norms(trajectory.final, lam)
    for move, stages in trajectory.backwards():
        lam, pulled = move.scheme.transposed(flow, move.h, stages, lam)
        if flow.prox:
            pull = pull + pulled
        norms.step(move, stages[0], lam)
    return Adjoint(lam, pull, *norms.growths())


@torch.no_grad()
def continuous(flow: GradientFlow, trajectory: Trajectory, lam: Tensor) -> Adjoint:
    """The paper's own backward pass: Heun's method for dlam/dt = H(u) lam on the stored states.

        lam~_n = lam_(n+1) - h H(u_(n+1)) lam_(n+1)
        lam_n  = lam_(n+1) - h/2 (H(u_(n+1)) lam_(n+1) + H(u_n) lam~_n)

    N steps for N intervals, two Hessian-vector products each. Second order in the step size whatever the forward
    scheme: it approximates the flow's gradient and is the derivative of no computed loss. The integral
    of lam is taken by the trapezoidal rule. A-MAML, section 3.
    """
    integral, norms = torch.zeros_like(lam), _Norms(trajectory.final, lam)
    for move, stages in trajectory.backwards():
        slope = flow.hvp(norms.later, lam)
        earlier = lam - move.h / 2 * (slope + flow.hvp(stages[0], lam - move.h * slope))
        lam, integral = earlier, integral + move.h / 2 * (lam + earlier)
        norms.step(move, stages[0], lam)
    return Adjoint(lam, integral, *norms.growths())


ADJOINTS = {"discrete": discrete, "continuous": continuous}
