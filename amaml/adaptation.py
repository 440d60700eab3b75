"""Adaptation as an nn.Module: a differentiable function of everything that enters an inner loop."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from amaml.arguments import check_at, is_number, steps_of
from amaml.checks import check_tasks
from amaml.chunked import Chunked, Each, in_turn
from amaml.engine import derivatives
from amaml.engine.calling import announce_backward, check_surroundings, uncompiled
from amaml.engine.closures import Watched
from amaml.engine.derivatives import Loss
from amaml.errors import Diverged, InputError
from amaml.flow.field import Evaluations
from amaml.flow.optimizers import Optimizer
from amaml.learner import Followed, Memory, MetaGradient, MetaLearner, outer_steps
from amaml.methods import Method, made, name_of
from amaml.models import Flattened, check_module
from amaml.objective import Objective, check_given, check_untrained, losses_of
from amaml.outer import Outer
from amaml.points import Points
from amaml.predicting import predict
from amaml.rates import Rate, Rates, rate_and_schedule
from amaml.tasks import Tasks

FIXED = ("adapt", "method", "objective", "penalty", "batched")  # keywords that are read once
EVERYTHING = ("",)  # beginnings of the names of what has a meta-gradient: every name begins with it


class Adaptation(nn.Module):
    """Parameters adapted to support sets, as a function that autograd differentiates; and their mean query loss.

        meta = amaml.Adaptation(module, loss, inner_lr=0.01, inner_steps=200, adapt=("head",))
        value = meta(tasks)                            # the mean query loss, a scalar
        value.backward()                               # exact meta-gradients; then optimizer.step()
        phi = meta.adapt(tasks)                        # (tasks, P), P adapted parameters in all
        path = meta.adapt(tasks, at=(0, 10, 200))      # (times, tasks, P), after these inner steps
        prediction = meta.predict(phi, x)              # (tasks, points, ...)
        my_outer_loss(prediction, phi).backward()      # the adjoint, from the derivative of any loss in phi

    The inner loop minimises loss(module(x), y) on the support set of each task, over the adapted parameters alone,
    which start at the module's own. backward() gives a gradient to whatever requires one: the adapted parameters (of
    their initialisation), all other parameters of the module (shared, as the body in ANIL, Raghu et al. 2020),
    inner_lr, prox, the numbers of the inner optimizer and every tensor of the tasks. What nobody asked for is not
    computed. x of tasks may be a tuple or dict of tensors, the positional arguments or keywords of the module; y one
    where the loss takes one.

    Args:
        module: any nn.Module; it is held, not copied. Batch norm uses the statistics of the batch that it sees.
        loss: loss(prediction, target) of one task, a scalar mean; of tasks with weights, of each point, (points, ...).
        inner_lr: the size of an inner step, a number or a tensor; or a dict with a number or tensor for every adapted
            parameter, a scalar or one of the parameter's shape (Meta-SGD, Li et al. 2017); or a schedule, a size for
            each step: a list, a tensor (inner_steps,), or a function of the step from 0. Where it, prox or a number of
            the inner optimizer is an nn.Parameter it is one of this module's. A tensor that is computed anew for every
            update goes into the call: meta(tasks, inner_lr=log_lr.exp()).
        inner_steps: how many inner steps; the horizon of the flow is inner_lr times that.
        adapt: names of parameters or of parts of the module, or patterns as "*.bias"; by default all parameters that
            require a gradient.
        method: "amaml"; "maml" for the gradient of the descent steps themselves (solver "euler" of the same engine);
            "fomaml", "imaml", "reptile"; or a class of learners (amaml.MetaLearner). backward() raises InputError for
            what a method does not define.
        query_loss: the outer loss where it is another one than the inner.
        prox: adds prox/2 |phi - theta|^2 to the inner loss.
        task_chunk: so many tasks go through the network at once; "auto": as many as fit into the free memory.
        each: how the chunks are gone through (amaml.chunked).
        objective: objective(model, x, y) in place of loss(model(x), y), where the loss needs more of the network than
            its prediction; model.parameters are the task's own, by name.
        penalty: penalty(parameters) is added to the inner loss.
        batched: refuse a module that torch cannot batch over the tasks, which otherwise go one by one, with a warning.
        options: further keywords of the method, as solver, rtol, robust of amaml.AMAML; inner_batch, so many support
            points a step; inner_optimizer: "sgd" with momentum=, nesterov=, "rmsprop" with alpha=, eps=, "adam" or
            "adamw" with betas=, eps=, each with weight_decay=, or a rule of your own (amaml.flow.optimizers).

    Attributes:
        latest: the MetaGradient of the last call: the query loss of every task, the cost, the error, the solver.
        memory: what the learner remembers from call to call. state_dict() holds it, so that a program that was
            interrupted goes on as if it had not been.

    Raises:
        InputError: for what cannot be used, here and in calls, which name it.
        Diverged: in calls, where the inner loop leaves the finite numbers.
        OverBudget: a Diverged, where the flow of a batch is too rough for the budget of a solver other than "auto".
    """

    def __init__(
        self,
        module: nn.Module,
        loss: Loss | None = None,
        inner_lr: Rate | None = None,
        inner_steps: int | None = None,
        adapt: tuple[str, ...] | None = None,
        method: Method = "amaml",
        query_loss: Loss | None = None,
        prox: float | Tensor | None = None,
        task_chunk: int | str | None = None,
        each: Each = in_turn,
        objective: Objective | None = None,
        penalty: Callable[[dict[str, Tensor]], Tensor] | None = None,
        batched: bool = False,
        **options: Any,
    ) -> None:
        super().__init__()
        check_given(loss, inner_lr, inner_steps, objective, penalty)
        check_module(module)
        check_untrained(module, loss, query_loss, objective)
        self.module, self.method = module, method
        self.function = Flattened(module, adapt, batched)
        self.inner_lr = Rates(inner_lr, self.function.shapes) if isinstance(inner_lr, Mapping) else inner_lr
        self.prox, self.task_chunk, self.each, self.latest = prox, task_chunk, each, None
        losses = losses_of(loss, query_loss, objective, penalty)
        self._learner = made(method, self.function, *losses, inner_steps, options)
        for name, value in _numbers(self._learner).items():
            if isinstance(value, nn.Parameter):
                self.register_parameter(name.replace(".", "_"), value)
        self.memory: Memory = self._learner.init()
        self._at(self.function.theta())

    def __setattr__(self, name: str, value: Any) -> None:
        """Where the module or a number of the inner optimizer is replaced, the new one counts from then on."""
        learner = vars(self).get("_learner")
        if learner is not None and name not in ("_learner", "latest", "memory"):
            self._renew(learner, name, value)
        super().__setattr__(name, value)

    def _renew(self, learner: MetaLearner, name: str, value: Any) -> None:
        numbers = {n.replace(".", "_"): n for n in _numbers(learner)}
        if name == "module":
            check_module(value)
            self.function.module = value
        elif name in numbers:
            optimizer = learner.inner_optimizer.with_numbers({numbers[name]: value})
            self._learner = replace(learner, inner_optimizer=optimizer)
        elif type(self) is Adaptation and (name in FIXED or (hasattr(learner, name) and not hasattr(self, name))):
            raise InputError(f"{name} of an Adaptation stays as it was given; make another Adaptation({name}=...)")

    @uncompiled
    def forward(
        self,
        tasks: Tasks,
        inner_lr: Rate | None = None,
        prox: float | Tensor | None = None,
        at: Sequence[int] | None = None,
        weights: Sequence[float] | None = None,
    ) -> Tensor:
        """The mean query loss of the adapted parameters, a scalar.

        Without gradients (torch.no_grad(), or nothing requires one) it costs the inner loop alone.

        Args:
            tasks: a batch of tasks.
            inner_lr: in place of this module's.
            prox: in place of this module's.
            at: inner steps; the loss is then the weighted sum of the query losses after these (MAML++, Antoniou et al.
                2019), by one trajectory and one sweep back, whatever their number.
            weights: what each of them counts; without these, equal parts.
        """
        theta, tasks = self.function.theta(), self._with_shared(tasks)
        learner = self._at(theta, inner_lr, prox, at, weights)
        request = self._requested(learner, theta, tasks.leaves())
        if not request:
            return self._evaluated(learner, theta.detach(), tasks.detach()).mean()

        with self._remembering(learner):
            self.latest = learner.gradient(theta, tasks, self.memory)
        gradients = {"theta": self.latest.value} | self.latest.gradients
        found = [gradients[name].view_as(t) for name, t in request.items()]
        announce_backward(self.module)
        value = self.latest.query_loss.mean()
        return Outer.apply(value, lambda scale: [scale * gradient for gradient in found], None, *request.values())

    @uncompiled
    def adapt(
        self,
        tasks: Tasks,
        inner_lr: Rate | None = None,
        prox: float | Tensor | None = None,
        at: Sequence[int] | None = None,
        inner_steps: int | None = None,
    ) -> Tensor:
        """The adapted parameters of every task, (tasks, P); with at, those after these inner steps, (times, tasks, P).

        Args:
            tasks: a batch of tasks, of which the support sets are used.
            inner_lr: in place of this module's.
            prox: in place of this module's.
            at: inner steps.
            inner_steps: so many instead of this module's.

        A differentiable function of all that enters the inner loop: backward() through it is the adjoint from lam(T) =
        dJ/dphi, with what lam gains at earlier times, exact for the steps and within rtol for the flow.
        """
        theta, tasks = self.function.theta(), self._with_shared(tasks)
        learner = _inner(self._at(theta, inner_lr, prox, inner_steps=inner_steps))
        steps = check_at((learner.inner_steps,) if at is None else at, learner.inner_steps)
        path = torch.cat([self._path(learner, theta, chunk, steps) for chunk in self._chunks(theta, tasks)], 1)
        return path[-1] if at is None else path

    @uncompiled
    def predict(self, phi: Tensor, x: Points) -> Tensor:
        """Of adapted parameters phi (tasks, P) at x (tasks, points, *input): (tasks, points, *output)."""
        return predict(self.function, phi, x, self.function.shared())

    def unflatten(self, phi: Tensor) -> dict[str, Tensor]:
        """The adapted parameters by name, phi (..., P) to tensors (..., *shape)."""
        return self.function.pieces(phi)

    @property
    def name(self) -> str:
        """Of the method."""
        return name_of(self.method)

    def extra_repr(self) -> str:
        """The method and its settings, beside the module."""
        learner, rate = self._learner, self.inner_lr
        said = rate if is_number(rate) else f"{type(rate).__name__}"
        solver = f", solver={learner.solver!r}" if hasattr(learner, "solver") else ""
        return f"method={self.name!r}, inner_steps={learner.inner_steps}, inner_lr={said}{solver}"

    @property
    def control(self) -> "Control":
        """The memory alone, to be saved apart from the parameters: control.state_dict(), control.load_state_dict()."""
        return Control(self)

    def get_extra_state(self) -> dict[str, Any] | None:
        """The memory in state_dict(), as plain numbers and tensors."""
        return self.memory.state_dict() if hasattr(self.memory, "state_dict") else None

    def set_extra_state(self, state: dict[str, Any] | None) -> None:
        """The memory from a state_dict()."""
        empty = self._learner.init()
        try:
            self.memory = empty if state is None else type(empty).of(state)
        except (AttributeError, KeyError, TypeError) as fault:
            raise InputError(f"the state_dict() is not of method {self.name}; load it where it was saved") from fault

    def _path(self, learner: MetaLearner, theta: Tensor, tasks: Tasks, at: Sequence[int]) -> Tensor:
        """The parameters after `at` inner steps, (times, tasks, P), in autograd's graph where one is asked for."""
        request = self._requested(None, theta, _entering(learner) | tasks.support_leaves())
        if not request:
            return _follow(learner, theta, tasks, self.memory, at).path
        adapted = {id(p) for p in self.module.parameters()} - {id(p) for p in (tasks.shared or {}).values()}
        used = Watched((learner, tasks.support_leaves()), adapted)  # but for these, of which theta is a copy
        followed = _follow(learner, theta, tasks, self.memory, at)
        used.changed()  # by the network itself

        def pull_back(lam: Tensor) -> list[Tensor]:
            self._check_defined(learner, ["phi", *request])
            with self._remembering(learner):
                self.latest = learner.pull_back(followed, lam, self.memory)
            gradients = {"theta": self.latest.value} | self.latest.gradients
            return [len(tasks) * gradients[name].view_as(t) for name, t in request.items()]

        announce_backward(self.module)
        return Outer.apply(followed.path, pull_back, used, *request.values())

    def _chunks(self, theta: Tensor, tasks: Tasks) -> list[Tasks]:
        """The tasks, as many at a time as go through the network at once."""
        return [tasks] if self.task_chunk is None else Chunked(self._learner, self.task_chunk).chunks(theta, tasks)

    def _evaluated(self, learner: MetaLearner, theta: Tensor, tasks: Tasks) -> Tensor:
        """The query loss of every task without gradients, (tasks,), which latest tells."""
        inner = _inner(learner)
        steps, weights = outer_steps(inner)
        outer, losses = getattr(inner, "query_loss", None) or inner.loss, []
        for chunk in self._chunks(theta, tasks):
            path = _follow(inner, theta, chunk, self.memory, steps).path
            found = [derivatives.losses(inner.apply, outer, phi, *chunk.query) for phi in path]
            losses.append(sum(w * loss for w, loss in zip(weights, found, strict=True)))
        query_loss = torch.cat(losses)
        self.latest = MetaGradient(theta.new_zeros(len(tasks), 0), query_loss, Evaluations())
        return query_loss

    @contextmanager
    def _remembering(self, learner: MetaLearner) -> Iterator[None]:
        """Within this context a call makes latest anew; the memory learns from it, and from one that is refused."""
        try:
            yield
        except Diverged as refused:
            self.memory = learner.update(self.memory, refused)
            raise
        self.memory = learner.update(self.memory, self.latest)

    def _requested(self, learner: MetaLearner | None, theta: Tensor, entering: Mapping[str, Any]) -> dict[str, Tensor]:
        """What requires a gradient, by name; nothing where autograd is off."""
        if not torch.is_grad_enabled():
            return {}
        there = {"theta": theta} | (_entering(_inner(learner)) if learner else {}) | dict(entering)
        request = {name: t for name, t in there.items() if isinstance(t, Tensor) and t.requires_grad}
        if learner:
            self._check_defined(_inner(learner), request)
        return request

    def _check_defined(self, learner: MetaLearner, names: Sequence[str]) -> None:
        for name in names:
            if not name.startswith(getattr(learner, "gradients_of", EVERYTHING)) or (
                name == "phi" and not hasattr(learner, "pull_back")
            ):
                raise InputError(
                    f"method {self.name} defines no meta-gradient of {name}, which requires one; use method amaml or "
                    "maml, or take it without its gradient: .detach(), or .requires_grad_(False)"
                )

    def _with_shared(self, tasks: Tasks) -> Tasks:
        check_tasks(tasks)
        check_surroundings(tasks.device.type)
        if tasks.shared is not None:
            raise InputError(
                "an Adaptation shares the parameters of its module among the tasks; leave Tasks(shared=...) out, and "
                "give other tensors beside support_x and query_x"
            )
        shared = self.function.shared()
        return replace(tasks, shared=shared) if shared else tasks

    def _at(
        self,
        theta: Tensor,
        inner_lr: Rate | None = None,
        prox: float | Tensor | None = None,
        at: Sequence[int] | None = None,
        weights: Sequence[float] | None = None,
        inner_steps: int | None = None,
    ) -> MetaLearner:
        """The learner with its rates, prox and outer loss as they are now."""
        given = self.inner_lr if inner_lr is None else inner_lr
        count = self._learner.inner_steps if inner_steps is None else inner_steps
        rate, schedule = rate_and_schedule(given, count, theta, self.function.shapes)
        prox = self.prox if prox is None else prox
        if isinstance(prox, Tensor) and (prox.ndim or prox.is_complex()):
            raise InputError(f"prox must be a number or a tensor of one, got {prox.dtype} of {tuple(prox.shape)}")
        now = {
            "prox": prox.to(theta) if isinstance(prox, Tensor) else prox,
            "schedule": schedule,
            "query_steps": None if at is None else steps_of(at),
            "query_weights": None if weights is None else tuple(weights),
        }
        now = {name: value for name, value in now.items() if value is not None}
        for name in now:
            if not hasattr(self._learner, name):
                raise InputError(f"method {self.name} has no {name}; methods amaml and maml have one")
        learner = replace(self._learner, inner_lr=rate, inner_steps=count, **now)
        return learner if self.task_chunk is None else Chunked(learner, self.task_chunk, self.each)


class Control(NamedTuple):
    """What the learner of an Adaptation remembers of its error, as a part that can be saved."""

    of: Adaptation

    def state_dict(self) -> dict[str, Any] | None:
        """Plain numbers and tensors."""
        return self.of.get_extra_state()

    def load_state_dict(self, state: dict[str, Any] | None) -> None:
        """Go on from a state_dict()."""
        self.of.set_extra_state(state)


def _inner(learner: MetaLearner) -> MetaLearner:
    """The learner of the chunks."""
    return learner.learner if isinstance(learner, Chunked) else learner


def _entering(learner: MetaLearner) -> dict[str, Any]:
    """The settings of a learner that may require a gradient, by name."""
    return {name: getattr(learner, name, None) for name in ("inner_lr", "prox", "schedule")} | _numbers(learner)


def _numbers(learner: MetaLearner) -> dict[str, Any]:
    """Those of its inner optimizer, by name."""
    optimizer = getattr(learner, "inner_optimizer", None)
    return optimizer.numbers() if isinstance(optimizer, Optimizer) else {}


def _follow(learner: MetaLearner, theta: Tensor, tasks: Tasks, memory: Memory, at: Sequence[int]) -> Followed:
    """The inner loop, of a learner that may know its end alone."""
    if hasattr(learner, "follow"):
        return learner.follow(theta, tasks, memory, at)
    if tuple(at) != (learner.inner_steps,):
        raise InputError(f"this method knows the end of its inner loop alone, {learner.inner_steps} steps, got {at!r}")
    return Followed(learner.adapt(theta, tasks)[None], None)
