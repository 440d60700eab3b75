"""The synthetic domains: formulas, grids, scalers, pools."""

import math

import numpy as np
import pytest
import torch

import data
from amaml import InputError
from data import synthetic
from data.episodes import Sampling, generator

SYNTHETIC = ["Alpine2D", "Alpine2D-released", "CosMixture", "CosMixture-slides", "CosMixture2D", "CosMixture2D-slides"]


def make(name, **changes):
    return data.make(name, Sampling(**{"shots": 7, "queries": 11, "meta_batch": 5, "seed": 0} | changes))


@pytest.mark.parametrize("name", SYNTHETIC)
def test_shapes(name):
    domain = make(name)
    d = 2 if "2D" in name else 1
    assert (domain.input_shape, domain.outputs, domain.images, domain.objective.metric_name) == (
        (d,),
        1,
        False,
        "nRMSE",
    )
    assert domain.episode(0).support_x.shape == (5, 7, d)
    test = domain.meta_test(3)
    assert test.query_y.shape == (3, 11, 1)
    assert test.test_x.shape == (3, 31 * 31 if d == 2 else 1000, d)


@pytest.mark.parametrize("name", SYNTHETIC)
def test_an_episode_holds_different_tasks_and_points_of_their_pools(name):
    domain = make(name, shots=200, queries=300, meta_batch=100)
    tasks = domain.episode(0)
    pools = [{tuple(point) for point in pool.tolist()} for pool in domain.support_x]
    owners = []
    for task in range(100):
        support = {tuple(point) for point in tasks.support_x[task].tolist()}
        query = {tuple(point) for point in tasks.query_x[task].tolist()}
        assert len(support) == 200  # without replacement
        assert len(query) == 300
        assert not support & query
        (owner,) = [i for i, pool in enumerate(pools) if next(iter(support)) in pool]
        assert support <= pools[owner]
        owners.append(owner)
    assert sorted(owners) == list(range(100))


def test_every_task_and_point_of_the_pools_is_drawn():
    domain = make("CosMixture", shots=100, queries=100, meta_batch=20)
    seen = torch.cat([domain.episode(step).support_x.flatten(0, 1) for step in range(100)]).unique(dim=0)
    assert len(seen) > 0.8 * 100_000  # of 100 tasks' 1000 points, after 20 draws of 100 for each task


@pytest.mark.parametrize("name", SYNTHETIC)
def test_scalers_are_fitted_on_the_meta_train_tasks_alone(name, monkeypatch):
    domain = make(name)
    for pool in (domain.support_x, domain.support_y):
        assert pool.mean((0, 1)).abs().max() < 1e-12
        assert (pool.std((0, 1), correction=0) - 1).abs().max() < 1e-12
    test = domain.meta_test(100)
    before = [scale.copy() for scale in (*domain.x_scale, *domain.y_scale)]
    assert abs(test.test_y.mean()) > 1e-4  # the test tasks have a mean of their own
    draws = []
    draw = domain.family.draw

    def shifted(rng, tasks):
        draws.append(len(draws))
        return {k: v * 1.5 for k, v in draw(rng, tasks).items()} if len(draws) > 1 else draw(rng, tasks)

    family = synthetic.Family(**vars(domain.family) | {"draw": shifted})
    changed = synthetic.Synthetic(family, domain.sampling)
    other = changed.meta_test(100)
    assert not torch.equal(other.test_y, test.test_y)  # other test tasks
    for one, two in zip(before, (*changed.x_scale, *changed.y_scale), strict=True):
        assert np.array_equal(one, two)
    assert torch.equal(changed.support_y, domain.support_y)


@pytest.mark.parametrize("name", [n for n in SYNTHETIC if n != "Alpine2D-released"])
def test_meta_test_tasks_are_not_those_of_meta_training(name):
    domain = make(name)
    family, seed = domain.family, domain.sampling.seed
    train = family.draw(generator(seed, data.episodes.META_TRAIN_TASKS), 100)
    test = family.draw(generator(seed, data.episodes.META_TEST_TASKS), 100)
    for parameter in train:
        assert not np.isin(test[parameter], train[parameter]).any()
    points = {tuple(p) for p in domain.support_x.flatten(0, 1).tolist()}
    assert not points & {tuple(p) for p in domain.meta_test(100).support_x.flatten(0, 1).tolist()}


@pytest.mark.parametrize("seed", range(10))
def test_alpine_as_released_has_eleven_functions_all_met_in_meta_training(seed):
    draw = synthetic.FAMILIES["Alpine2D-released"].draw
    train, test = (
        {round(phase, 9) for phase in draw(generator(seed, stream), 100)["phase"].ravel().tolist()}
        for stream in (data.episodes.META_TRAIN_TASKS, data.episodes.META_TEST_TASKS)
    )
    assert len(train) == 11
    assert test <= train


def raw(domain, x, y):
    """Inputs and targets in the formula's own units, as lists of Python floats."""
    x = x.double().numpy() * domain.x_scale[1] + domain.x_scale[0]
    y = y.double().numpy() * domain.y_scale[1] + domain.y_scale[0]
    return x.tolist(), y[..., 0].tolist()


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


@pytest.mark.parametrize("name", SYNTHETIC)
def test_targets_are_the_formula_of_the_paper(name):
    domain = make(name)
    test = domain.meta_test(3)
    streams = {"train": data.episodes.META_TRAIN_TASKS, "test": data.episodes.META_TEST_TASKS}
    parameters = {split: domain.family.draw(generator(0, stream), 100) for split, stream in streams.items()}
    sets = [("test", getattr(test, f"{part}_x"), getattr(test, f"{part}_y")) for part in ("support", "query", "test")]
    sets += [("train", domain.support_x, domain.support_y), ("train", domain.query_x, domain.query_y)]
    for split, x, y in sets:
        inputs, targets = raw(domain, x[:3], y[:3])
        for task in range(3):
            own = {k: v[task, 0].tolist() for k, v in parameters[split].items()}
            for point in range(0, len(inputs[task]), 5):
                expected = by_hand(name, inputs[task][point], own)
                assert targets[task][point] == pytest.approx(expected, abs=1e-10)


@pytest.mark.parametrize(
    ("name", "ranges"),
    [
        ("Alpine2D", {"phase": (-5 * math.pi / 12, 5 * math.pi / 12)}),
        ("Alpine2D-released", {"phase": (math.pi - 5 * math.pi / 12, math.pi + 5 * math.pi / 12)}),
        ("CosMixture", {"amplitude": (0.1, 1), "frequency": (3 * math.pi, 6 * math.pi), "phase": (0.5, 2)}),
        ("CosMixture-slides", {"amplitude": (0.01, 0.1), "frequency": (0.5 * math.pi, 2 * math.pi), "phase": (3, 6)}),
    ],
)
def test_parameters_fill_their_ranges(name, ranges):
    parameters = synthetic.FAMILIES[name].draw(generator(0, 0), 2000)
    assert set(parameters) == set(ranges)
    for parameter, (low, high) in ranges.items():
        values, slack = parameters[parameter], 0.01 * (high - low)
        assert low - 1e-12 <= values.min() < low + slack
        assert high - slack < values.max() <= high + 1e-12
        assert abs(values.mean() - (low + high) / 2) < 3 * slack


def test_alpine_has_two_independent_phases_and_as_released_one():
    slides = synthetic.FAMILIES["Alpine2D"].draw(generator(0, 0), 2000)["phase"]
    assert slides.shape == (2000, 1, 2)
    assert abs(np.corrcoef(slides[:, 0].T)[0, 1]) < 0.06
    released = synthetic.FAMILIES["Alpine2D-released"].draw(generator(0, 0), 2000)["phase"]
    assert released.shape == (2000, 1, 1)


@pytest.mark.parametrize(("name", "end"), [("Alpine2D", 10.0), ("CosMixture2D", 1.0), ("CosMixture", 1.0)])
def test_inputs_cover_the_domain_and_the_grid_is_even(name, end):
    domain = make(name)
    pool = domain.support_x.numpy() * domain.x_scale[1] + domain.x_scale[0]
    assert -end <= pool.min() < -0.99 * end
    assert 0.99 * end < pool.max() <= end
    test = domain.meta_test(1)
    grid = np.array(raw(domain, test.test_x, test.test_y)[0][0])
    side = 1000 if grid.shape[1] == 1 else 31
    line = [-end + 2 * end * i / (side - 1) for i in range(side)]
    expected = [[a] for a in line] if side == 1000 else [[a, b] for a in line for b in line]
    assert np.abs(grid - np.array(expected)).max() < 1e-12


@pytest.mark.parametrize(
    ("changes", "flag"),
    [({"shots": 1001}, "--shots 1001"), ({"queries": 1001}, "--queries 1001"), ({"meta_batch": 101}, "--meta-batch")],
)
def test_pools_that_are_too_small_are_named(changes, flag):
    with pytest.raises(InputError, match=flag):
        make("Alpine2D", **changes)
    make("Alpine2D", **{k: v - 1 for k, v in changes.items()}).episode(0)
