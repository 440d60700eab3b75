"""The mean over the tasks: the robust one, which no task spoils, and chunks, which leave either as it is."""

import math
from dataclasses import replace

import pytest
import torch
from helpers.problems import mlp, regression, relative_error, remembered

from amaml import AMAML, Adaptation, Chunked, MetaGradient, half_mse
from amaml.capacity import tasks_at_once
from amaml.chunked import fold, in_turn
from amaml.flow.accuracy import Observation
from amaml.flow.curvature import Leading
from amaml.flow.field import Evaluations
from amaml.robust import Lengths
from baselines import FOMAML, IMAML, MAML, Pretrained, Reptile

LEARNERS = [AMAML, FOMAML, IMAML, MAML, Pretrained, Reptile]


def rough(tasks=5):
    """Tasks of which the last has a gradient that is thousands of times longer than the others'."""
    even = regression(tasks=tasks)
    y = even.query_y.clone()
    y[-1] *= 1e4
    return replace(even, query_y=y)


def test_a_gradient_is_cut_at_a_multiple_of_the_median_of_the_calls_before():
    first, second = torch.tensor([[3.0], [1.0], [2.0]]), torch.tensor([[-8.0], [0.0], [4.0]])
    known = Lengths()
    assert known.weighing("length", first).weights.tolist() == pytest.approx([1 / 3, 1, 1 / 2])
    assert known.weighing(2.0, first).weights.tolist() == [1, 1, 1]
    known = known.after(known.weighing(2.0, first).lengths)
    assert known.weighing("length", second).weights.tolist() == [0.125, 0, 0.25]
    assert known.weighing(2.0, second).weights.tolist() == [0.5, 1, 1]
    assert len(known.after(torch.ones(500)).last) == Lengths.WINDOW
    assert torch.equal(Lengths.of(known.state_dict()).last, known.last)


@pytest.mark.parametrize("kind", LEARNERS, ids=lambda kind: kind.__name__)
def test_every_learner_takes_it_and_remembers(kind):
    (theta, apply), tasks = mlp(), rough()
    exact = kind(apply, half_mse, 0.05, 4).meta_gradient(theta, tasks).of_tasks
    even, learner = (kind(apply, half_mse, 0.05, 4, robust=robust) for robust in ("length", 1.0))
    torch.testing.assert_close(even.meta_gradient(theta, tasks).value, torch.nn.functional.normalize(exact).mean(0))
    found = learner.gradient(theta, tasks, remembered(learner, theta, [tasks]))
    cut = exact * (exact.norm(dim=-1).median() / exact.norm(dim=-1)).clamp(max=1)[:, None]
    torch.testing.assert_close(found.value, cut.mean(0))


@pytest.mark.parametrize(("solver", "tolerance"), [("euler", 1e-12), ("rk4", 1e-5)])
@pytest.mark.parametrize("size", [1, 2, 5])
@pytest.mark.parametrize("large", [False, True])
def test_chunks_leave_plain_and_robust_means_unchanged(monkeypatch, size, solver, tolerance, large):
    """large: of networks of which the mean is taken at once, in place of the gradients of all tasks."""
    (theta, apply), tasks = mlp(), rough()
    monkeypatch.setattr("amaml.learner.LARGE", 0 if large else 2**30)
    for robust in (None, 2.0):
        learner = AMAML(apply, half_mse, 0.05, 10, solver=solver, rtol=1e-6, robust=robust)
        chunked, memory = Chunked(learner, size), remembered(learner, theta, [regression(tasks=5)])
        whole, parts = (one.gradient(theta, tasks, memory) for one in (learner, chunked))
        assert relative_error(parts.value, whole.value) < tolerance
        assert relative_error(chunked.adapt(theta, tasks), learner.adapt(theta, tasks)) < tolerance
        after = [(g.weights, g.query_loss, learner.update(memory, g).lengths.last) for g in (whole, parts)]
        torch.testing.assert_close(*after, rtol=1e-6, atol=0)
        assert solver == "rk4" or parts.evaluations == whole.evaluations


def test_the_error_is_that_of_the_robust_mean():
    """The long gradient is rough, and counts as one of five: its own error would be that of the plain mean."""
    (theta, apply), tasks = mlp(), rough()
    learner = AMAML(apply, half_mse, 0.05, 40, solver="rk4", rtol=1e-3, robust="length")
    fine = replace(learner, rtol=1e-8).meta_gradient(theta, tasks)
    seen = learner.meta_gradient(theta, tasks)
    true = relative_error(seen.value, fine.value)
    assert seen.measured
    assert true / 3 < seen.error < 10 * true


def test_a_stiff_batch_takes_no_more_than_a_multiple_of_the_usual_evaluations():
    """Of a robust mean; its adapted parameters are as accurate as ever."""
    (theta, apply), usual = mlp(), regression()
    learner = AMAML(apply, half_mse, 0.05, 400, solver="rkc", rtol=1e-2, robust="length")
    memory = learner.init()
    for _ in range(9):
        seen = learner.gradient(theta, usual, memory)
        memory = learner.update(memory, seen)
    stiff = replace(usual, support_x=12 * usual.support_x)
    found = learner.gradient(theta, stiff, memory).observation
    assert found.saved > 0
    assert found.cost < 1.2 * learner.controller.peak * seen.observation.cost
    assert torch.equal(*(one.adapt(theta, stiff, memory) for one in (learner, replace(learner, robust=None))))


@pytest.mark.parametrize("adapt", [None, ("0.weight",)])
def test_rates_schedule_prox_and_data_have_the_same_weights(adapt):
    """As the gradients of a loss that weighs the tasks so."""
    module, tasks = torch.nn.Sequential(torch.nn.Linear(2, 4), torch.nn.Tanh(), torch.nn.Linear(4, 1)).double(), rough()
    rate = torch.full((3,) if adapt is None else (4, 2), 0.05, dtype=torch.float64)  # a schedule, or a rate each
    of = [rate, torch.tensor(0.3, dtype=torch.float64), tasks.support_y.clone(), tasks.query_y.clone()]
    rate, prox, support_y, query_y = (t.requires_grad_() for t in of)
    tasks = replace(tasks, support_y=support_y, query_y=query_y)
    given = {"inner_lr": rate if adapt is None else {"0.weight": rate}, "inner_steps": 3, "adapt": adapt, "prox": prox}
    robust, plain = (Adaptation(module, half_mse, **given, method="maml", robust=robust) for robust in ("length", None))
    of.append(module[0].weight)  # adapted; shared parameters keep the plain mean
    found = torch.autograd.grad(robust(tasks), of)
    predictions = plain.predict(plain.adapt(tasks), tasks.query_x)
    losses = torch.stack([half_mse(p, y) for p, y in zip(predictions, query_y, strict=True)])
    right = torch.autograd.grad((robust.latest.weights * losses).mean(), of)
    for one, other in zip(found, right, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-9, atol=1e-12)


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
    # measured where all are; those that made the steps themselves add no error
    first, carried = part(3.0, 0.1), part(1.0, 0.1, measured=False)
    steps = replace(carried, error=None, solver="euler")
    for parts, error, solver in (
        ([first, carried], pytest.approx(0.1), None),
        ([first, steps], pytest.approx(0.075), "auto"),
        ([steps, steps], None, "euler"),
    ):
        folded = fold(parts, [0.5, 0.5])
        assert (folded.measured, folded.observation.error, folded.error, folded.solver) == (False, None, error, solver)


def test_chunked_a_maml_learns_once_from_all_chunks():
    (theta, apply), tasks = mlp(), regression(tasks=5)
    memory = remembered(Chunked(AMAML(apply, half_mse, 0.05, 40, solver="rk4"), 2), theta, [tasks, tasks])
    assert (len(memory.calls), memory.interval > 1) == (2, True)


def test_as_many_tasks_go_together_as_fit_into_the_free_memory(monkeypatch):
    (theta, apply), tasks = mlp(), regression(tasks=5)
    free = 2**30
    monkeypatch.setattr("amaml.capacity.free_memory", lambda device: free)
    few, many = (tasks_at_once(apply, half_mse, theta, regression(shots=shots), 10) for shots in (40, 400))
    assert 5 < few / many < 10  # the states of a trajectory do not grow with the points
    free = 2.5 * 2**30 / tasks_at_once(apply, half_mse, theta, tasks, 10)
    meta, sizes = Adaptation(apply.module, half_mse, 0.05, 10, method="fomaml", task_chunk="auto"), []
    meta.each = lambda solve, parts: sizes.append([len(part) for part in parts]) or in_turn(solve, parts)
    meta(tasks)
    free = 0  # as the call before has found it
    meta(tasks)
    assert sizes == [[2, 2, 1]] * 2


def test_no_chunk_of_a_call_that_is_to_be_measured_waits_for_a_cheaper_one():
    """What single chunks measure tells no error of the whole."""
    (theta, apply), tasks = mlp(), regression()
    scale = torch.linspace(0.5, 3.0, len(tasks)).double().reshape(-1, 1, 1)
    learner = Chunked(AMAML(apply, half_mse, 0.05, 40, solver="rk4", rtol=1e-2), 1)
    memory = learner.init()
    for call in range(12):
        mixed = replace(tasks, support_x=scale.roll(call, 0) * tasks.support_x)
        seen, due = learner.gradient(theta, mixed, memory), memory.in_turn
        assert seen.measured or not due
        memory = learner.update(memory, seen)
