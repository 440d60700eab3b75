"""What every test shares: one thread, so that seconds and bits do not depend on the machine's load."""

import os
import shutil
from pathlib import Path

import pytest
import torch
from helpers import archives
from helpers.commands import start

from amaml import adaptation
from experiment import build, figures

torch.set_num_threads(1)
os.environ.setdefault("OMP_NUM_THREADS", "1")  # for run.py in a process of its own


@pytest.fixture(scope="session")
def traced():
    """The networks met so far and their functions; each is traced once a session."""
    return {}


@pytest.fixture
def quick(monkeypatch, traced):
    """Runs of commands.TINY in a tenth of the time: the network is not traced again, and no curves are drawn."""
    seeded, flattened = build.seeded, adaptation.Flattened

    def same(*arguments):
        """The network of this structure that was traced before, with the weights of a new one."""
        new = seeded(*arguments)
        network = traced.setdefault(repr(new), new)
        network.load_state_dict(new.state_dict())
        return network

    monkeypatch.setattr(build, "seeded", same)
    monkeypatch.setattr(adaptation, "Flattened", lambda *given: traced.setdefault(given, flattened(*given)))
    monkeypatch.setattr(figures, "draw_curves", lambda *arguments: b"curves")


@pytest.fixture(scope="session")
def made(tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("made") / "run"
    assert start(out) == 0
    return out


@pytest.fixture
def finished(made, tmp_path, quick) -> Path:
    """The folder of a finished run of commands.TINY, for the test alone."""
    return Path(shutil.copytree(made, tmp_path / "run"))


@pytest.fixture(scope="session")
def data_sets(tmp_path_factory) -> str:
    """A data root with every data set in its publisher's layout, made up."""
    root = tmp_path_factory.mktemp("data")
    archives.every_set(root)
    return str(root)
