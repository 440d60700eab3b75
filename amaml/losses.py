"""Losses, scalar means over the points of one task, and the metrics reported beside them."""

from torch import Tensor


def half_mse(prediction: Tensor, target: Tensor) -> Tensor:
    """0.5 * mean squared error over every element, the paper's regression loss; returns a scalar."""
    return 0.5 * (prediction - target).square().mean()


def rmse(prediction: Tensor, target: Tensor) -> Tensor:
    """Root mean squared error of one task, a scalar; the nRMSE of the paper when targets are standardised."""
    return (prediction - target).square().mean().sqrt()


def mse(prediction: Tensor, target: Tensor) -> Tensor:
    """Mean squared error of one task, a scalar; what the sinusoid experiments report."""
    return (prediction - target).square().mean()


def accuracy(prediction: Tensor, target: Tensor) -> Tensor:
    """Share of points, in [0, 1], whose largest logit (points, classes) is the target class (points,)."""
    return (prediction.argmax(-1) == target).to(prediction.dtype).mean()
