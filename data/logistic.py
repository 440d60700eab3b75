"""Two classes with a plane between them: an endless stream of tasks for a linear model, a check that takes seconds.

x is standard normal in 50 dimensions and the class is whether w . x > 0. Every task has its own w: a direction shared
by all tasks plus a random one as long, so that the shared direction alone tells about 3 points in 4.
"""

import numpy as np
import torch

from amaml.tasks import Tasks
from data import episodes
from data.episodes import CLASSES, Sampling, generator

INPUTS = 50
TEST_POINTS = 500


class Logistic:
    """Every episode holds new tasks; the meta-test tasks come from a stream of their own, with 500 test points each.

    shots and queries count the points of a task, not of a class.
    """

    input_shape = (INPUTS,)
    outputs = 2
    images = False
    objective = CLASSES

    def __init__(self, sampling: Sampling) -> None:
        self.sampling = sampling
        shared = generator(sampling.seed, episodes.META_TRAIN_TASKS).standard_normal(INPUTS)
        self.direction = shared / np.linalg.norm(shared)

    def episode(self, step: int) -> Tasks:
        """meta_batch tasks that no other step sees."""
        return self._tasks(generator(self.sampling.seed, episodes.EPISODE, step), self.sampling.meta_batch)

    def meta_test(self, count: int, first: int = 0) -> Tasks:
        """Tasks first to first + count - 1, with test points."""
        return self._tasks(generator(self.sampling.seed, episodes.META_TEST_TASKS), count, first, TEST_POINTS)

    def check_meta_test(self, count: int) -> None:
        """There is no end of tasks."""

    def _tasks(self, rng: np.random.Generator, count: int, first: int = 0, test: int = 0) -> Tasks:
        s = self.sampling
        sizes = [s.shots, s.queries] + [test] * (test > 0)
        draws = rng.standard_normal((first + count, 1 + sum(sizes), INPUTS))[first:]  # a row a task
        own = draws[:, 0] / np.linalg.norm(draws[:, 0], axis=1, keepdims=True)
        points = draws[:, 1:]
        classes = (points @ (self.direction + own)[..., None] > 0)[..., 0]
        tensors = []
        for x, y in zip(*(np.split(a, np.cumsum(sizes)[:-1], axis=1) for a in (points, classes)), strict=True):
            tensors += [torch.as_tensor(x).to(s.device, s.dtype), torch.as_tensor(y).to(s.device, torch.int64)]
        return Tasks(*tensors)
