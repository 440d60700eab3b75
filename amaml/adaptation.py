"""Adaptation as an nn.Module: a differentiable function of everything that enters an inner loop."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from amaml.arguments import check_at, check_count, is_number
from amaml.capacity import Fitting
from amaml.checks import check_tasks
from amaml.chunked import Chunked, Each, chunks, in_turn
from amaml.engine.calling import check_surroundings, uncompiled
from amaml.engine.closures import Watched
from amaml.engine.derivatives import Loss
from amaml.engine.graphs import in_use
from amaml.engine.modules import announce_backward
from amaml.errors import InputError
from amaml.flow.field import Evaluations
from amaml.learner import AnyMemory, MetaGradient, MetaLearner, evaluated, followed, remembered
from amaml.methods import Method, check_defined, entering, made, name_of, numbers, with_settings
from amaml.models import Flattened, check_module, flat
from amaml.objective import Objective, check_given, check_untrained, losses_of
from amaml.outer import Outer, requiring
from amaml.points import Points
from amaml.predicting import predict
from amaml.rates import Rate, Rates
from amaml.tasks import Tasks

FIXED = ("adapt", "method", "objective", "penalty", "batched")  # keywords that are read once


class Control(NamedTuple):
    """What the learner of an Adaptation remembers, as a part that can be saved."""

    state_dict: Callable[[], dict[str, Any] | None]
    load_state_dict: Callable[[dict[str, Any] | None], None]


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
        module: any nn.Module; it is held, not copied, and within a call it stands at the parameters of a task: another
            thread takes a copy. Batch norm uses the statistics of the batch that it sees.
        loss: loss(prediction, target) of one task, a scalar mean; of tasks with weights, of each point, (points, ...).
        inner_lr: the size of an inner step, a number or a tensor; or a dict with a number or tensor for every adapted
            parameter, a scalar or one of the parameter's shape (Meta-SGD, Li et al. 2017); or a schedule, a size for
            each step: a list, a tensor (inner_steps,), or a function of the step from 0. Where it, prox or a number of
            the inner optimizer is an nn.Parameter it is one of this module's; any other tensor that requires a gradient
            gets it, and is the caller's to optimise and to save. One that is computed anew for every update goes into
            the call: meta(tasks, inner_lr=log_lr.exp()).
        inner_steps: how many inner steps; the horizon of the flow is inner_lr times that.
        adapt: names of parameters or of parts of the module, or patterns as "*.bias"; by default all parameters that
            require a gradient.
        method: "amaml"; "maml" for the gradient of the descent steps themselves (solver "euler" of the same engine);
            "fomaml", "imaml", "reptile"; or a class of learners (amaml.MetaLearner). backward() raises InputError for
            what a method does not define.
        query_loss: the outer loss where it is another one than the inner.
        prox: adds prox/2 |phi - theta|^2 to the inner loss.
        task_chunk: so many tasks go through the network at once; "auto": as many as fit into the free memory, as the
            first call of tasks of their shapes finds it.
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
        if task_chunk != "auto":
            check_count("task_chunk", task_chunk, none=True)
        self.module, self.method = module, method
        self.function = Flattened(module, adapt, batched)
        self.inner_lr = inner_lr
        self.prox, self.task_chunk, self.each, self.latest = prox, task_chunk, each, None
        self._fitting = Fitting()
        losses = losses_of(loss, query_loss, objective, penalty)
        self._learner = made(method, self.function, *losses, inner_steps, options)
        for name, value in numbers(self._learner).items():
            if isinstance(value, nn.Parameter):
                self.register_parameter(name.replace(".", "_"), value)
        self.memory: AnyMemory = self._learner.init()
        self._at(self.function.theta())

    def __setattr__(self, name: str, value: Any) -> None:
        """Where the module or a number of the inner optimizer is replaced, the new one counts from then on."""
        learner = vars(self).get("_learner")
        value = self._by_name(value) if name == "inner_lr" else value
        if learner is not None and name not in ("_learner", "latest", "memory"):
            self._renew(learner, name, value)
            if not isinstance(value, nn.Module | nn.Parameter):  # whose place torch gives to nothing else
                self._parameters.pop(name, None)
                self._modules.pop(name, None)
        super().__setattr__(name, value)

    def _renew(self, learner: MetaLearner, name: str, value: Any) -> None:
        own = {n.replace(".", "_"): n for n in numbers(learner)}
        if name == "module":
            check_module(value)
            self.function.module = value
        elif name in own:
            optimizer = learner.inner_optimizer.with_numbers({own[name]: value})
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
        adapted, theta, tasks = self._held(tasks)
        learner = self._at(theta, inner_lr, prox, at=at, weights=weights)
        request = requiring(adapted | entering(learner) | tasks.leaves())
        check_defined(learner, self.method, request)
        size = self._chunk(learner, theta, tasks)
        if not request:
            losses = torch.cat([evaluated(learner, theta, part, self.memory) for part in chunks(tasks.detach(), size)])
            self.latest = MetaGradient(theta.new_zeros(len(tasks), 0), losses, Evaluations())
            return losses.mean()

        parts = learner if size is None else Chunked(learner, size, self.each)
        self._remember(learner, partial(parts.gradient, theta, tasks))
        found = _gradients(self.latest, adapted, request)
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
        dJ/dphi, with what lam gains at earlier times, exact for the steps and within rtol for the flow. It raises
        InputError where a tensor has changed since, but for writes through .data, which torch does not count.
        """
        adapted, theta, tasks = self._held(tasks)
        learner = self._at(theta, inner_lr, prox, inner_steps=inner_steps)
        steps = check_at((learner.inner_steps,) if at is None else at, learner.inner_steps)
        parts = chunks(tasks, self._chunk(learner, theta, tasks))
        path = torch.cat([self._path(learner, adapted, theta, part, steps) for part in parts], 1)
        return path[-1] if at is None else path

    @uncompiled
    def predict(self, phi: Tensor, x: Points) -> Tensor:
        """Of adapted parameters phi (tasks, P) at x (tasks, points, *input): (tasks, points, *output)."""
        return predict(self.function, phi, x, self.function.parameters()[1])

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
    def control(self) -> Control:
        """The memory alone, to be saved apart from the parameters."""
        return Control(self.get_extra_state, self.set_extra_state)

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

    def _path(
        self, learner: MetaLearner, adapted: dict[str, Tensor], theta: Tensor, tasks: Tasks, at: Sequence[int]
    ) -> Tensor:
        """The parameters after `at` inner steps, (times, tasks, P), in autograd's graph where one is asked for."""
        request = requiring(adapted | entering(learner) | tasks.support_leaves())
        if not request:
            return followed(learner, theta, tasks, self.memory, at).path
        copied = {id(p) for p in self.module.parameters()} - {id(p) for p in (tasks.shared or {}).values()}
        used = Watched((learner, tasks.support_leaves()), copied)  # but for these, of which theta is a copy
        run = followed(learner, theta, tasks, self.memory, at)
        used.changed()  # by the network itself
        if (tensors := in_use(learner.apply, learner.loss)) is not None:
            used.narrow(("apply", "loss", "query_loss"), tensors)

        def pull_back(lam: Tensor) -> list[Tensor]:
            check_defined(learner, self.method, ["phi", *request])
            self._remember(learner, partial(learner.pull_back, run, lam))
            return [len(tasks) * gradient for gradient in _gradients(self.latest, adapted, request)]

        announce_backward(self.module)
        return Outer.apply(run.path, pull_back, used, *request.values())

    def _chunk(self, learner: MetaLearner, theta: Tensor, tasks: Tasks) -> int | None:
        """How many tasks go through the network at once; None: all."""
        return self._fitting.of(learner, theta, tasks) if self.task_chunk == "auto" else self.task_chunk

    def _remember(self, learner: MetaLearner, make: Callable[[AnyMemory], MetaGradient]) -> None:
        """Make latest anew."""
        self.latest = remembered(learner, self.memory, make, partial(setattr, self, "memory"))

    def _by_name(self, rate: Rate | None) -> Rate | Rates | None:
        return Rates(rate, self.function.shapes) if isinstance(rate, Mapping) else rate

    def _held(self, tasks: Tasks) -> tuple[dict[str, Tensor], Tensor, Tasks]:
        """The parameters that adapt, by name and as theta (P,); and the tasks, which share all others."""
        check_tasks(tasks)
        check_surroundings(tasks.device.type)
        if tasks.shared is not None:
            raise InputError(
                "an Adaptation shares the parameters of its module among the tasks; leave Tasks(shared=...) out, and "
                "give other tensors beside support_x and query_x"
            )
        adapted, shared = self.function.parameters()
        named = {f"theta.{name}": parameter for name, parameter in adapted.items()}
        return named, flat(adapted).detach(), replace(tasks, shared=shared) if shared else tasks

    def _at(self, theta: Tensor, inner_lr: Rate | None = None, prox: Any = None, **others: Any) -> MetaLearner:
        """The learner with its rates, prox and outer loss as they are now, or as a call gives them."""
        rate = self.inner_lr if inner_lr is None else self._by_name(inner_lr)
        prox = self.prox if prox is None else prox
        return with_settings(self._learner, self.method, theta, inner_lr=rate, prox=prox, **others)


def _gradients(made: MetaGradient, adapted: dict[str, Tensor], request: dict[str, Tensor]) -> list[Tensor]:
    """Of what was requested, each in its tensor's shape."""
    parts = made.value.split([parameter.numel() for parameter in adapted.values()])
    gradients = dict(zip(adapted, parts, strict=True)) | made.gradients
    return [gradients[name].view_as(tensor) for name, tensor in request.items()]
