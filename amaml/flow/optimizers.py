"""Inner loops beyond gradient descent: the steps of any optimiser, and their exact transposes.

A step of an optimiser with the rule r, its state s and the gradient g = grad L_support(phi) + prox (phi - theta):

    (d, s_next) = r(g + decay phi, s, number),     phi_next = phi - h D (d + decoupled decay phi).

From lam, the sensitivity to (phi_next, s_next), its transpose takes the rule's own derivatives by autograd, and those
of g by one Hessian-vector product: the meta-gradient of the K steps is exact, and no graph is longer than one step.
Costs a gradient a step forward, a gradient and a Hessian-vector product a step back. Kept of a step: phi and the state.
"""

import functools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from inspect import signature
from typing import Any

import torch
from torch import Tensor

from amaml.arguments import is_scalar, number
from amaml.errors import InputError, unknown
from amaml.flow.field import GradientFlow
from amaml.flow.quadrature import Quadrature
from amaml.flow.schemes import Stages, Transposed

State = tuple[Tensor, ...]  # of the rule, each like phi
# (gradient, state or None, number of the step from 0, **hyper) -> update, state; of one task, or of all at once
Rule = Callable[..., tuple[Tensor, State]]


def sgd(
    gradient: Tensor, state: State | None, step: int, momentum: float | Tensor = 0.0, nesterov: bool = False
) -> tuple[Tensor, State]:
    """Gradient descent with momentum, as torch.optim.SGD; plain, or with Nesterov's acceleration."""
    if not isinstance(momentum, Tensor) and not momentum:
        return gradient, ()
    velocity = gradient if state is None else momentum * state[0] + gradient
    return gradient + momentum * velocity if nesterov else velocity, (velocity,)


def heavy_ball(
    gradient: Tensor, state: State | None, step: int, momentum: float | Tensor = 0.9
) -> tuple[Tensor, State]:
    """Gradient descent with momentum (Polyak 1964)."""
    return sgd(gradient, state, step, momentum)


def rmsprop(
    gradient: Tensor, state: State | None, step: int, alpha: float | Tensor = 0.99, eps: float = 1e-8
) -> tuple[Tensor, State]:
    """As torch.optim.RMSprop (Tieleman and Hinton 2012)."""
    square = (1 - alpha) * gradient**2
    square = square if state is None else alpha * state[0] + square
    return gradient / (_root(square) + eps), (square,)


def adam(
    gradient: Tensor, state: State | None, step: int, betas: Sequence[float | Tensor] = (0.9, 0.999), eps: float = 1e-8
) -> tuple[Tensor, State]:
    """As torch.optim.Adam (Kingma and Ba 2015)."""
    first, second = betas
    mean, square = (1 - first) * gradient, (1 - second) * gradient**2
    if state is not None:
        mean, square = first * state[0] + mean, second * state[1] + square
    unbiased_mean, unbiased_square = mean / (1 - first ** (step + 1)), square / (1 - second ** (step + 1))
    return unbiased_mean / (_root(unbiased_square) + eps), (mean, square)


def _root(square: Tensor) -> Tensor:
    """The square root, with derivative 0 instead of infinity where the square is 0."""
    positive = square > 0
    return torch.where(positive, square, 1.0).sqrt() * positive


RULES: dict[str, Rule] = {"sgd": sgd, "momentum": heavy_ball, "rmsprop": rmsprop, "adam": adam, "adamw": adam}
HYPER = {name: tuple(signature(rule).parameters)[3:] for name, rule in RULES.items()}  # their keywords
KEYWORDS = {"weight_decay"}.union(*HYPER.values())


@dataclass(frozen=True, eq=False)
class Optimizer:
    """The rule of an inner optimiser with its numbers.

    rule: a name of RULES, or a function (gradient, state, step) -> (update, state) of one task, gradient and update
    (P,), that torch.func can differentiate and batch; state is None at step 0 and otherwise what the step before
    returned, a tuple of tensors (P,).
    hyper: keywords of the rule; numbers, or tensors of one (of any shape for a rule of one's own), which get their
    gradient where they require it.
    weight_decay: times phi is added to the gradient, as in torch.optim; decoupled adds it to the update instead
    (AdamW, Loshchilov and Hutter 2019).

    Raises InputError for a name or keyword that does not exist, and for numbers out of range.
    """

    rule: str | Rule = "sgd"
    hyper: dict[str, Any] = field(default_factory=dict)
    weight_decay: float | Tensor = 0.0
    decoupled: bool = False

    @staticmethod
    def of(rule: "str | Rule | Optimizer", weight_decay: float | Tensor = 0.0, **hyper: Any) -> "Optimizer":
        """The optimizer of a rule and its keywords; weight decay is decoupled for adamw."""
        return rule if isinstance(rule, Optimizer) else Optimizer(rule, hyper, weight_decay, rule == "adamw")

    def __post_init__(self) -> None:
        if isinstance(self.rule, str):
            if self.rule not in RULES:
                raise unknown("inner optimizer", self.rule, RULES)
            for name in self.hyper:
                if name not in HYPER[self.rule]:
                    raise unknown(f"keyword of the inner optimizer {self.rule}", name, HYPER[self.rule])
        elif not callable(self.rule) or isinstance(self.rule, type):
            raise InputError(
                f"inner_optimizer must be one of {', '.join(RULES)} or a function (gradient, state, step) -> (update, "
                f"state), got {getattr(self.rule, '__name__', type(self.rule).__name__)}"
            )
        betas = self.hyper.get("betas", (0, 0))
        if not isinstance(betas, tuple | list) or len(betas) != 2:
            raise InputError(f"betas must be two numbers, as (0.9, 0.999), got {betas!r}")
        for name, value in self.numbers().items():
            if not isinstance(self.rule, str) and name != "weight_decay":
                continue
            if not is_scalar(value):
                found = f"{value.dtype} of shape {tuple(value.shape)}" if isinstance(value, Tensor) else repr(value)
                raise InputError(f"{name} must be a number or a tensor of one, got {found}")
            bounded = name.startswith("betas") or name in ("momentum", "alpha")
            if not 0 <= (size := number(value)) < (1 if bounded else math.inf):
                raise InputError(f"{name} must be {'in [0, 1)' if bounded else 'zero or positive'}, got {size}")

    @functools.cached_property
    def plain(self) -> bool:
        """Whether it is gradient descent itself."""
        momentum = self.hyper.get("momentum", 0.0)
        return self.rule == "sgd" and not any(isinstance(n, Tensor) or n for n in (momentum, self.weight_decay))

    def numbers(self) -> dict[str, float | Tensor]:
        """Everything that may be a tensor, by name: "momentum", "betas.0", "weight_decay"."""
        found = {"weight_decay": self.weight_decay}
        for name, value in self.hyper.items():
            if isinstance(value, (tuple, list)):
                found |= {f"{name}.{i}": part for i, part in enumerate(value)}
            elif not isinstance(value, bool):
                found[name] = value
        return found

    def with_numbers(self, numbers: dict[str, Any]) -> "Optimizer":
        """The same with others in the places of some of its numbers()."""
        return replace(self, hyper=self._hyper(numbers), weight_decay=numbers.get("weight_decay", self.weight_decay))

    def _hyper(self, numbers: dict[str, Any]) -> dict[str, Any]:
        return {
            name: tuple(numbers.get(f"{name}.{i}", part) for i, part in enumerate(value))
            if isinstance(value, (tuple, list))
            else numbers.get(name, value)
            for name, value in self.hyper.items()
        }

    def step(
        self, number: int, phi: Tensor, state: State, gradient: Tensor, tensors: dict[str, Tensor]
    ) -> tuple[Tensor, State]:
        """The update (tasks, P) of step `number`, to be scaled by the rate, and the next state, which is () before the
        first step; tensors take their numbers' places."""
        hyper = self._hyper(tensors)
        decay = tensors.get("weight_decay", self.weight_decay)
        decays = isinstance(decay, Tensor) or decay
        rule = RULES[self.rule] if isinstance(self.rule, str) else functools.partial(_of_each, self.rule)
        gradient = gradient + decay * phi if decays and not self.decoupled else gradient
        update, state = rule(gradient, state if number else None, number, **hyper)
        return update + decay * phi if decays and self.decoupled else update, state


def _of_each(rule: Rule, gradient: Tensor, state: State | None, number: int, **hyper: Any) -> tuple[Tensor, State]:
    """A rule of one's own, which is that of one task, for all (tasks, P)."""

    def of_one(gradient: Tensor, *state: Tensor) -> State:
        update, state = rule(gradient.clone(), state if number else None, number, **hyper)  # it may write into that
        shapes = [tensor.shape for tensor in (update, *state)]
        if any(shape != gradient.shape for shape in shapes):
            raise ValueError(
                f"of a gradient {tuple(gradient.shape)} it makes {', '.join(map(str, map(tuple, shapes)))}"
            )
        return update, *state

    try:
        update, *state = torch.vmap(of_one)(gradient, *(state or ()))
    except Exception as fault:
        raise InputError(
            "the rule of the inner optimizer must make (update, state) of the gradient (P,) of one task, state a tuple "
            "of tensors (P,) and () where there is none, by what torch.vmap can batch (torch.where or clamp in the "
            f"place of if and max); it fails: {type(fault).__name__}: {str(fault).strip().splitlines()[0][:200]}"
        ) from fault
    return update, tuple(state)


PLAIN = Optimizer()  # gradient descent


@dataclass(frozen=True, eq=False)
class OptimizerStep:
    """Step `number` (from 0) of an inner optimiser, as a scheme whose u (tasks, P + state) is phi and the state.

    points (n,): which support points the step sees; None: all.
    """

    optimizer: Optimizer
    number: int
    points: Tensor | None = None
    cost, order, stability = 1, 1, math.inf

    def step(self, flow: GradientFlow, h: float, u: Tensor) -> tuple[Stages, Tensor]:
        """The step from u, of size h."""
        phi, state = self._parts(flow, u)
        gradient = flow.gradient(phi, self.points)
        update, state = self.optimizer.step(self.number, phi, state, gradient, self._tensors())
        return (u,), torch.cat([torch.sub(phi, flow.scaled(update), alpha=h), *state], -1)

    def transposed(
        self, sweep: Quadrature, h: float, stages: Stages, lam: Tensor, direct: Sequence[Tensor]
    ) -> Transposed:
        """From lam (tasks, P + state) at the end of the step to lam at its start; within it nothing is read."""
        flow, (u,) = sweep.flow, stages
        phi, state = self._parts(flow, u)
        gradient, tensors = flow.gradient(phi, self.points), self._tensors()
        to_phi, *to_state = lam.split(phi.shape[-1], -1)

        with torch.enable_grad():
            step = functools.partial(self.optimizer.step, self.number)
            (update, _), back = torch.func.vjp(step, phi, state, gradient, tensors)
        if update.requires_grad:
            raise InputError(
                "the rule of the inner optimizer uses a tensor that requires a gradient and would get none; give it as "
                "a keyword of the rule, amaml.flow.optimizers.Optimizer(rule, {name: tensor}), or .detach() it"
            )
        from_phi, from_state, to_gradient, to_tensors = back((-h * flow.scaled(to_phi), tuple(to_state)))
        sweep.add_step(update, to_phi, h, self.number, to_tensors)
        product = sweep.pull_gradient(phi, to_gradient, self.points)
        lam = to_phi + from_phi + product
        return Transposed(torch.cat([lam, *from_state], -1) if state else lam, to_gradient, product)

    def _parts(self, flow: GradientFlow, u: Tensor) -> tuple[Tensor, State]:
        phi, *state = u.split(flow.theta.shape[-1], -1)
        return phi, tuple(state)

    def _tensors(self) -> dict[str, Tensor]:
        return {name: n.detach() for name, n in self.optimizer.numbers().items() if isinstance(n, Tensor)}
