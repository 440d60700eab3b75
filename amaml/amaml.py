"""A-MAML: the meta-gradient of a long inner loop from a forward flow and a backward adjoint."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import torch
from torch import Tensor

from amaml.checks import validated
from amaml.engine.derivatives import Loss
from amaml.errors import Diverged, InputError, OverBudget, unknown
from amaml.flow.accuracy import error_of_finest, relative_distance, rounding
from amaml.flow.adjoint import ADJOINTS, Unstable
from amaml.flow.control import TOLERATED, Control, Observation
from amaml.flow.curvature import Sharp
from amaml.flow.field import Evaluations, GradientFlow
from amaml.flow.quadrature import wanted
from amaml.flow.schemes import Move
from amaml.flow.steps import HEUN, SOLVERS, Plan, bisected
from amaml.flow.trajectory import Trajectory
from amaml.learner import MetaGradient, check_count, check_inner_loop, check_rates, number, query_gradient_with
from amaml.models import Apply
from amaml.tasks import Tasks

MEASURE = 2.5  # evaluations that a measurement may take over those of what it measures: bisected steps take 2
FURTHER = 2.0  # budgets that a solve after a measurement may take: steps bisected twice take 4 times as many
REACHED = 1e3  # roundings: no tolerance below this is asked of a dtype


class Solution(NamedTuple):
    """One pass forward and backward: the mean gradient (P,), query loss (tasks,), the steps, and more.

    gradients: what was asked for beside theta, as in MetaGradient.
    """

    value: Tensor
    query_loss: Tensor
    moves: list[Move]
    sharpest: float
    at_start: Sharp | None
    terminal: Tensor
    gradients: dict[str, Tensor]


@dataclass(frozen=True)
class AMAML:
    """Meta-Learning with Adjoint Methods (Li et al., AISTATS 2023), section 3.

    Forward   du/dt = -grad L_support(u),   u(0) = theta,                   0 <= t <= T = inner_lr * inner_steps
    Backward  dlam/dt = H(u(t)) lam,        lam(T) = grad L_query(u(T)),    value = mean over tasks of lam(0)

    With prox > 0 the support loss gains prox/2 |u - theta|^2, and value the pull of that term on theta.

    inner_lr: a number, or a tensor of one; or a tensor (P,), a rate for every parameter: du/dt = -inner_lr grad L over
    0 <= t <= inner_steps. query_loss: the outer loss where it is another than that of the inner loop.
    Of inner_lr, prox and the tensors of tasks, those that require a gradient get it: MetaGradient.gradients. One
    scalar inner_lr is the horizon: the steps of the solver change with it in proportion.

    solver: "euler" is gradient descent, inner_steps steps of inner_lr, and the meta-gradient that of unrolled MAML;
    the others (amaml.flow.steps.SOLVERS) follow the flow with steps of their own, for a relative error rtol of value.
    adjoint: "discrete", the exact transpose of the forward scheme, or "continuous", the paper's Heun scheme.
    checkpoints: how many states of a trajectory are kept at most (amaml.flow.trajectory); None decides by their size.
    control: what the learner remembers of its error from call to call (amaml.flow.control), its own by default.
    Costs one Hessian-vector product a stage (continuous: two a step); keeps states, never graphs.
    """

    apply: Apply
    loss: Loss
    inner_lr: float | Tensor
    inner_steps: int
    solver: str = "auto"
    adjoint: str = "discrete"
    rtol: float = 1e-3
    prox: float | Tensor = 0.0
    checkpoints: int | None = None
    query_loss: Loss | None = None
    control: Control = field(default_factory=Control, compare=False, repr=False)

    def __post_init__(self) -> None:
        self._check_rates()
        if self.solver not in SOLVERS:
            raise unknown("solver", self.solver, SOLVERS)
        if self.adjoint not in ADJOINTS:
            raise unknown("adjoint", self.adjoint, ADJOINTS)
        if not 0 < self.rtol < 1:
            raise InputError(f"rtol must lie between 0 and 1, got {self.rtol!r}")
        check_count("checkpoints", self.checkpoints, none=True)

    @validated
    def adapt(self, theta: Tensor, tasks: Tasks) -> Tensor:
        """u(T) for every task, (tasks, P)."""
        self._check(theta)
        limit = Control().budget(self.inner_steps)
        flow = self._flow(theta.detach(), tasks, Evaluations(), self._limit(limit))
        trajectory = Trajectory(flow, checkpoints=1)
        self._plan(self.rtol).follow(trajectory)
        return trajectory.final

    def meta_gradient(self, theta: Tensor, tasks: Tasks) -> MetaGradient:
        """The gradient in theta of the mean query loss of u(T), with its relative error.

        The first call measures the error, by solving again with every step bisected, and later ones do so now and
        then and where something jumped (amaml.flow.control). A call that measures returns the finest gradient, with
        its own error; others carry what was measured last of a call like them. "euler" with the discrete adjoint has
        no such error: it is the gradient of the steps it makes. "euler" with the continuous adjoint is compared with
        that one.

        An error above rtol in a first call, above TOLERATED * rtol in later ones, is brought down by further solves.
        Raises OverBudget where one of them takes more than the budget of evaluations, Diverged where the flow leaves
        the finite numbers.
        """
        gradient = self.look(theta, tasks)
        if gradient.observation is not None:
            self.control.learn(self.problem(theta), self.rtol, gradient.observation)
        return gradient

    @validated
    def look(self, theta: Tensor, tasks: Tasks) -> MetaGradient:
        """meta_gradient without learning from it: what would be learnt is .observation, None for exact gradients."""
        self._check(theta)
        theta, spent = theta.detach(), Evaluations()
        state = self.control.about(self.problem(theta))
        budget = self._limit(state.budget(self.inner_steps))
        first = self._solve(theta, tasks, self._plan(self.rtol * state.gain, state.known), spent, budget)
        cost, norm = spent.total, first.value.norm().item()
        if not (math.isfinite(norm) or first.terminal.isfinite().all()):  # no finer solve would change that
            raise Diverged(
                "the gradient of the query loss at the adapted parameters is not finite; look at the loss, or try a "
                "smaller inner_lr or fewer inner steps"
            )
        if self.solver == "euler" and self.adjoint == "discrete":
            return MetaGradient(first.value, first.query_loss, spent, gradients=first.gradients)
        seen = Observation(cost, first.sharpest, norm, None, 0, first.at_start)
        if not state.due(cost, first.sharpest, norm):
            carried = state.carried(self.rtol, norm)
            return MetaGradient(first.value, first.query_loss, spent, carried, False, seen, first.gradients)
        if self.solver == "euler":
            exact = self._solve(theta, tasks, self._plan(self.rtol), spent, budget, "discrete")
            best, error = first, relative_distance(first.value, exact.value)
            of_first = error
        else:
            best, error, of_first = self._refined(theta, tasks, first, spent, budget, bool(state.errors))
        spent.measuring = spent.total - cost
        seen = seen._replace(error=of_first, measuring=spent.measuring)
        return MetaGradient(best.value, best.query_loss, spent, error, True, seen, best.gradients)

    def problem(self, theta: Tensor) -> tuple:
        """What the control's measurements are about."""
        learned = ("learned" if isinstance(value, Tensor) else value for value in (self.prox, self.inner_lr))
        settings = self.solver, self.adjoint, self.rtol, *learned, self.inner_steps
        return (*settings, len(theta), str(theta.dtype))

    def _refined(
        self, theta: Tensor, tasks: Tasks, first: Solution, spent: Evaluations, budget: float, known: bool
    ) -> tuple[Solution, float, float]:
        """The gradient with every step bisected, once or until its error is tolerated.

        known: whether errors of this problem were measured before. Then TOLERATED * rtol is, as for the calls between
        two measurements; if not, rtol, and a distance above it is not divided by what the order of the scheme promises
        before a second one has shown that order. budget: evaluations that the first solve was allowed; those after the
        first measurement may take FURTHER times as many.
        Returns it, its error and the error of the first one.
        """
        distances, coarse, error = [], first, math.inf
        heun = [HEUN.order] if self.adjoint == "continuous" else []
        order = min(heun + [move.scheme.order for move in first.moves])
        enough = TOLERATED * self.rtol if known else self.rtol
        limit = (1 + MEASURE) * spent.total
        while True:
            try:
                fine = self._solve(theta, tasks, bisected(coarse.moves), spent, limit)
            except OverBudget:
                if error <= TOLERATED * self.rtol:
                    break
                raise OverBudget(
                    f"the meta-gradient's measured relative error is {error:.2g}, above rtol {self.rtol:g}, and "
                    f"{limit:.0f} evaluations do not suffice to bring it there; try a smaller inner_lr, fewer inner "
                    "steps, a larger rtol or solver euler"
                ) from None
            distances.append(relative_distance(coarse.value, fine.value))
            error, coarse = error_of_finest(distances, order), fine
            shown = known or len(distances) > 1 or distances[-1] <= self.rtol
            if (error <= enough and shown) or distances[-1] <= rounding(fine.value, fine.terminal):
                break
            limit = spent.total + FURTHER * budget
        return coarse, error, relative_distance(first.value, coarse.value) + error

    def _solve(
        self,
        theta: Tensor,
        tasks: Tasks,
        steps: Plan | Sequence[Move],
        spent: Evaluations,
        limit: float,
        adjoint: str | None = None,
    ) -> Solution:
        """Forward and backward. A step that lambda_max outran is taken again from its start, and all after it."""
        asked, flow = wanted(tasks, self.inner_lr, self.prox), self._flow(theta, tasks, spent, limit)
        trajectory, plan = Trajectory(flow, self.checkpoints), steps
        if isinstance(steps, Plan):
            steps.follow(trajectory)
        else:
            trajectory.extend(steps)
            plan = self._plan(self.rtol / 4)
        while True:
            outer, phi = self.query_loss or self.loss, trajectory.final
            terminal, query_loss, direct = query_gradient_with(self.apply, outer, phi, flow.tasks, asked.query)
            swept = ADJOINTS[adjoint or self.adjoint](flow, trajectory, terminal, asked)
            if not isinstance(swept, Unstable):
                break
            trajectory.rewind(swept.index, swept.state)
            plan.follow(trajectory, swept.stiff)
        to_theta = swept.lam + flow.prox * swept.sweep.pulled if flow.prox else swept.lam
        gradients = swept.sweep.gradients(direct, self._rate)
        value, sharpest, at_start = to_theta.mean(0), trajectory.sharpest, trajectory.at_start
        return Solution(value, query_loss, trajectory.moves, sharpest, at_start, terminal, gradients)

    def _plan(self, tolerance: float, known: Sharp | None = None) -> Plan:
        return Plan(self.solver, self._rate, self.inner_steps, tolerance, self.adjoint == "continuous", known)

    def _flow(self, theta: Tensor, tasks: Tasks, spent: Evaluations, limit: float) -> GradientFlow:
        return GradientFlow(self.apply, self.loss, tasks.detach(), theta, self._prox, spent, limit, self._rates)

    @property
    def _rates(self) -> Tensor | None:
        """inner_lr where it is a tensor (P,)."""
        return self.inner_lr.detach() if isinstance(self.inner_lr, Tensor) and self.inner_lr.ndim else None

    @property
    def _rate(self) -> float:
        """The flow's time that an inner step takes."""
        return number(self.inner_lr) if self._rates is None else 1.0

    @property
    def _prox(self) -> float:
        return number(self.prox)

    def _check_rates(self) -> None:
        """Raise InputError unless inner_lr and prox make sense now; a tensor may have been trained in between."""
        check_rates(self.inner_lr, signed=self.solver == "euler")
        check_inner_loop(self._rate, self.inner_steps, prox=self._prox)

    def _limit(self, budget: float) -> float:
        """The budget of evaluations; "euler" makes the steps it is asked for."""
        return math.inf if self.solver == "euler" else budget

    def _check(self, theta: Tensor) -> None:
        """Raise InputError for rates that do not fit, or a dtype that cannot hold a meta-gradient of error rtol."""
        self._check_rates()
        if theta.dtype not in (torch.float32, torch.float64):
            raise InputError(f"theta is {theta.dtype}, whose rounding spoils the adjoint; use float32 or float64")
        rates = self._rates
        if rates is not None and rates.shape != theta.shape:
            raise InputError(f"inner_lr has shape {tuple(rates.shape)}; one rate, or one for each of {len(theta)}")
        if rates is not None and (rates.dtype, rates.device) != (theta.dtype, theta.device):
            raise InputError(
                f"inner_lr is {rates.dtype} on {rates.device}, theta {theta.dtype} on {theta.device}; give "
                "inner_lr.to(theta)"
            )
        reached = REACHED * torch.finfo(theta.dtype).eps
        if self.solver != "euler" and self.rtol < reached:
            raise InputError(
                f"rtol {self.rtol:g} is more than {theta.dtype} can reach; use {reached:.1g} or more"
                + (", or float64" if theta.dtype == torch.float32 else "")
            )
