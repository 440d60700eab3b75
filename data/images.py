"""N-way K-shot tasks of the classes of a split of images (Vinyals et al. 2016; Finn et al. 2017, section 5.2)."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from amaml.errors import InputError
from amaml.tasks import Tasks
from data import glyphs, image_files, sources
from data.domain import CLASSES, Endless, check_pool
from data.episodes import Sampling, smallest
from data.image_files import ImageSet, Layout
from data.sources import Source


class Images(Endless):
    """Tasks of ways classes, with shots support and queries query images of every class; inputs in [0, 1].

    support_x is (tasks, ways * shots, channels, height, width), class after class. A task draws its classes in random
    order, and their places in it are their labels, 0 to ways - 1. The test points are the query points.

    An image set is a subclass that loads it; rotations: turning images by 90 degrees makes new training classes.
    """

    uses = ("ways",)
    images = True
    objective = CLASSES
    rotations = False
    source: Source  # of an image set in files
    find: Callable[[Path], Layout | None]  # its layout in a folder

    def load(self) -> ImageSet:
        """The images; raises InputError where a file is missing or cannot be read."""
        return image_files.load(self.source, self.find, self.sampling.data_root)

    def __init__(self, sampling: Sampling) -> None:
        """Raises InputError where files are missing, or where a split is too small for the ways, shots or queries."""
        if sampling.ways < 2:
            raise InputError(f"--ways {sampling.ways} leaves nothing to tell apart; choose at least 2")
        super().__init__(sampling)
        content = self.load()
        self.outputs, self.input_shape = sampling.ways, content.images.shape[1:]
        self._pools: dict[str, tuple[Tensor, np.ndarray]] = {}  # a split's images and how many each class has
        for split in ("train", "test"):
            images, counts = content.split(split)
            if split == "train" and self.rotations:
                images = np.concatenate([np.rot90(images, turns, (2, 3)) for turns in range(4)])
                counts = np.tile(counts, 4)
            device = sampling.device if split == "train" else "cpu"  # which is seldom drawn from
            self._pools[split] = torch.from_numpy(images).to(device), counts
            check_pool(f"{split} classes", sampling.ways, len(counts), "--ways")
            asked, flags = sampling.shots + sampling.queries, "--shots and --queries: together"
            check_pool(f"images of a {split} class", asked, counts.min(), flags)

    def tasks(self, rng: np.random.Generator, count: int, first: int = 0, test: bool = False) -> Tasks:
        """count tasks of the classes of meta-training, or of the meta-test's, with the query points as test points."""
        s, (pool, counts) = self.sampling, self._pools["test" if test else "train"]
        classes, ways, most = len(counts), self.outputs, counts.max()
        keys = rng.random((first + count, classes + ways * most))[first:]  # a row a task
        chosen = smallest(keys[:, :classes], np.array(classes), ways)  # distinct ones, in random order
        drawn = smallest(keys[:, classes:].reshape(count, ways, most), counts[chosen], s.shots + s.queries)
        indices = (np.cumsum(counts) - counts)[chosen][..., None] + drawn  # (tasks, ways, points)
        tensors = []
        for part in (indices[..., : s.shots], indices[..., s.shots :]):
            index = torch.from_numpy(part.ravel()).to(pool.device, non_blocking=True)
            images = pool.index_select(0, index).to(s.device).to(s.dtype).div_(255)  # moved while still bytes
            labels = torch.arange(self.outputs, device=s.device).repeat_interleave(part.shape[-1]).repeat(count, 1)
            tensors += [images.unflatten(0, labels.shape), labels]
        return Tasks(*tensors, *(tensors[2:] if test else ()))


class Omniglot(Images):
    rotations = True
    source, find = sources.OMNIGLOT, staticmethod(image_files.omniglot)


class MiniImageNet(Images):
    source, find = sources.MINI_IMAGENET, staticmethod(image_files.mini_imagenet)


class CIFARFS(Images):
    source, find = sources.CIFAR_FS, staticmethod(image_files.cifar_fs)


class Glyphs(Images):
    def load(self) -> ImageSet:
        return glyphs.load()
