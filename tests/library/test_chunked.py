"""Chunks: the same mean, work counted by its share, errors that add up, one state for all."""

import math

import pytest
import torch
from helpers.problems import mlp, regression, relative_error

from amaml import AMAML, Chunked, MetaGradient, half_mse
from amaml.capacity import tasks_at_once
from amaml.chunked import fold
from amaml.flow.accuracy import Observation
from amaml.flow.curvature import Leading
from amaml.flow.field import Evaluations
from baselines import FOMAML


@pytest.mark.parametrize("size", [1, 2, 5])
def test_chunks_leave_the_mean_unchanged(size):
    (theta, apply), tasks = mlp(), regression(tasks=5)
    for learner in (FOMAML(apply, half_mse, 0.05, 10), AMAML(apply, half_mse, 0.05, 10, solver="euler")):
        whole, parts = learner.meta_gradient(theta, tasks), Chunked(learner, size).meta_gradient(theta, tasks)
        assert relative_error(parts.value, whole.value) < 1e-12
        torch.testing.assert_close(parts.query_loss, whole.query_loss, rtol=1e-12, atol=0)
        torch.testing.assert_close(
            Chunked(learner, size).adapt(theta, tasks), learner.adapt(theta, tasks), rtol=1e-12, atol=1e-14
        )
        assert parts.evaluations == whole.evaluations
        assert parts.error is None


def part(value: float, error: float, leading=None, measured=True) -> MetaGradient:
    found = (error, 16) if measured else (None, 0)
    seen = Observation(10, 3.0, 0.1, abs(value), *found, leading=leading)
    return MetaGradient(torch.tensor([[value, 0.0]]), torch.ones(1), Evaluations(5, 5, 0, 0), error, measured, seen)


def test_errors_add_up_relative_to_the_mean_and_the_sharpest_chunk_is_remembered():
    """Absolute errors 0.3 and 0.1 on gradients 3 and -1: 0.2 at most on their mean, 1; none where they cancel."""
    known = [Leading(2.0, torch.ones(2)), Leading(5.0, torch.zeros(2))]
    parts = [part(3.0, 0.1, known[0]), part(-1.0, 0.1, known[1])]
    folded, error = fold(parts, [0.5, 0.5]), pytest.approx(0.2)
    assert (folded.value[0], folded.error, folded.measured) == (1, error, True)
    assert folded.observation == Observation(10, 3.0, error, 1.0, error, 16, leading=known[1])
    assert fold([part(1.0, 0.1, None), part(-1.0, 0.1, known[0])], [0.5, 0.5]).error == math.inf


def test_a_mean_of_chunks_is_measured_where_all_of_them_are():
    folded = fold([part(3.0, 0.1), part(1.0, 0.1, measured=False)], [0.5, 0.5])
    assert (folded.measured, folded.observation.error, folded.error) == (False, None, pytest.approx(0.1))


def test_chunked_a_maml_learns_once_from_all_chunks():
    (theta, apply), tasks = mlp(), regression(tasks=5)
    learner = Chunked(AMAML(apply, half_mse, 0.05, 40, solver="rk4"), 2)
    reference = AMAML(apply, half_mse, 0.05, 40, solver="rk4", rtol=1e-7).meta_gradient(theta, tasks)
    memory = learner.init()
    for calls in (1, 2):
        gradient = learner.gradient(theta, tasks, memory)
        memory = learner.update(memory, gradient)
        assert len(memory.calls) == calls
        assert memory.interval > 1
        assert relative_error(gradient.value, reference.value) < 3 * gradient.error + 1e-6


def test_as_many_tasks_go_together_as_fit_into_the_free_memory(monkeypatch):
    (theta, apply), tasks, learner = mlp(), regression(tasks=5), FOMAML(mlp()[1], half_mse, 0.05, 10)
    free = 2**30
    monkeypatch.setattr("amaml.capacity.free_memory", lambda device: free)
    few, many = (tasks_at_once(apply, half_mse, theta, regression(shots=shots), 10) for shots in (40, 400))
    assert 5 < few / many < 10  # the states of a trajectory do not grow with the points
    free = 2.5 * 2**30 / tasks_at_once(apply, half_mse, theta, tasks, 10)
    parts = Chunked(learner, "auto")
    assert [len(part) for part in parts.chunks(theta, tasks)] == [2, 2, 1]
    assert relative_error(parts.meta_gradient(theta, tasks).value, learner.meta_gradient(theta, tasks).value) < 1e-12
