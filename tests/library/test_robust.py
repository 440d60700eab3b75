"""The robust mean over tasks: no task spoils it, its error is its own, and all gradients have the same weights."""

from dataclasses import replace

import pytest
import torch
from helpers.problems import mlp, regression, relative_error, remembered

from amaml import AMAML, Adaptation, Chunked, half_mse
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


@pytest.mark.parametrize("solver", ["euler", "rk4"])
@pytest.mark.parametrize("size", [1, 2])
def test_chunks_leave_the_robust_mean_unchanged(size, solver):
    (theta, apply), tasks = mlp(), rough()
    learner = AMAML(apply, half_mse, 0.05, 10, solver=solver, rtol=1e-6, robust=2.0)
    memory = remembered(learner, theta, [regression(tasks=5)])
    whole, parts = (one.gradient(theta, tasks, memory) for one in (learner, Chunked(learner, size)))
    assert relative_error(parts.value, whole.value) < (1e-12 if solver == "euler" else 1e-5)
    torch.testing.assert_close(parts.weights, whole.weights, rtol=1e-6, atol=0)
    after = [learner.update(memory, one).lengths.last for one in (whole, parts)]
    torch.testing.assert_close(*after, rtol=1e-6, atol=0)


def test_the_error_is_that_of_the_robust_mean():
    """The long gradient is rough, and counts as one of five: its own error would be that of the plain mean."""
    (theta, apply), tasks = mlp(), rough()
    learner = AMAML(apply, half_mse, 0.05, 40, solver="rk4", rtol=1e-3, robust="length")
    fine = replace(learner, rtol=1e-8).meta_gradient(theta, tasks)
    seen = learner.meta_gradient(theta, tasks)
    true = relative_error(seen.value, fine.value)
    assert seen.measured
    assert true / 3 < seen.error < 10 * true


@pytest.mark.parametrize("adapt", [None, ("0.weight",)])
def test_rates_schedule_prox_and_data_have_the_same_weights(adapt):
    """As the gradients of a loss that weighs the tasks so."""
    module, tasks = torch.nn.Sequential(torch.nn.Linear(2, 4), torch.nn.Tanh(), torch.nn.Linear(4, 1)).double(), rough()
    rate = torch.full((3,) if adapt is None else (4, 2), 0.05, dtype=torch.float64)  # a schedule, or a rate each
    of = [rate, torch.tensor(0.3, dtype=torch.float64), tasks.support_y.clone(), tasks.query_y.clone()]
    rate, prox, support_y, query_y = (t.requires_grad_() for t in of)
    tasks = replace(tasks, support_y=support_y, query_y=query_y)
    given = {"inner_lr": rate if adapt is None else {"0.weight": rate}, "inner_steps": 3, "adapt": adapt}
    robust, plain = (
        Adaptation(module, half_mse, **given, prox=prox, method="maml", robust=robust) for robust in ("length", None)
    )
    of.append(module[0].weight)  # adapted; shared parameters keep the plain mean
    found = torch.autograd.grad(robust(tasks), of)
    predictions = plain.predict(plain.adapt(tasks), tasks.query_x)
    losses = torch.stack([half_mse(p, y) for p, y in zip(predictions, query_y, strict=True)])
    right = torch.autograd.grad((robust.latest.weights * losses).mean(), of)
    for one, other in zip(found, right, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-9, atol=1e-12)
