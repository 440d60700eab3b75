"""The inner loop as a differential equation: du/dt = -grad L_support(u) - prox (u - theta)."""

import functools
import math
from dataclasses import dataclass, field, fields

import torch
from torch import Tensor

from amaml.flow import derivatives
from amaml.flow.derivatives import Loss
from amaml.models import Apply
from amaml.tasks import Tasks


@dataclass
class Evaluations:
    """What a meta-gradient cost, counted in batched calls: one serves all tasks, one for a fifth of them is a fifth."""

    gradients: int = 0
    hvps: int = 0
    recomputations: int = 0  # gradients taken again between the states that were kept

    def add(self, other: "Evaluations", share: float = 1.0) -> None:
        """Count in what was spent on a share of the tasks, to the next whole call."""
        for f in fields(self):
            setattr(self, f.name, getattr(self, f.name) + math.ceil(share * getattr(other, f.name)))


@dataclass(frozen=True)
class GradientFlow:
    """The vector field of a batch of tasks, as torchdiffeq calls it: flow(t, u) -> du/dt, both (tasks, P).

    A-MAML, section 3; with prox > 0 the field pulls towards theta (P,) as well. The field does not depend on t,
    and its Jacobian, minus the Hessian of the regularised support loss, is symmetric. Counts its evaluations.
    """

    apply: Apply
    loss: Loss
    tasks: Tasks
    theta: Tensor
    prox: float = 0.0
    evaluations: Evaluations = field(default_factory=Evaluations)

    @functools.cached_property
    def start(self) -> Tensor:
        """u(0) = theta for every task, (tasks, P)."""
        return self.theta.expand(len(self.tasks), -1)

    @functools.cached_property
    def initial(self) -> Tensor:
        """The field at the start, (tasks, P), computed once."""
        return self._field(self.start)

    def __call__(self, t: Tensor | float, u: Tensor) -> Tensor:
        return self.initial if u is self.start else self._field(u)

    @torch.no_grad()
    def _field(self, u: Tensor) -> Tensor:
        self.evaluations.gradients += 1
        gradient = derivatives.gradients(self.apply, self.loss, u, self.tasks.support_x, self.tasks.support_y)
        return -gradient - self.prox * (u - self.theta) if self.prox else -gradient

    @torch.no_grad()
    def hvp(self, u: Tensor, v: Tensor) -> Tensor:
        """(H(u) + prox I) v, minus the field's Jacobian times v, (tasks, P)."""
        self.evaluations.hvps += 1
        product = derivatives.hvps(self.apply, self.loss, u, v, self.tasks.support_x, self.tasks.support_y)
        return product + self.prox * v if self.prox else product
