"""How episodes are drawn: from a seed, the number of a stream and a step number alone."""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor


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
    noise: float = 0.0  # phantoms: of a ray through nothing, as a share of its photons


META_TRAIN_TASKS, META_TRAIN_POINTS, META_TEST_TASKS, META_TEST_POINTS, EPISODE = range(5)  # streams of random numbers


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


def smallest(keys: np.ndarray, pools: np.ndarray, count: int) -> np.ndarray:
    """Where the count smallest of the first pools[...] keys of every row are (..., count), in their order.

    Of random keys (..., most) these are count distinct indices below pools (...) in random order.
    """
    keys = np.where(np.arange(keys.shape[-1]) < pools[..., None], keys, np.inf)
    nearest = np.argpartition(keys, count - 1, axis=-1)[..., :count]
    return np.take_along_axis(nearest, np.take_along_axis(keys, nearest, -1).argsort(-1), -1)


def gather(pool: Tensor, tasks: np.ndarray, points: np.ndarray) -> Tensor:
    """pool (tasks, points, ...) at the drawn tasks (b,) and points (b, n): (b, n, ...)."""
    index = torch.as_tensor(np.concatenate([tasks[:, None], points], axis=1)).to(pool.device, non_blocking=True)
    return pool[index[:, :1], index[:, 1:]]
