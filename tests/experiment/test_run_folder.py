"""A run's folder in daily use: two processes at once, tests made anew, evaluations kept, and what blocks no folder."""

import json
import os
import platform
import signal
import time
from contextlib import nullcontext

import pytest
import torch
from helpers.commands import checkpoint, content, error_line, files, metrics, spawn, start

import run
from experiment import folder as folders
from experiment import opening
from experiment.folder import RunFolder
from experiment.lock import NAME, Lock

LONG = ["--checkpoint-interval", "5", "--test-interval", "0", "--compile", "off"]


def test_a_folder_takes_one_process_at_a_time_and_a_kill_frees_it(tmp_path, quick, capsys):
    out = tmp_path / "run"
    first = spawn(out, *LONG, "--meta-updates", "100000")
    try:
        deadline = time.monotonic() + 60
        while not (out / "checkpoint.pt").exists():
            assert first.poll() is None, first.communicate()
            assert time.monotonic() < deadline
            time.sleep(0.01)
        for flags in ([], ["--resume"], ["--overwrite"], ["--seed", "1"]):
            assert start(out, *LONG, "--meta-updates", "100000", *flags) == 2
            line = error_line(capsys)
            assert f"{out} is in use by process {first.pid} on {platform.node()}; wait for its end" in line
    finally:
        first.send_signal(signal.SIGKILL)
        first.communicate()
    assert (out / NAME).exists()  # what a killed process leaves locks nothing
    last = checkpoint(out)["update"] + 3
    assert start(out, *LONG, "--meta-updates", str(last), "--resume") == 0
    assert [m["update"] for m in metrics(out)] == list(range(1, last + 1))
    assert not (out / NAME).exists()


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


def test_a_lock_is_not_fooled_by_a_file_that_its_holder_removed(tmp_path, monkeypatch):
    first, second = Lock(tmp_path), Lock(tmp_path)
    first.take()
    opened = os.open

    def slow(*arguments):
        descriptor = opened(*arguments)
        first.release()  # after the file was opened, before it is locked
        return descriptor

    monkeypatch.setattr(os, "open", slow)
    second.take()
    monkeypatch.undo()
    with pytest.raises(run.InputError, match="in use by process"):
        Lock(tmp_path).take()
    second.release()
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    "flags",
    [["--test-tasks", "3"], ["--test-epochs", "20"], ["--protocol", "inner"]],
    ids=" ".join,
)
def test_other_tests_of_a_finished_run_are_made_without_training(tmp_path, quick, monkeypatch, capsys, flags):
    out = tmp_path / "run"
    start(out)
    theta, lines, old = checkpoint(out)["theta"], metrics(out), content(out, "test.json")
    seconds = content(out, "summary.json")["seconds_per_update"]
    monkeypatch.setattr("experiment.session.meta_train", lambda *arguments: iter(()))
    capsys.readouterr()
    assert start(out, *flags) == 0
    assert torch.equal(checkpoint(out)["theta"], theta)
    assert metrics(out) == lines
    *before, new = content(out, "test.json")
    assert before == old
    assert new["update"] == 6
    assert new["protocol"][flags[0][2:].replace("-", "_")] == (int(flags[1]) if flags[1].isdigit() else "inner")
    summary = content(out, "summary.json")
    assert [row["test"] for row in summary["at_epochs"]] == new["test"]["mean"]
    assert summary["seconds_per_update"] == seconds
    assert summary["table"] in capsys.readouterr().out
    assert start(out, *flags) == 0  # now it is finished
    assert len(content(out, "test.json")) == 2


def test_tests_made_anew_survive_a_kill(tmp_path, quick, monkeypatch):
    out = tmp_path / "run"
    start(out)

    def killed(*arguments, **named):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("experiment.evaluation.fine_tune", killed)
        assert start(out, "--test-tasks", "3") == 130
    assert start(out, "--test-tasks", "3", "--resume") == 0
    assert [test["tasks"] for test in content(out, "test.json")] == [2, 3]
    assert "2 updates" not in content(out, "summary.json")["table"]


def test_an_unfinished_run_may_be_tested_in_another_way_from_here_on(tmp_path, quick):
    out = tmp_path / "run"
    start(out, "--meta-updates", "3")
    (out / "summary.json").unlink()
    assert start(out, "--resume", "--test-tasks", "3", "--test-interval", "4") == 0
    assert [(t["update"], t["tasks"]) for t in content(out, "test.json")] == [(3, 2), (4, 3), (6, 3)]


def test_a_run_that_ended_before_its_first_checkpoint_blocks_no_folder(tmp_path, quick, capsys):
    out = tmp_path / "run"
    assert start(out, "--inner-lr", "1e29", "--dtype", "float32") == 2
    assert "no checkpoint yet" in error_line(capsys)
    assert start(out) == 0
    start(tmp_path / "fresh")
    assert (out / "metrics.jsonl").read_bytes() == (tmp_path / "fresh" / "metrics.jsonl").read_bytes()


def test_evaluations_have_names_of_their_own_and_none_is_lost(tmp_path, quick, capsys):
    out = tmp_path / "run"
    start(out)
    expected, kept = {}, {}
    for name, flags in {
        "CosMixture-4shot-finetune": [],
        "CosMixture-9shot-finetune": ["--shots", "9"],
        "Sinusoid-4shot-inner": ["--domain", "Sinusoid", "--protocol", "inner"],
        "CosMixture-4shot-finetune-2": ["--test-tasks", "3"],
        "CosMixture-4shot-finetune-3": ["--test-epochs", "20"],
    }.items():
        path = out / f"evaluation-{name}.json"
        capsys.readouterr()
        assert run.main(["--evaluate", str(out), *flags]) == 0
        assert capsys.readouterr().out.splitlines()[-1] == str(path)
        expected[path] = path.read_bytes()
        kept |= {path: flags}
    for path, flags in kept.items():  # the same again takes the same file
        assert run.main(["--evaluate", str(out), "--draw", "1", *flags]) == 0
        assert path.read_bytes() == expected[path]
    assert {p for p in out.iterdir() if p.name.startswith("evaluation")} == set(expected)
    assert start(out, "--overwrite") == 0
    assert not [name for name in files(out) if name.startswith(("evaluation", "fits"))]


def test_a_damaged_evaluation_is_kept_and_does_not_stop_another(tmp_path, quick):
    out = tmp_path / "run"
    start(out)
    for name, broken in (("", "{"), ("-2", "[]")):
        (out / f"evaluation-CosMixture-4shot-finetune{name}.json").write_text(broken)
    assert run.main(["--evaluate", str(out)]) == 0
    assert (out / "evaluation-CosMixture-4shot-finetune-3.json").exists()
    assert (out / "evaluation-CosMixture-4shot-finetune.json").read_text() == "{"


def test_a_disk_that_is_full_after_training_costs_no_training(tmp_path, quick, monkeypatch, capsys):
    out, write = tmp_path / "run", folders.write_atomically

    def full(path, content):
        if path.name == "test.json" and b"update" in content:
            with open(path.with_name(path.name + ".tmp"), "wb"):
                monkeypatch.setattr(os, "fsync", no_space)
                write(path, content)
        write(path, content)

    def no_space(file):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(folders, "write_atomically", full)
        assert start(out) == 2
    monkeypatch.undo()
    line = error_line(capsys)
    assert "No space left on device; free some space, then go on with --resume" in line
    assert "--out" not in line
    assert not [name for name in files(out) if name.endswith(".tmp")]
    assert checkpoint(out)["update"] == 6
    monkeypatch.setattr("experiment.session.meta_train", lambda *arguments: iter(()))
    assert start(out, "--resume") == 0


@pytest.mark.parametrize(
    ("damage", "fragment"),
    [
        (lambda lines: lines[:2] + lines[4:], "holds update 5 in line 3"),
        (lambda lines: lines[:2] + lines[1:], "holds update 2 in line 3"),
        (lambda lines: lines[:4], "ends with update 4 of 6"),
    ],
    ids=["gap", "twice", "cut"],
)
def test_missing_lines_of_the_metrics_are_noticed(tmp_path, quick, capsys, damage, fragment):
    out = tmp_path / "run"
    start(out)
    lines = (out / "metrics.jsonl").read_text().splitlines(keepends=True)
    (out / "metrics.jsonl").write_text("".join(damage(lines)))
    before = {name: held for name, held in files(out).items() if name not in ("config.json", "summary.json")}
    capsys.readouterr()
    assert start(out, "--resume", "--meta-updates", "8") == 2
    line = error_line(capsys)
    assert fragment in line
    assert "--evaluate" in line
    assert {name: held for name, held in files(out).items() if name in before} == before
    (out / "metrics.jsonl").write_text("".join(lines))
    assert start(out, "--resume", "--meta-updates", "8") == 0


def test_the_metrics_reach_the_disk_before_the_checkpoint_of_their_updates(tmp_path, quick, monkeypatch):
    synced, fsync = [], os.fsync
    monkeypatch.setattr(os, "fsync", lambda file: (synced.append(os.readlink(f"/proc/self/fd/{file}")), fsync(file)))
    start(tmp_path / "run", "--checkpoint-interval", "3")
    names = [os.path.basename(path).removesuffix(".tmp") for path in synced]
    assert names.count("checkpoint.pt") == 2
    assert all(names[i - 1] == "metrics.jsonl" for i, name in enumerate(names) if name == "checkpoint.pt")


@pytest.mark.parametrize("compiler", [True, False])
def test_whether_a_run_is_compiled_is_decided_once(tmp_path, quick, monkeypatch, capsys, compiler):
    """A longer --meta-updates, and a compiler that came, change nothing; one that went stops the run."""
    out, entered = tmp_path / "run", []
    monkeypatch.setattr(opening, "LONG_RUN", 8 if not compiler else 4)
    monkeypatch.setattr(opening, "compiler_found", lambda: True)
    monkeypatch.setattr("amaml.engine.derivatives.compiled", lambda on: nullcontext(entered.append(on)))
    start(out)
    assert checkpoint(out)["compiled"] == compiler
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


def test_a_run_of_an_older_version_goes_on(tmp_path, quick):
    """Its checkpoint says nothing of compiling, its settings nothing of newer switches, its tests nothing of theirs."""
    out = tmp_path / "run"
    start(out)
    saved, config, tests = checkpoint(out), content(out, "config.json"), content(out, "test.json")
    del saved["compiled"], saved["settings"]["deterministic"], config["settings"]["deterministic"]
    del tests[0]["protocol"], tests[0]["metric"]
    torch.save(saved, out / "checkpoint.pt")
    (out / "config.json").write_text(json.dumps(config))
    (out / "test.json").write_text(json.dumps(tests))
    assert start(out) == 0
    assert start(out, "--meta-updates", "8", "--resume") == 0
    assert run.main(["--evaluate", str(out)]) == 0
    assert start(out, "--meta-updates", "9", "--resume", "--deterministic") == 2


def test_a_folder_of_which_nothing_may_be_written_still_shows_its_run(tmp_path, quick, monkeypatch, capsys):
    out, opened = tmp_path / "run", os.open
    start(out)
    table = capsys.readouterr().out.splitlines()[0]

    def refuse(path, flags, *mode):
        if flags & os.O_CREAT:
            raise PermissionError(13, "Permission denied")
        return opened(path, flags, *mode)

    monkeypatch.setattr(os, "open", refuse)
    assert start(out) == 0
    assert capsys.readouterr().out.splitlines()[0] == table


def test_the_autosave_writes_a_checkpoint_between_the_regular_ones(tmp_path, quick, monkeypatch):
    saved, save = [], RunFolder.save
    monkeypatch.setattr(RunFolder, "save", lambda folder, c: (saved.append(c.update), save(folder, c)))
    monkeypatch.setattr("experiment.session.SAVE_SECONDS", 0.0)
    start(tmp_path / "run", "--checkpoint-interval", "100")
    assert saved == [1, 2, 3, 4, 5, 6]
    monkeypatch.setattr("experiment.session.SAVE_SECONDS", 1000.0)
    start(tmp_path / "other", "--checkpoint-interval", "100")
    assert saved[6:] == [6]
