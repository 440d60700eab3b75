"""From a trajectory and lam(T) to the meta-gradient, by Hessian-vector products on the stored states.

The adjoint state lam (tasks, P) is the sensitivity of a task's query loss to the state u(t). Both functions return
dJ_n/dtheta for every task, (tasks, P): lam(0), plus the pull of the proximal term on theta along the way.
"""

import torch
from torch import Tensor

from amaml.flow import GradientFlow
from amaml.solvers import Step, Trajectory


@torch.no_grad()
def discrete(flow: GradientFlow, trajectory: Trajectory, lam: Tensor) -> Tensor:
    """The exact transpose of the forward scheme: the derivative of the numbers it computed, to rounding.

    For a step u' = u + h sum_i b_i f(Y_i), from the last stage to the first, J_i = -H(Y_i) symmetric:
        k_i = h (b_i lam + sum_(j>i) a_ji w_j),    w_i = J_i k_i,    lam <- lam + sum_i w_i.
    k_i is the sensitivity to the field at stage i, through which theta enters directly when prox > 0. One
    Hessian-vector product a stage. Hager 2000, section 2; equals backpropagation through the steps.
    """
    pull = torch.zeros_like(lam)
    for step in reversed(trajectory.steps):
        lam, pulled = _transposed_step(flow, trajectory, step, lam)
        pull = pull + pulled
    return lam + flow.prox * pull


def _transposed_step(flow: GradientFlow, trajectory: Trajectory, step: Step, lam: Tensor) -> tuple[Tensor, Tensor]:
    a, b, h = trajectory.scheme.a, trajectory.scheme.b, step.h
    total, pulled, products = lam, torch.zeros_like(lam), {}
    for i in reversed(range(len(b))):
        weights = {j: a[j][i] for j in products if a[j][i]}
        if not weights and not b[i]:
            continue
        k = h * b[i] * lam
        for j, weight in weights.items():
            k = k + h * weight * products[j]
        products[i] = -flow.hvp(step.stages[i], k)
        total, pulled = total + products[i], pulled + k
    return total, pulled


@torch.no_grad()
def continuous(flow: GradientFlow, trajectory: Trajectory, lam: Tensor) -> Tensor:
    """The paper's own backward pass: Heun's method for dlam/dt = H(u) lam on the stored states.

        lam~_n = lam_(n+1) - h H(u_(n+1)) lam_(n+1)
        lam_n  = lam_(n+1) - h/2 (H(u_(n+1)) lam_(n+1) + H(u_n) lam~_n)

    N steps for N intervals, two Hessian-vector products each. Second order in the step size whatever the forward
    scheme: it approximates the flow's gradient and is the derivative of no computed loss. The proximal term adds
    prox times the integral of lam, by the trapezoidal rule. A-MAML, section 3.
    """
    states = [step.stages[0] for step in trajectory.steps] + [trajectory.final]
    integral = torch.zeros_like(lam)
    for n in reversed(range(len(trajectory.steps))):
        h = trajectory.steps[n].h
        slope = flow.hvp(states[n + 1], lam)
        predicted = lam - h * slope
        earlier = lam - h / 2 * (slope + flow.hvp(states[n], predicted))
        lam, integral = earlier, integral + h / 2 * (lam + earlier)
    return lam + flow.prox * integral


ADJOINTS = {"discrete": discrete, "continuous": continuous}
