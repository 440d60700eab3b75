"""Streams of tasks without end: sinusoids as in the MAML paper, and two classes with a plane between them."""

import math

import torch

from data import Sampling
from data.logistic import Logistic
from data.sinusoid import Sinusoid


def test_sinusoids_are_those_of_maml():
    domain = Sinusoid(Sampling(500, 11, 400, seed=0))
    tasks = domain.episode(3)
    x, y = tasks.support_x[..., 0], tasks.support_y[..., 0]
    basis = torch.stack([x.sin(), x.cos()], -1)  # a sin(x - p) = a cos(p) sin(x) - a sin(p) cos(x)
    solution = torch.linalg.lstsq(basis, y[..., None]).solution[..., 0]
    assert (basis @ solution[..., None] - y[..., None]).abs().max() < 1e-9
    amplitude, phase = solution.norm(dim=-1), torch.atan2(-solution[:, 1], solution[:, 0])
    for values, low, high in ((amplitude, 0.1, 5.0), (phase, 0.0, math.pi), (x, -5.0, 5.0)):
        slack = 0.03 * (high - low)
        assert low - 1e-9 <= values.min() < low + slack
        assert high - slack < values.max() <= high + 1e-9
    query = tasks.query_y[..., 0] - amplitude[:, None] * (tasks.query_x[..., 0] - phase[:, None]).sin()
    assert query.abs().max() < 1e-9  # support and query are of the same task
    test = domain.meta_test(2)
    assert test.test_y.shape == (2, 1000, 1)
    assert torch.allclose(test.test_x[1, :, 0], torch.linspace(-5, 5, 1000, dtype=torch.float64))


def test_tasks_never_return():
    for domain in (Sinusoid(Sampling(7, 11, 50, seed=0)), Logistic(Sampling(7, 11, 50, seed=0))):
        batches = [*(domain.episode(step) for step in range(20)), domain.meta_test(50)]
        firsts = torch.cat([tasks.support_x[:, 0, 0] for tasks in batches])
        assert len(firsts.unique()) == len(firsts)


def test_a_plane_separates_a_task_and_only_that_task():
    tasks = Logistic(Sampling(1000, 1000, 4, seed=0)).episode(0)
    for task in range(4):
        weights = torch.linalg.lstsq(tasks.support_x[task], 2 * tasks.support_y[task].double() - 1).solution
        accuracy = ((tasks.query_x @ weights > 0) == tasks.query_y).double().mean(1)
        others = torch.arange(4) != task
        assert accuracy[task] > 0.9
        assert (accuracy[others] < 0.85).all()


def test_the_shared_direction_tells_three_points_in_four():
    domain = Logistic(Sampling(5, 7, 3, seed=0))
    test = domain.meta_test(200)
    direction = torch.as_tensor(domain.direction)
    accuracy = ((test.test_x @ direction > 0) == test.test_y).double().mean(1)
    assert test.test_x.shape == (200, 500, 50)
    assert abs(accuracy.mean() - 0.75) < 0.01
    assert 0.005 < accuracy.std() < 0.1
    assert abs(test.test_y.double().mean() - 0.5) < 0.02
    assert direction @ torch.as_tensor(Logistic(Sampling(5, 7, 3, seed=1)).direction) < 0.6
