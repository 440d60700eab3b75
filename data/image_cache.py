"""Image sets in memory, and a cache of their decoded pixels: NAME.npy, beside it NAME.json with what it holds."""

from __future__ import annotations

import json
import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.lib.format import open_memmap

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
    """What build() returns, from NAME.npy in the first folder where it is whole and of this fingerprint.

    Otherwise it is built, and written to the first folder that takes it; where none does, it stays in memory alone.
    """
    paths = [folder / f"{name}.npy" for folder in folders if folder is not None]
    for path in paths:
        found = _load(path, fingerprint)
        if found is not None:
            return found
    built = build()
    for path in paths:
        try:
            _save(path, fingerprint, built)
            break
        except OSError:  # a read-only or full place: the next one may do
            continue
    return built


def _save(path: Path, fingerprint: str, content: ImageSet) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    if not path.parent.stat().st_mode & 0o222:  # the superuser may write there, and should not either
        raise PermissionError(f"{path.parent} is read-only")
    with replacing(path) as file:
        np.save(file, content.images)
        file.flush()
        checksum = _checksum(Path(file.name), fingerprint, content.splits)
    header = {"fingerprint": fingerprint, "splits": content.splits, "checksum": checksum}
    with replacing(path.with_suffix(".json")) as file:  # a kill before leaves pixels that the old header rejects
        file.write(json.dumps(header).encode())


def _load(path: Path, fingerprint: str) -> ImageSet | None:
    """The cached images, their pixels mapped; None where they are missing, damaged or of other sources."""
    try:
        header = json.loads(path.with_suffix(".json").read_bytes())
        splits, checksum = header["splits"], header["checksum"]
        if header["fingerprint"] != fingerprint or _checksum(path, fingerprint, splits) != checksum:
            return None
        # copy on write: torch takes no read-only memory, and nothing here writes
        return ImageSet(open_memmap(path, mode="c").view(np.ndarray), splits)
    except (OSError, ValueError, TypeError, KeyError):
        return None


def _checksum(path: Path, fingerprint: str, splits: dict[str, dict[str, int]]) -> int:
    """Of the file of pixels and what is said of it."""
    return zlib.crc32(np.memmap(path, mode="r"), zlib.crc32(json.dumps([fingerprint, splits]).encode()))
