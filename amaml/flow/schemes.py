"""Explicit Runge-Kutta schemes as data, taken step by step and transposed exactly.

A scheme is its tableau. What is kept of a step is what its transpose needs: the states at which the field was
evaluated. No autograd graph exists at any time.

The state at a time within a step is a combination of the step's own states, at no further evaluation (Hairer, Norsett,
Wanner, II.6). What an outer loss that looks there adds to lam enters the transpose by the same weights.
"""

import functools
import itertools
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple, Protocol

import numpy as np
import torch
from torch import Tensor

from amaml.flow.field import GradientFlow
from amaml.flow.quadrature import Quadrature

SHARES = np.linspace(0, 1, 21)  # of a step, at which the states within it are looked at for their largest miss
Stages = tuple[Tensor, ...]  # the states Y_i (tasks, P) of one step at which the field was evaluated, Y_1 = u


class Move(NamedTuple):
    """One step of a trajectory, from a time to a later one; h is the size the scheme used, to the last bit."""

    scheme: "Scheme"
    start: float
    end: float
    h: float


def cost(moves: Iterable[Move]) -> int:
    """Gradients that they take, and as many products on the way back."""
    return sum(move.scheme.cost for move in moves)


class Scheme(Protocol):
    """How to take steps and how to transpose them.

    cost: gradients a step; order: of convergence; stability: the largest h * lambda_max; usable: the part of it within
    which stiff components are damped well; error_constant: a step misses z^(order + 1) by that much on du/dt = -z u;
    within: how the states within a step are read.
    """

    @property
    def cost(self) -> int: ...
    @property
    def order(self) -> int: ...
    @property
    def stability(self) -> float: ...
    @property
    def usable(self) -> float: ...
    @property
    def error_constant(self) -> float: ...
    @property
    def within(self) -> "Within": ...

    def covering(self, z: float) -> "Scheme":
        """The cheapest of its family for steps of h * lambda_max = z; itself where it has none."""

    def slope(self, h: float, stages: Stages, after: Tensor) -> Tensor:
        """The field at the start of a step, from its stages and the state after it."""

    def step(self, flow: GradientFlow, h: float, u: Tensor) -> tuple[Stages, Tensor]:
        """One step of size h from u (tasks, P): its stages, and the state at its end."""

    def transposed(
        self, sweep: Quadrature, h: float, stages: Stages, lam: Tensor, direct: Sequence[Tensor]
    ) -> "Transposed":
        """The step's transpose, applied to the adjoint state at its end; sweep takes the products.

        direct: the sensitivities to the stages of what was read within the step; none where nothing was.
        """


class Transposed(NamedTuple):
    """lam (tasks, P) at the start of a step; and the last vector k that was multiplied by a Hessian, with the product
    H k: by their norms a lower bound of lambda_max."""

    lam: Tensor
    k: Tensor
    product: Tensor


@dataclass(frozen=True, eq=False)
class Within:
    """The states within a step, as combinations of its stages and the state at its end.

    coefficients (k, states): Taylor coefficients of these, the last one's those of the solution; orders (k,): of each.
    order: up to which a state within the step has all of them; error_constant: the largest miss of the next ones.
    """

    coefficients: np.ndarray
    orders: np.ndarray
    order: int
    error_constant: float = math.nan

    def weights(self, share: float) -> np.ndarray:
        """Of the stages and the state at the end, after a share of the step: of all that give the coefficients those
        nearest to the line from the first state to the last."""
        line = np.zeros(self.coefficients.shape[1])
        line[0], line[-1] = 1 - share, share
        return line + self._inverse @ (self.coefficients[:, -1] * share**self.orders - self.coefficients @ line)

    @functools.cached_property
    def _inverse(self) -> np.ndarray:
        return np.linalg.pinv(self.coefficients)


@dataclass(frozen=True)
class RungeKutta:
    """u_next = u + h sum_i b_i f(Y_i),  Y_i = u + h sum_(j<i) a_ij f(Y_j).

    Its tableau is all that is to be given; order, stability and error constant follow from it. Costs a gradient a stage
    forward and at most one Hessian-vector product a stage back.
    """

    name: str
    a: tuple[tuple[float, ...], ...]
    b: tuple[float, ...]

    @property
    def cost(self) -> int:
        """Gradients a step."""
        return len(self.b)

    @functools.cached_property
    def order(self) -> int:
        """By the conditions of all rooted trees (Butcher 1963; Hairer, Norsett, Wanner, II.2)."""
        order = 0
        while order < self.cost and (abs(self._misses(order + 1)) < 1e-12).all():
            order += 1
        return order

    @functools.cached_property
    def error_constant(self) -> float:
        """The largest coefficient of the local error; 1/(p+1)! where the p stages of order p are fewer than p + 1."""
        return float(abs(self._misses(self.order + 1)).max())

    @functools.cached_property
    def within(self) -> Within:
        """Of the highest order, up to the scheme's own, that its states allow; of the first they always do."""
        return next(found for order in range(self.order, 0, -1) if (found := self._within(order)))

    def _within(self, order: int) -> Within | None:
        rows = [self._taylor(nodes) for nodes in range(order + 1)]
        found = Within(np.concatenate(rows), np.repeat(range(order + 1), [len(one) for one in rows]), order)

        def missed(nodes: int) -> float:
            return max(float(abs(self._misses(nodes, s, found.weights(s))).max()) for s in SHARES)

        allowed = max(map(missed, range(1, order + 1))) < 1e-12
        return replace(found, error_constant=missed(order + 1)) if allowed else None

    def _taylor(self, nodes: int) -> np.ndarray:
        """The coefficients of all trees of so many nodes, in the stages and the state at the end."""
        if not nodes:
            return np.ones((1, self.cost + 1))
        weights = np.stack([self._weights(tree) for tree in _trees(nodes)])
        return np.column_stack([weights @ self._matrix.T, weights @ self.b])

    @functools.cached_property
    def stability(self) -> float:
        """The end of the real interval on which |R(-z)| <= 1."""
        powers = [(-1.0) ** k * w for k, w in enumerate(self._linear())]
        roots = np.concatenate([np.roots([*powers[:0:-1], 1.0 + side]) for side in (-1, 1)])
        ends = sorted(root.real for root in roots if abs(root.imag) < 1e-9 and root.real > 1e-6)
        return next(float(z) for z in ends if abs(np.polyval(powers[::-1], z * (1 + 1e-4))) > 1)

    @property
    def usable(self) -> float:
        """Towards the end of its interval a step damps stiff components less and less."""
        return 0.7 * self.stability

    def covering(self, z: float) -> "RungeKutta":
        """Itself."""
        return self

    def slope(self, h: float, stages: Stages, after: Tensor) -> Tensor:
        """The field at the start of a step, from its stages and the state after it."""
        return (after - stages[0]) / h if self.cost == 1 else (stages[1] - stages[0]) / (h * self.a[1][0])

    def _linear(self) -> list[float]:
        """The coefficients of the stability polynomial R(z) = 1 + sum_k z^k b A^(k-1) 1."""
        a, power = self._matrix, np.ones(self.cost)
        found = [1.0]
        for _ in self.b:
            found.append(float(np.dot(self.b, power)))
            power = a @ power
        return found

    def _misses(self, nodes: int, share: float = 1.0, weights: np.ndarray | None = None) -> np.ndarray:
        """By how much a state, after a share of the step by these weights or at its end, misses the condition of every
        rooted tree of so many nodes, over the tree's symmetry."""
        found = self._taylor(nodes)
        found = found[:, -1] if weights is None else found @ weights
        right, symmetry = np.array([(1 / _density(tree), _symmetry(tree)) for tree in _trees(nodes)]).T
        return (share**nodes * right - found) / symmetry

    def _weights(self, tree: "Tree") -> np.ndarray:
        """Of the slopes in the coefficient of a tree."""
        return math.prod((self._matrix @ self._weights(child) for child in tree), start=np.ones(self.cost))

    @functools.cached_property
    def _matrix(self) -> np.ndarray:
        return np.array([[*row, *[0.0] * (self.cost - len(row))] for row in self.a])

    def step(self, flow: GradientFlow, h: float, u: Tensor) -> tuple[Stages, Tensor]:
        """One step of size h from u."""
        stages, slopes = [], []
        for row in self.a:
            stages.append(_shifted(u, row, slopes, h))
            slopes.append(flow(stages[-1]))
        return tuple(stages), _shifted(u, self.b, slopes, h)

    def transposed(
        self, sweep: Quadrature, h: float, stages: Stages, lam: Tensor, direct: Sequence[Tensor]
    ) -> Transposed:
        """From the last stage to the first:
            k_i = h (b_i lam + sum_(j>i) a_ji w_j),    w_i = J_i' k_i + direct_i,    lam <- lam + sum_i w_i,
        where J_i = -D H(Y_i).
        The products are taken with k_i / scale_i, where scale_i = h b_i (h where b_i is 0).
        """
        total, back = lam, {}  # back: -w_i / scale_i
        scale = [h * b if b else h for b in self.b]
        for i in reversed(range(len(self.b))):
            weights = {j: h * self.a[j][i] * scale[j] / scale[i] for j in back if self.a[j][i]}
            if not (weights or self.b[i] or direct):
                continue
            k = lam if self.b[i] else torch.zeros_like(lam)
            for j, weight in weights.items():
                k = torch.sub(k, back[j], alpha=weight)
            product = sweep.product(stages[i], k, scale[i])
            back[i] = torch.sub(product, direct[i], alpha=1 / scale[i]) if direct else product
            total = torch.sub(total, back[i], alpha=scale[i])
        return Transposed(total, k, product)


EULER = RungeKutta("euler", ((),), (1.0,))
MIDPOINT = RungeKutta("midpoint", ((), (1 / 2,)), (0.0, 1.0))
RK3 = RungeKutta(  # Ralston 1962; also the steps of Bogacki and Shampine 1989
    "rk3", ((), (1 / 2,), (0.0, 3 / 4)), (2 / 9, 1 / 3, 4 / 9)
)
RK4 = RungeKutta(  # Kutta's 3/8 rule, which is what torchdiffeq means by rk4
    "rk4", ((), (1 / 3,), (-1 / 3, 1.0), (1.0, -1.0, 1.0)), (1 / 8, 3 / 8, 3 / 8, 1 / 8)
)
DOPRI5 = RungeKutta(  # Dormand and Prince 1980
    "dopri5",
    (
        (),
        (1 / 5,),
        (3 / 40, 9 / 40),
        (44 / 45, -56 / 15, 32 / 9),
        (19372 / 6561, -25360 / 2187, 64448 / 6561, -212 / 729),
        (9017 / 3168, -355 / 33, 46732 / 5247, 49 / 176, -5103 / 18656),
    ),
    (35 / 384, 0.0, 500 / 1113, 125 / 192, -2187 / 6784, 11 / 84),
)


class Descent(RungeKutta):
    """A step of gradient descent: taken because it was asked for, whatever it amplifies."""

    stability = math.inf


HEUN = MIDPOINT  # of the same order, stability and error constant
DESCENT = Descent("euler", EULER.a, EULER.b)
Tree = tuple  # a rooted tree, as the tuple of the trees that hang from its root


@functools.cache
def _trees(nodes: int) -> tuple[Tree, ...]:
    """All rooted trees of so many nodes."""
    if nodes == 1:
        return ((),)
    found = {
        tuple(sorted((*tree, child)))
        for size in range(1, nodes)
        for child, tree in itertools.product(_trees(size), _trees(nodes - size))
    }
    return tuple(sorted(found))


def _size(tree: Tree) -> int:
    return 1 + sum(map(_size, tree))


def _density(tree: Tree) -> int:
    """The condition of a tree is that its weight be 1 over this."""
    return _size(tree) * math.prod(map(_density, tree))


def _symmetry(tree: Tree) -> int:
    """In how many ways a tree is mapped onto itself."""
    return math.prod(math.factorial(tree.count(child)) for child in set(tree)) * math.prod(map(_symmetry, tree))


def _shifted(u: Tensor, weights: Sequence[float], slopes: Sequence[Tensor], h: float) -> Tensor:
    """u + h times the weighted sum of the slopes."""
    for weight, slope in zip(weights, slopes, strict=True):
        if weight:
            u = torch.add(u, slope, alpha=h * weight)
    return u
