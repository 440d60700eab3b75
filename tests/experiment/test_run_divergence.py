"""Losses and parameters that stop being finite: the update's number, the last good checkpoint, what to try."""

import json
from dataclasses import dataclass, replace

import pytest
import torch
from helpers.commands import checkpoint, error_line, metrics, start

import run
from amaml import Diverged, MetaLearner


@pytest.mark.parametrize("method", ["maml", "maml1", "fomaml", "imaml", "reptile"])
def test_a_loss_that_is_not_finite_stops_the_run_with_its_update(tmp_path, quick, capsys, method):
    out = tmp_path / "run"
    assert start(out, "--method", method, "--inner-lr", "1e29", "--dtype", "float32") == 2
    line = error_line(capsys)
    assert "update 1: " in line
    assert "inner_lr" in line
    assert "no checkpoint yet" in line
    assert not (out / "checkpoint.pt").exists()
    assert metrics(out) == []


@pytest.mark.parametrize("solver", ["auto", "rk4", "rkc", "euler"])
def test_amaml_refuses_a_horizon_that_no_steps_can_cover(tmp_path, quick, capsys, solver):
    out = tmp_path / "run"
    flags = ["--method", "amaml", "--solver", solver, "--inner-lr", "1e29", "--dtype", "float32"]
    assert start(out, *flags) == 2
    line = error_line(capsys)
    assert "update 1: " in line
    assert "smaller" in line
    assert "no checkpoint yet" in line
    assert not (out / "checkpoint.pt").exists()


@pytest.mark.parametrize("solver", ["euler", "rk4"])
def test_amaml_stops_with_its_update_where_theta_explodes(tmp_path, capsys, solver):
    out = tmp_path / "run"
    flags = [
        "--method",
        "amaml",
        "--solver",
        solver,
        "--meta-lr",
        "1e25",
        "--dtype",
        "float32",
        "--checkpoint-interval",
        "1",
    ]
    assert start(out, *flags) == 2
    line = error_line(capsys)
    assert "update 2: " in line
    assert "the checkpoint of update 1 is kept" in line
    assert checkpoint(out)["update"] == 1
    assert checkpoint(out)["theta"].isfinite().all()


def test_where_the_network_has_kinks_the_first_remedy_is_euler(tmp_path, quick, monkeypatch, capsys):
    flags = ["--method", "amaml", "--inner-lr", "1e29", "--dtype", "float32"]
    assert start(tmp_path / "run", *flags, "--activation", "relu") == 2
    assert error_line(capsys).startswith("run.py: relu has no smooth flow, choose --solver euler; update 1: ")
    for other in (["--solver", "euler", "--activation", "relu"], []):
        start(tmp_path / "run", *flags, *other)
        assert "smooth flow" not in error_line(capsys)


def test_a_theta_that_is_not_finite_is_never_saved(tmp_path, quick, monkeypatch, capsys):
    class Overflow(torch.optim.SGD):
        def step(self):
            self.param_groups[0]["params"][0][2] = torch.inf

    monkeypatch.setattr(torch.optim, "SGD", Overflow)
    assert start(tmp_path / "run", "--meta-optimizer", "sgd", "--meta-updates", "1") == 2
    assert "update 1: theta is not finite" in error_line(capsys)
    assert not (tmp_path / "run" / "checkpoint.pt").exists()


def test_a_meta_test_that_is_not_finite_stops_the_run(tmp_path, quick, capsys):
    flags = ["--meta-lr", "1e25", "--dtype", "float32", "--meta-updates", "1"]
    assert start(tmp_path / "run", *flags) == 2
    line = error_line(capsys)
    assert "meta-test after update 1" in line
    assert "the checkpoint of update 1 is kept" in line
    assert not (tmp_path / "run" / "summary.json").exists()


@dataclass(frozen=True)
class Wary:
    """A method that does not check its result, and sees that theta is lost at the update after the faulty one."""

    learner: MetaLearner

    def meta_gradient(self, theta, tasks):
        if not theta.isfinite().all():
            raise Diverged("theta is lost")
        return type(self.learner).meta_gradient.__wrapped__(self.learner, theta, tasks)


@pytest.mark.parametrize(("interval", "kept"), [(2, "update 4 is kept"), (100, "no checkpoint yet")])
def test_the_first_update_that_was_not_finite_is_named(tmp_path, quick, capsys, monkeypatch, interval, kept):
    """One poisoned episode after five good ones; the updates are looked at in batches, later ones are faulty too."""
    out, build = tmp_path / "run", run.build

    def poisoned(*settings):
        e = build(*settings)
        draw = e.domain.episode

        def episode(step):
            tasks = draw(step)
            if step == 4:
                tasks.query_y[0, 0] = torch.inf
            return tasks

        monkeypatch.setattr(e.domain, "episode", episode)
        return replace(e, learner=Wary(e.learner))

    monkeypatch.setattr(run, "build", poisoned)
    flags = ["--checkpoint-interval", str(interval), "--meta-updates", "9"]
    assert start(out, *flags) == 2
    line = error_line(capsys)
    assert "update 5: query loss inf" in line
    assert kept in line
    if interval == 2:
        assert checkpoint(out)["update"] == 4
        monkeypatch.setattr(run, "build", build)
        start(tmp_path / "sound", *flags)
        assert start(out, *flags, "--resume") == 0
        assert json.dumps(metrics(out)) == json.dumps(metrics(tmp_path / "sound"))
