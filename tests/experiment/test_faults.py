"""What goes wrong: damaged files, full disks, numbers that are not finite. One line, nothing lost, a way to go on."""

import re
from unittest.mock import Mock

import pytest
import torch
from helpers.commands import checkpoint, files, metrics, refused, start, theta

from amaml import Diverged
from baselines import FOMAML
from data.synthetic import CosMixture
from experiment import folder as folders
from experiment.folder import RunFolder
from experiment.session import Session


class Bomb:
    """What a hostile checkpoint does: it calls a function of its choice while it is read."""

    def __reduce__(self):
        return (print, ("executed",))


def flipped(content: bytes, parts: dict) -> bytes:
    position = content.index(parts["model"]["meta.module.0.weight"].numpy().tobytes()) + 3
    return content[:position] + bytes([content[position] ^ 1]) + content[position + 1 :]


DAMAGES = {  # of a checkpoint's bytes and parts
    "text": lambda content, parts: b"theta = 3\n",
    "cut": lambda content, parts: content[: len(content) // 2],
    "one flipped bit": flipped,
    "code": lambda content, parts: parts | {"settings": Bomb()},
    "list": lambda content, parts: [1, 2],
    "format": lambda content, parts: parts | {"format": 99},
    "model": lambda content, parts: parts | {"model": 3},
    "key": lambda content, parts: parts | {"extra": 1},
}


@pytest.mark.parametrize("damage", DAMAGES.values(), ids=DAMAGES)
def test_a_corrupt_checkpoint_is_refused(finished, capsys, damage):
    path = finished / "checkpoint.pt"
    damaged = damage(path.read_bytes(), torch.load(path, weights_only=True))
    path.write_bytes(damaged) if isinstance(damaged, bytes) else torch.save(damaged, path)
    for flags in (["--resume", "--meta-updates", "8"], ["--evaluate", str(finished)]):
        line = refused(capsys, finished, *flags, keeps=finished)
        assert f"cannot read the checkpoint {path}" in line
        assert "weights_only" not in line  # torch's advice to switch its guard off is no remedy
    assert start(finished, "--overwrite") == 0


def test_a_checkpoint_without_its_settings_is_refused(finished, capsys):
    saved = checkpoint(finished)
    del saved["settings"]["method"]
    for settings, said in ((saved["settings"], "--method"), ({"learning_rate": 3}, "'learning_rate'")):
        torch.save(saved | {"settings": settings}, finished / "checkpoint.pt")
        line = refused(capsys, finished, "--evaluate", str(finished))
        assert all(part in line for part in (str(finished), said)), line


def test_a_checkpoint_of_another_run_is_not_resumed(tmp_path, quick, capsys):
    out, other, longer = tmp_path / "run", tmp_path / "other", ["--resume", "--meta-updates", "8"]
    start(out)
    start(other, "--width", "5")
    (out / "checkpoint.pt").write_bytes((other / "checkpoint.pt").read_bytes())
    assert "--width 5, not 4" in refused(capsys, out, *longer, keeps=out)
    saved = checkpoint(out)  # its settings say 4, its theta does not
    saved["settings"]["width"] = 4
    torch.save(saved, out / "checkpoint.pt")
    assert "holds 46 parameters, the network has 33" in refused(capsys, out, *longer, keeps=out)


@pytest.mark.parametrize("name", ["config.json", "metrics.jsonl", "test.json"])
@pytest.mark.parametrize("broken", [b'{"settings": {', b"\xff\xfe", b"7\n7\n"], ids=["cut", "bytes", "number"])
def test_a_corrupt_file_of_a_run_is_named_and_overwrite_helps(finished, capsys, name, broken):
    (finished / "summary.json").unlink()
    (finished / name).write_bytes(broken + b"\n")
    before = files(finished)
    assert str(finished / name) in refused(capsys, finished, "--resume")
    assert before | {"config.json": b""} == files(finished) | {"config.json": b""}
    if name != "config.json" or broken != b"7\n7\n":  # a valid file of somebody else's is not ours to replace
        assert start(finished, "--overwrite") == 0


@pytest.mark.parametrize(("lost", "said"), [({2, 3}, "holds update 5 in line 3"), ({4, 5}, "ends with update 4 of 6")])
def test_missing_lines_of_the_metrics_are_noticed(finished, capsys, lost, said):
    path = finished / "metrics.jsonl"
    lines = path.read_text().splitlines(keepends=True)
    path.write_text("".join(line for i, line in enumerate(lines) if i not in lost))
    before = {name: held for name, held in files(finished).items() if name not in ("config.json", "summary.json")}
    line = refused(capsys, finished, "--resume", "--meta-updates", "8")
    assert (said in line, "--evaluate" in line) == (True, True)
    assert before.items() <= files(finished).items()
    path.write_text("".join(lines))
    assert start(finished, "--resume", "--meta-updates", "8") == 0


no_space = Mock(side_effect=OSError(28, "No space left on device"))


def test_a_disk_that_fills_up_costs_no_checkpoint(tmp_path, quick, monkeypatch, capsys):
    save = RunFolder.save

    def full(folder, state):
        if state.update > 2:
            monkeypatch.setattr("os.fsync", no_space)
        save(folder, state)

    monkeypatch.setattr(RunFolder, "save", full)
    line = refused(capsys, tmp_path, "--checkpoint-interval", "2")
    assert line.endswith("go on with --resume; the checkpoint of update 2 is kept\n")
    assert checkpoint(tmp_path)["update"] == 2


def test_a_disk_that_is_full_after_training_costs_no_training(tmp_path, quick, monkeypatch, capsys):
    write = folders.write_atomically
    with monkeypatch.context() as patch:
        patch.setattr(folders, "write_atomically", lambda p, c: (no_space if b'"ci95"' in c else write)(p, c))
        line = refused(capsys, tmp_path)
    assert "No space left on device; free some space, then go on with --resume" in line
    assert "--out" not in line
    assert checkpoint(tmp_path)["update"] == 6
    monkeypatch.setattr(Session, "_step", None)
    assert start(tmp_path, "--resume") == 0


LOST, KEPT = "update 1: .*smaller.*no checkpoint yet", "meta-test after update 1.*the checkpoint of update 1 is kept"
NOT_FINITE = [  # the flags, what is said, how many updates are made
    *((["--method", method, "--inner-lr", "1e29"], LOST, 0) for method in ("amaml", "maml", "reptile")),
    (["--meta-optimizer", "sgd"], "update 1: theta is not finite", 1),
    (["--meta-lr", "1e25"], KEPT, 1),
]


@pytest.mark.parametrize(("flags", "said", "made"), NOT_FINITE)
def test_what_is_not_finite_stops_the_run_and_is_never_saved(tmp_path, quick, monkeypatch, capsys, flags, said, made):
    monkeypatch.setattr(torch.optim.SGD, "step", lambda o: o.param_groups[0]["params"][0].data.fill_(torch.inf))
    line = refused(capsys, tmp_path, *flags, "--dtype", "float32", "--meta-updates", "1")
    assert re.search(said, line)
    assert len(metrics(tmp_path)) == made
    assert (tmp_path / "checkpoint.pt").exists() == (said == KEPT)
    assert not (tmp_path / "summary.json").exists()
    assert said == KEPT or start(tmp_path) == 0


def test_the_first_update_that_was_not_finite_is_named(tmp_path, quick, capsys, monkeypatch):
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

    flags = ["--checkpoint-interval", "2", "--meta-updates", "9"]
    with monkeypatch.context() as patch:
        patch.setattr(FOMAML, "gradient", unchecked)
        patch.setattr(CosMixture, "episode", poisoned)
        line = refused(capsys, out, *flags)
    assert "update 5: query loss inf" in line
    assert "update 4 is kept" in line
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
