"""The sizes of inner steps, in all the forms that they are given in."""

from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor, nn

from amaml.arguments import is_number, is_scalar
from amaml.errors import InputError

Rate = float | Tensor | Mapping[str, float | Tensor] | Sequence[float] | Callable[[int], float | Tensor]


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
            rate = rates[name]
            rate = torch.as_tensor(rate, dtype=torch.float64) if is_number(rate) else rate
            if not isinstance(rate, Tensor) or rate.is_complex() or (rate.ndim and rate.shape != shape):
                raise InputError(f"inner_lr of {name} is {_told(rate)}; give a scalar, or a tensor of {tuple(shape)}")
            setattr(self, _key(name), rate)
        self.shapes = dict(shapes)

    def flat(self, theta: Tensor) -> Tensor:
        """The rates as theta lies, (P,), with their graph."""
        rates = ((getattr(self, _key(name)), shape) for name, shape in self.shapes.items())
        return torch.cat([rate.to(theta).expand(shape).reshape(-1) for rate, shape in rates])


def _key(name: str) -> str:
    return "rate/" + name.replace(".", "/")  # a dot would name a part of a module


def _told(rate: object) -> str:
    return f"{rate.dtype} of shape {tuple(rate.shape)}" if isinstance(rate, Tensor) else type(rate).__name__


def rate_and_schedule(rate: Rate | Rates, steps: int, theta: Tensor) -> tuple[float | Tensor, Tensor | None]:
    """inner_lr as a learner takes it, and the sizes of single steps (steps,) where they differ, each with its graph.

    Raises InputError for what is no rate.
    """
    if isinstance(rate, Rates):
        return rate.flat(theta), None
    try:
        if callable(rate) and not isinstance(rate, Tensor):
            rate = [rate(k) for k in range(steps)]
        if isinstance(rate, list | tuple):
            rate = torch.stack([torch.as_tensor(size, dtype=theta.dtype, device=theta.device) for size in rate])
    except (RuntimeError, TypeError, ValueError) as fault:
        raise InputError(f"inner_lr as a schedule gives no number for each inner step, from 0: {fault}") from fault
    if isinstance(rate, Tensor) and rate.ndim == 1 and not rate.is_complex():
        if len(rate) != steps:
            raise InputError(f"inner_lr as a schedule has a size for each of the {steps} inner steps, got {len(rate)}")
        return 1.0, rate.to(theta)
    if not is_scalar(rate):
        raise InputError(
            "inner_lr must be a number or a tensor of one, a dict of one for each adapted parameter, or a schedule: a "
            f"size for each inner step, as a list, a tensor or a function of the step from 0; got {_told(rate)}"
        )
    return rate.to(theta) if isinstance(rate, Tensor) else rate, None
