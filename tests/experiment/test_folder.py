"""A run's folder: every file whole or not at all, one process at once, tests made anew."""

import os
from contextlib import nullcontext
from unittest.mock import Mock

import pytest
from filelock import FileLock, Timeout
from helpers.commands import checkpoint, content, files, refused, start

import run
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


@pytest.mark.parametrize("out", ["file", "file/below", "/proc/amaml", "other", "foreign"])
def test_an_evaluation_does_not_write_where_it_must_not(tmp_path, quick, monkeypatch, capsys, out):
    monkeypatch.chdir(tmp_path)
    start("run")
    start("other", "--seed", "1")
    (tmp_path / "file").write_text("precious")
    (tmp_path / "foreign").mkdir()
    (tmp_path / "foreign" / "thesis.tex").write_text("precious")
    assert "--out" in refused(capsys, out, "--evaluate", "run", "--out", out, keeps=tmp_path)
