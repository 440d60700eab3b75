"""A run's folder: every file whole or not at all, one process at once, tests made anew, damage named and left alone."""

import os
import pickle
from contextlib import nullcontext

import pytest
import torch
from filelock import FileLock, Timeout
from helpers.commands import OFTEN, assert_same_run, checkpoint, content, error_line, files, metrics, start, theta

import run
from amaml import InputError
from experiment import folder as folders
from experiment import opening
from experiment.build import Experiment
from experiment.folder import RunFolder
from experiment.session import Session
from experiment.settings import FIELDS


def test_every_file_of_a_run_is_written_atomically(tmp_path, quick, monkeypatch):
    written, write = [], folders.write_atomically
    monkeypatch.setattr(folders, "write_atomically", lambda path, c: (written.append(path.name), write(path, c)))
    start(tmp_path)
    assert set(written) == set(files(tmp_path))


def test_the_metrics_reach_the_disk_before_the_checkpoint_of_their_updates(tmp_path, quick, monkeypatch):
    synced, fsync = [], os.fsync
    monkeypatch.setattr(os, "fsync", lambda file: (synced.append(os.readlink(f"/proc/self/fd/{file}")), fsync(file)))
    start(tmp_path / "run", "--checkpoint-interval", "3")
    names = [os.path.basename(path).removesuffix(".tmp") for path in synced]
    assert names.count("checkpoint.pt") == 2
    assert all(names[i - 1] == "metrics.jsonl" for i, name in enumerate(names) if name == "checkpoint.pt")


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
    before = files(finished)
    with FileLock(finished / ".lock"):
        for flags in ([], ["--resume"], ["--overwrite"], ["--seed", "1"]):
            assert start(finished, *flags) == 2
            assert f"{finished} is in use by another process; wait for its end" in error_line(capsys)
    assert files(finished) == before
    step, held = Session._step, []

    def noted(session):
        try:
            FileLock(finished / ".lock").acquire(timeout=0)
        except Timeout:
            held.append(session.update)
        step(session)

    monkeypatch.setattr(Session, "_step", noted)
    assert start(finished, "--overwrite") == 0
    assert held == [0, 1, 2, 3, 4, 5]
    FileLock(finished / ".lock").acquire(timeout=0)


def test_of_two_runs_that_begin_at_once_in_a_new_folder_one_goes_on(tmp_path, quick, monkeypatch, capsys):
    build, out = run.build, tmp_path / "run"

    def overtaken(settings, group):
        monkeypatch.setattr(run, "build", build)
        assert start(out, "--seed", "1") == 0  # another one begins, and ends, while this one is being built
        return build(settings, group)

    monkeypatch.setattr(run, "build", overtaken)
    assert start(out) == 2
    assert "another run has begun" in capsys.readouterr().err
    assert content(out, "config.json")["settings"]["seed"] == 1
    assert "summary.json" in files(out)


def test_a_folder_of_which_nothing_may_be_written_still_shows_its_run(finished, monkeypatch, capsys):
    def refuse(*arguments, **options):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(folders.filelock.FileLock, "acquire", refuse)
    assert start(finished) == 0
    assert capsys.readouterr().out.startswith(content(finished, "summary.json")["table"])


@pytest.mark.parametrize("flags", [["--test-tasks", "3"], ["--protocol", "inner"]], ids=" ".join)
def test_other_tests_of_a_finished_run_are_made_without_training(finished, monkeypatch, capsys, flags):
    trained, lines, old = theta(finished), metrics(finished), content(finished, "test.json")
    seconds = content(finished, "summary.json")["seconds_per_update"]
    monkeypatch.setattr(Session, "_step", None)
    assert start(finished, *flags) == 0
    assert torch.equal(theta(finished), trained)
    assert metrics(finished) == lines
    *before, new = content(finished, "test.json")
    assert before == old
    assert new["update"] == 6
    assert new["protocol"][flags[0][2:].replace("-", "_")] == (int(flags[1]) if flags[1].isdigit() else "inner")
    summary = content(finished, "summary.json")
    assert [row["test"] for row in summary["at_epochs"]] == new["test"]["mean"]
    assert summary["seconds_per_update"] == seconds
    assert summary["table"] in capsys.readouterr().out
    assert start(finished, *flags) == 0  # now it is finished
    assert len(content(finished, "test.json")) == 2


def test_tests_made_anew_survive_a_kill(finished, monkeypatch):

    def killed(*arguments, **named):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(Experiment, "adapt", killed)
        assert start(finished, "--test-tasks", "3") == 130
    assert start(finished, "--test-tasks", "3", "--resume") == 0
    assert [test["tasks"] for test in content(finished, "test.json")] == [2, 3]


def test_an_unfinished_run_may_be_tested_in_another_way_from_here_on(tmp_path, quick):
    start(tmp_path, "--meta-updates", "3")
    (tmp_path / "summary.json").unlink()
    assert start(tmp_path, "--resume", "--test-tasks", "3", "--test-interval", "4") == 0
    assert [(t["update"], t["tasks"]) for t in content(tmp_path, "test.json")] == [(3, 2), (4, 3), (6, 3)]


@pytest.mark.parametrize("compiler", [True, False])
def test_whether_a_run_is_compiled_is_decided_once(tmp_path, quick, monkeypatch, capsys, compiler):
    """A longer --meta-updates, and a compiler that came, change nothing; one that went stops the run."""
    out, entered = tmp_path / "run", []
    monkeypatch.setattr(opening, "LONG_RUN", 8 if not compiler else 4)
    monkeypatch.setattr(opening, "compiler_found", lambda: True)
    monkeypatch.setattr(run, "compiled", lambda on: nullcontext(entered.append(on)))
    start(out)
    assert start(out, "--meta-updates", "9", "--resume") == 0
    assert checkpoint(out)["compiled"] == compiler
    assert entered == [compiler, compiler]
    monkeypatch.setattr(opening, "compiler_found", lambda: False)
    capsys.readouterr()
    before = files(out)
    assert start(out, "--meta-updates", "10", "--resume") == (2 if compiler else 0)
    if compiler:
        assert "there is no C++ compiler" in error_line(capsys)
        assert files(out) == before


class Bomb:
    """What a hostile checkpoint does: it calls a function of its choice while it is read."""

    def __reduce__(self):
        return (print, ("executed",))


def damaged(kind: str, good: bytes, path) -> None:
    parts = torch.load(path, weights_only=True)
    if kind in ("empty", "text", "pickle", "cut"):
        cut = good[: len(good) // 2]
        contents = {"empty": b"", "text": b"theta = 3\n", "pickle": pickle.dumps(parts["settings"]), "cut": cut}
        path.write_bytes(contents[kind])
    elif kind == "one flipped bit":
        position = good.index(parts["model"]["meta.module.0.weight"].numpy().tobytes()) + 3
        path.write_bytes(good[:position] + bytes([good[position] ^ 1]) + good[position + 1 :])
    else:
        changes = {"format": {"format": 99}, "model": {"model": 3}, "key": {"extra": 1}, "update": {"update": "6"}}
        whole = {"code": parts | {"settings": Bomb()}, "list": [1, 2]}
        torch.save(whole[kind] if kind in whole else parts | changes[kind], path)


@pytest.mark.parametrize(
    "kind", ["empty", "text", "pickle", "cut", "one flipped bit", "code", "list", "format", "model", "key", "update"]
)
def test_a_corrupt_checkpoint_is_refused(finished, capsys, kind):
    damaged(kind, (finished / "checkpoint.pt").read_bytes(), finished / "checkpoint.pt")
    before = files(finished)
    for flags in (["--resume", "--meta-updates", "8"], ["--evaluate", str(finished)]):
        assert (start(finished, *flags) if flags[0] == "--resume" else run.main(flags)) == 2
        line = error_line(capsys)
        assert f"cannot read the checkpoint {finished / 'checkpoint.pt'}" in line
        assert "weights_only" not in line  # torch's advice to switch its guard off is no remedy
        assert files(finished) == before
    assert start(finished, "--overwrite") == 0


@pytest.mark.parametrize("missing", ["method", "settings of another program"])
def test_a_checkpoint_without_its_settings_is_refused(finished, capsys, missing):
    saved = checkpoint(finished)
    saved["settings"].pop(missing, None)
    if missing not in FIELDS:
        saved["settings"] = {"learning_rate": 3}
    torch.save(saved, finished / "checkpoint.pt")
    assert run.main(["--evaluate", str(finished)]) == 2
    line = error_line(capsys)
    assert str(finished) in line
    assert (f"--{missing}" if missing in FIELDS else "'learning_rate'") in line


def test_a_checkpoint_of_another_run_is_not_resumed(tmp_path, quick, capsys):
    out, other = tmp_path / "run", tmp_path / "other"
    start(out)
    start(other, "--width", "5")
    (out / "checkpoint.pt").write_bytes((other / "checkpoint.pt").read_bytes())
    capsys.readouterr()
    assert start(out, "--resume", "--meta-updates", "8") == 2
    assert "--width 5, not 4" in error_line(capsys)
    saved = checkpoint(out)  # its settings say 4, its theta does not
    saved["settings"]["width"] = 4
    torch.save(saved, out / "checkpoint.pt")
    before = files(out)
    assert start(out, "--resume", "--meta-updates", "8") == 2
    assert "holds 46 parameters, the network has 33" in " ".join(error_line(capsys).split())
    assert files(out) == before


@pytest.mark.parametrize("name", ["config.json", "metrics.jsonl", "test.json"])
@pytest.mark.parametrize("broken", [b'{"settings": {', b"\xff\xfe", b"7\n7\n"], ids=["cut", "bytes", "number"])
def test_a_corrupt_file_of_a_run_is_named_and_overwrite_helps(finished, capsys, name, broken):
    (finished / "summary.json").unlink()
    (finished / name).write_bytes(broken + b"\n")
    before = {k: v for k, v in files(finished).items() if k != "config.json"}
    assert start(finished, "--resume") == 2
    assert str(finished / name) in error_line(capsys)
    assert {k: v for k, v in files(finished).items() if k != "config.json"} == before
    if name != "config.json" or broken != b"7\n7\n":  # a valid file of somebody else's is not ours to replace
        assert start(finished, "--overwrite") == 0


@pytest.mark.parametrize(
    ("damage", "fragment"),
    [
        (lambda lines: lines[:2] + lines[4:], "holds update 5 in line 3"),
        (lambda lines: lines[:2] + lines[1:], "holds update 2 in line 3"),
        (lambda lines: lines[:4], "ends with update 4 of 6"),
    ],
    ids=["gap", "twice", "cut"],
)
def test_missing_lines_of_the_metrics_are_noticed(finished, capsys, damage, fragment):
    lines = (finished / "metrics.jsonl").read_text().splitlines(keepends=True)
    (finished / "metrics.jsonl").write_text("".join(damage(lines)))
    before = {name: held for name, held in files(finished).items() if name not in ("config.json", "summary.json")}
    assert start(finished, "--resume", "--meta-updates", "8") == 2
    line = error_line(capsys)
    assert fragment in line
    assert "--evaluate" in line
    assert {name: held for name, held in files(finished).items() if name in before} == before
    (finished / "metrics.jsonl").write_text("".join(lines))
    assert start(finished, "--resume", "--meta-updates", "8") == 0


def no_space(*arguments):
    raise OSError(28, "No space left on device")


def test_a_disk_that_fills_up_ends_the_run_in_one_line_and_keeps_the_last_checkpoint(
    tmp_path, quick, monkeypatch, capsys
):
    save = RunFolder.save

    def full(folder, state):
        if state.update > 2:
            monkeypatch.setattr("os.fsync", no_space)
        save(folder, state)

    monkeypatch.setattr(RunFolder, "save", full)
    assert start(tmp_path, "--checkpoint-interval", "2") == 2
    assert "No space left on device" in error_line(capsys)
    assert checkpoint(tmp_path)["update"] == 2


def test_a_disk_that_is_full_after_training_costs_no_training(tmp_path, quick, monkeypatch, capsys):
    write = folders.write_atomically
    with monkeypatch.context() as patch:
        patch.setattr(folders, "write_atomically", lambda p, c: (no_space if b'"ci95"' in c else write)(p, c))
        assert start(tmp_path) == 2
    line = error_line(capsys)
    assert "No space left on device; free some space, then go on with --resume" in line
    assert "--out" not in line
    assert checkpoint(tmp_path)["update"] == 6
    monkeypatch.setattr(Session, "_step", None)
    assert start(tmp_path, "--resume") == 0


def test_a_run_that_ended_before_its_first_checkpoint_blocks_no_folder(tmp_path, quick, capsys):
    out = tmp_path / "run"
    assert start(out, "--inner-lr", "1e29", "--dtype", "float32") == 2
    assert "no checkpoint yet" in error_line(capsys)
    assert start(out) == 0
    start(tmp_path / "fresh")
    assert_same_run(out, tmp_path / "fresh")


def test_clearing_removes_all_files_of_a_run_and_of_its_evaluations(tmp_path, quick, capsys):
    start(tmp_path, *OFTEN, "--draw", "1")
    assert run.main(["--evaluate", str(tmp_path), "--draw", "1"]) == 0
    assert {*folders.FILES} <= set(files(tmp_path))
    folder = RunFolder(tmp_path)
    (tmp_path / "notes.txt").touch()
    with pytest.raises(InputError, match="notes.txt"):
        folder.clear()
    assert "config.json" in files(tmp_path)
    (tmp_path / "notes.txt").rename(tmp_path / "checkpoint.pt.tmp")
    folder.clear()
    assert files(tmp_path) == {}


@pytest.mark.parametrize("out", ["file", "file/below", "/proc/amaml", "other", "foreign"])
def test_an_evaluation_does_not_write_where_it_must_not(tmp_path, quick, monkeypatch, capsys, out):
    monkeypatch.chdir(tmp_path)
    start("run")
    start("other", "--seed", "1")
    (tmp_path / "file").write_text("precious")
    (tmp_path / "foreign").mkdir()
    (tmp_path / "foreign" / "thesis.tex").write_text("precious")
    before = files(tmp_path)
    capsys.readouterr()
    assert run.main(["--evaluate", "run", "--out", out]) == 2
    assert "--out" in error_line(capsys)
    assert files(tmp_path) == before
