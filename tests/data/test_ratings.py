"""Ratings: their publishers' files, the split of users, items and ratings, and the predictors without learning."""

import sys
import zipfile
from pathlib import Path
from unittest.mock import Mock

import numpy as np
import pytest
import torch
from helpers.archives import REAL, movielens

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


SHOTS, QUERIES, USERS, ITEMS = 6, 7, 240, 120


def made_up_ratings() -> np.ndarray:
    """(USERS, ITEMS) of 1..5, NaN where unrated; an item's chance of a rating falls with its number."""
    rng = np.random.default_rng(3)
    taste = rng.normal(size=(USERS, 1)) + rng.normal(size=(1, ITEMS)) + rng.normal(size=(USERS, ITEMS))
    rated = rng.random((USERS, ITEMS)) < np.linspace(0.9, 0.05, ITEMS) * rng.uniform(0.2, 1, (USERS, 1))
    return np.where(rated, np.clip(np.round(3 + taste), 1, 5), np.nan)


def write(root: Path, ratings: np.ndarray) -> str:
    movielens(root / "ml-100k" / "u.data", ratings)
    return str(root)


def make(root: str, train_users: int = 100, test_users: int = 100, more: int = 5, **changes) -> Ratings:
    class Some(MovieLens100K):
        meta_train_users, meta_test_tasks, unseen = train_users, test_users, more

    sizes = {"shots": SHOTS, "queries": QUERIES, "meta_batch": 5, "seed": 0, "data_root": root}
    return Some(Sampling(**sizes | changes))


@pytest.fixture(scope="module")
def root(tmp_path_factory) -> str:
    return write(tmp_path_factory.mktemp("ratings"), made_up_ratings())


@pytest.fixture(scope="module")
def domain(root) -> Ratings:
    return make(root)


def items_of(x: torch.Tensor) -> np.ndarray:
    """The items of one-hot inputs (tasks, points, 100)."""
    assert ((x == 0) | (x == 1)).all()
    assert (x.sum(-1) == 1).all()
    return x.argmax(-1).numpy()


def selected(users: int = 100) -> np.ndarray:
    """The made-up ratings of the 100 items that the first users of a random order rated most, by an own count."""
    ratings = made_up_ratings()
    order = np.random.default_rng([0, 0]).permutation(USERS)
    choosing = [u for u in order if (~np.isnan(ratings[u])).sum() >= SHOTS + QUERIES][:users]
    counts = [sum(not np.isnan(ratings[u, i]) for u in choosing) for i in range(ITEMS)]
    return ratings[:, sorted(range(ITEMS), key=lambda i: (-counts[i], i))[:100]]


def standardised(domain: Ratings, users: int = 100) -> np.ndarray:
    return (selected(users) - domain.scale[0]) / domain.scale[1]


def users_of(tasks, ratings: np.ndarray, among: np.ndarray) -> list[int]:
    """The one user with the support's and the query's ratings, for every task, whose items are all different."""
    items = np.concatenate([items_of(tasks.support_x), items_of(tasks.query_x)], axis=1)
    values = torch.cat([tasks.support_y, tasks.query_y], 1)[..., 0].numpy()
    users = []
    for row, y in zip(items, values, strict=True):
        assert len(set(row)) == SHOTS + QUERIES
        (user,) = [u for u in among if np.allclose(ratings[u, row], y, rtol=0, atol=1e-12)]
        users.append(user)
    return users


def test_episodes_are_different_users_and_items_with_their_ratings(root, domain):
    ratings = standardised(domain)
    drawn = [users_of(domain.episode(step), ratings, domain.train_users) for step in range(30)]
    assert all(len(set(users)) == 5 for users in drawn)
    assert len(set(sum(drawn, []))) > 60  # of the 100 meta-train users, by 150 draws
    everyone = make(root, meta_batch=100)
    assert set(users_of(everyone.episode(0), ratings, domain.train_users)) == set(domain.train_users)


def test_unseen_items_are_unseen_and_test_users_in_no_training(root, domain):
    assert len(set(domain.train_users) | set(domain.test_users)) == 200
    assert set(make(root, seed=1).test_users) != set(domain.test_users)
    tasks = domain.meta_test(100)
    parts = [items_of(x) for x in (tasks.support_x, tasks.query_x, tasks.test_x)]
    for rows in zip(*parts, strict=True):
        assert len(set(np.concatenate(rows))) == SHOTS + QUERIES + domain.test_points
    ratings = standardised(domain)[domain.test_users[:, None], parts[2]]
    np.testing.assert_allclose(tasks.test_y[..., 0], ratings, atol=1e-12)
    counts = (~np.isnan(selected())).sum(1)  # as many unseen items as every user has
    assert domain.test_points == counts[domain.test_users].min() - SHOTS - QUERIES >= 5
    active = make(root, test_users=20, more=30)
    assert active.meta_test(20).test_x.shape[1] == active.test_points >= 30


@pytest.mark.parametrize("what", ["ratings", "items"])
def test_nothing_is_learned_from_test_users(tmp_path, domain, what):
    """They rate the other way round, or also the items that are rated least: nothing of training changes."""
    changed = made_up_ratings()
    if what == "ratings":
        changed[domain.test_users] = 6 - changed[domain.test_users]
    else:
        changed[np.ix_(domain.test_users, np.argsort((~np.isnan(changed)).sum(0))[:40])] = 3
    other = make(write(tmp_path, changed))
    for name in ("train_users", "test_users", "scale", "shrinkage", "item_means", "features"):
        assert np.array_equal(getattr(other, name), getattr(domain, name)), name
    assert all(map(torch.equal, other.episode(5).support, domain.episode(5).support))
    assert (other.test_points > domain.test_points) == (what == "items")
    if what == "ratings":
        assert torch.equal(other.meta_test(9).test_x, domain.meta_test(9).test_x)
        assert not torch.equal(other.meta_test(9).test_y, domain.meta_test(9).test_y)


def test_predictors(domain):
    tasks, found = domain.meta_test(30), domain.predictors(30)
    train = standardised(domain)[domain.train_users]
    assert (np.nanmean(train), np.nanstd(train)) == pytest.approx((0, 1))
    item_mean = [np.mean(column[~np.isnan(column)]) if (column == column).any() else 0.0 for column in train.T]
    expected = []
    for t in range(30):
        support, unseen = items_of(tasks.support_x)[t], items_of(tasks.test_x)[t]
        y, target = tasks.support_y[t, :, 0].tolist(), tasks.test_y[t, :, 0].numpy()
        offset = sum(y[j] - item_mean[i] for j, i in enumerate(support)) / (SHOTS + domain.shrinkage)
        guesses = np.array([[0.0, np.mean(y), item_mean[i], item_mean[i] + offset] for i in unseen])
        expected.append(np.sqrt(((guesses - target[:, None]) ** 2).mean(0)))
    assert list(found) == ["zero", "user mean", "item mean", "item mean + user offset"]
    np.testing.assert_allclose(np.array(list(found.values())).T, expected, rtol=1e-12)


def test_too_much_asked(root):
    for changes, message in (
        ({"shots": 60, "queries": 60}, "fewer shots or queries"),
        ({"meta_batch": 101}, "--meta-batch 101 is more than the 100 meta-train users"),
    ):
        with pytest.raises(InputError, match=message):
            make(root, **changes)


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
