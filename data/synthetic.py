"""Regression families with a formula: 100 meta-train and 100 meta-test functions, drawn from ranges of parameters.

The paper's slides and its released code disagree about the families, so both readings are domains; which of them
has the plain name, and why, stands in the README's deviations.

Alpine2D-released is kept as its authors have it: its one phase takes 11 values, so that there are 11 functions in all,
every one of them among the 100 of meta-training. Its meta-test measures adaptation to functions that were met before;
the other families draw theirs from a continuum, and no function twice.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch

from amaml.tasks import Tasks
from data import episodes
from data.episodes import STANDARDISED, Sampling, check_pool, draw_without_replacement, gather, generator

TASKS = 100
POOL = 1000

Parameters = dict[str, np.ndarray]  # each (tasks, 1, 1 or d), to broadcast over points and dimensions


@dataclass(frozen=True)
class Family:
    """A formula and where its parameters and inputs come from.

    draw(rng, tasks) -> parameters; formula(x (tasks, points, d), parameters) -> terms (tasks, points, d), which are
    summed over the dimensions; inputs are uniform on [low, high]^d.
    """

    dimensions: int
    low: float
    high: float
    draw: Callable[[np.random.Generator, int], Parameters]
    formula: Callable[[np.ndarray, Parameters], np.ndarray]

    def inputs(self, rng: np.random.Generator, tasks: int, points: int) -> np.ndarray:
        return rng.uniform(self.low, self.high, (tasks, points, self.dimensions))

    def outputs(self, x: np.ndarray, parameters: Parameters) -> np.ndarray:
        return self.formula(x, parameters).sum(-1, keepdims=True)

    def grid(self) -> np.ndarray:
        """The test points, (points, d): 1000 on a line, or a 31 x 31 mesh."""
        side = POOL if self.dimensions == 1 else 31
        axes = np.meshgrid(*[np.linspace(self.low, self.high, side)] * self.dimensions, indexing="ij")
        return np.stack([axis.ravel() for axis in axes], axis=-1)


def _uniform(**ranges: tuple[float, float]) -> Callable[[np.random.Generator, int], Parameters]:
    return lambda rng, tasks: {name: rng.uniform(*ends, (tasks, 1, 1)) for name, ends in ranges.items()}


def _alpine(x: np.ndarray, p: Parameters) -> np.ndarray:
    return np.abs(x * np.sin(x + p["phase"]) + 0.1 * x)


def _alpine_slides(rng: np.random.Generator, tasks: int) -> Parameters:
    return {"phase": rng.uniform(-5 * np.pi / 12, 5 * np.pi / 12, (tasks, 1, 2))}


def _alpine_released(rng: np.random.Generator, tasks: int) -> Parameters:
    steps = rng.integers(-5, 5, (tasks, 1, 1), endpoint=True)  # 11 functions, see above
    return {"phase": np.pi + np.pi / 12 * steps}


def _cosines(x: np.ndarray, p: Parameters) -> np.ndarray:
    return -p["amplitude"] * np.cos(p["frequency"] * x + p["phase"]) - x**2


_RELEASED = _uniform(amplitude=(0.1, 1.0), frequency=(3 * np.pi, 6 * np.pi), phase=(0.5, 2.0))
# the slides put a factor 0.1 before an amplitude in [0.1, 1]
_SLIDES = _uniform(amplitude=(0.01, 0.1), frequency=(0.5 * np.pi, 2 * np.pi), phase=(3.0, 6.0))

FAMILIES = {
    "Alpine2D": Family(2, -10.0, 10.0, _alpine_slides, _alpine),
    "Alpine2D-released": Family(2, -10.0, 10.0, _alpine_released, _alpine),
    "CosMixture": Family(1, -1.0, 1.0, _RELEASED, _cosines),
    "CosMixture-slides": Family(1, -1.0, 1.0, _SLIDES, _cosines),
    "CosMixture2D": Family(2, -1.0, 1.0, _RELEASED, _cosines),
    "CosMixture2D-slides": Family(2, -1.0, 1.0, _SLIDES, _cosines),
}


class Synthetic:
    """A family as a domain: pools of 1000 support and 1000 query points a task, standardised.

    The scalers are fitted on the meta-train tasks' support pools alone and applied to everything.
    """

    outputs = 1
    images = False
    objective = STANDARDISED

    def __init__(self, family: Family, sampling: Sampling) -> None:
        check_pool("support points of a task", sampling.shots, POOL, "--shots")
        check_pool("query points of a task", sampling.queries, POOL, "--queries")
        check_pool("meta-train tasks", sampling.meta_batch, TASKS, "--meta-batch")
        self.family, self.sampling, self.input_shape = family, sampling, (family.dimensions,)
        parameters = family.draw(generator(sampling.seed, episodes.META_TRAIN_TASKS), TASKS)
        rng = generator(sampling.seed, episodes.META_TRAIN_POINTS)
        support_x, query_x = family.inputs(rng, TASKS, POOL), family.inputs(rng, TASKS, POOL)
        support_y, query_y = family.outputs(support_x, parameters), family.outputs(query_x, parameters)
        self.x_scale, self.y_scale = _scaler(support_x), _scaler(support_y)
        self.support_x, self.query_x = (
            self._tensor(support_x, self.x_scale),
            self._tensor(query_x, self.x_scale),
        )
        self.support_y, self.query_y = (
            self._tensor(support_y, self.y_scale),
            self._tensor(query_y, self.y_scale),
        )

    def episode(self, step: int) -> Tasks:
        """Different tasks, and support and query points of each without replacement, for every step."""
        s = self.sampling
        rng = generator(s.seed, episodes.EPISODE, step)
        tasks = rng.permutation(TASKS)[: s.meta_batch]
        support = draw_without_replacement(rng, s.meta_batch, POOL, s.shots)
        query = draw_without_replacement(rng, s.meta_batch, POOL, s.queries)
        return Tasks(
            gather(self.support_x, tasks, support),
            gather(self.support_y, tasks, support),
            gather(self.query_x, tasks, query),
            gather(self.query_y, tasks, query),
        )

    def meta_test(self, count: int, first: int = 0) -> Tasks:
        """Tasks first to first + count - 1, of parameters drawn anew; the test points are the family's grid.

        New functions but for Alpine2D-released. Raises InputError where there are not so many.
        """
        self.check_meta_test(first + count)
        s, family, chosen = self.sampling, self.family, slice(first, first + count)
        drawn = family.draw(generator(s.seed, episodes.META_TEST_TASKS), TASKS)
        parameters = {name: values[chosen] for name, values in drawn.items()}
        rng = generator(s.seed, episodes.META_TEST_POINTS)
        support = family.inputs(rng, TASKS, POOL)[chosen, : s.shots]
        query = family.inputs(rng, TASKS, POOL)[chosen, : s.queries]
        grid = np.broadcast_to(family.grid(), (count, *family.grid().shape))
        pairs = []
        for x in (support, query, grid):
            pairs += [
                self._tensor(x, self.x_scale),
                self._tensor(family.outputs(x, parameters), self.y_scale),
            ]
        return Tasks(*pairs)

    def check_meta_test(self, count: int) -> None:
        """Raise InputError where there are fewer meta-test tasks."""
        check_pool("meta-test tasks", count, TASKS, "--test-tasks")

    def in_units(self, x: torch.Tensor, y: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Inputs (..., d) and outputs (..., 1) as the formula has them: the standardisation undone."""

        def undo(values: torch.Tensor, scale: tuple[np.ndarray, np.ndarray]) -> torch.Tensor:
            mean, deviation = (torch.as_tensor(part).to(values) for part in scale)
            return values * deviation + mean

        return undo(x, self.x_scale), undo(y, self.y_scale)

    def _tensor(self, values: np.ndarray, scale: tuple[np.ndarray, np.ndarray]) -> torch.Tensor:
        mean, deviation = scale
        return torch.as_tensor((values - mean) / deviation).to(self.sampling.device, self.sampling.dtype)


def _scaler(values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Mean and standard deviation of every column over all tasks and points."""
    return values.mean((0, 1)), values.std((0, 1))
