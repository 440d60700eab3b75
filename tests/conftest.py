"""What every test shares: one thread, so that seconds and bits do not depend on the machine's load."""

import os

import pytest
import torch
from helpers import archives

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
    """A data root with every data set in its publisher's layout, made up."""
    root = tmp_path_factory.mktemp("data")
    archives.every_set(root)
    return str(root)
