"""Tasks follow from seed and number alone, of every domain; the synthetic ones: formulas, scalers, pools, classes."""

import numpy as np
import pytest
import torch
from helpers.problems import checksum

import data
from amaml import InputError
from data import Sampling
from data.domain import Endless
from data.episodes import META_TEST_TASKS, META_TRAIN_TASKS, generator
from data.phantoms import RAYS

FIELDS = ("support_x", "support_y", "query_x", "query_y", "test_x", "test_y")
every_domain = pytest.mark.parametrize("name", data.DOMAINS)


@pytest.fixture
def make(data_sets):
    """make(name, **changes) is a domain of the made-up data sets."""
    sizes = {"shots": 1, "queries": 2, "meta_batch": 2, "seed": 0, "data_root": data_sets, "ways": 2}
    return lambda name, **changes: data.make(name, Sampling(**sizes | changes))


def equal(one, two) -> bool:
    """Whether two batches are the same to the bit."""
    pairs = [(getattr(one, field), getattr(two, field)) for field in FIELDS]
    return all((a is None and b is None) or torch.equal(a, b) for a, b in pairs)


@every_domain
def test_an_episode_depends_on_seed_and_step_alone(make, name):
    domain, other = make(name), make(name)
    seventh = domain.episode(7)
    np.random.seed(1)  # noqa: NPY002 - the global state that must not matter
    torch.manual_seed(1)
    states = np.random.get_state()[1].copy(), torch.get_rng_state()  # noqa: NPY002 - and must not change
    for step in (3, 0, 7, 12):
        other.episode(step)
    assert equal(other.episode(7), seventh)
    assert not all(equal(domain.episode(step), seventh) for step in range(8, 12))
    assert not all(equal(make(name, seed=seed).episode(7), seventh) for seed in range(1, 5))
    domain.meta_test(2)
    assert np.array_equal(np.random.get_state()[1], states[0])  # noqa: NPY002
    assert torch.equal(torch.get_rng_state(), states[1])


@every_domain
def test_slices_of_the_meta_test_are_the_whole(make, name):
    whole = make(name).meta_test(20)
    domain = make(name)  # another one, asked in another order
    domain.episode(1)
    for first, count in ((13, 7), (0, 20), (5, 1), (0, 6)):
        slice_ = domain.meta_test(count, first)
        assert len(slice_) == count
        assert equal(slice_, whole[first : first + count])
    assert not equal(whole[1:2], whole[:1])
    assert not equal(make(name, seed=1).meta_test(20), whole)


@every_domain
def test_how_many_meta_test_tasks_there_are_is_known_without_them(make, name):
    domain = make(name)
    if isinstance(domain, Endless):
        domain.check_meta_test(10**9)
        return
    domain.check_meta_test(100)
    assert len(domain.meta_test(1, 99)) == 1
    for ask in (lambda: domain.check_meta_test(101), lambda: domain.meta_test(2, 99)):
        with pytest.raises(InputError, match="--test-tasks 101 is more than the 100 meta-test"):
            ask()


TOO_MUCH = [
    ("Phantoms", {"queries": 4097}, "--queries 4097 is more than the 4096 pixels"),
    ("MovieLens100K", {"shots": 120}, "fewer shots"),
    ("MovieLens100K", {"meta_batch": 101}, "101 is more than"),
    ("MiniImageNet", {"ways": 1}, "--ways 1 .* at least 2"),
    ("MiniImageNet", {"shots": 3}, "--shots and --queries: together 5 is more than the 4 images of a train class"),
    ("CIFARFS", {"ways": 4}, "--ways 4 is more than the 3 train classes"),
    ("CIFARFS", {"ways": 3}, "--ways 3 is more than the 2 test classes"),
]


@pytest.mark.parametrize(("name", "changes", "message"), TOO_MUCH)
def test_more_than_a_domain_holds_is_refused(make, name, changes, message):
    with pytest.raises(InputError, match=message):
        make(name, **changes)


@every_domain
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_shapes_and_types(make, name, dtype):
    domain = make(name, dtype=dtype)
    episode, test = domain.episode(0), domain.meta_test(3)
    classification = domain.objective.metric_name == "accuracy"
    shots, queries = (2, 4) if domain.images else (RAYS, 2) if name == "Phantoms" else (1, 2)
    assert episode.test_x is None
    sets = [(2, shots, *episode.support), (2, queries, *episode.query), (3, shots, *test.support)]
    sets += [(3, queries, *test.query), (3, test.test_x.shape[1], test.test_x, test.test_y)]
    for tasks, n, x, y in sets:
        assert x.shape[:2] == (tasks, n)
        assert x.shape[-len(domain.input_shape) :] == domain.input_shape
        assert x.ndim == 2 + len(domain.input_shape) + (name == "Phantoms")  # and places along a ray
        assert y.shape == ((tasks, n) if classification else (tasks, n, domain.outputs))
        assert (x.dtype, y.dtype) == (dtype, torch.int64 if classification else dtype)
        assert x.isfinite().all()
        assert y.isfinite().all()
        assert not classification or 0 <= y.min() <= y.max() < domain.outputs
    assert all(len(values) == 3 for values in domain.predictors(3).values())
    x, y = domain.in_units(test.test_x, test.test_y)
    assert (x.shape[-1], y.shape, x.dtype) == (test.test_x.shape[-1], test.test_y.shape, dtype)


# checksums of an episode, of the meta-test, of the predictors; Omniglot and Glyphs are as Pillow and FreeType draw
DRAWN = {
    "Alpine2D": (5.2774426881, 1431.6195434, 0),
    "Alpine2D-released": (4.0334754968, 1215.2259202, 0),
    "CosMixture": (-5.0606871352, 172.34299097, 0),
    "CosMixture-slides": (5.4737221093, 71.021566844, 0),
    "CosMixture2D": (-0.82821441007, -826.49659912, 0),
    "CosMixture2D-slides": (1.253917771, -1584.7241643, 0),
    "Sinusoid": (-5.7116320727, 3943.9444322, 0),
    "Jester": (12.775136411, 1399.123429, 60.594800106),
    "MovieLens100K": (5.0945911911, 163.87308302, 44.668118231),
    "MovieLens1M": (5.0945911911, 163.87308302, 44.668118231),
    "MiniImageNet": (190077.90508, 1427056.2552, 0),
    "CIFARFS": (27701.091453, 206722.29702, 0),
    "Logistic": (2.6856598841, 5032.7613734, 0),
    "Phantoms": (70.281428398, 7178.0200686, 258.90313458),
}


@pytest.mark.parametrize("name", DRAWN)
def test_a_domain_draws_what_the_results_were_made_of(make, name):
    domain, found = make(name, seed=1, noise=0.1), []
    for tasks in (domain.episode(3), domain.meta_test(9, 1)):
        found.append(checksum(*(part for field in FIELDS if (part := getattr(tasks, field)) is not None)))
    predicted = domain.predictors(9).values()
    assert [*found, checksum(*predicted) if predicted else 0] == pytest.approx(DRAWN[name], rel=1e-9)


def test_no_two_of_large_and_small_seeds_and_streams_are_alike():
    """Among them pairs that are the same words to NumPy, as 4 * 2**32 + 7 with stream 0, and 7 with streams 4 and 0."""
    streams = [(stream,) for stream in range(4)] + [(4, step) for step in (0, 1, 4, 7, 2**32, 2**32 + 1, 2**40)]
    seeds = [0, 1, 4, 7, 2**32, 2**32 + 1, 2**32 + 4, 4 * 2**32 + 7, 7 * 2**32 + 4, 2**63 - 1]
    firsts = {(seed, *stream): generator(seed, *stream).integers(2**63) for seed in seeds for stream in streams}
    assert len(set(firsts.values())) == len(seeds) * len(streams)
    assert firsts[4 * 2**32 + 7, 0] != firsts[7, 4, 0]


SYNTHETIC = [name for name, domain in data.DOMAINS.items() if domain.defaults == "synthetic"]
every_family = pytest.mark.parametrize("name", SYNTHETIC)


def synthetic(name):
    return data.make(name, Sampling(shots=7, queries=11, meta_batch=5, seed=0))


def drawn(name, stream=META_TRAIN_TASKS, seed=0, tasks=100):
    """The parameters of so many functions, {name: (tasks, 1, 1 or d)}."""
    return synthetic(name).draw(generator(seed, stream), tasks)


@every_family
def test_meta_test_tasks_are_not_those_of_meta_training_but_for_alpine_as_released_and_fit_no_scaler(name):
    domain, train, test = synthetic(name), drawn(name), drawn(name, META_TEST_TASKS)
    for pool in (domain.pools.support_x, domain.pools.support_y):
        assert pool.mean((0, 1)).abs().max() < 1e-12
        assert (pool.std((0, 1), correction=0) - 1).abs().max() < 1e-12
    assert abs(domain.meta_test(100).test_y.mean()) > 1e-4  # the test tasks have a mean of their own
    for parameter in train:
        met = np.isin(test[parameter].round(9), train[parameter].round(9))
        assert met.all() if name == "Alpine2D-released" else not met.any()
    points = {tuple(p) for p in domain.pools.support_x.flatten(0, 1).tolist()}
    assert not points & {tuple(p) for p in domain.meta_test(100).support_x.flatten(0, 1).tolist()}


@every_family
def test_targets_are_the_formula_of_the_paper(name):
    domain = synthetic(name)
    test, train = domain.meta_test(3), domain.pools
    for stream, x, y in (
        *((META_TEST_TASKS, *pair) for pair in (test.support, test.query, (test.test_x, test.test_y))),
        *((META_TRAIN_TASKS, *pair) for pair in (train.support, train.query)),
    ):
        x, y = domain.in_units(x[:3], y[:3])
        own = {name: torch.as_tensor(value[:3]) for name, value in drawn(name, stream).items()}
        if name.startswith("Alpine2D"):
            terms = (x * (x + own["phase"]).sin() + 0.1 * x).abs()
        else:
            terms = -own["amplitude"] * (own["frequency"] * x + own["phase"]).cos() - x**2
        torch.testing.assert_close(y, terms.sum(-1, keepdim=True), rtol=0, atol=1e-10)
