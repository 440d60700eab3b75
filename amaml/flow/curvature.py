"""lambda_max, the largest eigenvalue of the support Hessian (with rates D of D^(1/2) H D^(1/2)), along a trajectory."""

import functools
import math
from typing import NamedTuple

import torch
from torch import Tensor
from torch.linalg import vector_norm

from amaml.errors import Diverged
from amaml.flow.field import GradientFlow

SETTLED = 1.25  # ratio of two successive products, at which one stops
UNCHANGED = 1.1  # ratio of a first product to what was found before, at which one stops; of the sharpest, either way
RANDOM = 0.3  # size of the random part of the first start, over that of the direction it begins with
LEFT = "the inner loop left the finite numbers; try a smaller inner_lr or fewer inner steps"


class Leading(NamedTuple):
    """lambda_max of the sharpest task of a batch at u(0), and the unit vector (P,) that it was found in."""

    value: float
    direction: Tensor


class Curvature:
    """lambda_max along a trajectory, by warm-started power iteration.

    The first start is the direction of the field plus a random one, the same for every call: a stiff direction in
    which theta is already optimal has no part in the field, but the adjoint state may have one. A start that is known
    to be stiff (tasks, P) may be given instead. known: what was found at the start of another batch, whose direction
    then takes the place of the field's: the sharpest directions of tasks that share theta are much alike.
    """

    def __init__(self, flow: GradientFlow, start: Tensor | None = None, known: Leading | None = None) -> None:
        self.flow, self.vectors, self.known = flow, start, known
        self.found, self.where = [0.0] * len(flow.tasks), None

    @property
    def leading(self) -> Leading | None:
        """What the last look has found, None before the first."""
        if self.vectors is None:
            return None
        value = max(self.found)
        return Leading(value, self.vectors[self.found.index(value)].clone())

    def at(self, u: Tensor) -> list[float]:
        """Of every task, from below, within a few percent. Hessian-vector products until two agree: at least 2, 3 from
        the field's direction, 1 where nothing has changed since the last look; waits for each.

        Raises Diverged where the Hessian is not finite.
        """
        if u is self.where:
            return self.found
        self.where = u
        if self.vectors is None:
            self.vectors = self._first_start()
            if self.known is None:
                self._multiply(u)
        drop, growth = UNCHANGED, UNCHANGED
        while True:  # |H v| grows towards lambda_max
            before, now = self.found, self._multiply(u).tolist()
            if not math.isfinite(sum(now)):
                raise Diverged(LEFT)
            self.found = [max(value, torch.finfo(u.dtype).eps) for value in now]
            grown = any(new > growth * old for new, old in zip(self.found, before, strict=True))
            if not grown and max(self.found) * drop >= max(before):
                break
            drop, growth = math.inf, SETTLED
        return self.found

    def _multiply(self, u: Tensor) -> Tensor:
        """One step of power iteration; |H v| (tasks,) of the unit vectors v that it began with."""
        tiny = torch.finfo(u.dtype).tiny
        unit = self.vectors / vector_norm(self.vectors, dim=-1, keepdim=True).clamp_min(tiny)
        product = self.flow.symmetric(self.flow.hvp(u, self.flow.symmetric(unit)))
        norm = vector_norm(product, dim=-1)
        self.vectors = product / norm.clamp_min(tiny)[:, None]
        return norm

    def _first_start(self) -> Tensor:
        field = self.flow.at_start
        noise = _noise(field.shape[-1], field.dtype, field.device)
        if self.known is not None:
            return (self.known.direction.to(field) + RANDOM * noise).expand_as(field)
        tiny = torch.finfo(field.dtype).tiny
        return field / vector_norm(field, dim=-1, keepdim=True).clamp_min(tiny) + RANDOM * noise


@functools.lru_cache(maxsize=1)  # a training asks for the same one at every update
def _noise(size: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    """A random direction (size,), always the same."""
    generator = torch.Generator().manual_seed(0)
    noise = torch.randn(size, generator=generator, dtype=torch.float64, device="cpu").to(device, dtype)
    return noise / vector_norm(noise)
