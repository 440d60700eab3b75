"""The meta-gradients of everything but theta, by one quadrature along the backward sweep.

Let f(u; psi) be the field of the inner loop, and lam the adjoint state. Whatever psi enters f,

    dJ/dpsi = dL_query/dpsi + integral over [0, T] of (df/dpsi)^T lam dt.

In the discrete transpose the integral is the sum over the stages of (df/dpsi)^T K_i at u = Y_i, where K_i is the
sensitivity to the stage's slope f(Y_i): exactly the derivative of the numbers that the forward scheme computed.
"""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves

from amaml.flow.field import GradientFlow
from amaml.robust import weighted
from amaml.tasks import Tasks


class Requested(NamedTuple):
    """Of what, beside theta, the meta-gradient is requested.

    support, query: leaves of tasks.support and tasks.query; rate: inner_lr; schedule: how many sizes of single steps;
    numbers: names and shapes of those of the inner optimiser.
    """

    support: tuple[int, ...] = ()
    query: tuple[int, ...] = ()
    rate: bool = False
    prox: bool = False
    schedule: int = 0
    numbers: tuple[tuple[str, torch.Size], ...] = ()


NOTHING = Requested()


def requested(
    tasks: Tasks,
    inner_lr: float | Tensor = 0.0,
    prox: float | Tensor = 0.0,
    schedule: Tensor | None = None,
    numbers: Mapping[str, float | Tensor] | None = None,
) -> Requested:
    """What requires a gradient."""
    named = tuple((name, number.shape) for name, number in (numbers or {}).items() if _requires(number))
    sizes = len(schedule) if _requires(schedule) else 0
    rate_and_prox = map(_requires, (inner_lr, prox))
    return Requested(_requiring(tasks.support), _requiring(tasks.query), *rate_and_prox, sizes, named)


class Quadrature:
    """Takes the Hessian-vector products of one backward sweep, and sums what each stage contributes to the rest.

    pulled (tasks, P): the sum of D K_i, which times prox is what the proximal term adds to lam(0). It is zero where
    prox is. Nothing is computed for what is not requested. Sums are over the tasks.
    """

    def __init__(self, flow: GradientFlow, requested: Requested) -> None:
        self.flow, self.requested = flow, requested
        self.pulled, self.to_prox = torch.zeros_like(flow.start), flow.theta.new_zeros(len(flow.tasks))
        self.to_rate = torch.zeros_like(flow.start) if requested.rate else None  # (tasks, P)
        leaves = tree_leaves(flow.tasks.support) if requested.support else []
        self.to_leaves = [torch.zeros_like(leaves[i]) for i in requested.support]
        self.to_numbers = {name: flow.theta.new_zeros(shape) for name, shape in requested.numbers}
        self.to_steps: dict[int, Tensor] = {}  # of the schedule, (tasks,) each

    def product(self, u: Tensor, k: Tensor, weight: float) -> Tensor:
        """(H(u) + prox I) D k, at a stage u (tasks, P) whose slope has the sensitivity K = weight k."""
        scaled = self.flow.scaled(k)
        self._add_prox(u, scaled, weight)
        if not (self.requested.support or self.requested.rate):
            return self.flow.hvp(u, scaled)
        field, product, leaves = self.flow.pull_back(u, scaled, self.requested.support)
        if self.requested.rate:
            self.to_rate = self.to_rate + weight * field * k
        for total, leaf in zip(self.to_leaves, leaves, strict=True):
            total.sub_(leaf, alpha=weight)
        return product

    def add(self, u: Tensor, k: Tensor, weight: float) -> None:
        """The contribution of a stage of which no product is needed."""
        if self.requested.support or self.requested.rate:
            self.product(u, k, weight)
        else:
            self._add_prox(u, self.flow.scaled(k), weight)

    def pull_gradient(self, u: Tensor, v: Tensor, points: Tensor | None = None) -> Tensor:
        """(H(u) + prox I) v, where the gradient at u, of all support points or of some, has the sensitivity v."""
        self._add_prox(u, v, -1.0)
        if not self.requested.support:
            return self.flow.hvp(u, v, points)
        _, product, leaves = self.flow.pull_back(u, v, self.requested.support, points)
        names = self.flow.tasks.names("support")
        for i, total, leaf in zip(self.requested.support, self.to_leaves, leaves, strict=True):
            if points is None or total.ndim == 1 or names[i].startswith("shared."):
                total.add_(leaf)
            else:
                total.index_add_(1, points, leaf)
        return product

    def add_step(self, update: Tensor, lam: Tensor, h: float, number: int, to_numbers: Mapping[str, Tensor]) -> None:
        """What lam (tasks, P), at the end of step `number` of size h along -D update, contributes to the rates; and the
        contribution of the step to the numbers of the inner optimiser."""
        if self.requested.rate:
            self.to_rate = self.to_rate - h * update * lam
        if self.requested.schedule:
            self.to_steps[number] = -(self.flow.scaled(update) * lam).sum(-1)
        for name, total in self.to_numbers.items():
            total.add_(to_numbers[name])

    def _add_prox(self, u: Tensor, scaled: Tensor, weight: float) -> None:
        if self.flow.prox:
            self.pulled.add_(scaled, alpha=weight)
        if self.requested.prox:
            self.to_prox = self.to_prox - weight * ((u - self.flow.theta) * scaled).sum(-1)

    def gradients(
        self, direct: Sequence[Tensor] = (), inner_lr: float = 1.0, weights: Tensor | None = None
    ) -> dict[str, Tensor]:
        """dJ/dpsi, the mean over the tasks, by the names of Tasks.leaves(), "inner_lr", "prox", "schedule" and those of
        the optimiser's numbers.

        direct: dL_query/dpsi of the requested leaves of the query set. A scalar rate inner_lr is the horizon T =
        inner_lr inner_steps, with all steps in proportion; rates (P,) are those of the flow.
        weights (tasks,): of the tasks, in all but what the sweep sums over them, shared tensors and the numbers of the
        optimiser.
        """
        tasks, found = self.flow.tasks, dict(self.to_numbers)
        for part, numbers, totals in (
            ("support", self.requested.support, self.to_leaves),
            ("query", self.requested.query, direct),
        ):
            names = tasks.names(part) if totals else []
            for i, total in zip(numbers, totals, strict=bool(totals)):
                rows = total if names[i].startswith("shared.") else weighted(total, weights)
                found[names[i]] = found.get(names[i], 0.0) + rows
        if self.requested.rate:
            to_rate = weighted(self.to_rate, weights).sum(0)
            found["inner_lr"] = to_rate.sum() / inner_lr if self.flow.rates is None else to_rate
        if self.requested.prox:
            found["prox"] = weighted(self.to_prox, weights).sum()
        if self.requested.schedule:
            zero = torch.zeros_like(self.to_prox)
            steps = torch.stack([self.to_steps.get(k, zero) for k in range(self.requested.schedule)], 1)
            found["schedule"] = weighted(steps, weights).sum(0)
        return {name: gradient / len(tasks) for name, gradient in found.items()}


def _requiring(points: tuple) -> tuple[int, ...]:
    return tuple(i for i, leaf in enumerate(tree_leaves(points)) if leaf.requires_grad)


def _requires(value: float | Tensor | None) -> bool:
    return isinstance(value, Tensor) and value.requires_grad
