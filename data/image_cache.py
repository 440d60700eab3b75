"""Image sets in memory, and a cache file that keeps their decoded pixels."""

from __future__ import annotations

import json
import os
import secrets
import struct
import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

MAGIC = b"amaml\x00u8"
PREFIX = struct.Struct("<8sQI")  # magic, length of the header, checksum of header and pixels


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


def user_cache() -> list[Path]:
    """The user's folder for files that can be made again, if there is one."""
    home = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")
    return [Path(home, "amaml")] if os.path.isabs(home) else []


def cached(folders: Sequence[Path], name: str, fingerprint: str, build: Callable[[], ImageSet]) -> ImageSet:
    """What build() returns, from NAME.cache in the first folder where it is whole and of this fingerprint.

    Otherwise it is built, and written to the first folder that takes it; where none does, it stays in memory alone.
    """
    paths = [folder / f"{name}.cache" for folder in folders]
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
    """Prefix, header (JSON), pixels; under another name until it is whole."""
    pixels = np.ascontiguousarray(content.images)
    header = json.dumps({"fingerprint": fingerprint, "shape": pixels.shape, "splits": content.splits}).encode()
    path.parent.mkdir(parents=True, exist_ok=True)
    if not path.parent.stat().st_mode & 0o222:  # the superuser may write there, and should not either
        raise PermissionError(f"{path.parent} is read-only")
    temporary = path.with_name(f"{path.name}.{secrets.token_hex(4)}.tmp")
    try:
        with open(temporary, "xb") as file:
            file.write(PREFIX.pack(MAGIC, len(header), zlib.crc32(pixels, zlib.crc32(header))) + header)
            file.write(pixels.data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def _load(path: Path, fingerprint: str) -> ImageSet | None:
    """The cache file, its pixels mapped; None where it is missing, damaged or of other sources."""
    try:
        with open(path, "rb") as file:
            magic, length, checksum = PREFIX.unpack(file.read(PREFIX.size))
            if magic != MAGIC or length > os.fstat(file.fileno()).st_size:
                return None
            text = file.read(length)
        header = json.loads(text)
        # copy on write: torch takes no read-only memory, and nothing here writes
        pixels = np.memmap(path, np.uint8, "c", PREFIX.size + length, tuple(header["shape"])).view(np.ndarray)
        whole = path.stat().st_size == PREFIX.size + length + pixels.size
        sound = whole and zlib.crc32(pixels, zlib.crc32(text)) == checksum
        return ImageSet(pixels, header["splits"]) if sound and header["fingerprint"] == fingerprint else None
    except (OSError, ValueError, KeyError, TypeError, struct.error):
        return None
