"""What a user changes between two calls, outside of apply and loss as they were traced.

Each maker gives apply, loss, a function that changes what these use, and whether a new tensor is all that it puts in.
"""

import functools
from types import SimpleNamespace

import torch
from torch import nn

from amaml import half_mse


def number(value: float) -> torch.Tensor:
    return torch.tensor(value, dtype=torch.float64)


WEIGHT = number(1.0)  # read by a loss as a global


class Weighted:
    """A loss that reads a Python number and a tensor of its own, in a method that it calls."""

    def __init__(self):
        self.factor, self.weights = 1.0, {"tensors": [number(1.0)]}

    def __call__(self, prediction, target):
        return self.factor * self.tensor() * half_mse(prediction, target)

    def tensor(self):
        return self.weights["tensors"][0]


def weighted(change):
    """A loss with a weight in a namespace, that change(namespace) changes."""

    def make(apply):
        used = SimpleNamespace(weight=number(1.0))
        return apply, lambda p, t: used.weight * half_mse(p, t), lambda: change(used), True

    return make


def rebound_tensor(apply):
    weight = number(1.0)

    def change():
        nonlocal weight
        weight = number(3.0)

    return apply, lambda p, t: weight * half_mse(p, t), change, True


def global_tensor(apply):
    return apply, lambda p, t: WEIGHT * half_mse(p, t), lambda: globals().update(WEIGHT=WEIGHT * 3), True


def attribute(apply):
    loss = Weighted()
    return apply, loss, lambda: setattr(loss, "factor", 3.0), False


def bound_method(apply):
    holder = Weighted()
    return apply, holder.__call__, lambda: setattr(holder, "weights", {"tensors": [number(3.0)]}), True


def partial_argument(apply):
    used = [number(1.0)]
    loss = functools.partial(lambda used, p, t: used[0] * half_mse(p, t), used)
    return apply, loss, lambda: used.__setitem__(0, number(3.0)), True


def encoded(layer, change, tensor):
    """An encoder before the network, which change(encoder) changes."""

    def make(apply):
        made = layer()
        return lambda theta, x: apply(theta, made(x)), half_mse, lambda: change(made), tensor

    return make


def normed():
    layer = nn.BatchNorm1d(2).double().eval()
    layer.running_mean.fill_(2.0)
    return layer


def batch_statistics(layer):
    layer.running_mean = layer.running_var = None


other_dtype = weighted(lambda used: setattr(used, "weight", torch.tensor(3)))
MAKERS = (rebound_tensor, global_tensor, attribute, bound_method, partial_argument)
CHANGES = {make.__name__: make for make in MAKERS} | {
    "tensor changed in place": weighted(lambda used: used.weight.fill_(3.0)),
    "name in a module": weighted(lambda used: setattr(used, "weight", number(3.0))),
    "other dtype": other_dtype,
    "parameter of an encoder": encoded(
        lambda: nn.Linear(2, 2).double(), lambda layer: setattr(layer, "weight", nn.Parameter(3 * layer.weight)), True
    ),
    "mode of an encoder": encoded(normed, batch_statistics, False),
}
