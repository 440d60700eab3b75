"""Ratings as their publishers lay them out, read into one matrix: a row a user, a column an item, NaN where unrated."""

from __future__ import annotations

import importlib
import zipfile
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

import numpy as np

from amaml.errors import InputError
from data import sources

Row = tuple[int, int, float]  # user, item, rating
JOKES = 100
UNRATED = 99


def read(name: str, data_root: str | None) -> np.ndarray:
    """The ratings of Jester, MovieLens100K or MovieLens1M, (users, items), in the publisher's units.

    Users and items are in the order of their numbers; those without a rating have no row, no column.
    Raises InputError for a file that is missing, cannot be read or has a malformed row (with its line number).
    """
    path = sources.find(name, sources.data_root(name, data_root))
    return READERS[name](path)


def _movielens(member: str, separator: bytes) -> Callable[[Path], np.ndarray]:
    expected = f"UserID, MovieID, a rating from 1 to 5 and a timestamp, separated by {separator.decode()!r}"

    def read_triples(path: Path) -> np.ndarray:
        where, content = _content(path, (member,))
        rows = _rows(where, content.splitlines(), expected, lambda line: _triple(line.split(separator)))
        return _matrix(where, rows)

    return read_triples


def _triple(cells: list[bytes]) -> Row:
    user, item, rating, timestamp = cells
    triple = int(user), int(item), float(rating)
    if not (int(timestamp) >= 0 and min(triple[:2]) >= 1 and 1 <= triple[2] <= 5):
        raise ValueError
    return triple


def _matrix(where: str, rows: list[Row]) -> np.ndarray:
    triples = np.array(rows)
    users, user = np.unique(triples[:, 0], return_inverse=True)
    items, item = np.unique(triples[:, 1], return_inverse=True)
    cells = user * len(items) + item
    _, first = np.unique(cells, return_index=True)
    if len(first) < len(cells):
        again = np.setdiff1d(np.arange(len(cells)), first)[0]
        raise InputError(f"{where}, line {again + 1}: this user rated this item in a line before; expected one rating")
    ratings = np.full((len(users), len(items)), np.nan)
    ratings[user, item] = triples[:, 2]
    return ratings


def _jester(path: Path) -> np.ndarray:
    where, content = _content(path, ("jester-data-1.csv", "jester-data-1.xls"))
    expected = f"the number of ratings, then {JOKES} ratings in [-10, 10], {UNRATED} where there is none"
    lines = _xls(where, content) if where.endswith(".xls") else (line.split(b",") for line in content.splitlines())
    ratings = np.array(_rows(where, lines, expected, _jokes))
    return np.where(ratings == UNRATED, np.nan, ratings)


def _jokes(cells: Sequence[bytes | float]) -> np.ndarray:
    row = np.array([float(cell) for cell in cells])
    if len(row) != 1 + JOKES or not ((np.abs(row[1:]) <= 10) | (row[1:] == UNRATED)).all():
        raise ValueError
    return row[1:]


def _xls(where: str, content: bytes) -> Iterable[Sequence[float]]:
    """The rows of the first sheet of an Excel file, by the optional package xlrd."""
    try:
        xlrd = importlib.import_module("xlrd")
    except ImportError:
        raise InputError(
            f"reading {where} needs the package xlrd: pip install xlrd, or save the sheet as jester/jester-data-1.csv"
        ) from None
    try:
        sheet = xlrd.open_workbook(file_contents=content).sheet_by_index(0)
    except Exception as fault:  # xlrd raises what its parser happens to meet in a damaged file
        raise InputError(f"cannot read {where}: {fault}; expected an Excel 97 file, fetch it again") from fault
    return (sheet.row_values(row) for row in range(sheet.nrows))


def _rows(where: str, lines: Iterable, expected: str, parse: Callable) -> list:
    """parse(line) of every line, which raises ValueError for a line that is not as expected."""
    rows = []
    for number, line in enumerate(lines, start=1):
        try:
            rows.append(parse(line))
        except ValueError:
            text = line.decode("latin-1") if isinstance(line, bytes) else ",".join(map(_text, line))
            raise InputError(f"{where}, line {number}: expected {expected}; got {text[:60]!r}") from None
    if not rows:
        raise InputError(f"{where} is empty; expected a line of: {expected}")
    return rows


def _text(cell: bytes | float | str) -> str:
    return cell.decode("latin-1") if isinstance(cell, bytes) else str(cell)


def _content(path: Path, members: tuple[str, ...]) -> tuple[str, bytes]:
    """The bytes of a plain file, or of the first of the members of a zip archive; and how to call the place."""
    try:
        if path.suffix != ".zip":
            return str(path), path.read_bytes()
        with zipfile.ZipFile(path) as archive:
            for member in members:
                for name in archive.namelist():
                    if name == member or (name.endswith("/" + member) and not name.startswith("__MACOSX/")):
                        return f"{path}/{name}", archive.read(name)
    except (OSError, zipfile.BadZipFile, NotImplementedError, RuntimeError) as fault:
        raise InputError(f"cannot read {path}: {fault}; fetch it again") from fault
    raise InputError(f"{path} has no member {' or '.join(members)}; expected the publisher's own archive")


READERS: dict[str, Callable[[Path], np.ndarray]] = {
    "Jester": _jester,
    "MovieLens100K": _movielens("u.data", b"\t"),
    "MovieLens1M": _movielens("ratings.dat", b"::"),
}
