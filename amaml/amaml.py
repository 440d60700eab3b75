"""A-MAML: the meta-gradient of a long inner loop from a forward flow and a backward adjoint."""

import warnings
from dataclasses import dataclass, replace
from typing import NamedTuple

import torch
from torch import Tensor

from amaml.checks import validated
from amaml.errors import Diverged, InputError, unknown
from amaml.flow.adjoint import ADJOINTS, Adjoint
from amaml.flow.derivatives import Loss
from amaml.flow.error import Doubts, doubts_of, error_of_sample, most_suspect, relative_distance
from amaml.flow.field import Evaluations, GradientFlow
from amaml.flow.steps import SOLVERS, solve
from amaml.learner import MetaGradient, check_inner_loop, query_gradient
from amaml.models import Apply
from amaml.tasks import Tasks

TRUST = 10.0  # an estimated error above so many rtol is not returned
ATTEMPTS = 6  # before that is an error
FINER = 4.0  # each at an rtol smaller by this: half the step of a scheme of second order


class Solution(NamedTuple):
    """One pass forward and backward: the gradient of every task (tasks, P), its query loss (tasks,) and more."""

    gradients: Tensor
    query_loss: Tensor
    adjoint: Adjoint
    doubts: Doubts | None


@dataclass(frozen=True)
class AMAML:
    """Meta-Learning with Adjoint Methods (Li et al., AISTATS 2023), section 3.

    Forward   du/dt = -grad L_support(u),   u(0) = theta,                   0 <= t <= T = inner_lr * inner_steps
    Backward  dlam/dt = H(u(t)) lam,        lam(T) = grad L_query(u(T)),    value = mean over tasks of lam(0)

    With prox > 0 the support loss gains prox/2 |u - theta|^2, and value the pull of that term on theta.

    solver: "euler" is gradient descent, inner_steps steps of inner_lr, and the meta-gradient that of unrolled MAML;
    the others (amaml.flow.steps.SOLVERS) follow the flow with steps of their own, for a relative error rtol of value.
    adjoint: "discrete", the exact transpose of the forward scheme, or "continuous", the paper's Heun scheme.
    checkpoints: how many states of a trajectory are kept at most (amaml.flow.trajectory); None decides by their size.
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

    @validated
    def adapt(self, theta: Tensor, tasks: Tasks) -> Tensor:
        """u(T) for every task, (tasks, P)."""
        flow = GradientFlow(self.apply, self.loss, tasks, theta.detach(), self.prox)
        return solve(flow, self.solver, self.inner_lr, self.inner_steps, self.rtol, checkpoints=1).final

    @validated
    def meta_gradient(self, theta: Tensor, tasks: Tasks) -> MetaGradient:
        """The gradient in theta of the mean query loss of u(T), with an estimate of its relative error.

        Where negative curvature may have made errors grow (amaml.flow.error) the estimate is measured: some tasks are
        solved again by finer steps. A gradient whose estimated error exceeds 10 rtol is computed again with finer
        steps, with a warning, until two agree; where they do not, and where the flow leaves the finite numbers,
        Diverged is raised. "euler" has no such error: it is the gradient of the steps it makes.
        """
        theta, evaluations, coarser = theta.detach(), Evaluations(), None
        limit = max(self.tolerance, 1e4 * torch.finfo(theta.dtype).eps)
        for attempt in range(ATTEMPTS):
            rtol = self.rtol / FINER**attempt
            solution = self._solve(theta, tasks, rtol, evaluations)
            value = solution.gradients.mean(0)
            if self.solver == "euler":
                return MetaGradient(value, solution.query_loss, evaluations)
            error = max(solution.doubts.defect, rtol * solution.doubts.growth)
            if coarser is not None:
                error = max(error, relative_distance(coarser, value))
            elif solution.doubts.suspect and error <= limit:
                error = max(error, self._sampled_error(theta, tasks, solution, rtol, evaluations))
            if error <= limit:
                return MetaGradient(value, solution.query_loss, evaluations, error)
            warnings.warn(
                f"meta-gradients with an estimated error above {limit:g} are computed again with finer steps; "
                "a smaller inner_lr avoids this",
                RuntimeWarning,
                stacklevel=2,
            )
            coarser = value
        raise Diverged(
            f"the meta-gradient's estimated relative error is {error:.2g}, above {limit:g}, and finer steps do not "
            "help; try a smaller inner_lr, fewer inner steps or solver euler"
        )

    @property
    def tolerance(self) -> float:
        """The relative error above which a meta-gradient is not to be used."""
        return TRUST * self.rtol

    def finer(self) -> "AMAML":
        """The same method at much finer steps, whose meta-gradient tells the error of this one's."""
        return replace(self, rtol=self.rtol / 16)

    def _solve(self, theta: Tensor, tasks: Tasks, rtol: float, evaluations: Evaluations) -> Solution:
        flow = GradientFlow(self.apply, self.loss, tasks, theta, self.prox, evaluations)
        heun = self.adjoint == "continuous"
        trajectory = solve(flow, self.solver, self.inner_lr, self.inner_steps, rtol, self.checkpoints, heun)
        final = trajectory.final
        terminal, query_loss = query_gradient(self.apply, self.loss, final, tasks)
        adjoint = ADJOINTS[self.adjoint](flow, trajectory, terminal)
        gradients = adjoint.lam + self.prox * adjoint.integral if self.prox else adjoint.lam
        doubts = None if self.solver == "euler" else doubts_of(flow, final, terminal, adjoint)
        return Solution(gradients, query_loss, adjoint, doubts)

    def _sampled_error(
        self, theta: Tensor, tasks: Tasks, solution: Solution, rtol: float, evaluations: Evaluations
    ) -> float:
        """The relative error of the mean, as the most suspect of the tasks suggest, solved again by finer steps."""
        which = most_suspect(solution.adjoint)
        spent = Evaluations()
        finer = self._solve(theta, tasks[which], rtol / FINER, spent).gradients
        evaluations.add(spent, len(which) / len(tasks))
        return error_of_sample(solution.gradients, which, finer)
