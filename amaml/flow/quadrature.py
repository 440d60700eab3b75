"""The meta-gradients of everything but theta, by one quadrature along the backward sweep.

Let f(u; psi) be the field of the inner loop, and lam the adjoint state. Whatever psi enters f,

    dJ/dpsi = dL_query/dpsi + integral over [0, T] of (df/dpsi)^T lam dt.

In the discrete transpose the integral is the sum over the stages of (df/dpsi)^T K_i at u = Y_i, where K_i is the
sensitivity to the stage's slope f(Y_i): exactly the derivative of the numbers that the forward scheme computed.
"""

from typing import NamedTuple

import torch
from torch import Tensor
from torch.utils._pytree import tree_flatten

from amaml.flow.field import GradientFlow
from amaml.tasks import Tasks


class Requested(NamedTuple):
    """Of what, beside theta, the meta-gradient is requested: leaves of tasks.support and tasks.query, the rate, prox."""

    support: tuple[int, ...] = ()
    query: tuple[int, ...] = ()
    rate: bool = False
    prox: bool = False


NOTHING = Requested()


def requested(tasks: Tasks, inner_lr: float | Tensor = 0.0, prox: float | Tensor = 0.0) -> Requested:
    """What requires a gradient."""
    return Requested(_requiring(tasks.support), _requiring(tasks.query), *map(_requires, (inner_lr, prox)))


class Quadrature:
    """Takes the Hessian-vector products of one backward sweep, and sums what each stage contributes to the rest.

    pulled (tasks, P): the sum of D K_i, which times prox is what the proximal term adds to lam(0). It is zero where
    prox is. Nothing is computed for what is not requested.
    """

    def __init__(self, flow: GradientFlow, requested: Requested) -> None:
        self.flow, self.requested = flow, requested
        self.pulled = self.to_rate = self.to_prox = flow.theta.new_zeros(())
        leaves = tree_flatten(flow.tasks.support)[0] if requested.support else []
        self.to_leaves = [torch.zeros_like(leaves[i]) for i in requested.support]

    def product(self, u: Tensor, k: Tensor, weight: float) -> Tensor:
        """(H(u) + prox I) D k, at a stage u (tasks, P) whose slope has the sensitivity K = weight k."""
        scaled = self.flow.scaled(k)
        self._add_prox(u, scaled, weight)
        if not (self.requested.support or self.requested.rate):
            return self.flow.hvp(u, scaled)
        field, product, leaves = self.flow.pull_back(u, scaled, self.requested.support)
        if self.requested.rate:
            self.to_rate = self.to_rate + weight * (field * k).sum(0)
        for total, leaf in zip(self.to_leaves, leaves, strict=True):
            total.sub_(leaf, alpha=weight)
        return product

    def add(self, u: Tensor, k: Tensor, weight: float) -> None:
        """The contribution of a stage of which no product is needed."""
        if self.requested.support or self.requested.rate:
            self.product(u, k, weight)
        else:
            self._add_prox(u, self.flow.scaled(k), weight)

    def _add_prox(self, u: Tensor, scaled: Tensor, weight: float) -> None:
        if self.flow.prox:
            self.pulled = self.pulled + weight * scaled
        if self.requested.prox:
            self.to_prox = self.to_prox - weight * ((u - self.flow.theta) * scaled).sum()

    def gradients(self, direct: list[Tensor], inner_lr: float = 1.0) -> dict[str, Tensor]:
        """dJ/dpsi by the names of Tasks.leaves(), "inner_lr" and "prox"; J is the mean over the tasks.

        direct: dL_query/dpsi of the requested leaves of the query set. A scalar rate inner_lr is the horizon T = inner_lr
        inner_steps, with all steps in proportion; rates (P,) are those of the flow.
        """
        tasks, found = self.flow.tasks, {}
        for part, numbers, totals in (
            ("support", self.requested.support, self.to_leaves),
            ("query", self.requested.query, direct),
        ):
            names = tasks.names(part) if numbers else []
            for i, total in zip(numbers, totals, strict=True):
                found[names[i]] = found.get(names[i], 0.0) + total / len(tasks)
        if self.requested.rate:
            rates = self.flow.rates
            found["inner_lr"] = (self.to_rate.sum() / inner_lr if rates is None else self.to_rate) / len(tasks)
        if self.requested.prox:
            found["prox"] = self.to_prox / len(tasks)
        return found


def _requiring(points: tuple) -> tuple[int, ...]:
    if all(isinstance(part, Tensor) for part in points):
        return tuple(i for i, part in enumerate(points) if part.requires_grad)
    return tuple(i for i, leaf in enumerate(tree_flatten(points)[0]) if leaf.requires_grad)


def _requires(value: float | Tensor) -> bool:
    return isinstance(value, Tensor) and value.requires_grad
