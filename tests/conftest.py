"""What every test shares: one thread, so that seconds and bits do not depend on the machine's load."""

import pytest
import torch

from amaml.experiment import build, report

torch.set_num_threads(1)


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
