"""What the error of a meta-gradient is, by measurement: its distance to the gradient at twice as many steps.

Let g_h be the gradient on a mesh and g_(h/2) the one with every step bisected. For a scheme of order p the error of
g_(h/2) is |g_h - g_(h/2)| / (2^p - 1) (Richardson; Shampine and Watts 1976 for whole meshes). With three resolutions
the ratio of the two distances shows the order that is really had, and a lower one is believed.
"""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

TRUSTED_ORDER = 3  # where all is of a higher one: stiff components lower it
SLOWEST = 0.8  # ratio of two distances that still counts as convergence
NOISE = 100.0  # distances below so many roundings of the largest number at hand are rounding noise


def relative_distance(a: Tensor, b: Tensor) -> float:
    """|a - b| / |b|; infinite where either is not finite. Waits for the device."""
    part, whole = torch.stack([(a - b).norm(), b.norm()]).tolist()
    if not math.isfinite(part + whole):
        return math.inf
    return part / whole if whole else (0.0 if part == 0 else math.inf)


def error_of_finest(distances: Sequence[float], order: int) -> float:
    """The relative error of the finest gradient, from the distances between each resolution and the next finer one.

    order: the lowest of the schemes involved. With one distance it is believed, up to TRUSTED_ORDER; with more, a
    distance that shrank by less than that order promises is believed instead.
    """
    shrinking = 2.0 ** -min(order, TRUSTED_ORDER)
    if not math.isfinite(distances[-1]):
        return math.inf
    if len(distances) > 1:
        *_, before, last = distances
        seen = last / before if 0 < before < math.inf else 1.0
        shrinking = min(max(shrinking, seen), SLOWEST)
    return distances[-1] * shrinking / (1 - shrinking)  # the sum of all the distances to come


def rounding(value: Tensor, terminal: Tensor) -> float:
    """What rounding leaves of value's relative accuracy: NOISE eps |lam(T)| / |value|, at the largest task."""
    largest, whole = torch.stack([terminal.norm(dim=-1).amax(), value.norm()]).tolist()
    return NOISE * torch.finfo(value.dtype).eps * largest / whole if whole else math.inf
