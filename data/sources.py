"""Where the data sets come from, and where their files are looked for."""

import os
from dataclasses import dataclass
from pathlib import Path

from amaml.errors import InputError

VARIABLE = "AMAML_DATA"


@dataclass(frozen=True)
class Archive:
    """A file at its publisher's, its "algorithm:hexadecimal digits", and where it is kept, whole, in the data root."""

    url: str
    checksum: str
    place: str


@dataclass(frozen=True)
class Source:
    """A data set: its publisher's page, where its files are looked for in the data root, and how to fetch them.

    Any one of the places will do; expected describes them where their names alone do not. why_no_archive is the reason
    where nothing stable can be fetched, and then archives is empty.
    """

    name: str
    page: str
    places: tuple[str, ...]
    archives: tuple[Archive, ...] = ()
    why_no_archive: str = ""
    expected: str = ""

    def root(self, given: str | None) -> Path:
        """The folder of the data files: the one given, else the environment's; raises InputError where neither is."""
        root = given or os.environ.get(VARIABLE)
        if not root:
            what = f"{self.name} is read from files: name their folder with --data-root or {VARIABLE}"
            raise InputError(f"{what}; {self._remedy('DIR')}")
        return Path(root).expanduser()

    def find(self, data_root: str | None) -> Path:
        """The first of the places that is a file; raises InputError, with all of them, where there is none."""
        root = self.root(data_root)
        for place in self.places:
            if (root / place).is_file():
                return root / place
        raise self.missing(root)

    def missing(self, root: Path, file: str | None = None) -> InputError:
        """The error for a data set that is not in the data root, or lacks a file."""
        what = f"{self.name} is not in {root}" if file is None else f"{file} is missing"
        return InputError(f"{what}; {self._remedy(str(root))}")

    def _remedy(self, root: str) -> str:
        command = f"fetch it with: bash experiment.sh download {self.name} --data-root {root}"
        fetch = command if self.archives else "fetch it there"
        expected = self.expected or f"one of {', '.join(self.places)}"
        return f"expected there is {expected}; nothing was downloaded; its publisher is {self.page}, {fetch}"


def _movielens(name: str, size: str, file: str, md5: str) -> Source:
    """GroupLens publishes the digests of its archives beside them, in ml-100k.zip.md5 and ml-1m.zip.md5."""
    archive = Archive(f"https://files.grouplens.org/datasets/movielens/{size}.zip", f"md5:{md5}", f"{size}.zip")
    places = (f"{size}/{file}", file, f"{size}.zip", f"{size}/{size}.zip")
    return Source(name, f"https://grouplens.org/datasets/movielens/{size[3:]}/", places, (archive,))


MOVIELENS_100K = _movielens("MovieLens100K", "ml-100k", "u.data", "0e33842e24a9c977be4e0107933c0723")
MOVIELENS_1M = _movielens("MovieLens1M", "ml-1m", "ratings.dat", "c4d9eecfca2ab87c1945afe126590906")
_JESTER = ("jester-data-1.csv", "jester-data-1.xls", "jester_dataset_1_1.zip", "jester-data-1.zip")
_JESTER_ZIP = Archive(  # Berkeley publishes no digest: this is of the archive as served in 2025 and archived in 2026
    "https://eigentaste.berkeley.edu/dataset/jester_dataset_1_1.zip",
    "sha256:cb7841756ded125b15f3d95c9f8241224065e96354c132a46ae4214deeab7615",
    "jester/jester_dataset_1_1.zip",
)
_JESTER_PLACES = tuple(folder + name for name in _JESTER for folder in ("jester/", ""))
JESTER = Source("Jester", "https://eigentaste.berkeley.edu/dataset/", _JESTER_PLACES, (_JESTER_ZIP,))
OMNIGLOT_ZIPS = tuple(f"images_{n}.zip" for n in ("background", "evaluation", "background_small1", "background_small2"))
_OMNIGLOT_MD5 = "68d2efa1b9178cc56df9314c21c6e718", "6b91aef0f799c5bb55b94e3f2daec811"  # of the first two
OMNIGLOT = Source(
    "Omniglot",
    "https://github.com/brendenlake/omniglot",
    tuple(f"omniglot/{name}" for name in OMNIGLOT_ZIPS),
    tuple(
        Archive(f"https://github.com/brendenlake/omniglot/raw/master/python/{name}", f"md5:{md5}", f"omniglot/{name}")
        for name, md5 in zip(OMNIGLOT_ZIPS, _OMNIGLOT_MD5, strict=False)
    ),
)
MINI_IMAGENET = Source(
    "MiniImageNet",
    "https://github.com/twitter-research/meta-learning-lstm",
    ("mini-imagenet/",),
    why_no_archive="ImageNet's terms forbid its redistribution, so its images have no public link",
    expected="mini-imagenet-cache-{train,val,test}.pkl, or images/ with {train,val,test}.csv (filename,label), or "
    "{train,val,test}/CLASS/*.jpg, or these in mini-imagenet/",
)
CIFAR_FS = Source(
    "CIFARFS",
    "https://github.com/bertinetto/r2d2",
    ("cifar-fs/",),
    why_no_archive="its authors link to a private file store that serves no stable address",
    expected="cifar100/data/CLASS/*.png with cifar100/splits/bertinetto/{train,val,test}.txt, or both in cifar-fs/",
)
SOURCES = {s.name: s for s in (MOVIELENS_100K, MOVIELENS_1M, JESTER, OMNIGLOT, MINI_IMAGENET, CIFAR_FS)}
