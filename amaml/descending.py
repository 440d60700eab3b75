"""What the learners share whose inner loop is plain gradient descent, and which know of no error of theirs."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import ClassVar

import torch
from torch import Tensor

from amaml.arguments import check_inner_loop
from amaml.checks import validated
from amaml.engine.derivatives import Loss
from amaml.errors import Diverged
from amaml.flow.field import Evaluations, GradientFlow
from amaml.flow.quadrature import Quadrature, Requested, requested
from amaml.learner import Followed, MetaGradient, compact, with_own_memory
from amaml.models import Apply
from amaml.robust import Lengths, Robust, check_robust
from amaml.tasks import Tasks


@dataclass(frozen=True, eq=False)
class Descending:
    """A learner but for its gradient: phi = K gradient steps of size inner_lr from theta on L_support.

    robust: another mean over the tasks than the plain one (amaml.robust); what that needs is all that is remembered.
    gradients_of: beginnings of the names of what has a meta-gradient.
    """

    apply: Apply
    loss: Loss
    inner_lr: float
    inner_steps: int
    robust: Robust = field(default=None, kw_only=True)
    gradients_of: ClassVar[tuple[str, ...]] = ("theta",)

    def __post_init__(self) -> None:
        check_inner_loop(self.inner_lr, self.inner_steps)
        check_robust(self.robust)

    def init(self) -> Lengths:
        """No gradient was seen."""
        return Lengths()

    def update(self, memory: Lengths, seen: MetaGradient | Diverged) -> Lengths:
        """With the lengths of the tasks' gradients."""
        return memory.after(getattr(seen, "lengths", None))

    meta_gradient = with_own_memory

    def adapt(self, theta: Tensor, tasks: Tasks) -> Tensor:
        """phi for every task, (tasks, P)."""
        return self.follow(theta, tasks, self.init(), (self.inner_steps,)).path[0]

    @validated
    def follow(self, theta: Tensor, tasks: Tasks, memory: Lengths, at: Sequence[int]) -> Followed:
        """phi after each of `at` (increasing) inner steps."""
        flow = self.flow(theta, tasks)
        return Followed(self.path(flow, at), (flow, tuple(at), self.request(tasks)._replace(query=())))

    def flow(self, theta: Tensor, tasks: Tasks) -> GradientFlow:
        """The field along which it descends, of which nothing requires a gradient."""
        return GradientFlow(self.apply, self.loss, tasks.detach(), theta.detach())

    def request(self, tasks: Tasks) -> Requested:
        """Of what a gradient is wanted, beside theta."""
        return requested(tasks)

    @torch.no_grad()
    def path(self, flow: GradientFlow, at: Sequence[int]) -> Tensor:
        """phi after each of `at` (increasing) steps along a flow, (times, tasks, P)."""
        phi, path = flow.start, {0: flow.start}
        for n in range(1, at[-1] + 1):
            phi = torch.add(phi, flow(phi), alpha=self.inner_lr)
            if n in at:
                path[n] = phi
        return torch.stack([path[n] for n in at])

    def averaged(
        self,
        memory: Lengths,
        of_tasks: Tensor,
        query_loss: Tensor | None,
        spent: Evaluations,
        sweep: Quadrature | None = None,
        direct: Sequence[Tensor] = (),
    ) -> MetaGradient:
        """The meta-gradient of directions (tasks, P).

        sweep: what sums the gradients of all else that was requested; direct: the query loss's own ones.
        """
        weighing = memory.weighing(self.robust, of_tasks)
        gradients = sweep.gradients(direct, weights=weighing.weights) if sweep else {}
        found = compact(of_tasks, weighing)
        return MetaGradient(query_loss=query_loss, evaluations=spent, gradients=gradients, **found)
