"""What every test shares: one thread, so that seconds and bits do not depend on the machine's load."""

import os

import numpy as np
import pytest
import torch
from test_image_files import as_pickles, cifar
from test_omniglot import omniglot

from experiment import build, report

torch.set_num_threads(1)
os.environ.setdefault("OMP_NUM_THREADS", "1")  # for run.py, which otherwise measures how many are fastest


@pytest.fixture(scope="session")
def traced():
    """The functions of the networks met so far, by their number of parameters; each is traced once a session."""
    return {}


@pytest.fixture
def quick(monkeypatch, traced):
    """Runs of commands.TINY in a tenth of the time: the network is not traced again, and no curves are drawn."""
    initialise = build.initialise

    def once(*arguments):
        theta, apply = initialise(*arguments)
        return theta, traced.setdefault((theta.shape, theta.dtype), apply)

    monkeypatch.setattr(build, "initialise", once)
    monkeypatch.setattr(report, "draw_curves", lambda *arguments: b"curves")


@pytest.fixture(scope="session")
def data_sets(tmp_path_factory) -> str:
    """A data root with every data set in its publisher's layout: 150 users of 30 items, a few classes of images."""
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
