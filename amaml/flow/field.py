"""The inner loop as a differential equation: du/dt = -D (grad L_support(u) + prox (u - theta))."""

import functools
import math
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from amaml.engine import derivatives
from amaml.engine.derivatives import Loss
from amaml.engine.graphs import Bound
from amaml.errors import OverBudget
from amaml.models import Apply
from amaml.points import map_points
from amaml.tasks import Tasks


@dataclass
class Evaluations:
    """What a meta-gradient cost. One evaluation is one batched call, for all tasks at once."""

    gradients: int = 0
    hvps: int = 0
    recomputations: int = 0  # gradients taken again between the states that were kept
    measuring: int = 0  # of the gradients and products, those of the solves that a first one was compared with

    @property
    def total(self) -> int:
        """Gradients and Hessian-vector products, without the recomputed ones."""
        return self.gradients + self.hvps

    @staticmethod
    def of_parts(parts: list["Evaluations"], shares: list[float]) -> "Evaluations":
        """What parts of a batch cost together; each part counts by its share of the tasks."""
        pairs = list(zip(parts, shares, strict=True))
        return Evaluations(*(round(sum(vars(p)[name] * share for p, share in pairs)) for name in vars(Evaluations())))


@dataclass(frozen=True)
class GradientFlow:
    """The vector field of a batch of tasks: flow(u) -> du/dt, both (tasks, P).

    A-MAML, section 3; with prox > 0 the field pulls towards theta (P,) as well. It does not depend on time, and its
    Jacobian, minus the Hessian of the regularised support loss, is symmetric. Counts its evaluations, and
    raises OverBudget as soon as their total passes the limit.

    rates: the diagonal of D (P,), None for the identity: a rate of its own for every parameter (Meta-SGD, Li et al.
    2017). The field is a gradient flow in D^(-1/2) u, so that its Jacobian -D H has the real eigenvalues of the
    symmetric -D^(1/2) H D^(1/2).
    """

    apply: Apply
    loss: Loss
    tasks: Tasks
    theta: Tensor
    prox: float = 0.0
    evaluations: Evaluations = field(default_factory=Evaluations)
    limit: float = math.inf
    rates: Tensor | None = None
    bound: Bound = field(default_factory=dict, repr=False)

    @functools.cached_property
    def start(self) -> Tensor:
        """u(0) = theta for every task, (tasks, P)."""
        return self.theta.expand(len(self.tasks), -1)

    @functools.cached_property
    def at_start(self) -> Tensor:
        """The field at u(0), (tasks, P), computed once."""
        return self._field(self.start)

    def __call__(self, u: Tensor) -> Tensor:
        return self.at_start if u is self.start else self._field(u)

    def _field(self, u: Tensor) -> Tensor:
        return self.scaled(self.gradient(u)).neg_()  # of a tensor that nobody else has

    def gradient(self, u: Tensor, points: Tensor | None = None) -> Tensor:
        """grad L_support(u) + prox (u - theta), (tasks, P); points (n,): numbers of support points, None for all."""
        self.evaluations.gradients += 1
        self.check_budget()
        gradient = derivatives.gradients(self.apply, self.loss, u, *self._given(points))
        return gradient.add_(u - self.theta, alpha=self.prox) if self.prox else gradient

    def hvp(self, u: Tensor, v: Tensor, points: Tensor | None = None) -> Tensor:
        """(H(u) + prox I) v, minus the field's Jacobian times v, (tasks, P); points as in gradient."""
        self.evaluations.hvps += 1
        self.check_budget()
        product = derivatives.hvps(self.apply, self.loss, u, v, *self._given(points))
        return product.add_(v, alpha=self.prox) if self.prox else product

    @torch.no_grad()
    def pull_back(
        self, u: Tensor, v: Tensor, leaves: tuple[int, ...], points: Tensor | None = None
    ) -> tuple[Tensor, Tensor, tuple[Tensor, ...]]:
        """The field without its D, hvp(u, v), and v' d(grad L_support)/d(leaf) for those leaves of tasks.support."""
        self.evaluations.hvps += 1
        self.check_budget()
        x, y, _ = self._given(points)
        gradient, product, *pulled = derivatives.pull_backs(self.apply, self.loss, u, v, x, y, leaves)
        slope = -gradient - self.prox * (u - self.theta) if self.prox else -gradient
        return slope, product + self.prox * v if self.prox else product, tuple(pulled)

    def limited(self, limit: float) -> "GradientFlow":
        """The same with another limit."""
        other = replace(self, limit=limit)
        vars(other).update({name: value for name, value in vars(self).items() if name in ("start", "at_start")})
        return other

    def scaled(self, v: Tensor) -> Tensor:
        """D v."""
        return v if self.rates is None else self.rates * v

    def symmetric(self, v: Tensor) -> Tensor:
        """D^(1/2) v: of an adjoint state, the one in the coordinates in which the Jacobian is symmetric."""
        return v if self.rates is None else self.rates.sqrt() * v

    @functools.cached_property
    def _support(self) -> tuple:
        return self.tasks.support

    def _given(self, points: Tensor | None) -> tuple:
        """x, y and what was looked up for them."""
        if points is None:
            return *self._support, self.bound
        return *(map_points(lambda t: t[:, points] if t.ndim > 1 else t, part) for part in self._support), None

    def check_budget(self, further: float = 0) -> None:
        """Raise OverBudget where the evaluations, with so many further ones, are more than the limit."""
        if self.evaluations.total + further > self.limit:
            raise OverBudget(
                f"the meta-gradient takes more than the {self.limit:.0f} evaluations of its budget; try a smaller "
                "inner_lr, fewer inner steps, a larger rtol, or solver auto or euler"
            )
