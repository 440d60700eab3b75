"""The loop itself: clipping, batches that are left out, a stop in the middle of a gradient."""

import signal

import pytest
import torch
from helpers.problems import mlp, regression

from amaml import AMAML, Diverged, OverBudget, half_mse
from baselines import FOMAML
from experiment.session import Skips, cosine, meta_train, read
from experiment.stop import Stopped, StopRequest


def train(learner, theta, updates: int, lr: float = 0.1, **options):
    optimizer = torch.optim.SGD([theta], lr=lr)
    return list(meta_train(learner, theta, optimizer, lambda step: regression(seed=step), 0, updates, **options))


@pytest.mark.parametrize("clip", [None, 1e-3, 1e3])
def test_a_clipped_gradient_keeps_its_direction_and_has_the_norm_asked_for(clip):
    theta, apply = mlp()
    learner, before = FOMAML(apply, half_mse, 0.05, 3), theta.clone()
    gradient = learner.meta_gradient(theta, regression(seed=0)).value
    trained = theta.clone()
    (update,) = train(learner, trained, 1, clip=clip)
    torch.testing.assert_close(update.norm, gradient.norm(), rtol=1e-12, atol=0)
    expected = gradient if clip is None or clip > 1 else gradient * (clip / gradient.norm())
    torch.testing.assert_close(before - trained, 0.1 * expected, rtol=1e-4 if clip == 1e-3 else 1e-9, atol=1e-12)


def test_the_step_size_falls_along_half_a_cosine():
    theta, apply = mlp()
    learner, trained, updates = FOMAML(apply, half_mse, 0.05, 3), theta.clone(), 4
    train(learner, trained, updates, lr=7.0, meta_lr=lambda step: cosine(0.1, updates, step))
    for step, share in enumerate([1, (2 + 2**0.5) / 4, 0.5, (2 - 2**0.5) / 4]):
        theta -= 0.1 * share * learner.meta_gradient(theta, regression(seed=step)).value
    torch.testing.assert_close(trained, theta, rtol=1e-12, atol=1e-14)


class OverBudgetAt:
    """A learner whose batch of some updates cannot be made accurate."""

    def __init__(self, learner, numbers):
        self.learner, self.left_out, self.calls = learner, numbers, 0

    def meta_gradient(self, theta, tasks):
        self.calls += 1
        if self.calls in self.left_out:
            raise OverBudget("too dear")
        return self.learner.meta_gradient(theta, tasks)


def test_a_batch_over_budget_changes_neither_theta_nor_the_optimiser():
    theta, apply = mlp()
    learner = OverBudgetAt(FOMAML(apply, half_mse, 0.05, 3), {2, 3})
    trained = theta.clone()
    optimizer = torch.optim.Adam([trained], lr=0.1)
    states = []
    for update in meta_train(learner, trained, optimizer, lambda step: regression(seed=step), 0, 4):
        moments = optimizer.state[trained]
        states.append((update.gradient is None, trained.clone(), moments["step"].item(), moments["exp_avg"].clone()))
    assert [left_out for left_out, *_ in states] == [False, True, True, False]
    for i in (1, 2):
        assert torch.equal(states[i][1], states[0][1])
        assert torch.equal(states[i][3], states[0][3])
    assert [steps for _, _, steps, _ in states] == [1, 1, 1, 2]
    assert not torch.equal(states[3][1], states[0][1])


def test_the_first_update_must_succeed():
    theta, apply = mlp()
    with pytest.raises(Diverged, match="update 1: too dear"):
        train(OverBudgetAt(FOMAML(apply, half_mse, 0.05, 3), {1}), theta.clone(), 2)


def test_updates_that_are_left_out_are_recorded_without_numbers():
    theta, apply = mlp()
    records = read(train(OverBudgetAt(AMAML(apply, half_mse, 0.05, 3), {2}), theta.clone(), 3))
    assert records[1] == {"update": 2, "skipped": True}
    assert [record["update"] for record in records] == [1, 2, 3]
    assert records[0]["measured"] is True
    assert records[0]["measuring"] > 0
    assert records[0]["error"] < 1e-3


def test_more_than_one_percent_of_the_last_updates_left_out_ends_the_run():
    skips = Skips()
    with pytest.warns(RuntimeWarning, match=r"update 7: the meta-gradient of this batch .* left out"):
        skips.add(7)
    for number in (100, 200, 300, 400, 507):  # no second warning; at the last, the first one is 500 updates ago
        skips.add(number)
    with pytest.raises(
        Diverged, match=r"update 508: 6 of the last 500 batches were left out.* try a smaller --inner-lr"
    ):
        skips.add(508)


def test_a_stop_in_the_middle_of_a_meta_gradient_is_met_there_and_leaves_no_trace(monkeypatch):
    theta, apply = mlp()
    learner = AMAML(apply, half_mse, 0.05, 3)
    learner.meta_gradient(theta, regression(seed=0))
    before = learner.control.state_dict()
    trained, solve = theta.clone(), AMAML._solve

    def interrupted(*arguments, **options):
        signal.raise_signal(signal.SIGINT)
        return solve(*arguments, **options)

    monkeypatch.setattr(AMAML, "_solve", interrupted)
    with StopRequest() as stop, pytest.raises(Stopped):
        train(learner, trained, 1, stop=stop)
    assert stop.number == signal.SIGINT
    assert learner.control.state_dict() == before
    assert torch.equal(trained, theta)
