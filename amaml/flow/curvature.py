"""lambda_max, the largest eigenvalue of the support Hessian, along a trajectory."""

import math

import torch
from torch import Tensor

from amaml.errors import Diverged
from amaml.flow.field import GradientFlow
from amaml.flow.linalg import largest_eigenvalue

MOST_PRODUCTS = 10  # of one estimate of lambda_max
SETTLED = 1.1  # ratio of two successive products, at which one stops


class Curvature:
    """lambda_max along a trajectory, by warm-started power iteration; the first start is the field itself."""

    def __init__(self, flow: GradientFlow) -> None:
        self.flow, self.vectors = flow, None

    def at(self, u: Tensor) -> list[float]:
        """Of every task. Hessian-vector products until two agree, at least 2, 3 the first time; waits for each."""

        def matvec(v: Tensor) -> Tensor:
            return self.flow.hvp(u, v)

        if self.vectors is None:
            _, self.vectors = largest_eigenvalue(matvec, self.flow.initial, 1)
        found = [0.0] * len(u)
        for _ in range(MOST_PRODUCTS):
            before = found
            values, self.vectors = largest_eigenvalue(matvec, self.vectors, 1)
            found = values.tolist()
            if not math.isfinite(sum(found)):
                raise Diverged("the inner loop left the finite numbers; try a smaller inner_lr or fewer inner steps")
            if all(new <= SETTLED * old for new, old in zip(found, before, strict=True)):
                break
        return [max(value, torch.finfo(u.dtype).eps) for value in found]
