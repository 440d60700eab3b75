"""The publishers' files of ratings, written here in their layouts, and the messages about unusable ones."""

import sys
import types
import zipfile
from pathlib import Path

import numpy as np
import pytest

from amaml.errors import InputError
from data import rating_files

NONE = ",".join(["99"] * 100)
LAYOUTS = {  # reader: the archive's member, two lines, where they may lie, what they say
    rating_files.movielens_100k: (
        "ml-100k/u.data",
        "7\t30\t4\t88\n2\t10\t1\t89\n7\t10\t5\t90\n",
        ("ml-100k/u.data", "u.data", "ml-100k.zip", "ml-100k/ml-100k.zip"),
        [[1, np.nan], [5, 4]],
    ),
    rating_files.movielens_1m: (
        "ml-1m/ratings.dat",
        "1::1193::5::978300760\n2::661::3::978302109\n",
        ("ml-1m/ratings.dat", "ratings.dat", "ml-1m.zip"),
        [[np.nan, 5], [3, np.nan]],
    ),
    rating_files.jester: (
        "jester-data-1.csv",
        f"2,-7.82,{NONE[6:]},0\n1,99,10,{NONE[6:]}\n",
        ("jester/jester-data-1.csv", "jester-data-1.csv", "jester/jester_dataset_1_1.zip"),
        [[-7.82, *[np.nan] * 98, 0], [np.nan, 10, *[np.nan] * 98]],
    ),
}


def put(path: Path, member: str, text: str) -> None:
    path.parent.mkdir(exist_ok=True)
    if path.suffix != ".zip":
        path.write_text(text)
        return
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("__MACOSX/" + member, "not these")
        archive.writestr(member, text)


def fault(read, root: Path) -> str:
    """The one line of the InputError."""
    with pytest.raises(InputError) as caught:
        read(str(root))
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize(("read", "place"), [(read, place) for read, layout in LAYOUTS.items() for place in layout[2]])
def test_ratings_are_read_wherever_they_lie(tmp_path, read, place):
    member, text, _, expected = LAYOUTS[read]
    put(tmp_path / place, member, text)
    np.testing.assert_array_equal(read(str(tmp_path)), expected)


def test_excel_by_its_optional_reader(tmp_path, monkeypatch):
    (tmp_path / "jester-data-1.xls").write_bytes(b"sheet")
    rows = [[1.0, *[99.0] * 99, 2.5]]
    sheet = types.SimpleNamespace(nrows=1, row_values=lambda row: rows[row])
    book = types.SimpleNamespace(sheet_by_index=lambda index: [sheet][index])
    reader = types.SimpleNamespace(open_workbook=lambda file_contents: {b"sheet": book}[file_contents])
    monkeypatch.setitem(sys.modules, "xlrd", reader)
    assert rating_files.jester(str(tmp_path))[0, 99] == 2.5
    rows[0][1] = "joke"
    assert "jester-data-1.xls, line 1: expected the number" in fault(rating_files.jester, tmp_path)
    (tmp_path / "jester-data-1.xls").write_bytes(b"damaged")
    assert "cannot read" in fault(rating_files.jester, tmp_path)
    monkeypatch.setitem(sys.modules, "xlrd", None)
    assert "pip install xlrd" in fault(rating_files.jester, tmp_path)


WRONG = ("1 2 3", "1 2 3 4 5", "1 2 3 x", "a 2 3 4", "1 2 6 4", "1 2 nan 4", "0 2 3 4", "", "1 1 2 4")


@pytest.mark.parametrize(
    ("read", "file", "first", "line"),
    [
        *((rating_files.movielens_100k, "u.data", "1\t1\t3\t4", line.replace(" ", "\t")) for line in WRONG),
        (rating_files.movielens_100k, "u.data", "1\t1\t3\t4", "1 2 3 4"),
        *((rating_files.jester, "jester-data-1.csv", f"0,{NONE}", line) for line in ("3,1", NONE, f"1,11{NONE[2:]}")),
    ],
)
def test_a_malformed_row_is_named(tmp_path, read, file, first, line):
    (tmp_path / file).write_text(f"{first}\n{line}\n{first}\n")
    message = fault(read, tmp_path)
    assert f"{file}, line 2: " in message
    assert "expected" in message


def test_other_unusable_files(tmp_path):
    (tmp_path / "ml-100k.zip").write_bytes(b"PK not an archive")
    assert "cannot read" in fault(rating_files.movielens_100k, tmp_path)
    put(tmp_path / "ml-1m.zip", "ml-1m/movies.dat", "")
    assert "has no member ratings.dat" in fault(rating_files.movielens_1m, tmp_path)
    (tmp_path / "u.data").write_text("")
    assert "is empty" in fault(rating_files.movielens_100k, tmp_path)
