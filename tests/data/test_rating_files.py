"""The publishers' files of ratings, written here in their layouts, and the messages about unusable ones."""

import sys
import types
import zipfile
from pathlib import Path

import numpy as np
import pytest

from amaml.errors import InputError
from data import rating_files


def jester_line(ratings: dict[int, float]) -> str:
    return ",".join(str(x) for x in [len(ratings), *(ratings.get(i, 99) for i in range(100))])


def put(path: Path, member: str, text: str) -> None:
    path.parent.mkdir(exist_ok=True)
    if path.suffix != ".zip":
        path.write_text(text)
        return
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("__MACOSX/" + member, "not these")
        archive.writestr(member, text)


def fault(name: str, root: Path | None) -> str:
    """The one line of the InputError."""
    with pytest.raises(InputError) as caught:
        rating_files.read(name, None if root is None else str(root))
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize("place", ["ml-100k/u.data", "u.data", "ml-100k.zip"])
def test_movielens_100k(tmp_path, place):
    put(tmp_path / place, "ml-100k/u.data", "7\t30\t4\t88\n2\t10\t1\t89\n7\t10\t5\t90\n")
    ratings = rating_files.read("MovieLens100K", str(tmp_path))
    np.testing.assert_array_equal(ratings, [[1, np.nan], [5, 4]])


@pytest.mark.parametrize("place", ["ml-1m/ratings.dat", "ratings.dat", "ml-1m.zip"])
def test_movielens_1m(tmp_path, place):
    put(tmp_path / place, "ml-1m/ratings.dat", "1::1193::5::978300760\n2::661::3::978302109\n")
    ratings = rating_files.read("MovieLens1M", str(tmp_path))
    np.testing.assert_array_equal(ratings, [[np.nan, 5], [3, np.nan]])


@pytest.mark.parametrize("place", ["jester/jester-data-1.csv", "jester-data-1.csv", "jester_dataset_1_1.zip"])
def test_jester(tmp_path, place):
    put(tmp_path / place, "jester-data-1.csv", jester_line({0: -7.82, 99: 0}) + "\n" + jester_line({1: 10}))
    ratings = rating_files.read("Jester", str(tmp_path))
    assert ratings.shape == (2, 100)
    assert np.argwhere(~np.isnan(ratings)).tolist() == [[0, 0], [0, 99], [1, 1]]
    assert ratings[0, [0, 99]].tolist() == [-7.82, 0.0]


def test_the_root_of_the_environment(tmp_path, monkeypatch):
    put(tmp_path / "u.data", "", "1\t1\t4\t88\n")
    monkeypatch.setenv("AMAML_DATA", str(tmp_path))
    assert rating_files.read("MovieLens100K", None).tolist() == [[4.0]]


def test_excel_by_its_optional_reader(tmp_path, monkeypatch):
    (tmp_path / "jester-data-1.xls").write_bytes(b"sheet")
    rows = [[1.0, *[99.0] * 99, 2.5]]
    sheet = types.SimpleNamespace(nrows=1, row_values=lambda row: rows[row])
    book = types.SimpleNamespace(sheet_by_index=lambda index: [sheet][index])
    reader = types.SimpleNamespace(open_workbook=lambda file_contents: {b"sheet": book}[file_contents])
    monkeypatch.setitem(sys.modules, "xlrd", reader)
    assert rating_files.read("Jester", str(tmp_path))[0, 99] == 2.5
    rows[0][1] = "joke"
    assert "jester-data-1.xls, line 1: expected the number" in fault("Jester", tmp_path)
    (tmp_path / "jester-data-1.xls").write_bytes(b"damaged")
    assert "cannot read" in fault("Jester", tmp_path)
    monkeypatch.setitem(sys.modules, "xlrd", None)
    assert "pip install xlrd" in fault("Jester", tmp_path)


@pytest.mark.parametrize(
    "line",
    [
        "1\t2\t3",
        "1\t2\t3\t4\t5",
        "1 2 3 4",
        "a\t2\t3\t4",
        "1\t2\t6\t4",
        "1\t2\tnan\t4",
        "0\t2\t3\t4",
        "",
        "1\t1\t2\t4",
    ],
)
def test_a_malformed_row_is_named(tmp_path, line):
    (tmp_path / "u.data").write_text(f"1\t1\t3\t4\n{line}\n2\t1\t3\t4\n")
    message = fault("MovieLens100K", tmp_path)
    assert "u.data, line 2: " in message
    assert "expected" in message


@pytest.mark.parametrize("line", ["3,1,2,3", ",".join(["99"] * 100), "1," + ",".join(["11"] * 100)])
def test_a_malformed_row_of_jester_is_named(tmp_path, line):
    (tmp_path / "jester-data-1.csv").write_text(f"{jester_line({})}\n{line}\n")
    message = fault("Jester", tmp_path)
    assert "jester-data-1.csv, line 2: expected the number of ratings, then 100" in message


def test_missing_files_name_the_remedy(tmp_path, monkeypatch):
    message = fault("MovieLens1M", tmp_path)
    for part in (
        str(tmp_path),
        "ml-1m/ratings.dat",
        "ml-1m.zip",
        "https://grouplens.org",
        "nothing was downloaded",
    ):
        assert part in message
    assert f"python -m data.download MovieLens1M --data-root {tmp_path}" in message
    monkeypatch.delenv("AMAML_DATA", raising=False)
    assert "--data-root or AMAML_DATA" in fault("Jester", None)


def test_other_unusable_files(tmp_path):
    (tmp_path / "ml-100k.zip").write_bytes(b"PK not an archive")
    assert "cannot read" in fault("MovieLens100K", tmp_path)
    put(tmp_path / "ml-1m.zip", "ml-1m/movies.dat", "")
    assert "has no member ratings.dat" in fault("MovieLens1M", tmp_path)
    (tmp_path / "u.data").write_text("")
    assert "is empty" in fault("MovieLens100K", tmp_path)
