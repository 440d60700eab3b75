"""Reptile: move theta towards the adapted parameters."""

from dataclasses import dataclass

from torch import Tensor

from amaml.checks import validated
from amaml.engine import derivatives
from amaml.engine.derivatives import Loss
from amaml.learner import MetaGradient, check_inner_loop, gradient_descent, support_flow
from amaml.models import Apply
from amaml.tasks import Tasks


@dataclass(frozen=True)
class Reptile:
    """On First-Order Meta-Learning Algorithms (Nichol et al. 2018, section 2, batched version).

    value = mean over tasks of theta - phi,   phi = K gradient steps from theta on L_support,
    so that plain gradient descent with meta_lr = epsilon is the paper's theta + epsilon (phi - theta).
    Costs K gradients. The query set is not used, except for the reported query loss.
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
        """The mean of theta - phi, not the gradient of a loss."""
        flow = support_flow(self, theta, tasks)
        phi = gradient_descent(flow, self.inner_lr, self.inner_steps)
        query_loss = derivatives.losses(self.apply, self.loss, phi, *tasks.query)
        return MetaGradient(theta.detach() - phi.mean(0), query_loss, flow.evaluations)
