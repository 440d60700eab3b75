"""Ratings: the split of users, items and ratings, the item factors, and the predictors without learning."""

import os
from pathlib import Path

import numpy as np
import pytest
import torch

from amaml.errors import InputError
from data import rating_files
from data.episodes import Sampling
from data.ratings import SHRINKAGES, Ratings, item_factors
from experiment.settings import FOLDER, checked, read_toml

ROOT = os.environ.get("AMAML_DATA") or str(Path(__file__).parents[3] / "shared" / "datasets")
SHOTS, QUERIES, USERS, ITEMS = 6, 7, 240, 120


def made_up_ratings() -> np.ndarray:
    """(USERS, ITEMS) of 1..5, NaN where unrated; an item's chance of a rating falls with its number."""
    rng = np.random.default_rng(3)
    taste = rng.normal(size=(USERS, 1)) + rng.normal(size=(1, ITEMS)) + rng.normal(size=(USERS, ITEMS))
    rated = rng.random((USERS, ITEMS)) < np.linspace(0.9, 0.05, ITEMS) * rng.uniform(0.2, 1, (USERS, 1))
    return np.where(rated, np.clip(np.round(3 + taste), 1, 5), np.nan)


def write(root: Path, ratings: np.ndarray) -> str:
    users, items = np.nonzero(~np.isnan(ratings))
    lines = [f"{u + 1}\t{i + 1}\t{ratings[u, i]:.0f}\t881250949" for u, i in zip(users, items, strict=True)]
    (root / "ml-100k").mkdir(exist_ok=True)
    (root / "ml-100k" / "u.data").write_text("\n".join(lines) + "\n")
    return str(root)


def sampling(root: str, **changes) -> Sampling:
    return Sampling(**{"shots": SHOTS, "queries": QUERIES, "meta_batch": 5, "seed": 0, "data_root": root} | changes)


@pytest.fixture(scope="module")
def root(tmp_path_factory) -> str:
    return write(tmp_path_factory.mktemp("ratings"), made_up_ratings())


@pytest.fixture(scope="module")
def domain(root) -> Ratings:
    return Ratings("MovieLens100K", sampling(root))


def items_of(x: torch.Tensor) -> np.ndarray:
    """The items of one-hot inputs (tasks, points, 100)."""
    assert ((x == 0) | (x == 1)).all()
    assert (x.sum(-1) == 1).all()
    return x.argmax(-1).numpy()


def selected(seed: int = 0, users: int = 100) -> np.ndarray:
    """The made-up ratings of the 100 items that the first users of a random order rated most, by an own count."""
    ratings = made_up_ratings()
    order = np.random.default_rng([seed, 0]).permutation(USERS)
    choosing = [u for u in order if (~np.isnan(ratings[u])).sum() >= SHOTS + QUERIES][:users]
    counts = [sum(not np.isnan(ratings[u, i]) for u in choosing) for i in range(ITEMS)]
    return ratings[:, sorted(range(ITEMS), key=lambda i: (-counts[i], i))[:100]]


class TestEpisodes:
    def test_shapes(self, domain):
        tasks = domain.episode(0)
        assert tasks.support_x.shape == (5, SHOTS, 100)
        assert tasks.support_y.shape == (5, SHOTS, 1)
        assert tasks.query_x.shape == (5, QUERIES, 100)
        assert tasks.query_y.shape == (5, QUERIES, 1)
        assert tasks.test_x is None
        assert tasks.support_x.dtype == torch.float64

    def test_points_are_different_items_and_their_ratings(self, domain):
        ratings = (selected() - domain.scale[0]) / domain.scale[1]
        seen = set()
        for step in range(30):
            tasks = domain.episode(step)
            items = np.concatenate([items_of(tasks.support_x), items_of(tasks.query_x)], axis=1)
            values = torch.cat([tasks.support_y, tasks.query_y], 1)[..., 0].numpy()
            users = [self.user(ratings, row, y, domain.train_users) for row, y in zip(items, values, strict=True)]
            assert all(len(set(row)) == SHOTS + QUERIES for row in items)
            assert len(set(users)) == 5
            seen |= set(users)
        assert len(seen) > 60  # of the 100 meta-train users, by 150 draws

    def test_users_are_drawn_without_replacement(self, root):
        domain = Ratings("MovieLens100K", sampling(root, meta_batch=100))
        ratings = (selected() - domain.scale[0]) / domain.scale[1]
        tasks = domain.episode(0)
        rows = zip(items_of(tasks.query_x), tasks.query_y[..., 0].numpy(), strict=True)
        assert {self.user(ratings, *row, domain.train_users) for row in rows} == set(domain.train_users)

    def test_every_item_of_a_user_is_drawn(self, root):
        domain = Ratings("MovieLens100K", sampling(root, meta_batch=2), train_users=2, test_users=1)
        ratings = (selected(users=2) - domain.scale[0]) / domain.scale[1]
        drawn = [set(), set()]
        order = {}
        for step in range(300):
            tasks = domain.episode(step)
            for x, y in zip(items_of(tasks.support_x), tasks.support_y, strict=True):
                user = self.user(ratings, x, y[:, 0].numpy(), domain.train_users)
                drawn[order.setdefault(user, len(order))] |= set(x)
        for user, place in order.items():
            assert drawn[place] == set(np.flatnonzero(~np.isnan(selected(users=2)[user])))

    def test_a_step_is_drawn_from_seed_and_number_alone(self, root, domain):
        again = Ratings("MovieLens100K", sampling(root))
        again.episode(7)
        assert torch.equal(again.episode(3).query_y, domain.episode(3).query_y)
        assert torch.equal(again.episode(3).query_x, domain.episode(3).query_x)
        assert not torch.equal(domain.episode(3).support_x, domain.episode(4).support_x)
        other = Ratings("MovieLens100K", sampling(root, seed=1))
        assert set(other.test_users) != set(domain.test_users)

    def test_precision(self, root):
        domain = Ratings("MovieLens100K", sampling(root, dtype=torch.float32))
        assert {t.dtype for t in vars(domain.episode(0)).values() if t is not None} == {torch.float32}
        assert {t.dtype for t in vars(domain.meta_test(3)).values() if t is not None} == {torch.float32}

    @staticmethod
    def user(ratings: np.ndarray, items: np.ndarray, values: np.ndarray, among: np.ndarray) -> int:
        """The one user with these ratings."""
        found = [u for u in among if np.allclose(ratings[u, items], values, rtol=0, atol=1e-12)]
        assert len(found) == 1
        return found[0]


class TestMetaTest:
    def test_users_of_the_splits_differ(self, domain):
        assert len(set(domain.train_users) | set(domain.test_users)) == 200

    def test_unseen_items_are_unseen(self, domain):
        tasks = domain.meta_test(100)
        support, query, test = (items_of(x) for x in (tasks.support_x, tasks.query_x, tasks.test_x))
        for rows in zip(support, query, test, strict=True):
            assert len(set(np.concatenate(rows))) == SHOTS + QUERIES + domain.test_points
        ratings = (selected() - domain.scale[0]) / domain.scale[1]
        np.testing.assert_allclose(tasks.test_y[..., 0], ratings[domain.test_users[:, None], test], atol=1e-12)

    def test_as_many_unseen_items_as_every_user_has(self, root, domain):
        counts = (~np.isnan(selected())).sum(1)
        assert domain.test_points == counts[domain.test_users].min() - SHOTS - QUERIES >= 5
        active = Ratings("MovieLens100K", sampling(root), test_users=20, unseen=30)
        assert active.meta_test(20).test_x.shape[1] == active.test_points >= 30

    def test_fewer_tasks_are_the_first_ones(self, domain):
        assert torch.equal(domain.meta_test(4).test_y, domain.meta_test(100).test_y[:4])

    @pytest.mark.parametrize("item_features", ["onehot", "svd"])
    def test_nothing_is_learned_from_test_users(self, tmp_path, root, item_features):
        domain = Ratings("MovieLens100K", sampling(root), item_features)
        changed = made_up_ratings()
        changed[domain.test_users] = 6 - changed[domain.test_users]
        other = Ratings("MovieLens100K", sampling(write(tmp_path, changed)), item_features)
        assert torch.equal(other.episode(5).support_y, domain.episode(5).support_y)
        assert (other.scale, other.shrinkage) == (domain.scale, domain.shrinkage)
        assert np.array_equal(other.item_means, domain.item_means)
        assert torch.equal(other.features, domain.features)
        assert torch.equal(other.meta_test(9).test_x, domain.meta_test(9).test_x)
        assert not torch.equal(other.meta_test(9).test_y, domain.meta_test(9).test_y)

    @pytest.mark.parametrize("item_features", ["onehot", "svd"])
    def test_nothing_is_learned_from_what_test_users_rated(self, tmp_path, root, item_features):
        """Every test user rates the items that are rated least as well: no item, user or number of training changes."""
        domain = Ratings("MovieLens100K", sampling(root), item_features)
        changed = made_up_ratings()
        rarely = np.argsort((~np.isnan(changed)).sum(0))[:40]
        changed[np.ix_(domain.test_users, rarely)] = 3
        other = Ratings("MovieLens100K", sampling(write(tmp_path, changed)), item_features)
        assert np.array_equal(other.train_users, domain.train_users)
        assert np.array_equal(other.test_users, domain.test_users)
        assert torch.equal(other.episode(5).support_x, domain.episode(5).support_x)
        assert torch.equal(other.episode(5).support_y, domain.episode(5).support_y)
        assert (other.scale, other.shrinkage) == (domain.scale, domain.shrinkage)
        assert np.array_equal(other.item_means, domain.item_means)
        assert torch.equal(other.features, domain.features)
        assert other.test_points > domain.test_points

    def test_scaler(self, domain):
        train = selected()[domain.train_users]
        values = train[~np.isnan(train)]
        assert domain.scale == pytest.approx((values.mean(), values.std()))

    def test_predictors(self, domain):
        tasks, found = domain.meta_test(30), domain.predictors(30)
        train = (selected()[domain.train_users] - domain.scale[0]) / domain.scale[1]
        item_mean = [np.mean(column[~np.isnan(column)]) if (column == column).any() else 0.0 for column in train.T]
        expected = {name: [] for name in ("zero", "user mean", "item mean", "item mean + user offset")}
        for t in range(30):
            support, unseen = items_of(tasks.support_x)[t], items_of(tasks.test_x)[t]
            y, target = tasks.support_y[t, :, 0].tolist(), tasks.test_y[t, :, 0].tolist()
            residuals = [y[j] - item_mean[i] for j, i in enumerate(support)]
            offset = sum(residuals) / (SHOTS + domain.shrinkage)
            guesses = [[0.0, np.mean(y), item_mean[i], item_mean[i] + offset] for i in unseen]
            for name, guess in zip(expected, zip(*guesses, strict=True), strict=True):
                squares = [(a - b) ** 2 for a, b in zip(guess, target, strict=True)]
                expected[name].append(np.sqrt(np.mean(squares)))
        assert list(found) == list(expected)
        for name in expected:
            np.testing.assert_allclose(found[name], expected[name], rtol=1e-12)

    def test_the_shrinkage_fits_the_spread_of_users(self, tmp_path):
        """Users without a taste of their own call for none of it, users that differ by a constant for all."""
        rng = np.random.default_rng(0)
        noise = np.clip(rng.integers(1, 6, (USERS, ITEMS)), 1, 5).astype(float)
        assert Ratings("MovieLens100K", sampling(write(tmp_path, noise))).shrinkage >= SHRINKAGES[-2]
        constant = np.tile(rng.integers(1, 6, (USERS, 1)), (1, ITEMS)).astype(float)
        constant[:, ::2] = np.clip(constant[:, ::2] + rng.integers(0, 2, (USERS, ITEMS // 2)), 1, 5)
        assert Ratings("MovieLens100K", sampling(write(tmp_path, constant))).shrinkage <= SHRINKAGES[1]


class TestFactors:
    @pytest.mark.parametrize(("users", "items"), [(8, 30), (30, 8), (20, 30)])
    def test_best_approximation(self, users, items):
        """F F^T is the item Gram matrix of the best approximation of rank 12, up to one scale."""
        rng = np.random.default_rng(0)
        ratings = np.where(rng.random((users, items)) < 0.5, rng.normal(size=(users, items)), np.nan)
        factors = item_factors(ratings, 12)
        left, scale, right = np.linalg.svd(np.nan_to_num(ratings), full_matrices=False)
        best = (right[:12].T * scale[:12] ** 2) @ right[:12]
        gram = factors @ factors.T
        np.testing.assert_allclose(gram / np.trace(gram), best / np.trace(best), atol=1e-10)
        rated = ~np.isnan(ratings).all(0)
        assert (factors[rated] ** 2).mean() == pytest.approx(1.0)
        assert np.array_equal(factors, item_factors(ratings, 12))

    def test_as_inputs(self, root):
        domain = Ratings("MovieLens100K", sampling(root), item_features="svd")
        tasks = domain.meta_test(10)
        assert tasks.test_x.shape == (10, domain.test_points, 100)
        assert domain.features.shape == (ITEMS, 100)
        train = (made_up_ratings()[domain.train_users] - domain.scale[0]) / domain.scale[1]
        np.testing.assert_allclose(domain.features, item_factors(train, 100), atol=1e-12)

    def test_an_item_that_nobody_rated_is_zero(self):
        ratings = np.array([[1.0, np.nan, -1.0], [0.5, np.nan, np.nan]])
        assert not item_factors(ratings, 4)[1].any()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"shots": 60, "queries": 60}, "fewer shots or queries"),
        ({"meta_batch": 101}, "--meta-batch 101 is more than the 100 meta-train users"),
    ],
)
def test_too_much_asked(root, change, message):
    with pytest.raises(InputError, match=message):
        Ratings("MovieLens100K", sampling(root, **change))


def test_more_mistakes(root, domain):
    with pytest.raises(InputError, match="--test-tasks 101 is more than the 100 meta-test users"):
        domain.meta_test(101)
    with pytest.raises(InputError, match="--test-tasks 101"):
        domain.predictors(101)
    with pytest.raises(InputError, match="did you mean 'onehot'"):
        Ratings("MovieLens100K", sampling(root), item_features="one-hot")


@pytest.mark.parametrize("name", ["Jester", "MovieLens100K", "MovieLens1M"])
def test_settings(name):
    s = checked(read_toml(FOLDER / "defaults.toml") | read_toml(FOLDER / f"{name}.toml") | {"domain": "Sinusoid"})
    assert (s.width, s.activation) == (40, "tanh")


@pytest.mark.parametrize(
    ("name", "file", "shape", "count"),
    [
        ("MovieLens100K", "ml-100k/u.data", (943, 1682), 100_000),
        ("Jester", "jester/jester-data-1.csv", (5000, 100), 363_209),
    ],
)
def test_real_files(name, file, shape, count):
    """The published sizes, and the order of the predictors: knowing items and users helps."""
    if not Path(ROOT, file).exists():
        pytest.skip(f"no {file} in AMAML_DATA or ../shared/datasets")
    ratings = rating_files.read(name, ROOT)
    assert ratings.shape == shape
    assert (~np.isnan(ratings)).sum() == count
    for shots, queries in ((10, 15), (20, 30)):
        domain = Ratings(name, sampling(ROOT, shots=shots, queries=queries))
        means = {predictor: errors.mean() for predictor, errors in domain.predictors(100).items()}
        assert means["item mean + user offset"] < min(means["item mean"], means["user mean"])
        assert max(means["item mean"], means["user mean"]) < means["zero"]
        assert 0.85 < means["zero"] < 1.15
