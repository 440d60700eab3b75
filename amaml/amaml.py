"""A-MAML: the meta-gradient of a long inner loop from a forward flow and a backward adjoint."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from amaml.checks import check_precision, validated
from amaml.engine.derivatives import Loss
from amaml.errors import Diverged, InputError, OverBudget, unknown
from amaml.flow.accuracy import Controller, Memory, Observation, refined, relative_distance
from amaml.flow.adjoint import ADJOINTS, Adjoint
from amaml.flow.curvature import Curvature
from amaml.flow.field import Evaluations, GradientFlow
from amaml.flow.mesh import SOLVERS, FixedMesh, GradedMesh, Mesh, descends
from amaml.flow.quadrature import NOTHING, Requested, requested
from amaml.flow.schemes import HEUN, Scheme
from amaml.flow.trajectory import Trajectory
from amaml.learner import (
    MetaGradient,
    check_count,
    check_inner_loop,
    check_rates,
    mean_if_large,
    number,
    query_gradient_with,
    with_own_memory,
)
from amaml.models import Apply
from amaml.tasks import Tasks


class Terminal(NamedTuple):
    """Where a backward sweep begins: lam(T) (tasks, P), what it gains on the way, by the number of moves until there;
    and the query loss (tasks,) with its gradients in what was requested of the query set."""

    lam: Tensor
    jumps: Mapping[int, Tensor] | None = None
    query_loss: Tensor | None = None
    direct: Sequence[Tensor] = ()


class Solution(NamedTuple):
    """One pass forward and backward: a trajectory that has been read, where the sweep began, and its result."""

    trajectory: Trajectory
    terminal: Terminal
    of_tasks: Tensor
    gradients: dict[str, Tensor]
    estimate: Tensor

    @property
    def value(self) -> Tensor:
        """The mean gradient (P,)."""
        return self.of_tasks.mean(0)


@dataclass(frozen=True, eq=False)
class AMAML:
    """Meta-Learning with Adjoint Methods (Li et al., AISTATS 2023), section 3.

    Forward   du/dt = -grad L_support(u),   u(0) = theta,                   0 <= t <= T = inner_lr * inner_steps
    Backward  dlam/dt = H(u(t)) lam,        lam(T) = grad L_query(u(T)),    value = mean over tasks of lam(0)

    With prox > 0 the support loss gains prox/2 |u - theta|^2, and value the pull of that term on theta.

    inner_lr: a number, or a tensor of one; or a tensor (P,), a rate for every parameter: du/dt = -inner_lr grad L over
    0 <= t <= inner_steps. query_loss: the outer loss where it is another than that of the inner loop.
    Of inner_lr, prox and the tensors of tasks, those that require a gradient get it: MetaGradient.gradients. One
    scalar inner_lr is the horizon: the steps of the solver change with it in proportion.

    solver: "euler" is gradient descent, inner_steps steps of inner_lr, and the meta-gradient that of unrolled MAML. A
    scheme (amaml.flow.schemes) or the name of one (amaml.flow.mesh.SOLVERS) follows the flow with steps of its own, for
    a relative error rtol of value. "auto" follows it with the scheme that is the cheapest at each step, and is gradient
    descent where the flow would cost as much: MetaGradient.solver tells.
    adjoint: "discrete", the exact transpose of the forward scheme, or "continuous", the paper's Heun scheme.
    checkpoints: how many states of a trajectory are kept at most (amaml.flow.trajectory); None decides by their size.
    Its memory is what it knows of its error from call to call, an amaml.flow.accuracy.Memory.
    Costs one Hessian-vector product a stage (continuous: two a step); keeps states, never graphs.
    """

    apply: Apply
    loss: Loss
    inner_lr: float | Tensor
    inner_steps: int
    solver: str | Scheme = "auto"
    adjoint: str = "discrete"
    rtol: float = 1e-3
    prox: float | Tensor = 0.0
    checkpoints: int | None = None
    query_loss: Loss | None = None
    controller: Controller = Controller()

    def __post_init__(self) -> None:
        if isinstance(self.solver, str) and self.solver not in SOLVERS:
            raise unknown("solver", self.solver, SOLVERS)
        self._check_rates()
        if self.adjoint not in ADJOINTS:
            raise unknown("adjoint", self.adjoint, ADJOINTS)
        if not 0 < self.rtol < 1:
            raise InputError(f"rtol must lie between 0 and 1, got {self.rtol!r}")
        check_count("checkpoints", self.checkpoints, none=True)

    def init(self) -> Memory:
        """Nothing is known of the error."""
        return Memory()

    @validated
    def adapt(self, theta: Tensor, tasks: Tasks, memory: Memory | None = None) -> Tensor:
        """u(T) for every task, (tasks, P)."""
        return self.forward(theta, tasks, memory, checkpoints=1).final

    @validated
    def gradient(self, theta: Tensor, tasks: Tasks, memory: Memory) -> MetaGradient:
        """The gradient in theta of the mean query loss of u(T), with its relative error.

        The first call measures the error, by solving again with every step bisected, and later ones do so now and
        then and where they are unlike those (amaml.flow.accuracy). A call that measures returns the finest gradient,
        with its own error; others carry what was measured of calls like them. Gradient descent with the discrete
        adjoint has no such error: it is the gradient of the steps it makes. With the continuous adjoint it is compared
        with that one.

        An error above rtol in a first call, above the controller's ceiling in later ones, is brought down by further
        solves. Where they take more than the budget of evaluations, or the flow leaves the finite numbers, "auto" makes
        the steps of gradient descent instead; other solvers raise OverBudget, Diverged.
        """
        self._check(theta)
        memory = memory.about(self.problem(theta))
        flow = self.flow(theta.detach(), tasks, self._limit(memory))
        mesh, curvature = self._choose(flow, memory)
        try:
            return self._solved(flow, tasks, mesh, curvature, memory)
        except Diverged as fault:
            if self.solver != "auto" or isinstance(mesh, FixedMesh):
                refused = isinstance(fault, OverBudget)
                fault.observation = Observation(flow.evaluations.total, refused=refused, problem=self.problem(theta))
                raise
        return self._solved(flow, tasks, FixedMesh(self.inner_steps), curvature, memory)

    def update(self, memory: Memory, seen: MetaGradient | Diverged) -> Memory:
        """What is known of the error after a call that gave the gradient seen, or raised it."""
        if seen.observation is None:
            return memory
        return self.controller.update(memory.about(seen.observation.problem), self.rtol, seen.observation)

    meta_gradient = with_own_memory

    def forward(
        self,
        theta: Tensor,
        tasks: Tasks,
        memory: Memory | None = None,
        at: Sequence[int] = (),
        checkpoints: int | None = None,
    ) -> Trajectory:
        """The flow from theta to u(T), .final, landing on the states after `at` inner steps, .landings.

        At the tolerance that is known from the errors of meta-gradients; where none was measured, the error of
        u(T) - theta is, and brought below rtol.
        """
        self._check(theta)
        memory = (memory or Memory()).about(self.problem(theta))
        flow = self.flow(theta.detach(), tasks, self._limit(memory))
        (mesh, curvature), ends = self._choose(flow, memory), [self._rate * n for n in sorted({*at, self.inner_steps})]

        def follow(mesh: Mesh) -> Trajectory:
            return mesh.follow(Trajectory(mesh.flow(flow), checkpoints), ends, curvature)

        try:
            first = follow(mesh)
            if memory.errors or isinstance(mesh, FixedMesh):
                return first
            rtol = max(self.rtol, self._rounding(theta))
            order = min(move.scheme.order for move in first.moves)
            return refined(
                first, lambda coarse: follow(mesh.halved(coarse)), lambda one: one.final - flow.theta, order, rtol, rtol
            )[0]
        except Diverged:
            if self.solver != "auto" or isinstance(mesh, FixedMesh):
                raise
            return follow(FixedMesh(self.inner_steps))

    def backward(
        self,
        trajectory: Trajectory,
        terminal: Callable[[Trajectory], Terminal],
        request: Requested = NOTHING,
        adjoint: str = "discrete",
    ) -> Solution:
        """From lam at the end of a trajectory, and what it gains on the way, to the gradients in theta (tasks, P) and
        in what else was requested.

        terminal is asked again where a step that lambda_max outran is taken anew, and all after it.
        """
        flow = trajectory.flow
        while True:
            begin = terminal(trajectory)
            swept = ADJOINTS[adjoint](flow, trajectory, begin.lam, request, begin.jumps)
            if isinstance(swept, Adjoint):
                break
            trajectory.rewind(swept.index, swept.state)
            trajectory.mesh.follow(trajectory, trajectory.ends, Curvature(flow, swept.stiff))
        of_tasks = swept.lam + flow.prox * swept.sweep.pulled if flow.prox else swept.lam
        gradients = swept.sweep.gradients(list(begin.direct), self._rate)
        return Solution(trajectory, begin, mean_if_large(of_tasks), gradients, swept.estimate)

    def solve(
        self, flow: GradientFlow, tasks: Tasks, mesh: Mesh, curvature: Curvature, adjoint: str = "discrete"
    ) -> Solution:
        """Forward, the gradient of the query loss, backward."""
        request = requested(tasks, self.inner_lr, self.prox)

        def terminal(trajectory: Trajectory) -> Terminal:
            outer, phi = self.query_loss or self.loss, trajectory.final
            lam, query_loss, direct = query_gradient_with(self.apply, outer, phi, flow.tasks, request.query)
            return Terminal(lam, None, query_loss, direct)

        trajectory = mesh.follow(Trajectory(flow, self.checkpoints), [self._rate * self.inner_steps], curvature)
        return self.backward(trajectory, terminal, request, adjoint)

    def _solved(
        self, flow: GradientFlow, tasks: Tasks, mesh: Mesh, curvature: Curvature, memory: Memory
    ) -> MetaGradient:
        """The gradient on a mesh, with its error: none where it is exact, measured or carried otherwise."""
        spent, descended = flow.evaluations, isinstance(mesh, FixedMesh)
        exact = descended and (self.solver == "auto" or self.adjoint == "discrete")
        before = spent.total if descended else 0  # to find out that the flow is as dear
        first = self.solve(mesh.flow(flow), tasks, mesh, curvature, "discrete" if exact else self.adjoint)
        best, error, cost, path = first, None, spent.total - before, first.trajectory
        norm, estimate = self._finite(first)
        seen = Observation(cost, path.sharpest, estimate, norm, None, before, False, descended)
        seen = seen._replace(leading=path.at_start or curvature.leading, problem=self.problem(flow.theta))
        measured = not exact and self.controller.due(memory, self.rtol, seen)
        if measured and descended:
            error = of_first = relative_distance(first.value, self.solve(flow, tasks, mesh, curvature).value)
        elif measured:
            best, error, of_first = self._refined(flow, tasks, first, mesh, memory)
        elif not exact:
            error = self.controller.carried(memory, seen)
        spent.measuring = spent.total - cost
        if measured:
            seen = seen._replace(error=of_first, measuring=spent.measuring)
        name = "euler" if descended else getattr(self.solver, "name", self.solver)
        return MetaGradient(best.of_tasks, best.terminal.query_loss, spent, error, measured, seen, best.gradients, name)

    def _refined(
        self, flow: GradientFlow, tasks: Tasks, first: Solution, mesh: GradedMesh, memory: Memory
    ) -> tuple[Solution, float, float]:
        """The gradient with every step bisected, once or until its error is tolerated; its error, and the first one's.

        The controller's ceiling is tolerated where errors were measured before, as for calls between two measurements.
        """
        spent, ceiling = flow.evaluations, self.controller.ceiling * self.rtol
        least = 2 * spent.total  # what the halves of the first steps take

        def halved(coarse: Solution) -> Solution:
            limit = spent.total + max(least if coarse is first else 0, (1 if self.solver == "auto" else 2) * flow.limit)
            return self.solve(flow.limited(limit), tasks, mesh.halved(coarse.trajectory), Curvature(flow), self.adjoint)

        heun = [HEUN.order] if self.adjoint == "continuous" else []
        order = min(heun + [move.scheme.order for move in first.trajectory.moves])
        enough = ceiling if memory.errors else self.rtol
        known = bool(memory.errors)
        return refined(first, halved, lambda one: one.value, order, enough, ceiling, known, self._noise)

    def _choose(self, flow: GradientFlow, memory: Memory) -> tuple[Mesh, Curvature]:
        """The steps of a call, and what is known of the curvature at theta."""
        curvature, fixed = Curvature(flow, known=memory.leading), FixedMesh(self.inner_steps)
        if not self._schemes:
            return fixed, curvature
        backward = HEUN if self.adjoint == "continuous" else None
        mesh = GradedMesh(self._schemes, self.rtol * memory.gain, backward)
        if self.solver == "auto" and descends(flow, mesh, curvature, self._rate, self.inner_steps, memory):
            return fixed, curvature
        return mesh, curvature

    def problem(self, theta: Tensor) -> tuple:
        """What a memory is about."""
        learned = ("learned" if isinstance(value, Tensor) else value for value in (self.prox, self.inner_lr))
        settings = str(self.solver), self.adjoint, self.rtol, *learned, self.inner_steps
        return (*settings, len(theta), str(theta.dtype))

    def _finite(self, found: Solution) -> tuple[float, float]:
        """The length of a gradient and the estimate of its relative error; waits for the device."""
        norm, estimate = torch.stack([found.value.norm(), found.estimate]).tolist()
        if not (math.isfinite(norm) or found.terminal.lam.isfinite().all()):  # no finer solve would change that
            raise Diverged(
                "the gradient of the query loss at the adapted parameters is not finite; look at the loss, or try a "
                "smaller inner_lr or fewer inner steps"
            )
        return norm, estimate / norm if norm else 0.0

    def _noise(self, found: Solution) -> float:
        """What rounding leaves of the gradient's relative accuracy: in units of |lam(T)| of the largest task."""
        largest, whole = torch.stack([found.terminal.lam.norm(dim=-1).amax(), found.value.norm()]).tolist()
        return self._rounding(found.value) * largest / whole if whole else math.inf

    def _rounding(self, theta: Tensor) -> float:
        return self.controller.rounding * torch.finfo(theta.dtype).eps

    def flow(self, theta: Tensor, tasks: Tasks, limit: float = math.inf) -> GradientFlow:
        """The vector field of the inner loop, that takes at most so many evaluations."""
        prox = number(self.prox)
        return GradientFlow(self.apply, self.loss, tasks.detach(), theta, prox, Evaluations(), limit, self._rates)

    def _limit(self, memory: Memory) -> float:
        """Evaluations of one solve; "auto" takes no more than gradient descent does."""
        limit = self.controller.limit(memory, self.inner_steps) if self._schemes else math.inf
        return min(limit, 2 * self.inner_steps) if self.solver == "auto" else limit

    @property
    def _schemes(self) -> tuple[Scheme, ...]:
        """To choose from; none for gradient descent."""
        return SOLVERS[self.solver] if isinstance(self.solver, str) else (self.solver,)

    @property
    def _rates(self) -> Tensor | None:
        """inner_lr where it is a tensor (P,)."""
        return self.inner_lr.detach() if isinstance(self.inner_lr, Tensor) and self.inner_lr.ndim else None

    @property
    def _rate(self) -> float:
        """The flow's time that an inner step takes."""
        return number(self.inner_lr) if self._rates is None else 1.0

    def _check_rates(self) -> None:
        """Raise InputError unless inner_lr and prox make sense now; a tensor may have been trained in between."""
        check_rates(self.inner_lr, signed=not self._schemes)
        check_inner_loop(self._rate, self.inner_steps, prox=number(self.prox))

    def _check(self, theta: Tensor) -> None:
        """Raise InputError for rates that do not fit, or a dtype that cannot hold a meta-gradient of error rtol."""
        self._check_rates()
        check_precision(theta, self._rates, self.rtol if self._schemes else 1.0, self._rounding)
