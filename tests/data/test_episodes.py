"""How episodes are drawn: generators by seed and stream, without replacement, each task its own points."""

import math

import numpy as np
import torch

from data.episodes import draw_without_replacement, gather, generator


def test_small_seeds_are_numpys_own():
    for numbers in ((7,), (7, 0), (0, 4, 12), (2**32 - 1, 4, 2**32 - 1)):
        assert np.array_equal(generator(*numbers).random(9), np.random.default_rng(list(numbers)).random(9))


def test_no_two_of_large_and_small_seeds_and_streams_are_alike():
    """Among them pairs that are the same words to NumPy, as 4 * 2**32 + 7 with stream 0, and 7 with streams 4 and 0."""
    streams = [(stream,) for stream in range(4)] + [(4, step) for step in (0, 1, 4, 7, 2**32, 2**32 + 1, 2**40)]
    seeds = [0, 1, 4, 7, 2**32, 2**32 + 1, 2**32 + 4, 4 * 2**32 + 7, 7 * 2**32 + 4, 2**63 - 1]
    firsts = {(seed, *stream): generator(seed, *stream).integers(2**63) for seed in seeds for stream in streams}
    assert len(set(firsts.values())) == len(seeds) * len(streams)
    assert firsts[4 * 2**32 + 7, 0] != firsts[7, 4, 0]


def test_draws_without_replacement_are_uniform():
    rows = draw_without_replacement(generator(0, 0), 6000, 5, 2)
    assert (rows[:, 0] != rows[:, 1]).all()
    pairs = np.bincount(rows[:, 0] * 5 + rows[:, 1], minlength=25).reshape(5, 5)
    assert np.abs(pairs[~np.eye(5, dtype=bool)] - 300).max() < 5 * math.sqrt(300)
    assert not np.array_equal(rows[:10], draw_without_replacement(generator(0, 1), 10, 5, 2))


def test_gather_takes_each_task_its_own_points():
    pool = torch.arange(24).reshape(3, 4, 2)
    drawn = gather(pool, np.array([2, 0]), np.array([[3, 0, 1], [2, 2, 0]]))
    assert drawn.tolist() == [[[22, 23], [16, 17], [18, 19]], [[4, 5], [4, 5], [0, 1]]]
