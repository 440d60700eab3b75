"""The optimisers of a differentiable inner loop: one step each, as a pure function of what it starts from.

A step takes phi (tasks, P), the gradient there (tasks, P), the slots of the step before (tensors like phi, zero at
first), the step's size and its number, from 1 on, and returns the new phi and slots. With the default constants of
torch.optim the steps are those of torch.optim, which cannot be differentiated through.
"""

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

Slots = tuple[Tensor, ...]
Step = Callable[[Tensor, Tensor, Slots, float, int], tuple[Tensor, Slots]]


def sgd(phi: Tensor, gradient: Tensor, slots: Slots, lr: float, number: int) -> tuple[Tensor, Slots]:
    """Gradient descent, MAML's own inner loop."""
    return phi - lr * gradient, ()


def momentum(phi: Tensor, gradient: Tensor, slots: Slots, lr: float, number: int) -> tuple[Tensor, Slots]:
    """Heavy ball, as torch.optim.SGD(momentum=0.9)."""
    velocity = 0.9 * slots[0] + gradient
    return phi - lr * velocity, (velocity,)


def rmsprop(phi: Tensor, gradient: Tensor, slots: Slots, lr: float, number: int) -> tuple[Tensor, Slots]:
    """As torch.optim.RMSprop (Tieleman and Hinton 2012)."""
    square = 0.99 * slots[0] + 0.01 * gradient**2
    return phi - lr * gradient / (_root(square) + 1e-8), (square,)


def adam(phi: Tensor, gradient: Tensor, slots: Slots, lr: float, number: int) -> tuple[Tensor, Slots]:
    """As torch.optim.Adam (Kingma and Ba 2015)."""
    mean = 0.9 * slots[0] + 0.1 * gradient
    square = 0.999 * slots[1] + 0.001 * gradient**2
    unbiased_mean, unbiased_square = mean / (1 - 0.9**number), square / (1 - 0.999**number)
    return phi - lr * unbiased_mean / (_root(unbiased_square) + 1e-8), (mean, square)


def _root(square: Tensor) -> Tensor:
    """The square root, with derivative 0 instead of infinity where the square is 0."""
    positive = square > 0
    return torch.where(positive, square, 1.0).sqrt() * positive


class InnerOptimizer(NamedTuple):
    """A step and how many slots it keeps."""

    step: Step
    slots: int


INNER_OPTIMIZERS = {
    "sgd": InnerOptimizer(sgd, 0),
    "momentum": InnerOptimizer(momentum, 1),
    "rmsprop": InnerOptimizer(rmsprop, 1),
    "adam": InnerOptimizer(adam, 2),
}
