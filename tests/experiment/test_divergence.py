"""Losses and parameters that stop being finite: the update, the last good checkpoint."""

import pytest
import torch
from helpers.commands import checkpoint, metrics, refused, start, theta

from amaml import Diverged
from baselines import FOMAML
from data.synthetic import CosMixture


@pytest.mark.parametrize("method", ["amaml", "maml", "reptile"])
def test_a_loss_that_is_not_finite_stops_the_run_with_its_update_and_blocks_no_folder(tmp_path, quick, capsys, method):
    line = refused(capsys, tmp_path, "--method", method, "--inner-lr", "1e29", "--dtype", "float32")
    assert all(words in line for words in ("update 1: ", "smaller", "no checkpoint yet"))
    assert not (tmp_path / "checkpoint.pt").exists()
    assert metrics(tmp_path) == []
    assert start(tmp_path) == 0


def test_a_theta_that_is_not_finite_is_never_saved(tmp_path, quick, monkeypatch, capsys):
    def overflow(optimizer):
        optimizer.param_groups[0]["params"][0].data[2] = torch.inf

    monkeypatch.setattr(torch.optim.SGD, "step", overflow)
    line = refused(capsys, tmp_path, "--meta-optimizer", "sgd", "--meta-updates", "1")
    assert "update 1: theta is not finite" in line
    assert not (tmp_path / "checkpoint.pt").exists()


def test_a_meta_test_that_is_not_finite_stops_the_run(tmp_path, quick, capsys):
    line = refused(capsys, tmp_path / "run", "--meta-lr", "1e25", "--dtype", "float32", "--meta-updates", "1")
    assert "meta-test after update 1" in line
    assert "the checkpoint of update 1 is kept" in line
    assert not (tmp_path / "run" / "summary.json").exists()


@pytest.mark.parametrize(("interval", "kept"), [(2, "update 4 is kept"), (100, "no checkpoint yet")])
def test_the_first_update_that_was_not_finite_is_named(tmp_path, quick, capsys, monkeypatch, interval, kept):
    """Of a method that does not check its result; the updates are looked at in batches, later ones are faulty too."""
    out, gradient, draw = tmp_path / "run", FOMAML.gradient, CosMixture.episode

    def unchecked(learner, theta, tasks, memory):
        if not theta.isfinite().all():
            raise Diverged("theta is lost")
        return gradient.__wrapped__(learner, theta, tasks, memory)

    def poisoned(domain, step):
        tasks = draw(domain, step)
        if step == 4:
            tasks.query_y[0, 0] = torch.inf
        return tasks

    flags = ["--checkpoint-interval", str(interval), "--meta-updates", "9"]
    with monkeypatch.context() as patch:
        patch.setattr(FOMAML, "gradient", unchecked)
        patch.setattr(CosMixture, "episode", poisoned)
        line = refused(capsys, out, *flags)
    assert "update 5: query loss inf" in line
    assert kept in line
    if interval == 2:
        assert checkpoint(out)["update"] == 4
        start(tmp_path / "sound", *flags)
        assert start(out, *flags, "--resume") == 0
        assert metrics(out) == metrics(tmp_path / "sound")


def step(out, *flags: str) -> torch.Tensor:
    """The difference that the only update makes by gradient descent of 0.1."""
    start(out, "--meta-optimizer", "sgd", "--meta-lr", "0.1", "--meta-updates", "1", *flags)
    start(out.with_name("scratch"), "--method", "scratch", "--meta-updates", "1", "--overwrite")
    return theta(out) - theta(out.with_name("scratch"))


def test_a_clipped_gradient_keeps_its_direction_and_has_the_norm_asked_for(tmp_path, quick):
    whole, clipped, long = (step(tmp_path / clip, "--clip", clip) for clip in ("0", "1e-3", "1e3"))
    torch.testing.assert_close(clipped, whole * (1e-4 / whole.norm()), rtol=1e-2, atol=0)
    assert torch.equal(whole, long)
    norms = [metrics(tmp_path / clip)[0]["gradient_norm"] for clip in ("0", "1e-3", "1e3")]
    assert norms == pytest.approx([whole.norm().item() / 0.1] * 3, rel=1e-9)  # the one it had


def test_the_step_size_falls_along_half_a_cosine(tmp_path, quick, monkeypatch):
    shares, sizes, step = [1, (2 + 2**0.5) / 4, 0.5, (2 - 2**0.5) / 4], [], torch.optim.SGD.step
    monkeypatch.setattr(torch.optim.SGD, "step", lambda o: (sizes.append(o.param_groups[0]["lr"]), step(o)))
    start(tmp_path, "--meta-optimizer", "sgd", "--meta-lr", "0.1", "--meta-schedule", "cosine", "--meta-updates", "4")
    assert sizes == pytest.approx([0.1 * share for share in shares])
