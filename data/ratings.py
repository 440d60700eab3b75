"""Collaborative filtering: every user is a task, an item an input of 100 numbers, the user's rating of it the output.

Three published sets of ratings: Jester, MovieLens100K, MovieLens1M. Nothing is learned from a meta-test user before
adaptation: the scaler and the item means come from the meta-train users alone, and users outside the
meta-test say which items are inputs.
"""

from collections.abc import Callable

import numpy as np
import torch

from amaml.errors import InputError
from amaml.tasks import Tasks
from data import episodes, rating_files
from data.domain import STANDARDISED, Domain, check_pool
from data.episodes import Sampling, gather, generator, smallest

INPUTS = 100
SHRINKAGES = (0.0, 0.5, 1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 64.0, 128.0)


class Ratings(Domain):
    """Users of a data set as a domain; ratings are standardised on the meta-train users.

    100 items, each its own input: those that `meta_train_users` users, drawn from all with enough ratings, rated most;
    none of these users is in the meta-test.

    A meta-train user has at least shots + queries ratings of these items, a meta-test user `unseen` more. Tasks are
    rectangular, so the unseen items of a meta-test user are as many as every chosen one can supply (`test_points`, at
    least `unseen`), drawn at random where a user has more; a larger `unseen` keeps to more active users. A mean over
    users of a root of few squares lies below the root of many (by 4% at 5 points), so that figures compare only on
    the same test points: those of `predictors` are.

    A data set is a subclass that reads it.
    """

    input_shape = (INPUTS,)
    outputs = 1
    objective = STANDARDISED
    meta_train_users, meta_test_tasks, unseen = 100, 100, 5
    read: Callable[[str | None], np.ndarray]  # from the data root, (users, items), NaN where unrated

    def __init__(self, sampling: Sampling) -> None:
        """Raises InputError for files that are missing or malformed and where there are not enough such users."""
        check_pool("meta-train users", sampling.meta_batch, self.meta_train_users, "--meta-batch")
        super().__init__(sampling)
        ratings = self.read(sampling.data_root)
        items, self.train_users, self.test_users = self._split(ratings)
        ratings = ratings[:, items]

        train = ratings[self.train_users]
        self.scale = float(np.nanmean(train)), float(np.nanstd(train))
        mean, deviation = self.scale
        train, test = ((rows - mean) / deviation for rows in (train, ratings[self.test_users]))
        self.features = self.tensor(np.eye(train.shape[1], INPUTS))
        items, values, self._counts = _packed(train)
        self._items, self._values = torch.as_tensor(items).to(sampling.device), self.tensor(values)

        # the support, query and unseen items of every meta-test user, side by side: (users, points)
        items, values, counts = _packed(test)
        self.test_points = int(counts.min()) - sampling.shots - sampling.queries
        points = _draw(generator(sampling.seed, episodes.META_TEST_POINTS), counts, items.shape[1], counts.min())
        self._test_items = np.take_along_axis(items, points, axis=1)
        self._test_values = np.take_along_axis(values, points, axis=1)
        self.item_means = np.nansum(train, 0) / np.maximum((~np.isnan(train)).sum(0), 1)  # (items,), 0 where unrated
        self.shrinkage = _fit_shrinkage(train, sampling.shots, generator(sampling.seed, episodes.META_TRAIN_POINTS))

    def episode(self, step: int) -> Tasks:
        """Different users, and support and query items of each without replacement, for every step."""
        s = self.sampling
        rng = generator(s.seed, episodes.EPISODE, step)
        users = rng.permutation(len(self._counts))[: s.meta_batch]
        points = _draw(rng, self._counts[users], self._items.shape[1], s.shots + s.queries)
        return self._tasks(gather(self._items, users, points), gather(self._values, users, points))

    def meta_test(self, count: int, first: int = 0) -> Tasks:
        """Meta-test users first to first + count - 1; the test points are in neither their support nor their query set.

        Raises InputError where there are not so many.
        """
        self.check_meta_test(first + count)
        chosen = slice(first, first + count)
        items = torch.as_tensor(self._test_items[chosen]).to(self.sampling.device)
        return self._tasks(items, self.tensor(self._test_values[chosen]))

    def predictors(self, count: int) -> dict[str, np.ndarray]:
        """The nRMSE (count,) of four predictors.

        zero; the mean of the user's support; the item's mean over the meta-train users (0 where none rated it); that
        mean plus the user's offset, the sum of the support's residuals / (shots + shrinkage), where the shrinkage is
        the best of a grid on the meta-train users.
        """
        shots, start = self.sampling.shots, self.sampling.shots + self.sampling.queries
        support, target = self._test_values[:count, :shots], self._test_values[:count, start:]
        means = self.item_means[self._test_items[:count]]
        offset = (support - means[:, :shots]).sum(1, keepdims=True) / (shots + self.shrinkage)
        predictions = {
            "zero": np.zeros_like(target),
            "user mean": support.mean(1, keepdims=True),
            "item mean": means[:, start:],
            "item mean + user offset": means[:, start:] + offset,
        }
        return {name: np.sqrt(((prediction - target) ** 2).mean(1)) for name, prediction in predictions.items()}

    def _split(self, ratings: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """The items, and disjoint users by seed, (train,) and (test,). The test users first: fewer have enough ratings.

        The users who choose the items are no test users; one who rated too few of them is replaced for training.
        """
        s, rated = self.sampling, ~np.isnan(ratings)
        counts, needed, train, test = rated.sum(1), s.shots + s.queries, self.meta_train_users, self.meta_test_tasks
        order = generator(s.seed, episodes.META_TRAIN_TASKS).permutation(len(ratings))
        choosing = order[counts[order] >= needed][:train]
        # those with the most ratings, the first of equals
        items = np.argsort(-rated[choosing].sum(0), kind="stable")[:INPUTS]
        counts = rated[:, items].sum(1)
        others = order[~np.isin(order, choosing)]
        tests = others[counts[others] >= needed + self.unseen][:test]
        rest = order[~np.isin(order, tests)]
        trains = rest[counts[rest] >= needed][:train]
        if len(tests) < test or len(trains) < train:
            trained = f"{len(trains)} users for meta-training, who rated {needed} of the {len(items)} items"
            tested = f"{len(tests)} for the meta-test, who rated {self.unseen} more"
            remedy = f"{train} and {test} are needed: choose fewer shots or queries"
            raise InputError(f"{type(self).__name__} has {trained} (--shots + --queries), and {tested}; {remedy}")
        return items, trains, tests

    def _tasks(self, items: torch.Tensor, values: torch.Tensor) -> Tasks:
        """items, values (tasks, points): the support, the query and, where there are more, the unseen points."""
        ends, pairs = (self.sampling.shots, self.sampling.shots + self.sampling.queries), []
        for rated, ratings in zip(items.tensor_split(ends, 1), values.tensor_split(ends, 1), strict=True):
            if rated.numel():
                pairs += [self.features[rated], ratings[..., None].contiguous()]
        return Tasks(*pairs)


class Jester(Ratings):
    read = staticmethod(rating_files.jester)


class MovieLens100K(Ratings):
    read = staticmethod(rating_files.movielens_100k)


class MovieLens1M(Ratings):
    read = staticmethod(rating_files.movielens_1m)


def _packed(ratings: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The rated items of every user moved to the front: items and values (users, most), counts (users,)."""
    rated = ~np.isnan(ratings)
    counts = rated.sum(1)
    items = np.argsort(~rated, axis=1, kind="stable")[:, : counts.max()]
    return items, np.take_along_axis(ratings, items, axis=1), counts


def _draw(rng: np.random.Generator, counts: np.ndarray, pool: int, count: int) -> np.ndarray:
    """count distinct points below counts[i] for every row i, (rows, count), in random order."""
    return smallest(rng.random((len(counts), pool)), counts, count)


def _fit_shrinkage(train: np.ndarray, shots: int, rng: np.random.Generator) -> float:
    """The shrinkage of least mean nRMSE over the meta-train users, each judged by the item means of the others."""
    rated = ~np.isnan(train)
    others = (np.nansum(train, axis=0) - np.nan_to_num(train)) / np.maximum(rated.sum(0) - rated, 1)
    items, residuals, counts = _packed(np.where(rated, train - others, np.nan))
    support = np.zeros(items.shape, dtype=bool)
    np.put_along_axis(support, _draw(rng, counts, items.shape[1], shots), True, axis=1)
    known = np.where(support, residuals, 0.0).sum(1, keepdims=True)
    unseen = np.where(support, np.nan, residuals)
    errors = [np.sqrt(np.nanmean((unseen - known / (shots + k)) ** 2, axis=1)).mean() for k in SHRINKAGES]
    return SHRINKAGES[int(np.argmin(errors))]
