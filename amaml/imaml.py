"""iMAML: the meta-gradient of a regularised inner optimum, from the implicit function theorem."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from torch import Tensor

from amaml.arguments import check_count, check_nonnegative, number
from amaml.checks import validated
from amaml.descending import Descending
from amaml.engine.derivatives import Loss
from amaml.errors import InputError
from amaml.flow.field import GradientFlow
from amaml.flow.quadrature import Quadrature, Requested, requested
from amaml.learner import Followed, MetaGradient, query_along
from amaml.robust import Lengths
from amaml.tasks import Tasks


@dataclass(frozen=True, eq=False)
class IMAML(Descending):
    """Meta-Learning with Implicit Gradients (Rajeswaran et al. 2019, algorithms 1 and 2).

    phi  = K gradient steps from theta on L_support(u) + prox/2 |u - theta|^2
    v    = (I + H/prox)^-1 grad L_query(phi),   H the Hessian of L_support at phi,   value = mean over tasks of v
    solved by cg_steps conjugate-gradient iterations. damping > 0 solves (1 + damping) v + H v / (prox + damping)
    instead, as the authors' released code does (with 1.0); it biases the gradient, so the default is 0.
    query_loss: the outer loss where it is another one. prox and the tensors of the tasks get their gradient by the same
    theorem where they require one: MetaGradient.gradients.
    Costs K + 1 gradients and cg_steps Hessian-vector products. The gradient is exact only where the inner loop has
    converged, that is for inner_lr * inner_steps * prox well above 1.
    """

    prox: float | Tensor = 2.0
    cg_steps: int = 5
    damping: float = 0.0
    query_loss: Loss | None = None
    gradients_of: ClassVar[tuple[str, ...]] = ("theta", "shared.", "query_", "support_", "prox", "phi")

    def __post_init__(self) -> None:
        super().__post_init__()
        check_nonnegative(damping=self.damping)
        if not self.prox > 0:
            raise InputError(f"iMAML needs a positive prox, the strength of its regulariser, got {self.prox!r}")
        check_count("cg_steps", self.cg_steps)

    def flow(self, theta: Tensor, tasks: Tasks) -> GradientFlow:
        """With the pull of the regulariser."""
        return replace(super().flow(theta, tasks), prox=float(number(self.prox)))

    def request(self, tasks: Tasks) -> Requested:
        """Of what a gradient is wanted, beside theta."""
        return requested(tasks, prox=self.prox)

    @validated
    def gradient(self, theta: Tensor, tasks: Tasks, memory: Lengths) -> MetaGradient:
        """v of every task."""
        flow, request = self.flow(theta, tasks), self.request(tasks)
        path = self.path(flow, [self.inner_steps])  # (1, tasks, P)
        lam, query_loss, direct = query_along(self, path, flow.tasks, request.query)
        v, implicit = self._implicit(flow, path[0], lam[0], request)
        return self.averaged(memory, v, query_loss, flow.evaluations, implicit, direct)

    def pull_back(self, followed: Followed, lam: Tensor, memory: Lengths) -> MetaGradient:
        """By the implicit function theorem; raises InputError for earlier steps, which are no inner optimum."""
        flow, at, request = followed.kept
        if at != (self.inner_steps,):
            raise InputError(
                f"method imaml has the gradient of the end of its inner loop alone, {self.inner_steps} steps, got {at}"
            )
        v, implicit = self._implicit(flow, followed.path[0], lam[0], request)
        return self.averaged(memory, v, None, flow.evaluations, implicit)

    def _implicit(self, flow: GradientFlow, phi: Tensor, lam: Tensor, request: Requested) -> tuple[Tensor, Quadrature]:
        """v (tasks, P) of the sensitivity lam to phi, and what it contributes to all else:
        d phi/d psi = (H + prox)^-1 d(field)/d psi."""

        def matvec(v: Tensor) -> Tensor:
            hessian_v = flow.hvp(phi, v) - flow.prox * v  # the flow's product holds the regulariser too
            return (1 + self.damping) * v + hessian_v / (flow.prox + self.damping)

        v, implicit = conjugate_gradient(matvec, lam, self.cg_steps), Quadrature(flow, request)
        implicit.add(phi, v / flow.prox, 1.0)
        return v, implicit


def row_dot(a: Tensor, b: Tensor) -> Tensor:
    """Inner products of the rows of two (tasks, P) tensors, (tasks, 1)."""
    return (a * b).sum(-1, keepdim=True)


def conjugate_gradient(matvec: Callable[[Tensor], Tensor], b: Tensor, iterations: int) -> Tensor:
    """Solve A x = b for every row of b (tasks, P), A symmetric positive definite per task, from x = 0.

    Hestenes and Stiefel 1952; one matvec an iteration. A row that has converged, or that meets a direction d with
    d' A d <= 0, keeps the x that it has while the others go on. Where the first direction, b, is such a one, x is 0.
    """
    x, residual, direction = torch.zeros_like(b), b, b
    norm = row_dot(residual, residual)
    going_on = torch.ones_like(norm, dtype=torch.bool)
    for _ in range(iterations):
        product = matvec(direction)
        curvature = row_dot(direction, product)
        going_on = going_on & (curvature > 0)
        step = torch.where(going_on, norm / curvature, 0.0)
        x = x + step * direction
        residual = residual - step * product
        new_norm = row_dot(residual, residual)
        direction = residual + torch.where(norm > 0, new_norm / norm, 0.0) * direction
        norm = new_norm
    return x
