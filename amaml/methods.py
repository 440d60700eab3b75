"""Which learner the name of a method and its keywords make."""

from collections.abc import Iterable, Sequence
from dataclasses import fields, replace
from typing import Any

from torch import Tensor

from amaml.amaml import AMAML
from amaml.arguments import check_at, is_scalar
from amaml.engine.derivatives import Loss
from amaml.errors import InputError, unknown
from amaml.first_order import FOMAML, Reptile
from amaml.flow.optimizers import KEYWORDS, Optimizer
from amaml.imaml import IMAML
from amaml.learner import MetaLearner
from amaml.models import Flattened
from amaml.objective import OfModel, WithModel
from amaml.rates import Rate, Rates, rate_and_schedule

Method = str | type[MetaLearner]
METHODS: dict[str, tuple[type[MetaLearner], dict[str, Any]]] = {  # the learner's class, and its fixed keywords
    "amaml": (AMAML, {}),
    "maml": (AMAML, {"solver": "euler"}),  # the exact gradient of the steps themselves
    "fomaml": (FOMAML, {}),
    "imaml": (IMAML, {}),
    "reptile": (Reptile, {}),
}
EVERYTHING = ("",)  # beginnings of the names of what has a meta-gradient: every name begins with it
ELSEWHERE = {  # keywords of other packages, and what they are called here
    "first_order": 'method="fomaml"',
    "lr": "inner_lr",
    "steps": "inner_steps",
    "num_steps": "inner_steps",
}


def name_of(method: Method) -> str:
    """As it is written in messages."""
    return method if isinstance(method, str) else method.__name__


def made(
    method: Method, function: Flattened, loss: Loss, query_loss: Loss | None, inner_steps: int, options: dict[str, Any]
) -> MetaLearner:
    """The learner of a method for a module; its inner_lr is for the caller to set.

    options: keywords of the method's class, and for A-MAML those of an inner optimizer. Raises InputError for a method
    or keyword that there is not.
    """
    if isinstance(method, str) and method not in METHODS:
        raise unknown("method", method, METHODS)
    kind, fixed = METHODS[method] if isinstance(method, str) else (method, {})
    if kind is AMAML:
        options = _with_optimizer(options)
    known = {f.name for f in fields(kind)} - fixed.keys()
    for option in options:
        if option in ELSEWHERE:
            raise InputError(f"there is no keyword {option!r} here; write {ELSEWHERE[option]}")
        if option not in known:
            others = KEYWORDS if kind is AMAML else ()
            raise unknown(f"keyword of method {name_of(method)}", option, {*known, *others})
    apply = WithModel(function) if isinstance(loss, OfModel) else function
    options |= {} if query_loss is None else {"query_loss": query_loss}
    return kind(apply=apply, loss=loss, inner_lr=1.0, inner_steps=inner_steps, **options, **fixed)


def entering(learner: MetaLearner) -> dict[str, Any]:
    """The settings of a learner that may require a gradient, by name."""
    return {name: getattr(learner, name, None) for name in ("inner_lr", "prox", "schedule")} | numbers(learner)


def numbers(learner: MetaLearner) -> dict[str, Any]:
    """Those of its inner optimizer, by name."""
    optimizer = getattr(learner, "inner_optimizer", None)
    return optimizer.numbers() if isinstance(optimizer, Optimizer) else {}


def with_settings(
    learner: MetaLearner,
    method: Method,
    theta: Tensor,
    inner_lr: Rate | Rates,
    prox: float | Tensor | None = None,
    inner_steps: int | None = None,
    at: Sequence[int] | None = None,
    weights: Sequence[float] | None = None,
) -> MetaLearner:
    """The learner at these rates, prox and outer loss (Adaptation.forward), with what is None as it was; raises
    InputError for what the method has not."""
    steps = learner.inner_steps if inner_steps is None else inner_steps
    rate, schedule = rate_and_schedule(inner_lr, steps, theta)
    if isinstance(prox, Tensor) and not is_scalar(prox):
        raise InputError(f"prox must be a number or a tensor of one, got {prox.dtype} of {tuple(prox.shape)}")
    settings = {
        "inner_lr": rate,
        "inner_steps": steps,
        "schedule": schedule,
        "prox": prox.to(theta) if isinstance(prox, Tensor) else prox,
        "query_steps": None if at is None else check_at(at, steps),
        "query_weights": None if weights is None else tuple(weights),
    }
    given = {name: value for name, value in settings.items() if value is not None}
    for name in given:
        if not hasattr(learner, name):
            raise InputError(f"method {name_of(method)} has no {name}; methods amaml and maml have one")
    return replace(learner, **given)


def check_defined(learner: MetaLearner, method: Method, names: Iterable[str]) -> None:
    """Raise InputError for what is to get a meta-gradient that the method does not define."""
    for name in names:
        if not name.startswith(getattr(learner, "gradients_of", EVERYTHING)) or (
            name == "phi" and not hasattr(learner, "pull_back")
        ):
            raise InputError(
                f"method {name_of(method)} defines no meta-gradient of {name}, which requires one; use method amaml or "
                "maml, or take it without its gradient: .detach(), or .requires_grad_(False)"
            )


def _with_optimizer(options: dict[str, Any]) -> dict[str, Any]:
    """The options with the inner optimizer made of its keywords."""
    own = {name: value for name, value in options.items() if name in KEYWORDS}
    if not own and "inner_optimizer" not in options:
        return options
    optimizer = Optimizer.of(options.get("inner_optimizer", "sgd"), **own)
    return {name: value for name, value in options.items() if name not in own} | {"inner_optimizer": optimizer}
