"""N-way K-shot tasks of the classes of a split of images (Vinyals et al. 2016; Finn et al. 2017, section 5.2)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from amaml.errors import InputError
from amaml.tasks import Tasks
from data import episodes, glyphs
from data.episodes import CLASSES, Sampling, check_pool, generator
from data.image_cache import ImageSet
from data.image_files import CIFAR_FS, MINI_IMAGENET, OMNIGLOT


@dataclass(frozen=True)
class ImageSource:
    """Where images come from, load(data_root), and whether turning them by 90 degrees makes new training classes."""

    load: Callable[[str | None], ImageSet]
    rotations: bool = False


IMAGES = {
    "Omniglot": ImageSource(OMNIGLOT.load, rotations=True),
    "MiniImageNet": ImageSource(MINI_IMAGENET.load),
    "CIFARFS": ImageSource(CIFAR_FS.load),
    "Glyphs": ImageSource(lambda data_root: glyphs.load()),
}


@dataclass(frozen=True)
class Pool:
    """The images uint8 (images, channels, height, width) of some classes: counts[i] of class i, from first[i] on."""

    images: Tensor
    first: np.ndarray
    counts: np.ndarray


class Images:
    """Tasks of ways classes, with shots support and queries query images of every class; inputs in [0, 1].

    support_x is (tasks, ways * shots, channels, height, width), class after class. A task draws its classes in random
    order, and their places in it are their labels, 0 to ways - 1.
    """

    images = True
    objective = CLASSES

    def __init__(self, source: ImageSource, sampling: Sampling, ways: int = 5) -> None:
        """Raises InputError where files are missing, or where a split is too small for the ways, shots or queries."""
        if ways < 2:
            raise InputError(f"--ways {ways} leaves nothing to tell apart; choose at least 2")
        content = source.load(sampling.data_root)
        self.sampling, self.outputs, self.input_shape = sampling, ways, content.images.shape[1:]
        train, counts = content.split("train")
        if source.rotations:
            train, counts = np.concatenate([np.rot90(train, turns, (2, 3)) for turns in range(4)]), np.tile(counts, 4)
        self._pools = {"train": _pool(train, counts, sampling.device)}
        for split in content.splits.keys() - {"train"}:
            self._pools[split] = _pool(*content.split(split), "cpu")  # seldom drawn from
        self._check("train")
        self._check("test")

    def episode(self, step: int) -> Tasks:
        """meta_batch tasks of training classes."""
        return self._tasks("train", generator(self.sampling.seed, episodes.EPISODE, step), self.sampling.meta_batch)

    def meta_test(self, count: int, first: int = 0) -> Tasks:
        """Tasks first to first + count - 1 of test classes; the test points are the query points."""
        return self._held_out("test", count, first)

    def check_meta_test(self, count: int) -> None:
        """There is no end of tasks."""

    def meta_validation(self, count: int, first: int = 0) -> Tasks:
        """As meta_test, of validation classes; raises InputError where the image set sets none aside."""
        if "validation" not in self._pools:
            raise InputError("these images have no validation classes; validate with other seeds or another domain")
        self._check("validation")
        return self._held_out("validation", count, first)

    def _held_out(self, split: str, count: int, first: int) -> Tasks:
        rng = generator(self.sampling.seed, episodes.META_TEST_TASKS)
        tasks = self._tasks(split, rng, count, first)
        return Tasks(tasks.support_x, tasks.support_y, tasks.query_x, tasks.query_y, tasks.query_x, tasks.query_y)

    def _check(self, split: str) -> None:
        s, counts = self.sampling, self._pools[split].counts
        check_pool(f"{split} classes", self.outputs, len(counts), "--ways")
        check_pool(f"images of a {split} class", s.shots + s.queries, counts.min(), "--shots and --queries: together")

    def _tasks(self, split: str, rng: np.random.Generator, count: int, first: int = 0) -> Tasks:
        s, pool = self.sampling, self._pools[split]
        indices = draw_images(rng, count, self.outputs, s.shots + s.queries, pool, first)
        tensors = []
        for part in (indices[..., : s.shots], indices[..., s.shots :]):
            index = torch.from_numpy(part.ravel()).to(pool.images.device, non_blocking=True)
            images = pool.images.index_select(0, index).to(s.device).to(s.dtype).div_(255)  # moved while still bytes
            labels = torch.arange(self.outputs, device=s.device).repeat_interleave(part.shape[-1]).repeat(count, 1)
            tensors += [images.unflatten(0, labels.shape), labels]
        return Tasks(*tensors)


def _pool(images: np.ndarray, counts: np.ndarray, device: str) -> Pool:
    return Pool(torch.from_numpy(images).to(device), np.cumsum(counts) - counts, counts)


def draw_images(rng: np.random.Generator, tasks: int, ways: int, points: int, pool: Pool, first: int = 0) -> np.ndarray:
    """Indices of a pool's images (tasks, ways, points): distinct classes and images of each, in random order.

    The first so many tasks that the generator gives are left out.
    """
    classes, most = len(pool.counts), pool.counts.max()
    keys = rng.random((first + tasks, classes + ways * most))[first:]  # a row a task
    chosen = _smallest(keys[:, :classes], ways)
    order = keys[:, classes:].reshape(tasks, ways, most)
    order[np.arange(most) >= pool.counts[chosen][..., None]] = np.inf  # beyond the images of a smaller class
    return pool.first[chosen][..., None] + _smallest(order, points)


def _smallest(keys: np.ndarray, count: int) -> np.ndarray:
    """Where the count smallest keys of every row are, in their order."""
    nearest = np.argpartition(keys, count - 1, axis=-1)[..., :count]
    return np.take_along_axis(nearest, np.take_along_axis(keys, nearest, -1).argsort(-1), -1)
