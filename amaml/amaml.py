"""A-MAML: the meta-gradient of a long inner loop from a forward flow and a backward adjoint."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial

from torch import Tensor

from amaml import arguments
from amaml.checks import check_precision, validated
from amaml.engine.derivatives import Loss
from amaml.errors import Diverged, InputError, OverBudget, unknown
from amaml.flow.accuracy import Controller, Memory, Observation, refined
from amaml.flow.adjoint import ADJOINTS
from amaml.flow.curvature import Curvature
from amaml.flow.descent import FixedMesh, descends
from amaml.flow.field import Evaluations, GradientFlow
from amaml.flow.mesh import SOLVERS, GradedMesh, Mesh
from amaml.flow.optimizers import PLAIN, Optimizer
from amaml.flow.passes import Passes, Terminal
from amaml.flow.quadrature import Requested, requested
from amaml.flow.schemes import HEUN, Scheme
from amaml.flow.trajectory import Trajectory
from amaml.learner import Followed, MetaGradient, outer_steps, query_along, with_own_memory
from amaml.measuring import Measuring
from amaml.models import Apply
from amaml.robust import Robust, check_robust
from amaml.tasks import Tasks


@dataclass(frozen=True, eq=False)
class AMAML:
    """Meta-Learning with Adjoint Methods (Li et al., AISTATS 2023), section 3.

        Forward   du/dt = -grad L_support(u),   u(0) = theta,                 0 <= t <= T = inner_lr * inner_steps
        Backward  dlam/dt = H(u(t)) lam,        lam(T) = grad L_query(u(T)),  value = mean over tasks of lam(0)

    With prox > 0 the support loss gains prox/2 |u - theta|^2, and value the pull of that term on theta.

    Of inner_lr, prox and the tensors of tasks, those that require a gradient get it: MetaGradient.gradients.

    Args:
        apply: apply(theta, x) -> prediction, of amaml.flatten.
        loss: loss(prediction, target) of one task, a scalar mean.
        inner_lr: a number, or a tensor of one, the horizon, with which the steps of the solver change in proportion; or
            a tensor (P,), a rate for every parameter: du/dt = -inner_lr grad L over 0 <= t <= inner_steps.
        inner_steps: T / inner_lr.
        solver: "euler" is gradient descent, and the meta-gradient that of unrolled MAML. A scheme (amaml.flow.schemes)
            or the name of one (amaml.flow.mesh.SOLVERS) follows the flow with steps of its own, for a relative error
            rtol of value. "auto" follows it with the scheme that is the cheapest at each step, and is gradient descent
            where the flow would cost as much: MetaGradient.solver tells.
        adjoint: "discrete", the exact transpose of the forward scheme, or "continuous", the paper's Heun scheme.
        rtol: the relative error of value that is aimed at.
        prox: adds prox/2 |u - theta|^2 to the support loss.
        checkpoints: how many states of a trajectory are kept at most (amaml.flow.trajectory); None: by their size.
        query_loss: the outer loss where it is another one than that of the inner loop.
        inner_optimizer: takes the place of the plain step (amaml.flow.optimizers). With it, schedule or inner_batch the
            inner loop is no flow: "auto" and "euler" take its steps, and tensors among them get their gradient as well.
        schedule: the size of each step, (inner_steps,), times inner_lr.
        inner_batch: so many support points a step, others for each by the step's number; or the numbers of the points,
            (inner_steps, n).
        query_steps: inner steps; the outer loss is the weighted sum of the query losses after these (MAML++, Antoniou
            et al. 2019). None: that of the last step.
        query_weights: what each of them counts; None: equal parts.
        robust: "length", or a multiple of the median length: another mean over the tasks than the plain one
            (amaml.robust), of all gradients but those of shared tensors and of the inner optimizer's numbers, which are
            summed over the tasks on the way.
        controller: when the error is measured, and what is done about it (amaml.flow.accuracy).

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
    inner_optimizer: Optimizer = PLAIN
    schedule: Tensor | None = None
    inner_batch: int | Tensor | None = None
    query_steps: Sequence[int] | None = None
    query_weights: Sequence[float] | None = None
    robust: Robust = None
    controller: Controller = Controller()

    def __post_init__(self) -> None:
        if isinstance(self.solver, str | None) and self.solver not in SOLVERS:
            raise unknown("solver", self.solver, SOLVERS)
        self._check_rates()
        if self.adjoint not in ADJOINTS:
            raise unknown("adjoint", self.adjoint, ADJOINTS)
        if not (arguments.is_number(self.rtol) and 0 < self.rtol < 1):
            raise InputError(f"rtol must lie between 0 and 1, got {self.rtol!r}")
        arguments.check_count("checkpoints", self.checkpoints, none=True)
        arguments.check_query_steps(self.query_steps, self.query_weights, self.inner_steps)
        check_robust(self.robust)
        if self.solver not in ("auto", "euler") and not self._plain:
            raise InputError(
                f"solver {self.solver} follows plain gradient descent with one rate for all its steps; leave it out "
                "with an inner optimizer, a schedule or inner_batch"
            )
        if self.adjoint == "continuous" and not self._plain:
            raise InputError(
                "adjoint continuous is that of plain gradient descent; with an inner optimizer, a schedule or "
                "inner_batch use discrete"
            )

    def init(self) -> Memory:
        """Nothing is known of the error."""
        return Memory()

    @validated
    def adapt(self, theta: Tensor, tasks: Tasks, memory: Memory | None = None) -> Tensor:
        """u(T) for every task, (tasks, P)."""
        return self._forward(theta, tasks, memory or Memory(), [self.inner_steps], 1).path(len(theta))[-1]

    @validated
    def gradient(self, theta: Tensor, tasks: Tasks, memory: Memory) -> MetaGradient:
        """The gradient in theta of the mean query loss of u(T), with its relative error.

        The first call measures the error, by solving again with every step halved, and later ones do so with finer
        steps now and then and where they are unlike those (amaml.flow.accuracy). A call that measures returns the
        finest gradient, with its own error; others carry what was measured of calls like them. Gradient descent with
        the discrete adjoint has no such error: it is the gradient of the steps it makes. With the continuous adjoint it
        is compared with that one.

        An error above rtol in a first call, above the controller's ceiling in later ones, is brought down by further
        solves. Where they take more than the budget of evaluations, or the flow leaves the finite numbers, "auto" makes
        the steps of gradient descent instead; other solvers raise OverBudget, Diverged.
        """
        self._check(theta)
        memory = memory.about(self.problem(theta))
        passes = self.passes(theta, tasks, memory, self._limit(memory))
        flow = passes.flow
        bounded = self.robust is not None and memory.errors and not memory.descended
        most = min(self.controller.most(memory), flow.limit) if bounded else math.inf
        mesh, curvature = self._choose(flow, memory, passes.inner_steps[-1], most)
        try:
            return self._measuring(passes, memory).gradient(mesh, curvature)
        except Diverged as fault:
            if self.solver != "auto" or isinstance(mesh, FixedMesh):
                refused = isinstance(fault, OverBudget)
                fault.observation = Observation(flow.evaluations.total, refused=refused, problem=memory.problem)
                raise
        steps = self._descent(passes.inner_steps[-1])
        return self._measuring(passes, memory).gradient(steps, curvature, refused=True)

    def update(self, memory: Memory, seen: MetaGradient | Diverged) -> Memory:
        """What is known of the error after a call that gave the gradient seen, or raised it."""
        if seen.observation is None:
            return memory
        memory = self.controller.update(memory.about(seen.observation.problem), self.rtol, seen.observation)
        return replace(memory, lengths=memory.lengths.after(getattr(seen, "lengths", None)))

    meta_gradient = with_own_memory

    @validated
    def follow(self, theta: Tensor, tasks: Tasks, memory: Memory, at: Sequence[int]) -> Followed:
        """The states after `at` inner steps, with the trajectory."""
        trajectory = self._forward(theta, tasks, memory, at, self.checkpoints)
        request = self._request(tasks)._replace(query=())
        return Followed(trajectory.path(len(theta)), (trajectory, trajectory.flow, request, at))

    def pull_back(self, followed: Followed, lam: Tensor, memory: Memory) -> MetaGradient:
        """By the adjoint from lam on the way and at the end; the error is that of the product with lam.

        Each way back has the budget of a solve, whatever the way forward and others before it took.
        """
        trajectory, flow, request, at = followed.kept
        trajectory = trajectory.again() if trajectory.was_read else trajectory
        trajectory.flow = flow.limited(flow.evaluations.total + flow.limit)
        memory = memory.about(self.problem(flow.theta))
        changes = {"flow": flow, "request": request, "inner_steps": at, "terminal": lambda trajectory: Terminal(lam)}
        passes = replace(self.passes(flow.theta, flow.tasks, memory), **changes)
        curvature = Curvature(flow, known=memory.leading)
        return self._measuring(passes, memory).gradient(trajectory.mesh, curvature, trajectory)

    def _forward(
        self, theta: Tensor, tasks: Tasks, memory: Memory, at: Sequence[int], checkpoints: int | None
    ) -> Trajectory:
        """The inner loop from theta to the last of `at` inner steps, which reads the states after each of them.

        At the tolerance that is known from the errors of meta-gradients; where none was measured, the error of
        u - theta is, and brought below rtol.
        """
        self._check(theta)
        memory = memory.about(self.problem(theta))
        flow = self.flow(theta.detach(), tasks, self._limit(memory))
        (mesh, curvature), times = self._choose(flow, memory, at[-1]), [self._rate * n for n in at]

        def follow(mesh: Mesh) -> Trajectory:
            return mesh.follow(Trajectory(flow, checkpoints), times, curvature)

        try:
            first = follow(mesh)
            if memory.errors or isinstance(mesh, FixedMesh):
                return first
            rtol = max(self.rtol, self.controller.noise(theta))
            return refined(
                first,
                lambda coarse: follow(mesh.finer(coarse, 2)),
                lambda one: (one.final - flow.theta, len(one.moves)),
                first.order,
                rtol,
                rtol,
            )[0]
        except Diverged:
            if self.solver != "auto" or isinstance(mesh, FixedMesh):
                raise
            return follow(self._descent(at[-1]))

    def passes(self, theta: Tensor, tasks: Tasks, memory: Memory | None = None, limit: float = math.inf) -> Passes:
        """All of a meta-gradient but the steps, with so many evaluations at most for a solution."""
        flow, request = self.flow(theta.detach(), tasks, limit), self._request(tasks)
        weigh = partial((memory or Memory()).lengths.weighing, self.robust)

        def outer_loss(trajectory: Trajectory) -> Terminal:
            return Terminal(*query_along(self, trajectory.path(len(theta)), flow.tasks, request.query))

        steps, _ = outer_steps(self)
        return Passes(flow, steps, self._rate, outer_loss, request, weigh, self.adjoint, self.checkpoints)

    def _measuring(self, passes: Passes, memory: Memory) -> Measuring:
        name = getattr(self.solver, "name", self.solver)
        return Measuring(passes, self._graded(memory), self.controller, self.rtol, memory, name)

    def _choose(self, flow: GradientFlow, memory: Memory, steps: int, most: float = math.inf) -> tuple[Mesh, Curvature]:
        """The mesh over so many inner steps, of so many evaluations, and what is known of the curvature at theta."""
        curvature = Curvature(flow, known=memory.leading)
        if not self._schemes or not steps:
            return self._descent(steps), curvature
        mesh = replace(self._graded(memory), most=most)
        if self.solver == "auto" and descends(flow, mesh, curvature, self._rate, steps, memory):
            return self._descent(steps), curvature
        return mesh, curvature

    def _graded(self, memory: Memory) -> GradedMesh:
        """For the flow, at the tolerance that the errors so far allow."""
        return GradedMesh(self._schemes, self.rtol * memory.gain, HEUN if self.adjoint == "continuous" else None)

    def _descent(self, steps: int) -> FixedMesh:
        """So many of the inner steps themselves."""
        sizes = None if self.schedule is None else self.schedule.tolist()
        single = self.schedule is not None and self.schedule.requires_grad
        return FixedMesh(steps, self.inner_optimizer, sizes, self.inner_batch, single)

    def _request(self, tasks: Tasks) -> Requested:
        """Of what a gradient is wanted."""
        return requested(tasks, self.inner_lr, self.prox, self.schedule, self.inner_optimizer.numbers())

    @property
    def _plain(self) -> bool:
        """Whether the inner loop is gradient descent with steps of one size, which a flow is the limit of."""
        return self.inner_optimizer.plain and self.schedule is None and self.inner_batch is None

    def problem(self, theta: Tensor) -> tuple:
        """What a memory is about."""
        learned = ("learned" if isinstance(value, Tensor) else value for value in (self.prox, self.inner_lr))
        settings = str(self.solver), self.adjoint, self.rtol, *learned, self.inner_steps, self.query_steps
        return (*settings, len(theta), str(theta.dtype))

    def flow(self, theta: Tensor, tasks: Tasks, limit: float = math.inf) -> GradientFlow:
        """The vector field of the inner loop, that takes at most so many evaluations."""
        prox = float(arguments.number(self.prox))
        return GradientFlow(self.apply, self.loss, tasks.detach(), theta, prox, Evaluations(), limit, self._rates)

    def _limit(self, memory: Memory) -> float:
        """Evaluations of one solve; of "auto" what gradient descent takes, half of it where nothing is known."""
        if self.solver == "auto":
            return 2 * self.inner_steps if memory.errors else self.inner_steps
        return self.controller.limit(memory, self.inner_steps) if self._schemes else math.inf

    @property
    def _schemes(self) -> tuple[Scheme, ...]:
        """To choose from; none for the steps of an optimiser."""
        if not self._plain:
            return ()
        return SOLVERS[self.solver] if isinstance(self.solver, str) else (self.solver,)

    @property
    def _rates(self) -> Tensor | None:
        """inner_lr where it is a tensor (P,)."""
        return self.inner_lr.detach() if isinstance(self.inner_lr, Tensor) and self.inner_lr.ndim else None

    @property
    def _rate(self) -> float:
        """The flow's time that an inner step takes."""
        return arguments.number(self.inner_lr) if self._rates is None else 1.0

    def _check_rates(self) -> None:
        """Raise InputError unless inner_lr and prox make sense now; a tensor may have been trained in between."""
        arguments.check_rates(self.inner_lr, signed=not self._schemes)
        arguments.check_inner_loop(self._rate, self.inner_steps)
        arguments.check_nonnegative(prox=arguments.number(self.prox))

    def _check(self, theta: Tensor) -> None:
        """Raise InputError for rates that do not fit, or a dtype that cannot hold a meta-gradient of error rtol."""
        self._check_rates()
        check_precision(theta, self._rates, self.rtol if self._schemes else 1.0, self.controller.noise)
