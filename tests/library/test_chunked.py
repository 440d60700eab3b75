"""Chunks: the same mean, work counted by its share, errors that add up, one state for all."""

import math
from dataclasses import replace

import pytest
import torch
from helpers.problems import mlp, regression, relative_error

from amaml import AMAML, Chunked, MetaGradient, half_mse
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


def part(value: float, error: float | None, measured=True) -> MetaGradient:
    seen = Observation(10, 3.0, 0.1, abs(value), error if measured else None, 16 if measured else 0)
    return MetaGradient(torch.tensor([[value, 0.0]]), torch.ones(1), Evaluations(5, 5, 0, 0), error, measured, seen)


def test_errors_add_up_relative_to_the_mean():
    """Absolute errors 0.3 and 0.1 on gradients 3 and -1: 0.2 at most on their mean, 1."""
    folded = fold([part(3.0, 0.1), part(-1.0, 0.1)], [0.5, 0.5])
    assert folded.value[0] == 1
    assert folded.error == pytest.approx(0.2)
    assert folded.observation == Observation(10, 3.0, pytest.approx(0.2), 1.0, pytest.approx(0.2), 16)
    assert folded.measured


def test_the_sharpest_chunk_is_remembered():
    parts = [part(3.0, 0.1), part(1.0, 0.1), part(1.0, 0.1)]
    known = [Leading(2.0, torch.ones(2)), None, Leading(5.0, torch.zeros(2))]
    parts = [replace(one, observation=one.observation._replace(leading=k)) for one, k in zip(parts, known, strict=True)]
    assert fold(parts, [1 / 3] * 3).observation.leading is known[2]


def test_a_mean_of_chunks_is_measured_where_all_of_them_are():
    folded = fold([part(3.0, 0.1), part(1.0, 0.1, measured=False)], [0.5, 0.5])
    assert not folded.measured
    assert folded.observation.error is None
    assert folded.error == pytest.approx(0.1)


def test_gradients_that_cancel_have_no_relative_error():
    assert fold([part(1.0, 0.1), part(-1.0, 0.1)], [0.5, 0.5]).error == math.inf


def test_chunked_a_maml_learns_once_from_all_chunks():
    (theta, apply), tasks = mlp(), regression(tasks=5)
    learner = Chunked(AMAML(apply, half_mse, 0.05, 40, solver="rk4"), 2)
    first = learner.gradient(theta, tasks, learner.init())
    assert first.measured
    memory = learner.update(learner.init(), first)
    assert memory.interval > 1
    assert len(memory.calls) == 1
    second = learner.gradient(theta, tasks, memory)
    assert len(learner.update(memory, second).calls) == 2
    assert second.error is not None
    reference = AMAML(apply, half_mse, 0.05, 40, solver="rk4", rtol=1e-7).meta_gradient(theta, tasks)
    for gradient in (first, second):
        assert relative_error(gradient.value, reference.value) < 3 * gradient.error + 1e-6
