"""Losses, scalar means over the points of one task, and the metrics reported beside them."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from amaml.errors import InputError
from amaml.points import Weighted


def half_mse(prediction: Tensor, target: Tensor) -> Tensor:
    """0.5 * mean squared error over every element, the paper's regression loss; returns a scalar."""
    return 0.5 * mse(prediction, target)


def rmse(prediction: Tensor, target: Tensor) -> Tensor:
    """Root mean squared error of one task, a scalar; the nRMSE of the paper when targets are standardised."""
    return mse(prediction, target).sqrt()


def mse(prediction: Tensor, target: Tensor) -> Tensor:
    """Mean squared error of one task, a scalar; what the sinusoid experiments report."""
    if prediction.shape != target.shape:
        raise _mismatch(prediction.shape, target.shape)
    return (prediction - target).square().mean()


def accuracy(prediction: Tensor, target: Tensor) -> Tensor:
    """Share of points, in [0, 1], whose largest logit (points, classes) is the target class (points,)."""
    if prediction.shape[:-1] != target.shape:
        raise _mismatch(prediction.shape, target.shape)
    return (prediction.argmax(-1) == target).to(prediction.dtype).mean()


def evaluate(loss: Callable[[Any, Any], Tensor], prediction: Any, target: Any) -> Tensor:
    """loss(prediction, target), refusing what would be a wrong number.

    Of Weighted targets sum w_i v_i / sum w_i over the points of one task, v_i the mean of point i's loss.
    Raises InputError where a prediction (n, 1) and a target (n,), or the reverse, meet in one operation and every
    prediction would be compared with every target. A loss that reshapes one of them first, such as
    half_mse(prediction.squeeze(-1), target), is as its author wants it. Raises InputError, too, for a loss that is not
    one number.
    """
    if isinstance(target, Weighted):
        values, weight = of_points(loss, prediction, target), target.weight
        return (weight * (values.flatten(1).mean(1) if values.ndim > 1 else values)).sum() / weight.sum()
    value = _guarded(loss, prediction, target)
    if not isinstance(value, Tensor) or value.ndim or not value.dtype.is_floating_point:
        found = f"{value.dtype} of shape {tuple(value.shape)}" if isinstance(value, Tensor) else type(value).__name__
        raise InputError(
            f"the loss of a task must be a tensor of one floating-point number, got {found}; take the mean"
        )
    return value


def of_points(loss: Callable[[Any, Any], Any], prediction: Any, target: Weighted) -> Tensor:
    """The loss of every point of one task, (points, ...)."""
    values, weight = _guarded(loss, prediction, target.y), target.weight
    if not isinstance(values, Tensor) or values.shape[:1] != weight.shape:
        found = f"shape {tuple(values.shape)}" if isinstance(values, Tensor) else type(values).__name__
        raise InputError(
            f"tasks with weights need a loss for each of their {len(weight)} points, got {found}; keep the points "
            'apart in the loss, as torch\'s losses do with reduction="none"'
        )
    return values


def _guarded(loss: Callable[[Any, Any], Tensor], prediction: Any, target: Any) -> Tensor:
    tensors = isinstance(prediction, Tensor) and isinstance(target, Tensor)
    if tensors and _outer(prediction.shape, target.shape):
        with _RefuseOuter(prediction.shape, target.shape):
            return loss(prediction, target)
    return loss(prediction, target)


def _outer(a: torch.Size, b: torch.Size) -> bool:
    """Whether broadcasting makes a shape of these two that is neither."""
    try:
        return torch.broadcast_shapes(a, b) not in (a, b)
    except RuntimeError:
        return False


class _RefuseOuter(TorchFunctionMode):
    """Refuses an operation in which the shapes of the prediction and of the target meet."""

    def __init__(self, prediction: torch.Size, target: torch.Size) -> None:
        super().__init__()
        self.prediction, self.target = prediction, target

    def __torch_function__(self, function: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        kwargs = kwargs or {}
        shapes = [value.shape for value in (*args, *kwargs.values()) if isinstance(value, Tensor)]
        if self.prediction in shapes and self.target in shapes:
            raise _mismatch(self.prediction, self.target)
        return function(*args, **kwargs)


def _mismatch(prediction: torch.Size, target: torch.Size) -> InputError:
    return InputError(
        f"predictions {tuple(prediction)} and targets {tuple(target)} of a task have different shapes, which would "
        "broadcast or fail; reshape the targets, as in support_y.unsqueeze(-1), or the prediction in the loss, as in "
        "prediction.squeeze(-1)"
    )
