"""A run's folder: every file whole or not at all, one process at once; what goes wrong gets one line and a way on."""

import os
import re
from contextlib import nullcontext
from unittest.mock import Mock

import pytest
import torch
from filelock import FileLock, Timeout
from helpers.commands import checkpoint, content, files, metrics, refused, start, theta

import run
from amaml import Diverged
from baselines import FOMAML
from data.synthetic import CosMixture
from experiment import folder as folders
from experiment import opening
from experiment.build import Experiment
from experiment.folder import RunFolder
from experiment.session import Session


def test_every_file_is_written_atomically_and_the_metrics_before_the_checkpoint(tmp_path, quick, monkeypatch):
    written, write, synced, fsync = [], folders.write_atomically, [], os.fsync
    monkeypatch.setattr(folders, "write_atomically", lambda path, c: (written.append(path.name), write(path, c)))
    monkeypatch.setattr(os, "fsync", lambda file: (synced.append(os.readlink(f"/proc/self/fd/{file}")), fsync(file)))
    start(tmp_path / "run", "--checkpoint-interval", "3")
    assert set(written) == set(files(tmp_path / "run"))
    names = [os.path.basename(path).removesuffix(".tmp") for path in synced]
    assert [names[i - 1] for i, name in enumerate(names) if name == "checkpoint.pt"] == ["metrics.jsonl"] * 2


def test_a_closed_pipe_is_no_fault_of_the_folder(tmp_path):
    with pytest.raises(BrokenPipeError), folders.usable(tmp_path):
        raise BrokenPipeError


def test_the_autosave_writes_a_checkpoint_between_the_regular_ones(tmp_path, quick, monkeypatch):
    saved, save = [], RunFolder.save
    monkeypatch.setattr(RunFolder, "save", lambda folder, c: (saved.append(c.update), save(folder, c)))
    for seconds, expected in ((0.0, [1, 2, 3, 4, 5, 6]), (1000.0, [6])):
        monkeypatch.setattr("experiment.session.SAVE_SECONDS", seconds)
        start(tmp_path / str(seconds), "--checkpoint-interval", "100")
        assert saved == expected
        saved.clear()


def test_a_folder_takes_one_process_at_a_time(finished, monkeypatch, capsys):
    """Where another holds it nothing begins; a run holds it from its first update on, and leaves it free."""
    (finished / "summary.json").unlink()
    lock, step, held = finished / ".lock", Session._step, []
    with FileLock(lock):
        for flags in ([], ["--resume"], ["--overwrite"], ["--seed", "1"]):
            line = refused(capsys, finished, *flags, keeps=finished)
            assert f"{finished} is in use by another process; wait for its" in line

    def noted(session):
        with pytest.raises(Timeout):
            FileLock(lock).acquire(timeout=0)
        held.append(session.update)
        step(session)

    monkeypatch.setattr(Session, "_step", noted)
    assert start(finished, "--overwrite") == 0
    assert held == [0, 1, 2, 3, 4, 5]
    FileLock(lock).acquire(timeout=0)


@pytest.mark.parametrize("name", ["run", ""], ids=["new", "empty"])
def test_of_two_runs_that_begin_at_once_in_a_new_folder_one_goes_on(tmp_path, quick, monkeypatch, capsys, name):
    build, out = run.build, tmp_path / name

    def overtaken(settings, group):
        monkeypatch.setattr(run, "build", build)
        assert start(out, "--seed", "1") == 0  # another one begins, and ends, while this one is being built
        return build(settings, group)

    monkeypatch.setattr(run, "build", overtaken)
    assert start(out) == 2
    assert "another run has begun" in capsys.readouterr().err
    assert content(out, "config.json")["settings"]["seed"] == 1
    assert "summary.json" in files(out)


@pytest.mark.parametrize(("flag", "value"), [("test-tasks", 3), ("protocol", "inner")])
def test_other_tests_of_a_finished_run_are_made_without_training(finished, monkeypatch, capsys, flag, value):
    before, old = files(finished), content(finished, "test.json")
    seconds = content(finished, "summary.json")["seconds_per_update"]
    monkeypatch.setattr(Session, "_step", None)
    for _ in range(2):  # the second time it is finished
        assert start(finished, f"--{flag}", str(value)) == 0
        assert {name: files(finished)[name] for name in ("checkpoint.pt", "metrics.jsonl")}.items() <= before.items()
        *earlier, new = content(finished, "test.json")
        assert (earlier, new["update"], new["protocol"][flag.replace("-", "_")]) == (old, 6, value)
        summary = content(finished, "summary.json")
        assert [row["test"] for row in summary["at_epochs"]] == new["test"]["mean"]
        assert summary["seconds_per_update"] == seconds
        assert summary["table"] in capsys.readouterr().out


def test_tests_made_anew_survive_a_kill_and_an_unfinished_run_goes_on_with_them(tmp_path, quick, monkeypatch):
    start(tmp_path, "--meta-updates", "3")
    with monkeypatch.context() as patch:
        patch.setattr(Experiment, "adapt", Mock(side_effect=KeyboardInterrupt))
        assert start(tmp_path, "--meta-updates", "3", "--test-tasks", "3") == 130
    assert start(tmp_path, "--resume", "--test-tasks", "3", "--test-interval", "4") == 0
    assert [(t["update"], t["tasks"]) for t in content(tmp_path, "test.json")] == [(3, 2), (4, 3), (6, 3)]


@pytest.mark.parametrize("compiler", [True, False])
def test_whether_a_run_is_compiled_is_decided_once(tmp_path, quick, monkeypatch, capsys, compiler):
    """A longer --meta-updates, and a compiler that came, change nothing; one that went stops the run."""
    entered = []
    monkeypatch.setattr(opening, "LONG_RUN", 8 if not compiler else 4)
    monkeypatch.setattr(opening, "compiler_found", lambda: True)
    monkeypatch.setattr(run, "compiled", lambda on: nullcontext(entered.append(on)))
    start(tmp_path)
    assert start(tmp_path, "--meta-updates", "9", "--resume") == 0
    assert (checkpoint(tmp_path)["compiled"], entered) == (compiler, [compiler, compiler])
    monkeypatch.setattr(opening, "compiler_found", lambda: False)
    longer = "--meta-updates", "10", "--resume"
    if compiler:
        assert "there is no C++ compiler" in refused(capsys, tmp_path, *longer, keeps=tmp_path)
    else:
        assert start(tmp_path, *longer) == 0


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


def test_a_checkpoint_without_its_settings_or_of_another_run_is_refused(finished, capsys):
    saved, evaluate = checkpoint(finished), ["--evaluate", str(finished)]
    without = {name: value for name, value in saved["settings"].items() if name != "method"}
    for settings, said, flags in (
        (without, "--method", evaluate),
        ({"learning_rate": 3}, "'learning_rate'", evaluate),
        (saved["settings"] | {"width": 5}, "--width 5, not 4", ["--resume", "--meta-updates", "8"]),
    ):
        torch.save(saved | {"settings": settings}, finished / "checkpoint.pt")
        line = refused(capsys, finished, *flags, keeps=finished)
        assert all(part in line for part in (str(finished), said)), line


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


@pytest.mark.parametrize(("name", "kept"), [("checkpoint.pt", 2), ("test.json", 6)])
def test_a_disk_that_fills_up_costs_no_checkpoint(tmp_path, quick, monkeypatch, capsys, name, kept):
    """Where the second file of this name is written."""
    write, written = folders.write_atomically, []

    def full(path, content):
        if path.name == name and name in written:
            raise OSError(28, "No space left on device")
        written.append(path.name)
        write(path, content)

    with monkeypatch.context() as patch:
        patch.setattr(folders, "write_atomically", full)
        line = refused(capsys, tmp_path, "--checkpoint-interval", "2")
    assert line.startswith(f"run.py: cannot write to {tmp_path}: No space left on device; free some space, then go on")
    assert line.endswith(f"with --resume; the checkpoint of update {kept} is kept\n")
    assert checkpoint(tmp_path)["update"] == kept
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
