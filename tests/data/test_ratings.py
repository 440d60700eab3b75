"""Ratings: their publishers' files, the split of users, items and ratings, and the predictors without learning."""

import sys
import zipfile
from pathlib import Path
from unittest.mock import Mock

import numpy as np
import pytest
import torch
from helpers.archives import REAL, movielens, ratings

from amaml.errors import InputError
from data import Sampling, rating_files
from data.ratings import Jester, MovieLens100K, Ratings

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
    row, reader = [1.0, *[99.0] * 99, 2.5], Mock()
    reader.open_workbook.return_value.sheet_by_index.return_value = Mock(nrows=1, row_values=[row].__getitem__)
    monkeypatch.setitem(sys.modules, "xlrd", reader)
    assert rating_files.jester(str(tmp_path))[0, 99] == 2.5
    reader.open_workbook.assert_called_once_with(file_contents=b"sheet")
    row[1] = "joke"
    assert "jester-data-1.xls, line 1: expected the number" in fault(rating_files.jester, tmp_path)
    reader.open_workbook.side_effect = KeyError  # as xlrd may, of a damaged file
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


SHOTS, QUERIES = 6, 7


def make(root: str, train_users: int = 100, test_users: int = 100, more: int = 5, **changes) -> Ratings:
    class Some(MovieLens100K):
        meta_train_users, meta_test_tasks, unseen = train_users, test_users, more

    sizes = {"shots": SHOTS, "queries": QUERIES, "meta_batch": 5, "seed": 0, "data_root": root}
    return Some(Sampling(**sizes | changes))


@pytest.fixture(scope="module")
def domain(data_sets) -> Ratings:
    return make(data_sets)


def test_unseen_items_are_unseen_and_test_users_in_no_training(data_sets, domain):
    assert len(set(domain.train_users) | set(domain.test_users)) == 200
    assert domain.shrinkage == 2  # 1 where users with too few ratings choose the items too
    assert set(make(data_sets, seed=1).test_users) != set(domain.test_users)
    for tasks, points in ((domain.episode(3), 0), (domain.meta_test(100), domain.test_points)):
        parts = [tasks.support_x, tasks.query_x] + [tasks.test_x] * (points > 0)
        x = torch.cat(parts, 1)
        assert ((x == 0) | (x == 1)).all()
        assert (x.sum(2) == 1).all()  # an item is one input
        assert (x.sum(1) <= 1).all()  # and is there once
        assert x.shape[1] == SHOTS + QUERIES + points
    assert domain.test_points >= 5
    active = make(data_sets, test_users=20, more=30)
    assert active.meta_test(20).test_x.shape[1] == active.test_points >= 30


@pytest.mark.parametrize("what", ["ratings", "items"])
def test_nothing_is_learned_from_test_users(tmp_path, domain, what):
    """They rate the other way round, or also the items that are rated least: nothing of training changes."""
    changed = ratings()
    if what == "ratings":
        changed[domain.test_users] = 6 - changed[domain.test_users]
    else:
        changed[np.ix_(domain.test_users, np.argsort((~np.isnan(changed)).sum(0))[:40])] = 3
    movielens(tmp_path / "u.data", changed)
    other = make(str(tmp_path))
    for name in ("train_users", "test_users", "scale", "shrinkage", "item_means", "features"):
        assert np.array_equal(getattr(other, name), getattr(domain, name)), name
    assert all(map(torch.equal, other.episode(5).support, domain.episode(5).support))
    assert (other.test_points > domain.test_points) == (what == "items")
    if what == "ratings":
        assert torch.equal(other.meta_test(9).test_x, domain.meta_test(9).test_x)
        assert not torch.equal(other.meta_test(9).test_y, domain.meta_test(9).test_y)


FILES = [(MovieLens100K, "ml-100k/u.data", (943, 1682), 100_000)]
FILES += [(Jester, "jester/jester-data-1.csv", (5000, 100), 363_209)]


@pytest.mark.parametrize(("kind", "file", "shape", "count"), FILES)
def test_real_files(kind, file, shape, count):
    """The published sizes, and the order of the predictors: knowing items and users helps."""
    if not (REAL / file).exists():
        pytest.skip(f"no {file} in AMAML_DATA or ../shared/datasets")
    ratings = kind.read(str(REAL))
    assert (ratings.shape, (~np.isnan(ratings)).sum()) == (shape, count)
    for shots, queries in ((10, 15), (20, 30)):
        domain = kind(Sampling(shots, queries, 5, 0, data_root=str(REAL)))
        zero, *means, both = (errors.mean() for errors in domain.predictors(100).values())
        assert both < min(means) < max(means) < zero
        assert 0.85 < zero < 1.15
