"""Few-shot image sets in their publishers' layouts, decoded once and kept. Nothing is downloaded here."""

import contextlib
import csv
import hashlib
import json
import os
import pickle
import zipfile
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from tqdm import tqdm

from data import sources
from data.episodes import generator
from data.files import cache_folder, readable, replacing
from data.sources import Source

VERSION = 1  # part of every fingerprint; a change in how pixels are made needs another
PARTS = {"train": "train", "validation": "val", "test": "test"}  # our splits and the publishers' names of them
SUFFIXES = (".png", ".jpg", ".jpeg")
DAMAGED = OSError, SyntaxError, ValueError, zlib.error, zipfile.BadZipFile, Image.DecompressionBombError
PICKLED = "expected a pickle of image_data, uint8 (images, 84, 84, 3), and class_dict, {class: rows}"
TRAIN_SHARE = 1200 / 1623  # Finn et al. 2017: 1200 random characters of Omniglot's 1623 are for meta-training
SPLIT_SEED = 0  # of that choice, the same for every run, so that no seed trains on what another tests

Entry = Path | zipfile.Path
Listing = dict[str, dict[str, list[Entry]]]  # split -> class -> images


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


Layout = tuple[list[Path], Callable[[], ImageSet]]  # every file that the images depend on, and how to read them


def load(source: Source, find: Callable[[Path], Layout | None], data_root: str | None) -> ImageSet:
    """The images, from the cache where it is sound and up to date, else decoded and cached.

    find(folder) is one of the following. Raises InputError where a file is missing or cannot be read.
    """
    root = source.root(data_root)
    for folder in (root / Path(source.places[0]).parts[0], root):
        try:
            files, read = find(folder) or ([], None)
            states = [(path.relative_to(folder), path.stat()) for path in files]
        except OSError as fault:
            raise source.missing(root, fault.filename) from None
        if read:
            lines = [f"{name} {state.st_size} {state.st_mtime_ns}" for name, state in states]
            name = f"{source.name}-{_digest(str(folder.resolve()))[:8]}"  # several roots share the user's cache
            return cached(name, _digest("\n".join([f"version {VERSION}", *lines])), read)
    raise source.missing(root)


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


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def _decoded(listing: Listing, shape: tuple[int, int, int]) -> ImageSet:
    """All images of a listing as (channels, height, width), in its order."""
    entries = [entry for classes in listing.values() for images in classes.values() for entry in images]
    pixels = np.empty((len(entries), *shape), np.uint8)
    for row, entry in zip(pixels, tqdm(entries, "decoding images, once", disable=None), strict=True):
        row[:] = _decode(entry, shape)
    return ImageSet(pixels, {split: {c: len(i) for c, i in classes.items()} for split, classes in listing.items()})


def _decode(entry: Entry, shape: tuple[int, int, int]) -> np.ndarray:
    channels, height, width = shape
    with readable(f"the image {entry}", *DAMAGED), entry.open("rb") as file, Image.open(file) as image:
        converted = image.convert("L" if channels == 1 else "RGB")
    if converted.size != (width, height):  # resampled as MAML's code does
        converted = converted.resize((width, height), Image.Resampling.LANCZOS)
    return np.asarray(converted).reshape(height, width, channels).transpose(2, 0, 1)


def omniglot(folder: Path) -> Layout | None:
    """28 x 28, ink 255, a random share of the characters for meta-training, the others for meta-testing."""
    zips = [path for name in sources.OMNIGLOT_ZIPS if (path := folder / name).is_file()]
    return (zips, partial(_read_omniglot, zips)) if zips else None


def _read_omniglot(zips: list[Path]) -> ImageSet:
    """A character that stands in several archives, as those of Greek and Latin do, is one class."""
    characters: dict[str, dict[str, Entry]] = {}
    for path in zips:
        with readable(path, OSError, zipfile.BadZipFile):
            archive = zipfile.ZipFile(path)
        for member in archive.namelist():  # images_background/ALPHABET/CHARACTER/0000_00.png
            if member.startswith("images_") and member.endswith(".png") and member.count("/") == 3:
                _, alphabet, character, drawing = member.split("/")
                characters.setdefault(f"{alphabet}/{character}", {}).setdefault(drawing, zipfile.Path(archive, member))
    names = np.array(sorted(characters))
    mixed, train = generator(SPLIT_SEED).permutation(len(names)), round(len(names) * TRAIN_SHARE)
    listing = {
        split: {str(name): [entry for _, entry in sorted(characters[name].items())] for name in sorted(names[chosen])}
        for split, chosen in (("train", mixed[:train]), ("test", mixed[train:]))
    }
    decoded = _decoded(listing, (1, 28, 28))
    return ImageSet(255 - decoded.images, decoded.splits)


def mini_imagenet(folder: Path) -> Layout | None:
    """84 x 84 in colour, in pickles, or images by tables or by folders, in the published splits."""
    pickles = {split: folder / f"mini-imagenet-cache-{part}.pkl" for split, part in PARTS.items()}
    if any(path.is_file() for path in pickles.values()):
        return list(pickles.values()), partial(_read_pickles, pickles)
    for place in (folder, folder / "images"):
        tables = {split: place / f"{part}.csv" for split, part in PARTS.items()}
        if any(path.is_file() for path in tables.values()):
            listing = {split: _table(path, folder / "images") for split, path in tables.items()}
            return _listed(listing, (3, 84, 84), list(tables.values()))
    if all((folder / part).is_dir() for part in PARTS.values()):
        places = {split: sorted((folder / part).iterdir()) for split, part in PARTS.items()}
        listing = {split: {c.name: i for c in classes if (i := _images(c))} for split, classes in places.items()}
        return _listed(listing, (3, 84, 84), [])
    return None


def cifar_fs(folder: Path) -> Layout | None:
    """32 x 32 in colour, in the published splits."""
    lists = {split: folder / f"cifar100/splits/bertinetto/{part}.txt" for split, part in PARTS.items()}
    if not any(path.is_file() for path in lists.values()):
        return None
    classes = {split: [folder / "cifar100/data" / c for c in path.read_text().split()] for split, path in lists.items()}
    listing = {split: {c.name: _images(c) or [c / "*.png"] for c in places} for split, places in classes.items()}
    return _listed(listing, (3, 32, 32), list(lists.values()))


def _listed(listing: Listing, shape: tuple[int, int, int], others: list[Path]) -> Layout:
    files = [entry for classes in listing.values() for images in classes.values() for entry in images]
    return [*others, *files], partial(_decoded, listing, shape)


def _images(folder: Path) -> list[Entry]:
    return sorted(path for path in folder.glob("[!.]*") if path.suffix.lower() in SUFFIXES)


def _table(path: Path, images: Path) -> dict[str, list[Entry]]:
    """filename,label rows by label."""
    classes: dict[str, list[Entry]] = {}
    wrong = ValueError, KeyError, TypeError, csv.Error
    with readable(path, *wrong, remedy="expected the columns filename,label"), open(path, newline="") as file:
        for row in csv.DictReader(file, strict=True):
            classes.setdefault(row["label"], []).append(images / row["filename"])
    return classes


def _read_pickles(paths: dict[str, Path]) -> ImageSet:
    """image_data uint8 (images, 84, 84, 3) and class_dict {class: rows}."""
    pieces, splits = [], {}
    for split, path in paths.items():
        # a damaged pickle raises whatever its opcodes happen to do
        with readable(path, Exception, remedy=PICKLED), open(path, "rb") as file:
            content = _PlainUnpickler(file, encoding="latin1").load()
            pixels, classes = content["image_data"], content["class_dict"]
            rows = {name: np.asarray(indices, np.int64) for name, indices in classes.items()}
            pieces += [pixels[indices].transpose(0, 3, 1, 2) for indices in rows.values()]
            if pixels.dtype != np.uint8 or pixels.shape[1:] != (84, 84, 3):
                raise ValueError(f"image_data is {pixels.dtype} {pixels.shape}")
        splits[split] = {name: len(indices) for name, indices in rows.items()}
    return ImageSet(np.concatenate(pieces), splits)


class _PlainUnpickler(pickle.Unpickler):
    """Loads arrays, dict, list, str and bytes; a pickle may name any function, and only those of arrays are found."""

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) == ("_codecs", "encode"):  # bytes, in the protocols that have no code for them
            return lambda text, encoding: text.encode("latin1")
        known = {"ndarray", "dtype", "_reconstruct", "scalar", "_frombuffer"}
        package = module.replace("numpy.core", "numpy._core")  # as older versions of NumPy called it
        if package not in ("numpy", "numpy._core.multiarray", "numpy._core.numeric") or name not in known:
            raise pickle.UnpicklingError(f"it names {module}.{name}, which is none of NumPy's arrays")
        return super().find_class(package, name)
