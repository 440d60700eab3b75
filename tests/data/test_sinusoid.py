"""Sinusoids as in the MAML paper: the formula, its ranges, an endless stream."""

import math

import torch

from data.episodes import Sampling
from data.sinusoid import Sinusoid


def make(shots: int = 7, queries: int = 11, meta_batch: int = 5) -> Sinusoid:
    return Sinusoid(Sampling(shots, queries, meta_batch, seed=0))


def test_shapes():
    domain = make()
    assert (domain.input_shape, domain.outputs, domain.images, domain.objective.metric_name) == ((1,), 1, False, "MSE")
    assert domain.episode(0).query_x.shape == (5, 11, 1)
    assert domain.meta_test(3).test_y.shape == (3, 1000, 1)


def test_sinusoids_are_those_of_maml():
    domain = make(shots=500, meta_batch=400)
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
    assert torch.allclose(test.test_x[1, :, 0], torch.linspace(-5, 5, 1000, dtype=torch.float64))


def test_sinusoid_tasks_never_return():
    domain = make(meta_batch=50)
    batches = [*(domain.episode(step) for step in range(20)), domain.meta_test(50)]
    firsts = torch.cat([tasks.support_x[:, 0, 0] for tasks in batches])
    assert len(firsts.unique()) == len(firsts)
