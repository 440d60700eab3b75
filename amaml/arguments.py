"""What the numbers that a learner is given may be."""

import math
import operator
from collections.abc import Iterable, Sequence
from numbers import Integral, Real

from torch import Tensor

from amaml.errors import InputError


def number(value: float | Tensor) -> float:
    """The value of a number or of a tensor of one, for which it waits."""
    return value.item() if isinstance(value, Tensor) else value


def is_number(value: object) -> bool:
    """Whether a value is a real number, of Python or of NumPy; True and False are none."""
    return isinstance(value, Real) and not isinstance(value, bool)


def is_scalar(value: object) -> bool:
    """Whether a value is a real number or a tensor of one."""
    return value.ndim == 0 and not value.is_complex() if isinstance(value, Tensor) else is_number(value)


def is_count(value: object) -> bool:
    """Whether a value is a positive integer, of Python or of NumPy."""
    return is_number(value) and isinstance(value, Integral) and value >= 1


def check_rates(inner_lr: float | Tensor, signed: bool) -> None:
    """Raise InputError unless a tensor of rates can be used: signed tells whether they may be negative."""
    if not isinstance(inner_lr, Tensor) or inner_lr.ndim == 0:
        return
    if inner_lr.ndim != 1 or not inner_lr.is_floating_point():
        raise InputError(
            f"inner_lr must be a number or a tensor (P,), got shape {tuple(inner_lr.shape)} of {inner_lr.dtype}"
        )
    if not signed and bool((inner_lr < 0).any()):
        raise InputError(
            f"inner_lr has a negative rate, {inner_lr.min().item():g}, which no flow can follow; learn the logarithm "
            "of the rates and give its exp(), or use solver euler"
        )


def check_count(name: str, value: int | None, none: bool = False) -> None:
    """Raise InputError unless value is a positive integer, or None where that is allowed too."""
    if none and value is None:
        return
    if not is_count(value):
        raise InputError(f"{name} must be a positive integer{' or None' if none else ''}, got {value!r}")


def check_inner_loop(inner_lr: float, inner_steps: int) -> None:
    """Raise InputError unless the inner loop's settings make sense."""
    if isinstance(inner_lr, Tensor) and inner_lr.ndim:
        raise InputError(f"this method has one inner_lr, a number; got a tensor of shape {tuple(inner_lr.shape)}")
    if not (is_number(value := number(inner_lr)) and 0 < value < math.inf):
        raise InputError(f"inner_lr must be a positive number, got {inner_lr!r}")
    check_count("inner_steps", inner_steps)


def check_nonnegative(**numbers: float) -> None:
    """Raise InputError for a number below zero, or none at all."""
    for name, value in numbers.items():
        if not (is_number(value) and 0 <= value < math.inf):
            raise InputError(f"{name} must be zero or a positive number, got {value!r}")


def check_query_steps(steps: Sequence[int] | None, weights: Sequence[float] | None, inner_steps: int) -> None:
    """Raise InputError unless the outer loss can be taken after these inner steps, with these weights."""
    if steps is not None:
        check_at(steps, inner_steps, "query_steps")
    if weights is None:
        return
    finite = (is_number(value) and math.isfinite(value) for value in map(number, weights))
    if len(weights) != len(steps or (inner_steps,)) or not all(finite):
        raise InputError(
            f"query_weights must have a number for each of {len(steps or (inner_steps,))} query_steps, got {weights!r}"
        )
    if any(isinstance(weight, Tensor) and weight.requires_grad for weight in weights):
        raise InputError(
            "query_weights require a gradient and would get none; .detach() them, or weigh the losses of "
            "Adaptation.adapt(tasks, at=...) by yourself"
        )


def check_at(at: Iterable[int], inner_steps: int, name: str = "at") -> tuple[int, ...]:
    """The numbers of inner steps, as ints; raises InputError unless they are such, in their order."""
    try:
        steps = tuple(map(operator.index, at))
    except TypeError:
        steps = ()
    if not steps or steps[0] < 0 or steps[-1] > inner_steps or not all(map(operator.lt, steps, steps[1:])):
        allowed = f"increasing numbers of inner steps from 0 to {inner_steps}"
        raise InputError(f"{name} must be {allowed}, got {at!r}; for example (0, {inner_steps})")
    return steps
