"""Runs of the tiny experiment of helpers.commands, quicker than a user's."""

import shutil
from pathlib import Path

import pytest
from helpers.commands import start

from amaml import adaptation
from experiment import build, figures


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
