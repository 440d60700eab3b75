"""Image sets in memory, and a cache of their decoded pixels."""

import contextlib
import json
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from data.files import cache_folder, replacing


@dataclass(frozen=True)
class ImageSet:
    """Images uint8 (images, channels, height, width), a class's beside each other, and splits in the same order.

    splits maps "train", "validation" (where there is one) and "test" to {class: its number of images}.
    """

    images: np.ndarray
    splits: dict[str, dict[str, int]]

    def split(self, name: str) -> tuple[np.ndarray, np.ndarray]:
        """The images of a split, as a view, and how many each class has (classes,)."""
        before = list(self.splits)[: list(self.splits).index(name)]
        first = sum(sum(self.splits[split].values()) for split in before)
        counts = np.array(list(self.splits[name].values()), np.int64)
        return self.images[first : first + counts.sum()], counts


def cached(name: str, fingerprint: str, build: Callable[[], ImageSet]) -> ImageSet:
    """What build() returns, from NAME.npz in the user's cache where that is whole and of this fingerprint.

    Otherwise it is built, and kept there; where nothing can be written, it stays in memory alone.
    """
    path = (cache_folder() or Path(os.devnull)) / f"{name}.npz"
    # a damaged file raises whatever its bytes happen to say, or a member's checksum differs
    with contextlib.suppress(Exception), open(path, "rb") as raw, np.load(raw) as file:
        written, splits = json.loads(str(file["about"]))
        if written == fingerprint and file.zip.testzip() is None:
            return ImageSet(file["images"], splits)
    built = build()
    with contextlib.suppress(OSError):  # a full or read-only place, or none
        path.parent.mkdir(parents=True, exist_ok=True)
        with replacing(path) as file:
            np.savez(file, images=built.images, about=json.dumps([fingerprint, built.splits]))
    return built
