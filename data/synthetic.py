"""Regression families with a formula: 100 meta-train and 100 meta-test functions, drawn from ranges of parameters.

The paper's slides and its released code disagree about the families, so both readings are domains; which of them
has the plain name, and why, stands in the README's deviations.
"""

import numpy as np
import torch

from amaml.tasks import Tasks
from data import episodes
from data.domain import STANDARDISED, Domain, check_pool
from data.episodes import Sampling, draw_without_replacement, gather, generator

TASKS = 100
POOL = 1000

Parameters = dict[str, np.ndarray]  # each (tasks, 1, 1 or d), to broadcast over points and dimensions


class Synthetic(Domain):
    """Pools of 1000 support and 1000 query points a task, uniform on [-end, end]^d, standardised.

    The scalers are fitted on the meta-train tasks' support pools alone and applied to everything. A family is a
    subclass with its dimensions and end, draw and formula.
    """

    outputs = 1
    objective = STANDARDISED
    defaults = "synthetic"
    meta_test_tasks = TASKS
    end: float

    def draw(self, rng: np.random.Generator, tasks: int) -> Parameters:
        """The parameters of so many functions."""
        raise NotImplementedError

    def formula(self, x: np.ndarray, p: Parameters) -> np.ndarray:
        """The targets (tasks, points, 1) at x (tasks, points, d): terms summed over the dimensions."""
        raise NotImplementedError

    def __init__(self, sampling: Sampling) -> None:
        check_pool("support points of a task", sampling.shots, POOL, "--shots")
        check_pool("query points of a task", sampling.queries, POOL, "--queries")
        check_pool("meta-train tasks", sampling.meta_batch, TASKS, "--meta-batch")
        super().__init__(sampling)
        parameters = self.draw(generator(sampling.seed, episodes.META_TRAIN_TASKS), TASKS)
        support, query = ((x, self.formula(x, parameters)) for x in self._inputs(episodes.META_TRAIN_POINTS))
        self.x_scale, self.y_scale = ((values.mean((0, 1)), values.std((0, 1))) for values in support)
        self.pools = Tasks(*self._standardised(*support), *self._standardised(*query))  # of meta-training

    def episode(self, step: int) -> Tasks:
        """Different tasks, and support and query points of each without replacement, for every step."""
        s, pools = self.sampling, self.pools
        rng = generator(s.seed, episodes.EPISODE, step)
        tasks = rng.permutation(TASKS)[: s.meta_batch]
        support = draw_without_replacement(rng, s.meta_batch, POOL, s.shots)
        query = draw_without_replacement(rng, s.meta_batch, POOL, s.queries)
        drawn = [gather(pool, tasks, support) for pool in (pools.support_x, pools.support_y)]
        return Tasks(*drawn, *(gather(pool, tasks, query) for pool in (pools.query_x, pools.query_y)))

    def meta_test(self, count: int, first: int = 0) -> Tasks:
        """Tasks first to first + count - 1, of parameters drawn anew; the test points are the grid."""
        self.check_meta_test(first + count)
        s, chosen = self.sampling, slice(first, first + count)
        drawn = self.draw(generator(s.seed, episodes.META_TEST_TASKS), TASKS)
        parameters = {name: values[chosen] for name, values in drawn.items()}
        support, query = (pool[chosen] for pool in self._inputs(episodes.META_TEST_POINTS))
        inputs = support[:, : s.shots], query[:, : s.queries], np.tile(self.grid(), (count, 1, 1))
        return Tasks(*(t for x in inputs for t in self._standardised(x, self.formula(x, parameters))))

    def grid(self) -> np.ndarray:
        """The test points, (points, d): 1000 on a line, or a 31 x 31 mesh."""
        (d,) = self.input_shape
        axes = np.meshgrid(*[np.linspace(-self.end, self.end, POOL if d == 1 else 31)] * d, indexing="ij")
        return np.stack([axis.ravel() for axis in axes], axis=-1)

    def in_units(self, x: torch.Tensor, y: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Inputs (..., d) and outputs (..., 1) as the formula has them."""
        pairs = (x, self.x_scale), (y, self.y_scale)
        return tuple(v * v.new_tensor(deviation) + v.new_tensor(mean) for v, (mean, deviation) in pairs)

    def _inputs(self, stream: int) -> list[np.ndarray]:
        """The support and the query inputs of all tasks, each (tasks, points, d)."""
        rng = generator(self.sampling.seed, stream)
        return [rng.uniform(-self.end, self.end, (TASKS, POOL, *self.input_shape)) for _ in range(2)]

    def _standardised(self, x: np.ndarray, y: np.ndarray) -> list[torch.Tensor]:
        scaled = (x, self.x_scale), (y, self.y_scale)
        return [self.tensor((values - mean) / deviation) for values, (mean, deviation) in scaled]


class Alpine2D(Synthetic):
    """|x sin(x + phase) + 0.1 x|, a phase a dimension, as on the slides."""

    input_shape = (2,)
    end = 10.0

    def draw(self, rng: np.random.Generator, tasks: int) -> Parameters:
        return {"phase": rng.uniform(-5 * np.pi / 12, 5 * np.pi / 12, (tasks, 1, 2))}

    def formula(self, x: np.ndarray, p: Parameters) -> np.ndarray:
        return np.abs(x * np.sin(x + p["phase"]) + 0.1 * x).sum(-1, keepdims=True)


class Alpine2DReleased(Alpine2D):
    """As its authors have it: one phase of 11 values, so that there are 11 functions, all met in meta-training.

    The meta-test measures adaptation to functions met before; the other families draw no function twice.
    """

    def draw(self, rng: np.random.Generator, tasks: int) -> Parameters:
        return {"phase": np.pi + np.pi / 12 * rng.integers(-5, 5, (tasks, 1, 1), endpoint=True)}


class CosMixture(Synthetic):
    """-amplitude cos(frequency x + phase) - x^2, as released."""

    input_shape = (1,)
    end = 1.0
    ranges = {"amplitude": (0.1, 1.0), "frequency": (3 * np.pi, 6 * np.pi), "phase": (0.5, 2.0)}

    def draw(self, rng: np.random.Generator, tasks: int) -> Parameters:
        return {name: rng.uniform(*ends, (tasks, 1, 1)) for name, ends in self.ranges.items()}

    def formula(self, x: np.ndarray, p: Parameters) -> np.ndarray:
        return (-p["amplitude"] * np.cos(p["frequency"] * x + p["phase"]) - x**2).sum(-1, keepdims=True)


class CosMixtureSlides(CosMixture):
    """The slides put a factor 0.1 before an amplitude in [0.1, 1]."""

    ranges = {"amplitude": (0.01, 0.1), "frequency": (0.5 * np.pi, 2 * np.pi), "phase": (3.0, 6.0)}


class CosMixture2D(CosMixture):
    """In two dimensions, with the same parameters in each."""

    input_shape = (2,)


class CosMixture2DSlides(CosMixtureSlides):
    """In two dimensions, with the same parameters in each."""

    input_shape = (2,)
