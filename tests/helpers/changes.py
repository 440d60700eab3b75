"""What a user changes between two calls, outside of apply and loss as they were traced."""

from functools import partial, wraps

import torch
from torch import nn
from torch.nn import functional as F

from amaml import half_mse


def number(value) -> torch.Tensor:
    return torch.tensor(value, dtype=torch.float64)


WEIGHT = number(1.0)  # read by a loss as a global
NO_STATISTICS = {"running_mean": None, "running_var": None, "num_batches_tracked": None}


class Used:
    """Numbers, tensors and layers that apply or loss use."""

    def __init__(self) -> None:
        self.factor, self.weight, self.held = 1.0, number(1.0), {"tensors": [number(1.0)]}
        self.encoder = nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2)).double().eval()

    def method(self, prediction, target):
        return self.factor * self.tensor() * half_mse(prediction, target)

    def tensor(self):
        return self.held["tensors"][0]


def weighted(used, apply):
    return apply, lambda p, t: used.weight * half_mse(p, t)


def of_a_global(used, apply):
    return apply, lambda p, t: WEIGHT * half_mse(p, t)


def of_a_cell(used, apply):
    weight = number(1.0)

    def rebind():
        nonlocal weight
        weight = number(3.0)

    used.rebind = rebind
    return apply, lambda p, t: weight * half_mse(p, t)


def of_a_method(used, apply):
    return apply, used.method


def of_a_partial(used, apply):
    return apply, partial(lambda held, p, t: held["tensors"][0] * half_mse(p, t), used.held)


def wrapped(used, apply):
    """A function that says to be what it wraps."""
    return apply, wraps(F.mse_loss)(lambda p, t: used.factor * F.mse_loss(p, t))


def encoded(used, apply):
    return lambda theta, x: apply(theta, used.encoder(x)), half_mse


# makers of apply and loss, and what is changed of what these use; in NEW_GRAPH more than that a tensor is another one
NEW_GRAPH = {
    "attribute": (of_a_method, lambda used: setattr(used, "factor", 3.0)),
    "wrapped function": (wrapped, lambda used: setattr(used, "factor", 3.0)),
    "other dtype": (weighted, lambda used: setattr(used, "weight", torch.tensor(3))),
    "mode of an encoder": (encoded, lambda used: vars(used.encoder[1]).update(_buffers=NO_STATISTICS)),
}
CHANGES = NEW_GRAPH | {
    "tensor": (weighted, lambda used: setattr(used, "weight", number(3.0))),
    "tensor changed in place": (weighted, lambda used: used.weight.fill_(3.0)),
    "rebound name": (of_a_cell, lambda used: used.rebind()),
    "global": (of_a_global, lambda used: globals().update(WEIGHT=3 * WEIGHT)),
    "tensor held by a method": (of_a_method, lambda used: used.held.update(tensors=[number(3.0)])),
    "argument of a partial": (of_a_partial, lambda used: used.held["tensors"].__setitem__(0, number(3.0))),
    "parameter of an encoder": (encoded, lambda used: setattr(used.encoder[0], "bias", nn.Parameter(number([3, 0])))),
}
