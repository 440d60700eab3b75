"""FOMAML: MAML without second derivatives."""

from dataclasses import dataclass

from torch import Tensor

from amaml.checks import validated
from amaml.engine.derivatives import Loss
from amaml.flow.quadrature import Quadrature, Wanted, wanted
from amaml.learner import MetaGradient, check_inner_loop, gradient_descent, query_gradient_with, support_flow
from amaml.models import Apply
from amaml.tasks import Tasks


@dataclass(frozen=True)
class FOMAML:
    """First-order MAML: the query gradient at the adapted parameters (Finn et al. 2017, section 5.2).

    value = mean over tasks of grad L_query(phi),   phi = K gradient steps from theta on L_support.
    query_loss: the outer loss where it is another one. MetaGradient.gradients holds the query loss's own gradients in
    the tensors of the tasks that require one. Costs K + 1 gradients; exact only where the support Hessian vanishes.
    """

    apply: Apply
    loss: Loss
    inner_lr: float
    inner_steps: int
    query_loss: Loss | None = None

    def __post_init__(self) -> None:
        check_inner_loop(self.inner_lr, self.inner_steps)

    @validated
    def adapt(self, theta: Tensor, tasks: Tasks) -> Tensor:
        """phi for every task, (tasks, P)."""
        return gradient_descent(support_flow(self, theta, tasks), self.inner_lr, self.inner_steps)

    @validated
    def meta_gradient(self, theta: Tensor, tasks: Tasks) -> MetaGradient:
        """The mean query gradient at phi."""
        flow = support_flow(self, theta, tasks)
        phi = gradient_descent(flow, self.inner_lr, self.inner_steps)
        asked, loss = Wanted(query=wanted(tasks).query), self.query_loss or self.loss
        gradient, query_loss, direct = query_gradient_with(self.apply, loss, phi, flow.tasks, asked.query)
        gradients = Quadrature(flow, asked).gradients(direct)
        return MetaGradient(gradient.mean(0), query_loss, flow.evaluations, gradients=gradients)
