"""A-MAML: the meta-gradient of a long inner loop from a forward flow and a backward adjoint."""

from dataclasses import dataclass

from torch import Tensor

from amaml.adjoint import ADJOINTS
from amaml.calculus import Loss
from amaml.errors import InputError, unknown
from amaml.flow import GradientFlow
from amaml.learner import MetaGradient, check_inner_loop, query_gradient
from amaml.models import Apply
from amaml.solvers import SCHEMES, Trajectory, solve
from amaml.tasks import Tasks


@dataclass(frozen=True)
class AMAML:
    """Meta-Learning with Adjoint Methods (Li et al., AISTATS 2023), section 3.

    Forward   du/dt = -grad L_support(u),   u(0) = theta,                   0 <= t <= T = inner_lr * inner_steps
    Backward  dlam/dt = H(u(t)) lam,        lam(T) = grad L_query(u(T)),    value = mean over tasks of lam(0)

    With prox > 0 the support loss gains prox/2 |u - theta|^2, and value the pull of that term on theta.

    solver: "euler" is gradient descent, inner_steps steps of inner_lr, and the meta-gradient that of unrolled MAML;
    the others follow the flow with steps of their own (amaml.solvers.SCHEMES), to the relative accuracy rtol.
    adjoint: "discrete", the exact transpose of the forward scheme, or "continuous", the paper's Heun scheme.
    Costs one Hessian-vector product a stage (continuous: two a step); keeps states, never graphs.
    """

    apply: Apply
    loss: Loss
    inner_lr: float
    inner_steps: int
    solver: str = "rk4"
    adjoint: str = "discrete"
    rtol: float = 1e-3
    prox: float = 0.0

    def __post_init__(self) -> None:
        check_inner_loop(self.inner_lr, self.inner_steps, prox=self.prox)
        if self.solver not in SCHEMES:
            raise unknown("solver", self.solver, SCHEMES)
        if self.adjoint not in ADJOINTS:
            raise unknown("adjoint", self.adjoint, ADJOINTS)
        if not 0 < self.rtol < 1:
            raise InputError(f"rtol must lie between 0 and 1, got {self.rtol!r}")

    def adapt(self, theta: Tensor, tasks: Tasks) -> Tensor:
        """u(T) for every task, (tasks, P)."""
        return self._forward(GradientFlow(self.apply, self.loss, tasks, theta.detach(), self.prox)).final

    def meta_gradient(self, theta: Tensor, tasks: Tasks) -> MetaGradient:
        """The gradient in theta of the mean query loss of u(T); raises Diverged where the flow does."""
        flow = GradientFlow(self.apply, self.loss, tasks, theta.detach(), self.prox)
        trajectory = self._forward(flow)
        lam, query_loss = query_gradient(self.apply, self.loss, trajectory.final, tasks)
        value = ADJOINTS[self.adjoint](flow, trajectory, lam).mean(0)
        return MetaGradient(value, query_loss, flow.evaluations)

    def _forward(self, flow: GradientFlow) -> Trajectory:
        return solve(flow, self.solver, self.inner_lr, self.inner_steps, self.rtol)
