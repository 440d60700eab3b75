"""The libraries that are measured side by side compute the same gradients, each in a process of its own."""

import sys

import numpy as np
import pytest
import torch

from benchmarks.peers.__main__ import Peer, write
from benchmarks.problems import methods, problem


@pytest.fixture
def peer(tmp_path):
    """PyTorch's own tools on three tasks and two inner steps, with what ours has of the same."""
    p = problem("alpine", torch.float64, "cpu", None, tasks=3)
    write(p, str(tmp_path / "problem.npz"))
    module = [sys.executable, "-W", "ignore", "-m", "benchmarks.peers.pytorch"]
    peer = Peer("PyTorch", [*module, str(tmp_path / "problem.npz"), "small", "2"])
    yield peer, p
    assert peer.end() == 0


def test_a_library_answers_with_seconds_memory_and_our_gradient(peer, tmp_path):
    peer, p = peer
    assert peer.quantities[:4] == ["gradient", "product", "FOMAML", "MAML, checkpointed"]
    for name, ours in (("FOMAML", "FOMAML"), ("MAML, checkpointed", "A-MAML euler"), ("MAML, unrolled", "MAML")):
        median, first, memory = peer.call(name, 0, tmp_path / "found")
        assert median == first > 0
        assert memory >= 0
        expected = methods(p)[ours](2).meta_gradient(p.theta, p.tasks).value
        np.testing.assert_allclose(np.load(tmp_path / "found.npy"), expected, rtol=1e-10, atol=1e-14)


def test_the_released_algorithm_answers_with_the_mean_over_the_tasks():
    p = problem("alpine", torch.float64, "cpu", None, tasks=2)
    table = methods(p)
    released, exact = (table[name](20).meta_gradient(p.theta, p.tasks).value for name in ("released A-MAML", "MAML"))
    assert released.shape == p.theta.shape
    assert torch.cosine_similarity(released, exact, dim=0) > 0.99
