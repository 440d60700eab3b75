"""The synthetic domains: formulas, scalers, pools; sinusoids and separated classes. What is drawn: test_domains.py."""

import math

import numpy as np
import pytest
import torch

import data
from data import Sampling
from data.episodes import META_TEST_TASKS, META_TRAIN_TASKS, generator
from data.logistic import Logistic
from data.sinusoid import Sinusoid

SYNTHETIC = [name for name, domain in data.DOMAINS.items() if domain.defaults == "synthetic"]
every_family = pytest.mark.parametrize("name", SYNTHETIC)


def make(name, **changes):
    return data.make(name, data.Sampling(**{"shots": 7, "queries": 11, "meta_batch": 5, "seed": 0} | changes))


def drawn(name, stream=META_TRAIN_TASKS, seed=0, tasks=100):
    """The parameters of so many functions, {name: (tasks, 1, 1 or d)}."""
    return make(name).draw(generator(seed, stream), tasks)


@every_family
def test_scalers_are_fitted_on_the_meta_train_tasks_alone(name):
    domain, draws = make(name), []

    class OtherTests(type(domain)):
        def draw(self, rng, tasks):
            draws.append(super().draw(rng, tasks))
            return {k: v * 1.5 for k, v in draws[-1].items()} if len(draws) > 1 else draws[-1]

    for pool in (domain.pools.support_x, domain.pools.support_y):
        assert pool.mean((0, 1)).abs().max() < 1e-12
        assert (pool.std((0, 1), correction=0) - 1).abs().max() < 1e-12
    changed, test = OtherTests(domain.sampling), domain.meta_test(100)
    assert abs(test.test_y.mean()) > 1e-4  # the test tasks have a mean of their own
    assert not torch.equal(changed.meta_test(100).test_y, test.test_y)
    scales = [(*d.x_scale, *d.y_scale) for d in (domain, changed)]
    assert all(np.array_equal(one, two) for one, two in zip(*scales, strict=True))
    assert torch.equal(changed.pools.support_y, domain.pools.support_y)


@every_family
def test_meta_test_tasks_are_not_those_of_meta_training_but_for_alpine_as_released(name):
    train, test = drawn(name), drawn(name, META_TEST_TASKS)
    for parameter in train:
        met = np.isin(test[parameter].round(9), train[parameter].round(9))
        assert met.all() if name == "Alpine2D-released" else not met.any()
    domain = make(name)
    points = {tuple(p) for p in domain.pools.support_x.flatten(0, 1).tolist()}
    assert not points & {tuple(p) for p in domain.meta_test(100).support_x.flatten(0, 1).tolist()}


def by_hand(name, x, own):
    """The paper's formula at one point x, from one task's parameters."""
    total = 0.0
    for i, x_i in enumerate(x):
        if name.startswith("Alpine2D"):
            phase = own["phase"][i if name == "Alpine2D" else 0]
            total += abs(x_i * math.sin(x_i + phase) + 0.1 * x_i)
        else:
            wave = math.cos(own["frequency"][0] * x_i + own["phase"][0])
            total += -own["amplitude"][0] * wave - x_i**2
    return total


@every_family
def test_targets_are_the_formula_of_the_paper(name):
    domain = make(name)
    test, train = domain.meta_test(3), domain.pools
    for stream, x, y in (
        *((META_TEST_TASKS, *pair) for pair in (test.support, test.query, (test.test_x, test.test_y))),
        *((META_TRAIN_TASKS, *pair) for pair in (train.support, train.query)),
    ):
        inputs, targets = domain.in_units(x[:3], y[:3])
        for task in range(3):
            own = {k: v[task, 0].tolist() for k, v in drawn(name, stream).items()}
            for point, target in zip(inputs[task, ::5].tolist(), targets[task, ::5, 0].tolist(), strict=True):
                assert target == pytest.approx(by_hand(name, point, own), abs=1e-10)


def test_sinusoids_are_those_of_maml():
    tasks = Sinusoid(Sampling(500, 11, 400, seed=0)).episode(3)
    x, y = tasks.support_x[..., 0], tasks.support_y[..., 0]
    basis = torch.stack([x.sin(), x.cos()], -1)  # a sin(x - p) = a cos(p) sin(x) - a sin(p) cos(x)
    solution = torch.linalg.lstsq(basis, y[..., None]).solution[..., 0]
    assert (basis @ solution[..., None] - y[..., None]).abs().max() < 1e-9
    amplitude, phase = solution.norm(dim=-1), torch.atan2(-solution[:, 1], solution[:, 0])
    query = tasks.query_y[..., 0] - amplitude[:, None] * (tasks.query_x[..., 0] - phase[:, None]).sin()
    assert query.abs().max() < 1e-9  # support and query are of the same task


def test_a_plane_separates_a_task_and_only_that_task():
    tasks = Logistic(Sampling(1000, 1000, 4, seed=0)).episode(0)
    for task in range(4):
        weights = torch.linalg.lstsq(tasks.support_x[task], 2 * tasks.support_y[task].double() - 1).solution
        accuracy = ((tasks.query_x @ weights > 0) == tasks.query_y).double().mean(1)
        others = torch.arange(4) != task
        assert accuracy[task] > 0.9
        assert (accuracy[others] < 0.85).all()
