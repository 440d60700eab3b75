"""The loop itself: clipping, and the measured error of A-MAML's gradient."""

import pytest
import torch
from problems import mlp, regression, relative_error

from amaml import AMAML, half_mse
from amaml.chunked import Chunked
from amaml.experiment.session import meta_train
from baselines import FOMAML


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
    torch.testing.assert_close(update.gradient_norm, gradient.norm(), rtol=1e-12, atol=0)
    expected = gradient if clip is None or clip > 1 else gradient * (clip / gradient.norm())
    torch.testing.assert_close(before - trained, 0.1 * expected, rtol=1e-4 if clip == 1e-3 else 1e-9, atol=1e-12)


def test_the_error_is_measured_at_the_first_and_every_so_many_updates():
    theta, apply = mlp()
    learner = Chunked(AMAML(apply, half_mse, 0.01, 100, rtol=1e-2), 2)
    updates = train(learner, theta.clone(), 5, check_every=2)
    assert [u.checked_error is not None for u in updates] == [True, False, True, False, True]
    tasks = regression(seed=0)
    reference = AMAML(apply, half_mse, 0.01, 100, solver="rk4", rtol=1e-7).meta_gradient(theta, tasks).value
    error = relative_error(learner.meta_gradient(theta, tasks).value, reference)
    assert updates[0].checked_error == pytest.approx(error, rel=0.3)


def test_a_gradient_that_fails_the_measurement_is_replaced_with_a_warning(monkeypatch):
    theta, apply = mlp()
    learner = AMAML(apply, half_mse, 0.01, 100, rtol=1e-2)
    monkeypatch.setattr("amaml.experiment.session.relative_distance", lambda a, b: 0.2)
    trained = theta.clone()
    with pytest.warns(RuntimeWarning, match=r"update 1: the meta-gradient's measured error is 0.2, .* a smaller"):
        train(learner, trained, 1, check_every=1)
    finer = learner.finer().meta_gradient(theta, regression(seed=0)).value
    torch.testing.assert_close(theta - trained, 0.1 * finer, rtol=1e-9, atol=1e-14)
