"""Image sets in memory, and a cache of their decoded pixels."""

import contextlib
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from data.files import replacing


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


def cached(folders: Sequence[Path | None], name: str, fingerprint: str, build: Callable[[], ImageSet]) -> ImageSet:
    """What build() returns, from NAME.npz in the first folder where it is whole and of this fingerprint.

    Otherwise it is built, and written to the first folder that takes it; where none does, it stays in memory alone.
    """
    paths = [folder / f"{name}.npz" for folder in folders if folder is not None]
    for path in paths:
        # a damaged file raises whatever its bytes happen to say, or a member's checksum differs
        with contextlib.suppress(Exception), open(path, "rb") as raw, np.load(raw) as file:
            written, splits = json.loads(str(file["about"]))
            if written == fingerprint and file.zip.testzip() is None:
                return ImageSet(file["images"], splits)
    built = build()
    for path in paths:
        with contextlib.suppress(OSError):  # a read-only or full place: the next one may do
            _save(path, fingerprint, built)
            break
    return built


def _save(path: Path, fingerprint: str, content: ImageSet) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    if not path.parent.stat().st_mode & 0o222:  # the superuser may write there, and should not either
        raise PermissionError(f"{path.parent} is read-only")
    with replacing(path) as file:
        np.savez(file, images=content.images, about=json.dumps([fingerprint, content.splits]))
