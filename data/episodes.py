"""What every domain is, and how episodes are drawn: from a seed and a step number alone."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple, Protocol

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from amaml.engine.derivatives import Loss
from amaml.errors import InputError
from amaml.losses import accuracy, half_mse, mse, rmse
from amaml.tasks import Tasks

META_TRAIN_TASKS, META_TRAIN_POINTS, META_TEST_TASKS, META_TEST_POINTS, EPISODE = range(5)  # streams of random numbers


@dataclass(frozen=True)
class Sampling:
    """How a run draws tasks. shots, queries: points a task; meta_batch: tasks an update; the seed of everything."""

    shots: int
    queries: int
    meta_batch: int
    seed: int
    dtype: torch.dtype = torch.float64
    device: str = "cpu"
    data_root: str | None = None  # folder of the data files, None: the environment variable AMAML_DATA
    ways: int = 5  # images: classes of a task; shots and queries are then counted by class
    item_features: str = "onehot"  # ratings, as the following two
    train_tasks: int = 100
    unseen: int = 5


class Objective(NamedTuple):
    """The loss that tasks are adapted by, and the metric they are judged by, with its name in the tables."""

    loss: Loss
    metric_name: str
    metric: Loss


CLASSES = Objective(cross_entropy, "accuracy", accuracy)
STANDARDISED = Objective(half_mse, "nRMSE", rmse)  # targets have unit variance over the meta-train tasks
OTHER_UNITS = Objective(half_mse, "MSE", mse)


class Domain(Protocol):
    """A family of tasks.

    input_shape and outputs are the sizes of one point: (d,) and 1 for regression, (channels, height, width) and the
    number of classes for classification, whose targets are classes (points,). images: whether the points are images, of
    which shots and queries count those of each class.
    """

    input_shape: tuple[int, ...]
    outputs: int
    images: bool
    objective: Objective

    def episode(self, step: int) -> Tasks:
        """meta_batch meta-train tasks for one meta-update; the same step always gives the same tasks."""
        ...

    def meta_test(self, count: int, first: int = 0) -> Tasks:
        """Meta-test tasks first to first + count - 1, with their test points; no others are built.

        The same number always gives the same task. Raises InputError where there are not so many.
        """
        ...

    def check_meta_test(self, count: int) -> None:
        """Raise InputError where there are fewer than count meta-test tasks. Builds none."""
        ...


def generator(seed: int, *stream: int) -> np.random.Generator:
    """An independent generator for every seed, stream and step below 2**64; nothing global is touched.

    NumPy takes a number as one word of 32 bits or as many as it has, so that 2**32 would be the numbers 0 and 1. Here
    each is one word, and what goes beyond it is a key apart.
    """
    numbers = np.array([seed, *stream], np.uint64)
    words, beyond = numbers & 0xFFFFFFFF, numbers >> 32
    key = tuple(beyond.tolist()) if beyond.any() else ()
    return np.random.default_rng(np.random.SeedSequence(words.tolist(), spawn_key=key))


def draw_without_replacement(rng: np.random.Generator, rows: int, pool: int, count: int) -> np.ndarray:
    """count distinct indices below pool for every row, (rows, count), in random order."""
    return rng.permuted(np.tile(np.arange(pool), (rows, 1)), axis=1)[:, :count]


def gather(pool: Tensor, tasks: np.ndarray, points: np.ndarray) -> Tensor:
    """pool (tasks, points, ...) at the drawn tasks (b,) and points (b, n): (b, n, ...)."""
    index = torch.as_tensor(np.concatenate([tasks[:, None], points], axis=1)).to(pool.device, non_blocking=True)
    return pool[index[:, :1], index[:, 1:]]


def check_pool(name: str, asked: int, pool: int, flag: str) -> None:
    """Raise InputError where more points or tasks are asked for than the pool holds."""
    if asked > pool:
        raise InputError(f"{flag} {asked} is more than the {pool} {name}; choose at most {pool}")
