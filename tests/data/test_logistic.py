"""Two-class linear tasks: separable, different, around a shared direction, and drawn again from seed and step."""

import numpy as np
import torch

from data.episodes import Sampling
from data.logistic import Logistic


def domain(shots: int = 5, queries: int = 7, meta_batch: int = 3, seed: int = 0) -> Logistic:
    return Logistic(Sampling(shots, queries, meta_batch, seed))


def test_shapes():
    tasks, test = domain().episode(4), domain().meta_test(6)
    assert tasks.support_x.shape == (3, 5, 50)
    assert tasks.query_x.shape == (3, 7, 50)
    assert tasks.query_y.shape == (3, 7)
    assert (tasks.support_x.dtype, tasks.support_y.dtype) == (torch.float64, torch.int64)
    assert tasks.test_x is None
    assert (test.test_x.shape, test.test_y.shape) == ((6, 500, 50), (6, 500))


def test_a_plane_separates_a_task_and_only_that_task():
    tasks = domain(shots=1000, queries=1000, meta_batch=4).episode(0)
    for task in range(4):
        weights = torch.linalg.lstsq(tasks.support_x[task], 2 * tasks.support_y[task].double() - 1).solution
        accuracy = ((tasks.query_x @ weights > 0) == tasks.query_y).double().mean(1)
        others = torch.arange(4) != task
        assert accuracy[task] > 0.9
        assert (accuracy[others] < 0.85).all()


def test_the_shared_direction_tells_three_points_in_four():
    sampled = domain()
    test = sampled.meta_test(200)
    accuracy = ((test.test_x @ torch.as_tensor(sampled.direction) > 0) == test.test_y).double().mean(1)
    own = accuracy.numpy()
    assert abs(own.mean() - 0.75) < 0.01
    assert 0.005 < own.std() < 0.1
    assert abs(test.test_y.double().mean() - 0.5) < 0.02


def test_a_step_is_drawn_again_and_no_two_are_alike():
    again = domain().episode(3)
    assert torch.equal(domain().episode(3).query_x, again.query_x)
    assert not torch.equal(domain().episode(2).query_x, again.query_x)
    assert not torch.equal(domain(seed=1).episode(3).query_x, again.query_x)
    assert not np.allclose(domain().direction, domain(seed=1).direction)
