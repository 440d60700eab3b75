"""Few-shot image sets in their publishers' layouts, decoded once (data.image_cache). Nothing is downloaded here."""

from __future__ import annotations

import csv
import hashlib
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

from amaml.errors import InputError
from data import sources
from data.episodes import generator
from data.files import cache_folder
from data.image_cache import ImageSet, cached

VERSION = 1  # part of every fingerprint; a change in how pixels are made needs another
PARTS = {"train": "train", "validation": "val", "test": "test"}  # our splits and the publishers' names of them
SUFFIXES = (".png", ".jpg", ".jpeg")
ZIPS = ("background", "evaluation", "background_small1", "background_small2")
TRAIN_SHARE = 1200 / 1623  # Finn et al. 2017: 1200 random characters of Omniglot's 1623 are for meta-training
SPLIT_SEED = 0  # of that choice, the same for every run, so that no seed trains on what another tests

Entry = Path | zipfile.Path
Listing = dict[str, dict[str, list[Entry]]]  # split -> class -> images


@dataclass(frozen=True)
class Layout:
    """What was found in a folder: every file that the images depend on, and how to read them."""

    files: list[Path]
    read: Callable[[], ImageSet]


@dataclass(frozen=True)
class ImageFiles:
    """A published image set: its name in data.sources and how its files are found.

    The files lie in the data root itself or in folder under it.
    """

    name: str
    folder: str
    find: Callable[[Path], Layout | None]

    def load(self, data_root: str | None) -> ImageSet:
        """The images, from the cache where it is sound and up to date, else decoded and cached.

        Raises InputError where a file is missing or cannot be read.
        """
        root = sources.data_root(self.name, data_root)
        for folder in (root / self.folder, root):
            layout = self.find(folder)
            if layout is not None:
                try:
                    fingerprint = _fingerprint(folder, layout.files)
                except OSError as fault:
                    raise sources.missing(self.name, root, fault.filename) from None
                name = f"{self.name}-{_digest(str(folder.resolve()))[:8]}"  # several roots share the user's cache
                return cached([folder, cache_folder()], name, fingerprint, layout.read)
        raise sources.missing(self.name, root)


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def _fingerprint(folder: Path, files: list[Path]) -> str:
    """Of the names, sizes and times of change of all files; raises OSError for one that is missing."""
    states = ((path, path.stat()) for path in files)
    lines = [f"{path.relative_to(folder)} {state.st_size} {state.st_mtime_ns}" for path, state in states]
    return _digest("\n".join([f"version {VERSION}", *lines]))


def _decoded(listing: Listing, shape: tuple[int, int, int]) -> ImageSet:
    """All images of a listing as (channels, height, width), in its order."""
    entries = [entry for classes in listing.values() for images in classes.values() for entry in images]
    pixels = np.empty((len(entries), *shape), np.uint8)
    for row, entry in zip(pixels, tqdm(entries, "decoding images, once", disable=None), strict=True):
        row[:] = _decode(entry, shape)
    return ImageSet(pixels, {split: {c: len(i) for c, i in classes.items()} for split, classes in listing.items()})


def _decode(entry: Entry, shape: tuple[int, int, int]) -> np.ndarray:
    channels, height, width = shape
    try:
        with entry.open("rb") as file, Image.open(file) as image:
            converted = image.convert("L" if channels == 1 else "RGB")
    except (OSError, SyntaxError, ValueError, zlib.error, zipfile.BadZipFile, Image.DecompressionBombError) as fault:
        raise InputError(f"cannot read the image {entry}: {fault}; fetch it again") from fault
    if converted.size != (width, height):  # resampled as MAML's code does
        converted = converted.resize((width, height), Image.Resampling.LANCZOS)
    return np.asarray(converted).reshape(height, width, channels).transpose(2, 0, 1)


def _omniglot(folder: Path) -> Layout | None:
    zips = [path for name in ZIPS if (path := folder / f"images_{name}.zip").is_file()]
    return Layout(zips, partial(_read_omniglot, zips)) if zips else None


def _read_omniglot(zips: list[Path]) -> ImageSet:
    """28 x 28, ink 255, a random share of the characters for meta-training, the others for meta-testing.

    A character that stands in several archives, as those of Greek and Latin do, is one class.
    """
    characters: dict[str, dict[str, Entry]] = {}
    for path in zips:
        try:
            archive = zipfile.ZipFile(path)
        except (OSError, zipfile.BadZipFile) as fault:
            raise InputError(f"cannot read {path}: {fault}; fetch it again") from fault
        for member in archive.namelist():  # images_background/ALPHABET/CHARACTER/0000_00.png
            if member.startswith("images_") and member.endswith(".png") and member.count("/") == 3:
                _, alphabet, character, drawing = member.split("/")
                characters.setdefault(f"{alphabet}/{character}", {}).setdefault(drawing, zipfile.Path(archive, member))
    names = sorted(characters)
    mixed = generator(SPLIT_SEED).permutation(len(names))
    train = round(len(names) * TRAIN_SHARE)
    chosen = {"train": sorted(mixed[:train]), "test": sorted(mixed[train:])}
    listing = {
        split: {names[i]: [entry for _, entry in sorted(characters[names[i]].items())] for i in indices}
        for split, indices in chosen.items()
    }
    decoded = _decoded(listing, (1, 28, 28))
    return ImageSet(255 - decoded.images, decoded.splits)


def _mini_imagenet(folder: Path) -> Layout | None:
    pickles = {split: folder / f"mini-imagenet-cache-{part}.pkl" for split, part in PARTS.items()}
    if any(path.is_file() for path in pickles.values()):
        return Layout(list(pickles.values()), partial(_read_pickles, pickles))
    for place in (folder, folder / "images"):
        tables = {split: place / f"{part}.csv" for split, part in PARTS.items()}
        if any(path.is_file() for path in tables.values()):
            listing = {split: _table(path, folder / "images") for split, path in tables.items() if path.is_file()}
            return _listed(listing, (3, 84, 84), list(tables.values()))
    if all((folder / part).is_dir() for part in PARTS.values()):
        listing = {split: _classes(folder / part) for split, part in PARTS.items()}
        return _listed(listing, (3, 84, 84), [])
    return None


def _cifar_fs(folder: Path) -> Layout | None:
    lists = {split: folder / f"cifar100/splits/bertinetto/{part}.txt" for split, part in PARTS.items()}
    if not any(path.is_file() for path in lists.values()):
        return None
    images = folder / "cifar100/data"
    listing = {}
    for split, path in lists.items():
        names = path.read_text().split() if path.is_file() else []
        listing[split] = {name: _images(images / name) or [images / name / "*.png"] for name in names}
    return _listed(listing, (3, 32, 32), list(lists.values()))


def _listed(listing: Listing, shape: tuple[int, int, int], others: list[Path]) -> Layout:
    files = [entry for classes in listing.values() for images in classes.values() for entry in images]
    return Layout([*others, *files], partial(_decoded, listing, shape))


def _classes(folder: Path) -> dict[str, list[Entry]]:
    """The class folders of a folder, those without an image left out."""
    found = {place.name: _images(place) for place in sorted(folder.iterdir()) if place.is_dir()}
    return {name: images for name, images in found.items() if images}


def _images(folder: Path) -> list[Entry]:
    if not folder.is_dir():
        return []
    return sorted(path for path in folder.glob("[!.]*") if path.suffix.lower() in SUFFIXES)


def _table(path: Path, images: Path) -> dict[str, list[Entry]]:
    """filename,label rows by label."""
    classes: dict[str, list[Entry]] = {}
    try:
        with open(path, newline="") as file:
            for row in csv.DictReader(file, strict=True):
                classes.setdefault(row["label"], []).append(images / row["filename"])
    except (ValueError, KeyError, TypeError, csv.Error) as fault:
        raise InputError(f"cannot read {path}: {fault!r}; expected the columns filename,label") from fault
    return classes


def _read_pickles(paths: dict[str, Path]) -> ImageSet:
    """image_data uint8 (images, 84, 84, 3) and class_dict {class: rows}."""
    pieces, splits = [], {}
    for split, path in paths.items():
        try:
            with open(path, "rb") as file:
                content = _PlainUnpickler(file, encoding="latin1").load()
            pixels, classes = content["image_data"], content["class_dict"]
            rows = {name: np.asarray(indices, np.int64) for name, indices in classes.items()}
            pieces += [pixels[indices].transpose(0, 3, 1, 2) for indices in rows.values()]
            if pixels.dtype != np.uint8 or pixels.shape[1:] != (84, 84, 3):
                raise ValueError(f"image_data is {pixels.dtype} {pixels.shape}")
        except Exception as fault:  # a damaged pickle raises whatever its opcodes happen to do
            raise InputError(
                f"cannot read {path}: {fault}; expected a pickle of image_data, uint8 (images, 84, 84, 3), and "
                "class_dict, {class: rows}"
            ) from fault
        splits[split] = {name: len(indices) for name, indices in rows.items()}
    return ImageSet(np.concatenate(pieces), splits)


def _numpy_globals() -> dict[tuple[str, str], Any]:
    """What pickled arrays name: found by pickling one, since the modules differ between versions of NumPy."""
    array = np.zeros(1)
    allowed: dict[tuple[str, str], Any] = {("numpy", "ndarray"): np.ndarray, ("numpy", "dtype"): np.dtype}
    for core in ("numpy.core", "numpy._core"):
        allowed[f"{core}.multiarray", "_reconstruct"] = array.__reduce__()[0]
        allowed[f"{core}.multiarray", "scalar"] = array[0].__reduce__()[0]
        allowed[f"{core}.numeric", "_frombuffer"] = array.__reduce_ex__(5)[0]
    # bytes, in the protocols that have no code for them
    return allowed | {("_codecs", "encode"): lambda text, encoding: text.encode("latin1")}


class _PlainUnpickler(pickle.Unpickler):
    """Loads arrays, dict, list, str and bytes; a pickle may name any function, and only those of arrays are found."""

    allowed = _numpy_globals()

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in self.allowed:
            raise pickle.UnpicklingError(f"it names {module}.{name}, which is none of NumPy's arrays")
        return self.allowed[module, name]


OMNIGLOT = ImageFiles("Omniglot", "omniglot", _omniglot)
MINI_IMAGENET = ImageFiles("MiniImageNet", "mini-imagenet", _mini_imagenet)
CIFAR_FS = ImageFiles("CIFARFS", "cifar-fs", _cifar_fs)
