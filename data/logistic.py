"""Two classes with a plane between them: an endless stream of tasks for a linear model, a check that takes seconds.

x is standard normal in 50 dimensions and the class is whether w . x > 0. Every task has its own w: a direction shared
by all tasks plus a random one as long, so that the shared direction alone tells about 3 points in 4.
"""

import numpy as np
import torch

from amaml.tasks import Tasks
from data.domain import CLASSES, Endless
from data.episodes import META_TRAIN_TASKS, Sampling, generator

INPUTS = 50
TEST_POINTS = 500


class Logistic(Endless):
    """New planes in every episode. shots and queries count the points of a task, not of a class."""

    input_shape = (INPUTS,)
    outputs = 2
    objective = CLASSES

    def __init__(self, sampling: Sampling) -> None:
        super().__init__(sampling)
        shared = generator(sampling.seed, META_TRAIN_TASKS).standard_normal(INPUTS)
        self.direction = shared / np.linalg.norm(shared)

    def tasks(self, rng: np.random.Generator, count: int, first: int = 0, test: bool = False) -> Tasks:
        """count planes with 500 test points each."""
        s = self.sampling
        sizes = [s.shots, s.queries] + [TEST_POINTS] * test
        draws = rng.standard_normal((first + count, 1 + sum(sizes), INPUTS))[first:]
        own = draws[:, 0] / np.linalg.norm(draws[:, 0], axis=1, keepdims=True)
        pairs = []
        for x in np.split(draws[:, 1:], np.cumsum(sizes)[:-1], axis=1):
            classes = (x @ (self.direction + own)[..., None] > 0)[..., 0]
            pairs += [self.tensor(x), torch.as_tensor(classes).to(s.device, torch.int64)]
        return Tasks(*pairs)
