"""Each method on each domain, from flags to the table, and slices of its meta-test; files are made here.

They have the publishers' layouts.
"""

import json

import numpy as np
import pytest
import torch
from test_image_files import as_pickles, cifar
from test_omniglot import omniglot

import run
from amaml import InputError, Tasks
from amaml.experiment.registry import METHODS, NETWORKS, PROTOCOLS
from configs.settings import merged
from data import DOMAINS, Sampling, make
from data.images import Images


def sizes(domain: str) -> dict[str, int]:
    """SIZES without those that the domain, its network or its protocol does not use."""
    s = merged({"domain": domain})
    chosen = {*DOMAINS[domain].uses, *NETWORKS[s.network].uses, *PROTOCOLS[s.protocol].uses}
    special = {"width", "ways", "train-tasks", "test-epochs"}
    return {name: n for name, n in SIZES.items() if name not in special or name.replace("-", "_") in chosen}


SIZES = {
    "shots": 2,
    "queries": 2,
    "inner-steps": 2,
    "meta-updates": 2,
    "meta-batch": 2,
    "test-tasks": 3,
    "test-epochs": 10,
    "test-interval": 0,
    "width": 4,
    "ways": 2,
    "train-tasks": 30,
}


@pytest.fixture(scope="module")
def root(tmp_path_factory) -> str:
    """A folder with every data set: 150 users of 30 items, a few classes of images."""
    root, rng = tmp_path_factory.mktemp("data"), np.random.default_rng(0)
    users, items = (axis.ravel() + 1 for axis in np.indices((150, 30)))
    stars = rng.integers(1, 6, users.shape)
    triples = list(zip(users, items, stars, strict=True))
    (root / "u.data").write_text("".join(f"{u}\t{i}\t{s}\t881250949\n" for u, i, s in triples))
    (root / "ratings.dat").write_text("".join(f"{u}::{i}::{s}::978300760\n" for u, i, s in triples))
    jokes = rng.uniform(-10, 10, (150, 100)).round(2)
    (root / "jester-data-1.csv").write_text("".join(f"100,{','.join(map(str, row))}\n" for row in jokes))
    omniglot(root / "omniglot", "background", {"Greek": 4, "Latin": 4})
    pictures = {
        split: {f"n{split}{i}": rng.integers(0, 256, (4, 84, 84, 3), dtype=np.uint8) for i in range(2)}
        for split in ("train", "validation", "test")
    }
    as_pickles(root, pictures)
    cifar(root)
    return str(root)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("domain", DOMAINS)
def test_every_method_runs_on_every_domain(tmp_path, root, quick, domain, method):
    flags = ["--domain", domain, "--method", method, "--data-root", root, "--out", str(tmp_path / "run")]
    flags += ["--shots", "1"] if domain in ("Omniglot", "CIFARFS") else []  # of three images a class
    general = [x for name, value in sizes(domain).items() for x in (f"--{name}", str(value))]
    assert run.main([*general, *flags]) == 0
    table = json.loads((tmp_path / "run" / "summary.json").read_text())["table"]
    assert table.startswith(f"{domain}, ")
    assert f" {method}, seed 0" in table


@pytest.mark.parametrize("name", DOMAINS)
def test_a_slice_of_the_meta_test_holds_the_tasks_of_the_whole_and_no_other(root, name):
    shots = 1 if DOMAINS[name].uses == ("ways",) else 3
    special = {"data_root": root, "ways": 2, "train_tasks": 30}
    domain = make(name, Sampling(shots, shots, 2, 5, **special))
    whole, part, first = domain.meta_test(7), domain.meta_test(6, 3), domain.meta_test(3)
    assert (len(whole), len(part), len(first)) == (7, 3, 3)
    for field in vars(Tasks(*[torch.zeros(1, 1)] * 6)):
        assert torch.equal(getattr(part, field), getattr(whole, field)[3:6]), field
        assert torch.equal(getattr(first, field), getattr(whole, field)[:3]), field


def test_images_of_other_tasks_are_not_made(root, monkeypatch):
    gathered, gather = [], Images._gather
    monkeypatch.setattr(Images, "_gather", lambda d, split, i: (gathered.append(len(i)), gather(d, split, i))[1])
    domain = make("Omniglot", Sampling(1, 1, 2, 5, data_root=root, ways=2))
    domain.meta_test(600, 599)
    domain.meta_test(600, 550)
    assert gathered == [1, 50]


@pytest.mark.parametrize("name", ["Alpine2D", "MovieLens100K"])
def test_too_many_are_refused_by_any_slice(root, name):
    domain = make(name, Sampling(3, 3, 2, 5, data_root=root, train_tasks=30))
    with pytest.raises(InputError, match="--test-tasks 101 is more than the 100"):
        domain.meta_test(101, 100)
