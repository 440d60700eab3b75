"""Ratings as their publishers lay them out, read into one matrix: a row a user, a column an item, NaN where unrated.

Units are the publisher's. Users and items are in the order of their numbers; those without a rating have no row, no
column. A reader raises InputError for a file that is missing, cannot be read or has a malformed row, with its number.
"""

import zipfile
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from amaml.errors import InputError
from data import sources
from data.files import readable
from data.sources import Source

JOKES = 100
UNRATED = 99


def jester(data_root: str | None) -> np.ndarray:
    """(users, 100) from jester-data-1, as Excel's or as comma-separated lines."""
    where, content = _content(sources.JESTER.find(data_root), "jester-data-1.csv", "jester-data-1.xls")
    expected = f"the number of ratings, then {JOKES} ratings in [-10, 10], {UNRATED} where there is none"

    def parse(line: bytes) -> list[float]:
        _, *row = map(float, line.split(b","))
        if len(row) != JOKES or not all(abs(rating) <= 10 or rating == UNRATED for rating in row):
            raise ValueError
        return row

    lines = _xls(where, content) if where.endswith(".xls") else content.splitlines()
    ratings = np.array(_rows(where, lines, expected, parse))
    return np.where(ratings == UNRATED, np.nan, ratings)


def movielens(source: Source, member: str, separator: bytes, data_root: str | None) -> np.ndarray:
    """(users, items) from a file of a line a rating."""
    where, content = _content(source.find(data_root), member)
    expected = f"UserID, MovieID, a rating from 1 to 5 and a timestamp, separated by {separator.decode()!r}"

    def parse(line: bytes) -> tuple[int, int, float]:
        user, item, rating, timestamp = line.split(separator)
        triple = int(user), int(item), float(rating)
        if int(timestamp) < 0 or min(triple[:2]) < 1 or not 1 <= triple[2] <= 5:
            raise ValueError
        return triple

    triples = np.array(_rows(where, content.splitlines(), expected, parse))
    users, user = np.unique(triples[:, 0], return_inverse=True)
    items, item = np.unique(triples[:, 1], return_inverse=True)
    _, first = np.unique(user * len(items) + item, return_index=True)
    if len(first) < len(triples):
        again = np.setdiff1d(np.arange(len(triples)), first)[0]
        raise InputError(f"{where}, line {again + 1}: this user rated this item in a line before; expected one rating")
    ratings = np.full((len(users), len(items)), np.nan)
    ratings[user, item] = triples[:, 2]
    return ratings


movielens_100k = partial(movielens, sources.MOVIELENS_100K, "u.data", b"\t")
movielens_1m = partial(movielens, sources.MOVIELENS_1M, "ratings.dat", b"::")


def _xls(where: str, content: bytes) -> list[bytes]:
    """The first sheet of an Excel file as comma-separated lines, by the optional package xlrd."""
    try:
        import xlrd
    except ImportError:
        remedy = "pip install xlrd, or save the sheet as jester/jester-data-1.csv"
        raise InputError(f"reading {where} needs the package xlrd: {remedy}") from None
    # xlrd raises what its parser happens to meet in a damaged file
    with readable(where, Exception, remedy="expected an Excel 97 file, fetch it again"):
        sheet = xlrd.open_workbook(file_contents=content).sheet_by_index(0)
    return [",".join(map(str, sheet.row_values(row))).encode() for row in range(sheet.nrows)]


def _rows(where: str, lines: list[bytes], expected: str, parse: Callable[[bytes], Any]) -> list:
    """parse(line) of every line, which raises ValueError for a line that is not as expected."""
    rows = []
    for number, line in enumerate(lines, start=1):
        try:
            rows.append(parse(line))
        except ValueError:
            got = repr(line.decode("latin-1")[:60])
            raise InputError(f"{where}, line {number}: expected {expected}; got {got}") from None
    if not rows:
        raise InputError(f"{where} is empty; expected a line of: {expected}")
    return rows


def _content(path: Path, *members: str) -> tuple[str, bytes]:
    """The bytes of a plain file, or of the first of the members of a zip archive; and how to call the place."""
    with readable(path, OSError, zipfile.BadZipFile, NotImplementedError, RuntimeError):
        if path.suffix != ".zip":
            return str(path), path.read_bytes()
        with zipfile.ZipFile(path) as archive:
            for member in members:
                for name in archive.namelist():
                    if name == member or (name.endswith("/" + member) and not name.startswith("__MACOSX/")):
                        return f"{path}/{name}", archive.read(name)
    raise InputError(f"{path} has no member {' or '.join(members)}; expected the publisher's own archive")
