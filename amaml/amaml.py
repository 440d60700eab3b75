"""A-MAML: the meta-gradient of a long inner loop from a forward flow and a backward adjoint."""

import math
import warnings
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from amaml.adjoint import ADJOINTS, Adjoint
from amaml.calculus import Loss
from amaml.control import SOLVERS, solve
from amaml.errors import Diverged, InputError, unknown
from amaml.flow import Evaluations, GradientFlow
from amaml.learner import MetaGradient, check_inner_loop, query_gradient
from amaml.models import Apply
from amaml.tasks import Tasks

TRUST = 10.0  # an estimated error above so many rtol is not returned
REFINEMENTS = 3  # attempts, each with half the steps' size, before that is an error


@dataclass(frozen=True)
class AMAML:
    """Meta-Learning with Adjoint Methods (Li et al., AISTATS 2023), section 3.

    Forward   du/dt = -grad L_support(u),   u(0) = theta,                   0 <= t <= T = inner_lr * inner_steps
    Backward  dlam/dt = H(u(t)) lam,        lam(T) = grad L_query(u(T)),    value = mean over tasks of lam(0)

    With prox > 0 the support loss gains prox/2 |u - theta|^2, and value the pull of that term on theta.

    solver: "euler" is gradient descent, inner_steps steps of inner_lr, and the meta-gradient that of unrolled MAML;
    the others (amaml.control.SOLVERS) follow the flow with steps of their own, for a relative error rtol of value.
    adjoint: "discrete", the exact transpose of the forward scheme, or "continuous", the paper's Heun scheme.
    checkpoints: how many states of a trajectory are kept at most (amaml.trajectory); None decides by their size.
    Costs one Hessian-vector product a stage (continuous: two a step); keeps states, never graphs.
    """

    apply: Apply
    loss: Loss
    inner_lr: float
    inner_steps: int
    solver: str = "auto"
    adjoint: str = "discrete"
    rtol: float = 1e-3
    prox: float = 0.0
    checkpoints: int | None = None

    def __post_init__(self) -> None:
        check_inner_loop(self.inner_lr, self.inner_steps, prox=self.prox)
        if self.solver not in SOLVERS:
            raise unknown("solver", self.solver, SOLVERS)
        if self.adjoint not in ADJOINTS:
            raise unknown("adjoint", self.adjoint, ADJOINTS)
        if not 0 < self.rtol < 1:
            raise InputError(f"rtol must lie between 0 and 1, got {self.rtol!r}")
        if self.checkpoints is not None and (not isinstance(self.checkpoints, int) or self.checkpoints < 1):
            raise InputError(f"checkpoints must be a positive integer or None, got {self.checkpoints!r}")

    def adapt(self, theta: Tensor, tasks: Tasks) -> Tensor:
        """u(T) for every task, (tasks, P)."""
        flow = GradientFlow(self.apply, self.loss, tasks, theta.detach(), self.prox)
        return solve(flow, self.solver, self.inner_lr, self.inner_steps, self.rtol, checkpoints=1).final

    def meta_gradient(self, theta: Tensor, tasks: Tasks) -> MetaGradient:
        """The gradient in theta of the mean query loss of u(T), with an estimate of its relative error.

        One whose estimated error exceeds 10 rtol is computed again with smaller steps, with a warning; where that
        does not help, and where the flow leaves the finite numbers, Diverged is raised. "euler" has no such error:
        it is the gradient of the steps it makes.
        """
        evaluations = Evaluations()
        for attempt in range(REFINEMENTS):
            gradient = self._once(theta.detach(), tasks, self.rtol / 16**attempt, evaluations)
            limit = max(self.tolerance, 1e4 * torch.finfo(theta.dtype).eps)
            if gradient.error is None or gradient.error <= limit:
                return gradient
            warnings.warn(
                f"meta-gradients with an estimated error above {limit:g} are computed again with smaller steps; "
                "a smaller rtol or inner_lr avoids this",
                RuntimeWarning,
                stacklevel=2,
            )
        raise Diverged(
            f"the meta-gradient's estimated relative error is {gradient.error:.2g}, above {limit:g}, and smaller steps "
            "do not help; try a smaller inner_lr, fewer inner steps or solver euler"
        )

    @property
    def tolerance(self) -> float:
        """The relative error above which a meta-gradient is not to be used."""
        return TRUST * self.rtol

    def finer(self) -> "AMAML":
        """The same method at much finer steps, whose meta-gradient tells the error of this one's."""
        return replace(self, rtol=self.rtol / 16)

    def _once(self, theta: Tensor, tasks: Tasks, rtol: float, evaluations: Evaluations) -> MetaGradient:
        flow = GradientFlow(self.apply, self.loss, tasks, theta, self.prox, evaluations)
        heun = self.adjoint == "continuous"
        trajectory = solve(flow, self.solver, self.inner_lr, self.inner_steps, rtol, self.checkpoints, heun)
        final = trajectory.final
        terminal, query_loss = query_gradient(self.apply, self.loss, final, tasks)
        adjoint = ADJOINTS[self.adjoint](flow, trajectory, terminal)
        error = None if self.solver == "euler" else estimated_error(flow, final, terminal, adjoint, rtol)
        value = adjoint.lam + self.prox * adjoint.integral if self.prox else adjoint.lam
        return MetaGradient(value.mean(0), query_loss, evaluations, error)


def estimated_error(flow: GradientFlow, final: Tensor, terminal: Tensor, adjoint: Adjoint, rtol: float) -> float:
    """An estimate of the meta-gradient's relative error: the larger of two.

    What the steps aim at, rtol, times the growth of lam on the way back: negative curvature that makes lam grow makes
    the errors made before grow as well.

    What a conserved quantity lacks. Along a gradient flow the field f(u(t)) solves d f/dt = -H f, the equation that
    small changes of the state obey, and lam solves dlam/dt = H lam; so lam . f is constant in time. The difference
    between the computed lam(0) . f(u(0)) and lam(T) . f(u(T)) is made by the scheme's errors alone, in the direction f,
    in which stiff components weigh most; relative to the mean size of the tasks' gradients. It shows an instability,
    and nothing of errors orthogonal to f. One gradient. Measured: results/efficiency/accuracy.md.
    """
    at_start, at_end, lam = flow.initial, flow(0.0, final), adjoint.lam
    defect = ((lam * at_start).sum(-1) - (terminal * at_end).sum(-1)).abs() / at_start.norm(dim=-1)
    numbers = torch.stack([defect.nan_to_num(0.0).max(), lam.norm(dim=-1).mean(), adjoint.growth.nan_to_num(1.0).max()])
    lacking, size, growth = numbers.tolist()
    estimate = max(lacking / size if size else 0.0, rtol * growth)
    return estimate if math.isfinite(estimate) else math.inf
