"""First-order methods: K steps of gradient descent, and a direction for theta that needs no second derivative."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from amaml.arguments import check_query_steps
from amaml.checks import validated
from amaml.descending import Descending
from amaml.engine import derivatives
from amaml.engine.derivatives import Loss
from amaml.flow.quadrature import Quadrature, Requested
from amaml.learner import Followed, MetaGradient, outer_steps, query_along
from amaml.robust import Lengths
from amaml.tasks import Tasks


@dataclass(frozen=True, eq=False)
class FOMAML(Descending):
    """First-order MAML: the query gradient at the adapted parameters (Finn et al. 2017, section 5.2).

    value = mean over tasks of grad L_query(phi),   phi = K gradient steps from theta on L_support.
    query_loss: the outer loss where it is another one. MetaGradient.gradients holds the query loss's own gradients in
    the tensors of the tasks that require one. Costs K + 1 gradients; exact only where the support Hessian vanishes.
    """

    query_loss: Loss | None = None
    query_steps: Sequence[int] | None = None
    query_weights: Sequence[float] | None = None
    gradients_of: ClassVar[tuple[str, ...]] = ("theta", "shared.", "query_", "phi")

    def __post_init__(self) -> None:
        super().__post_init__()
        check_query_steps(self.query_steps, self.query_weights, self.inner_steps)

    @validated
    def gradient(self, theta: Tensor, tasks: Tasks, memory: Lengths) -> MetaGradient:
        """The query gradient at phi, or the weighted sum of those along the way."""
        flow, request = self.flow(theta, tasks), Requested(query=self.request(tasks).query)
        path = self.path(flow, outer_steps(self)[0])
        lam, query_loss, direct = query_along(self, path, flow.tasks, request.query)
        return self.averaged(memory, lam.sum(0), query_loss, flow.evaluations, Quadrature(flow, request), direct)

    def pull_back(self, followed: Followed, lam: Tensor, memory: Lengths) -> MetaGradient:
        """As if every phi were theta, and depended on nothing else."""
        flow, _, request = followed.kept
        return self.averaged(memory, lam.sum(0), None, flow.evaluations, Quadrature(flow, request))


@dataclass(frozen=True, eq=False)
class Reptile(Descending):
    """On First-Order Meta-Learning Algorithms (Nichol et al. 2018, section 2, batched version).

    value = mean over tasks of theta - phi,   phi = K gradient steps from theta on L_support,
    so that plain gradient descent with meta_lr = epsilon is the paper's theta + epsilon (phi - theta).
    Costs K gradients. The query set is not used, except for the reported query loss.
    """

    @validated
    def gradient(self, theta: Tensor, tasks: Tasks, memory: Lengths) -> MetaGradient:
        """theta - phi, not the gradient of a loss."""
        flow = self.flow(theta, tasks)
        (phi,) = self.path(flow, [self.inner_steps])
        query_loss = derivatives.losses(self.apply, self.loss, phi, *tasks.query)
        return self.averaged(memory, theta.detach() - phi, query_loss, flow.evaluations)
