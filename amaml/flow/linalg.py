"""Linear algebra on the rows of a batch: one symmetric matrix a task, known only by its products with vectors."""

from collections.abc import Callable

import torch
from torch import Tensor
from torch.linalg import vector_norm


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


def largest_eigenvalue(matvec: Callable[[Tensor], Tensor], start: Tensor, iterations: int) -> tuple[Tensor, Tensor]:
    """The eigenvalue of largest modulus of every task's symmetric matrix, by power iteration.

    start (tasks, P) begins the iteration; returns |A v| (tasks,) for the last unit v, a lower bound that is within
    a few percent after a handful of products, and the unit vectors (tasks, P) to begin from next time.
    """
    tiny = torch.finfo(start.dtype).tiny
    product = start
    for _ in range(iterations):
        vector = product / vector_norm(product, dim=-1, keepdim=True).clamp_min(tiny)
        product = matvec(vector)
    norm = vector_norm(product, dim=-1)
    return norm, product / norm.clamp_min(tiny).unsqueeze(-1)
