"""Sinusoid regression as in the MAML paper (Finn et al. 2017, section 5.1): an endless stream of tasks.

y = amplitude sin(x - phase), amplitude in [0.1, 5], phase in [0, pi], x in [-5, 5]; not standardised, so that errors
compare with the published ones.
"""

import numpy as np
import torch

from amaml.tasks import Tasks
from data import episodes
from data.episodes import OTHER_UNITS, Sampling, generator

GRID = 1000


class Sinusoid:
    """Every episode holds new tasks; the meta-test tasks come from a stream of their own."""

    input_shape = (1,)
    outputs = 1
    images = False
    objective = OTHER_UNITS

    def __init__(self, sampling: Sampling) -> None:
        self.sampling = sampling

    def episode(self, step: int) -> Tasks:
        """meta_batch tasks that no other step sees."""
        rng = generator(self.sampling.seed, episodes.EPISODE, step)
        return self._tasks(rng, self.sampling.meta_batch)

    def meta_test(self, count: int, first: int = 0) -> Tasks:
        """Tasks first to first + count - 1; the test points are 1000 on the line."""
        rng = generator(self.sampling.seed, episodes.META_TEST_TASKS)
        return self._tasks(rng, count, first, np.linspace(-5.0, 5.0, GRID))

    def check_meta_test(self, count: int) -> None:
        """There is no end of tasks."""

    def _tasks(self, rng: np.random.Generator, count: int, first: int = 0, grid: np.ndarray | None = None) -> Tasks:
        s = self.sampling
        draws = rng.uniform(size=(first + count, 2 + s.shots + s.queries, 1))[first:]  # a row a task
        amplitude, phase = 0.1 + 4.9 * draws[:, :1], np.pi * draws[:, 1:2]
        points = -5.0 + 10.0 * draws[:, 2:]
        inputs = [points[:, : s.shots], points[:, s.shots :]]
        if grid is not None:
            inputs.append(np.tile(grid[None, :, None], (count, 1, 1)))
        tensors = []
        for x in inputs:
            tensors += [self._tensor(x), self._tensor(amplitude * np.sin(x - phase))]
        return Tasks(*tensors)

    def _tensor(self, values: np.ndarray) -> torch.Tensor:
        return torch.as_tensor(values).to(self.sampling.device, self.sampling.dtype)
