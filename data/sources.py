"""Where the data sets come from, and where their files are looked for."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from amaml.errors import InputError

VARIABLE = "AMAML_DATA"


@dataclass(frozen=True)
class Archive:
    """A file at its publisher's. Its members go to folder under the data root, or it stays whole where unpack is off.

    checksum is "algorithm:hexadecimal digits"; target, under the data root, is there once the archive was fetched.
    """

    url: str
    checksum: str
    folder: str
    target: str
    unpack: bool = True


@dataclass(frozen=True)
class Source:
    """A data set: its publisher's page, where its files are looked for under the data root, and how to fetch them.

    Any one of the places will do; expected describes them where their names alone do not. why_no_archive is the reason
    where nothing stable can be fetched, and then archives is empty.
    """

    page: str
    places: tuple[str, ...]
    archives: tuple[Archive, ...] = ()
    why_no_archive: str = ""
    expected: str = ""


_MOVIELENS = "https://files.grouplens.org/datasets/movielens"
_OMNIGLOT = "https://github.com/brendenlake/omniglot/raw/master/python"

SOURCES = {
    # GroupLens publishes the digests of its archives beside them, in ml-100k.zip.md5 and ml-1m.zip.md5
    "MovieLens100K": Source(
        "https://grouplens.org/datasets/movielens/100k/",
        ("ml-100k/u.data", "u.data", "ml-100k.zip", "ml-100k/ml-100k.zip"),
        (Archive(f"{_MOVIELENS}/ml-100k.zip", "md5:0e33842e24a9c977be4e0107933c0723", "", "ml-100k/u.data"),),
    ),
    "MovieLens1M": Source(
        "https://grouplens.org/datasets/movielens/1m/",
        ("ml-1m/ratings.dat", "ratings.dat", "ml-1m.zip", "ml-1m/ml-1m.zip"),
        (Archive(f"{_MOVIELENS}/ml-1m.zip", "md5:c4d9eecfca2ab87c1945afe126590906", "", "ml-1m/ratings.dat"),),
    ),
    # Berkeley publishes no digest: this one is of the archive as it was served in 2025 and archived in 2026
    "Jester": Source(
        "https://eigentaste.berkeley.edu/dataset/",
        tuple(
            folder + name
            for name in ("jester-data-1.csv", "jester-data-1.xls", "jester_dataset_1_1.zip", "jester-data-1.zip")
            for folder in ("jester/", "")
        ),
        (
            Archive(
                "https://eigentaste.berkeley.edu/dataset/jester_dataset_1_1.zip",
                "sha256:cb7841756ded125b15f3d95c9f8241224065e96354c132a46ae4214deeab7615",
                "jester",
                "jester/jester-data-1.xls",
            ),
        ),
    ),
    # the archives stay whole: they are read as they are, and hold 32,460 small files
    "Omniglot": Source(
        "https://github.com/brendenlake/omniglot",
        tuple(
            f"omniglot/images_{part}.zip"
            for part in ("background", "evaluation", "background_small1", "background_small2")
        ),
        tuple(
            Archive(f"{_OMNIGLOT}/{name}", f"md5:{digest}", "omniglot", f"omniglot/{name}", unpack=False)
            for name, digest in (
                ("images_background.zip", "68d2efa1b9178cc56df9314c21c6e718"),
                ("images_evaluation.zip", "6b91aef0f799c5bb55b94e3f2daec811"),
            )
        ),
    ),
    "MiniImageNet": Source(
        "https://github.com/twitter-research/meta-learning-lstm",
        ("mini-imagenet/",),
        why_no_archive="ImageNet's terms forbid its redistribution, so its images have no public link",
        expected="mini-imagenet-cache-{train,val,test}.pkl, or images/ with {train,val,test}.csv (filename,label), or "
        "{train,val,test}/CLASS/*.jpg, or these in mini-imagenet/",
    ),
    "CIFARFS": Source(
        "https://github.com/bertinetto/r2d2",
        ("cifar-fs/",),
        why_no_archive="its authors link to a private file store that serves no stable address",
        expected="cifar100/data/CLASS/*.png with cifar100/splits/bertinetto/{train,val,test}.txt, or both in cifar-fs/",
    ),
}


def data_root(name: str, given: str | None) -> Path:
    """The folder of the data files: the one given, else the environment's; raises InputError where neither is."""
    root = given or os.environ.get(VARIABLE)
    if not root:
        raise InputError(
            f"{name} is read from files: name their folder with --data-root or {VARIABLE}; {_remedy(name, 'DIR')}"
        )
    return Path(root).expanduser()


def find(name: str, root: Path) -> Path:
    """The first of the data set's places that is a file; raises InputError, with all of them, where there is none."""
    for place in SOURCES[name].places:
        if (root / place).is_file():
            return root / place
    raise missing(name, root)


def missing(name: str, root: Path, file: str | None = None) -> InputError:
    """The error for a data set that is not in the data root, or lacks a file."""
    what = f"{name} is not in {root}" if file is None else f"{file} is missing"
    return InputError(f"{what}; {_remedy(name, str(root))}")


def _remedy(name: str, root: str) -> str:
    source = SOURCES[name]
    fetch = f"fetch it with: python -m data.download {name} --data-root {root}" if source.archives else "fetch it there"
    expected = source.expected or f"one of {', '.join(source.places)}"
    return f"expected there is {expected}; nothing was downloaded; its publisher is {source.page}, {fetch}"
