"""Adaptation as an nn.Module: the query loss after an inner loop, with exact meta-gradients of all that entered it."""

from collections.abc import Mapping
from dataclasses import fields, replace
from typing import Any

import torch
from torch import Tensor, nn

from amaml.amaml import AMAML
from amaml.chunked import Chunked, Each, in_turn
from amaml.engine import derivatives
from amaml.engine.derivatives import Loss
from amaml.errors import InputError, unknown
from amaml.first_order import FOMAML, Reptile
from amaml.imaml import IMAML
from amaml.learner import Memory, MetaLearner
from amaml.models import Flattened, check_module, predict
from amaml.points import Points
from amaml.tasks import Tasks

EVERYTHING = ("",)  # beginnings of the names of what has a meta-gradient: every name begins with it
METHODS: dict[str, tuple[type[MetaLearner], dict[str, Any]]] = {  # the learner's class, and its fixed keywords
    "amaml": (AMAML, {}),
    "maml": (AMAML, {"solver": "euler"}),  # the exact gradient of the steps themselves
    "fomaml": (FOMAML, {}),
    "imaml": (IMAML, {}),
    "reptile": (Reptile, {}),
}
Rate = float | Tensor | Mapping[str, float | Tensor]


class Adaptation(nn.Module):
    """The mean query loss of parameters adapted to support sets, as a module that autograd differentiates.

        meta = amaml.Adaptation(module, loss, inner_lr=0.01, inner_steps=200, adapt=("head",))
        value = meta(tasks)                 # a scalar
        value.backward()                    # exact meta-gradients; then optimizer.step()
        phi = meta.adapt(tasks)             # (tasks, P), P adapted parameters in all
        prediction = meta.predict(phi, x)   # (tasks, points, ...)

    The inner loop minimises loss(module(x), y) on the support set of each task, over the adapted parameters alone,
    which start at the module's own. backward() gives a gradient to whatever requires one: the adapted parameters (of
    their initialisation), all other parameters of the module (shared, as the body in ANIL, Raghu et al. 2020),
    inner_lr, prox and every tensor of the tasks. What nobody asked for is not computed. The module is held, not copied;
    batch norm uses the statistics of the batch that it sees.

    loss(prediction, target): of one task, a scalar mean; of its points each, (points, ...), where tasks have weights.
    query_loss: the outer loss where it is another one. x of tasks may be a tuple or dict of tensors, the positional
    arguments or keywords of the module; y one where the loss takes one.
    adapt: names of parameters or of parts of the module; by default all parameters that require a gradient.
    inner_lr: the size of an inner step, a number or a tensor; or a dict with a number or tensor for every adapted
    parameter: a scalar, or one of the parameter's shape (Meta-SGD, Li et al. 2017). Where it or prox is an
    nn.Parameter it is one of this module's. A tensor that is computed anew for every update, as log_lr.exp(), goes
    into the call: meta(tasks, inner_lr=log_lr.exp()).
    method: "amaml", or "maml" for the gradient of the inner_steps descent steps themselves (the same engine with
    solver "euler"), "fomaml", "imaml", "reptile", or a class of learners (amaml.MetaLearner), such as baselines.MAML:
    backward() raises InputError for what these do not define.
    task_chunk: so many tasks go through the network at once; each: how the chunks are gone through (amaml.chunked).
    options: further keywords of the method, as solver, adjoint, rtol, checkpoints of amaml.AMAML.

    latest: the MetaGradient of the last call that computed one, with the query loss of every task and the error.
    memory: what the learner remembers from call to call; state_dict() holds it, so that a program that was interrupted
    goes on as if it had not been.

    A call raises InputError for tasks that do not fit, amaml.Diverged where the inner loop leaves the finite numbers,
    and amaml.OverBudget, a Diverged, where the flow of one batch is too rough for its budget: leave that batch out.
    """

    def __init__(
        self,
        module: nn.Module,
        loss: Loss,
        inner_lr: Rate,
        inner_steps: int,
        adapt: tuple[str, ...] | None = None,
        method: str | type[MetaLearner] = "amaml",
        query_loss: Loss | None = None,
        prox: float | Tensor | None = None,
        task_chunk: int | None = None,
        each: Each = in_turn,
        **options: Any,
    ) -> None:
        super().__init__()
        if isinstance(method, str) and method not in METHODS:
            raise unknown("method", method, METHODS)
        check_module(module)
        _check_untrained(module, loss, query_loss)
        self.module, self.loss, self.query_loss, self.method = module, loss, query_loss, method
        self.split = Flattened(module, adapt)
        self.inner_lr = Rates(inner_lr, self.split.shapes) if isinstance(inner_lr, Mapping) else inner_lr
        self.prox, self.task_chunk, self.each, self.latest = prox, task_chunk, each, None
        options |= {} if query_loss is None else {"query_loss": query_loss}
        self._learner = _make(method, apply=self.split, loss=loss, inner_lr=1.0, inner_steps=inner_steps, **options)
        self.memory: Memory = self._learner.init()
        self._at(self._theta(), None, None)

    def forward(self, tasks: Tasks, inner_lr: Rate | None = None, prox: float | Tensor | None = None) -> Tensor:
        """The mean query loss of the adapted parameters, a scalar; inner_lr and prox take the place of the module's.

        Without gradients (torch.no_grad(), or nothing requires one) it costs the inner loop alone.
        """
        theta, tasks = self._theta(), self._with_shared(tasks)
        learner = self._at(theta, inner_lr, prox)
        inner = getattr(learner, "learner", learner)
        entering = {"theta": theta, "inner_lr": inner.inner_lr, "prox": getattr(inner, "prox", None)} | tasks.leaves()
        asked = {name: t for name, t in entering.items() if isinstance(t, Tensor) and t.requires_grad}
        if not asked or not torch.is_grad_enabled():
            phi = learner.adapt(theta.detach(), tasks)
            return derivatives.losses(self.split, self.query_loss or self.loss, phi, *tasks.detach().query).mean()
        for name in asked:
            if not name.startswith(getattr(inner, "gradients_of", EVERYTHING)):
                raise InputError(
                    f"method {self.name} defines no meta-gradient of {name}, which requires one; use method amaml or "
                    "maml, or take it without its gradient: .detach(), or .requires_grad_(False)"
                )

        def compute() -> tuple[Tensor, list[Tensor]]:
            self.latest = learner.gradient(theta, tasks, self.memory)
            self.memory = learner.update(self.memory, self.latest)
            gradients = {"theta": self.latest.value} | self.latest.gradients
            return self.latest.query_loss.mean(), [gradients[name].view_as(t) for name, t in asked.items()]

        return _Value.apply(compute, *asked.values())

    def adapt(self, tasks: Tasks, inner_lr: Rate | None = None, prox: float | Tensor | None = None) -> Tensor:
        """The adapted parameters of every task, (tasks, P), without a graph."""
        theta = self._theta().detach()
        return self._at(theta, inner_lr, prox).adapt(theta, self._with_shared(tasks))

    def predict(self, phi: Tensor, x: Points) -> Tensor:
        """Of adapted parameters phi (tasks, P) at x (tasks, points, *input): (tasks, points, *output)."""
        return predict(self.split, phi, x, self.split.shared())

    def unflatten(self, phi: Tensor) -> dict[str, Tensor]:
        """The adapted parameters by name, phi (..., P) to tensors (..., *shape)."""
        return self.split.pieces(phi)

    @property
    def name(self) -> str:
        """Of the method."""
        return self.method if isinstance(self.method, str) else self.method.__name__

    def get_extra_state(self) -> dict[str, Any] | None:
        """The memory in state_dict(), as plain numbers and tensors."""
        return self.memory.state_dict() if hasattr(self.memory, "state_dict") else None

    def set_extra_state(self, state: dict[str, Any] | None) -> None:
        """The memory from a state_dict()."""
        self.memory = self._learner.init()
        if state is not None:
            self.memory.load_state_dict(state)

    def _theta(self) -> Tensor:
        return self.split.theta()

    def _with_shared(self, tasks: Tasks) -> Tasks:
        if not isinstance(tasks, Tasks):
            raise InputError(f"tasks must be amaml.Tasks, got {type(tasks).__name__}; see amaml.Tasks(support_x, ...)")
        if tasks.shared is not None:
            raise InputError(
                "an Adaptation shares the parameters of its module among the tasks; leave Tasks(shared=...) out, and "
                "give other tensors beside support_x and query_x"
            )
        shared = self.split.shared()
        return replace(tasks, shared=shared) if shared else tasks

    def _at(self, theta: Tensor, inner_lr: Rate | None, prox: float | Tensor | None) -> MetaLearner:
        """The learner with its rates and prox as they are now."""
        rate = self.inner_lr if inner_lr is None else inner_lr
        if isinstance(rate, Mapping):
            rate = Rates(rate, self.split.shapes)
        prox = self.prox if prox is None else prox
        if prox is not None and not hasattr(self._learner, "prox"):
            raise InputError(f"method {self.name} has no prox; amaml, maml and imaml have one")
        learner = replace(
            self._learner,
            inner_lr=rate.flat(theta) if isinstance(rate, Rates) else _like(rate, theta),
            **({} if prox is None else {"prox": _like(prox, theta)}),
        )
        return learner if self.task_chunk is None else Chunked(learner, self.task_chunk, self.each)


class Rates(nn.Module):
    """A rate of its own for every adapted parameter, by its name; each a scalar or of the parameter's shape."""

    def __init__(self, rates: Mapping[str, float | Tensor], shapes: Mapping[str, torch.Size]) -> None:
        super().__init__()
        if rates.keys() != shapes.keys():
            missing, extra = sorted(shapes.keys() - rates.keys()), sorted(rates.keys() - shapes.keys())
            raise InputError(
                f"inner_lr must have a rate for every adapted parameter: {missing or 'none'} missing, "
                f"{extra or 'none'} not adapted"
            )
        for name, shape in shapes.items():
            rate = torch.as_tensor(rates[name])
            if rate.ndim and rate.shape != shape:
                raise InputError(
                    f"inner_lr of {name} has shape {tuple(rate.shape)}; give a scalar, or a tensor of {tuple(shape)}"
                )
            setattr(self, _key(name), rate)
        self.shapes = dict(shapes)

    def flat(self, theta: Tensor) -> Tensor:
        """The rates as theta lies, (P,), with their graph."""
        rates = ((getattr(self, _key(name)), shape) for name, shape in self.shapes.items())
        return torch.cat([rate.to(theta).expand(shape).reshape(-1) for rate, shape in rates])


def _key(name: str) -> str:
    return "rate/" + name.replace(".", "/")  # a dot would name a part of a module


class _Value(torch.autograd.Function):
    """The mean query loss; its meta-gradients are computed with it, and wait for backward()."""

    @staticmethod
    def forward(ctx: Any, compute: Any, *tensors: Tensor) -> Tensor:
        value, gradients = compute()
        ctx.save_for_backward(*gradients, *tensors)
        return value

    @staticmethod
    def backward(ctx: Any, scale: Tensor) -> tuple[Tensor | None, ...]:
        return None, *_First.apply(scale, *ctx.saved_tensors)


class _First(torch.autograd.Function):
    """scale times the gradients, which depend on as many tensors in a way that is not known any further."""

    @staticmethod
    def forward(ctx: Any, scale: Tensor, *gradients_and_tensors: Tensor) -> tuple[Tensor, ...]:
        count = len(gradients_and_tensors) // 2
        return tuple(scale * gradient for gradient in gradients_and_tensors[:count])

    @staticmethod
    def backward(ctx: Any, *_: Tensor) -> None:
        raise InputError(
            "an Adaptation has first derivatives alone, and this backward pass goes through its meta-gradient; "
            "leave create_graph out, or detach the meta-gradient"
        )


def _check_untrained(module: nn.Module, *losses: Any) -> None:
    """Raise InputError where something requires a gradient that an Adaptation does not give it."""
    there = [(f"the buffer {name} of the module", buffer) for name, buffer in module.named_buffers()]
    for loss in losses:
        if isinstance(loss, nn.Module):
            there += [(f"the parameter {name} of the loss", p) for name, p in loss.named_parameters()]
    for name, tensor in there:
        if tensor.requires_grad:
            raise InputError(
                f"{name} requires a gradient, and has no meta-gradient here; give it with the tasks, beside support_y "
                "or support_x, or set .requires_grad_(False)"
            )


def _make(method: str | type[MetaLearner], **options: Any) -> MetaLearner:
    """The learner of a method; raises InputError for a keyword that it does not take."""
    kind, fixed = METHODS[method] if isinstance(method, str) else (method, {})
    known = {f.name for f in fields(kind)} - fixed.keys()
    for option in options:
        if option not in known:
            raise unknown(f"keyword of method {method if isinstance(method, str) else kind.__name__}", option, known)
    return kind(**options, **fixed)


def _like(value: float | Tensor, theta: Tensor) -> float | Tensor:
    if isinstance(value, Tensor) and value.ndim:
        raise InputError(f"inner_lr and prox must be numbers or tensors of one, got shape {tuple(value.shape)}")
    return value.to(theta) if isinstance(value, Tensor) else value
