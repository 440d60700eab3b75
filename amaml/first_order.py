"""First-order methods: K steps of gradient descent, and a direction for theta that needs no second derivative."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from amaml.arguments import check_inner_loop, check_query_steps
from amaml.checks import validated
from amaml.engine import derivatives
from amaml.engine.derivatives import Loss
from amaml.flow.quadrature import Quadrature, Requested, requested
from amaml.learner import (
    Followed,
    Memory,
    MetaGradient,
    PlainLoop,
    averaged,
    descent_path,
    no_lengths,
    outer_steps,
    query_along,
    support_flow,
    with_lengths,
    with_own_memory,
)
from amaml.models import Apply
from amaml.robust import Robust, check_robust
from amaml.tasks import Tasks


@validated
def followed(learner: PlainLoop, theta: Tensor, tasks: Tasks, memory: Memory, at: Sequence[int]) -> Followed:
    """follow() of such a learner: phi after each of `at` inner steps."""
    flow = support_flow(learner, theta, tasks)
    return Followed(descent_path(flow, learner.inner_lr, at), (flow, requested(tasks)._replace(query=())))


def descended(learner: PlainLoop, theta: Tensor, tasks: Tasks) -> Tensor:
    """adapt() of a learner whose inner loop is plain gradient descent: phi for every task, (tasks, P)."""
    return followed(learner, theta, tasks, (), (learner.inner_steps,)).path[0]


@dataclass(frozen=True, eq=False)
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
    query_steps: Sequence[int] | None = None
    query_weights: Sequence[float] | None = None
    robust: Robust = None
    gradients_of: ClassVar[tuple[str, ...]] = ("theta", "shared.", "query_", "phi")

    def __post_init__(self) -> None:
        check_inner_loop(self.inner_lr, self.inner_steps)
        check_query_steps(self.query_steps, self.query_weights, self.inner_steps)
        check_robust(self.robust)

    @validated
    def gradient(self, theta: Tensor, tasks: Tasks, memory: Memory) -> MetaGradient:
        """The query gradient at phi, or the weighted sum of those along the way."""
        flow, (steps, weights) = support_flow(self, theta, tasks), outer_steps(self)
        path = descent_path(flow, self.inner_lr, steps)
        request, loss = Requested(query=requested(tasks).query), self.query_loss or self.loss
        lam, query_loss, direct = query_along(self.apply, loss, path, weights, flow.tasks, request.query)
        return averaged(self, memory, lam.sum(0), query_loss, flow.evaluations, Quadrature(flow, request), direct)

    def pull_back(self, followed: Followed, lam: Tensor, memory: Memory) -> MetaGradient:
        """As if every phi were theta, and depended on nothing else."""
        flow, request = followed.kept
        return averaged(self, memory, lam.sum(0), None, flow.evaluations, Quadrature(flow, request))

    adapt, follow, init, update, meta_gradient = descended, followed, no_lengths, with_lengths, with_own_memory


@dataclass(frozen=True, eq=False)
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
    robust: Robust = None
    gradients_of: ClassVar[tuple[str, ...]] = ("theta",)

    def __post_init__(self) -> None:
        check_inner_loop(self.inner_lr, self.inner_steps)
        check_robust(self.robust)

    @validated
    def gradient(self, theta: Tensor, tasks: Tasks, memory: Memory) -> MetaGradient:
        """theta - phi, not the gradient of a loss."""
        flow = support_flow(self, theta, tasks)
        (phi,) = descent_path(flow, self.inner_lr, [self.inner_steps])
        query_loss = derivatives.losses(self.apply, self.loss, phi, *tasks.query)
        return averaged(self, memory, theta.detach() - phi, query_loss, flow.evaluations)

    adapt, follow, init, update, meta_gradient = descended, followed, no_lengths, with_lengths, with_own_memory
