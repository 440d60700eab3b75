"""Checkpoints, configurations and disks that let a run down: one line, status 2, and what was there stays."""

import os
import pickle

import pytest
import torch
from helpers.commands import checkpoint, error_line, files, start

import run
from experiment import build
from experiment.folder import RunFolder
from experiment.settings import FIELDS


class Bomb:
    """What a hostile checkpoint does: it calls a function of its choice while it is read."""

    def __reduce__(self):
        return (print, ("executed",))


def damaged(kind: str, good: bytes, path) -> None:
    parts = torch.load(path, weights_only=True)
    half = len(good) // 2
    if kind in ("empty", "text", "pickle", "cut"):
        contents = {"empty": b"", "text": b"theta = 3\n", "pickle": pickle.dumps(parts["settings"]), "cut": good[:half]}
        path.write_bytes(contents[kind])
    elif kind == "one flipped bit":
        position = good.index(parts["theta"].numpy().tobytes()) + 3
        path.write_bytes(good[:position] + bytes([good[position] ^ 1]) + good[position + 1 :])
    elif kind == "code":
        torch.save(parts | {"settings": Bomb()}, path)
    elif kind == "list":
        torch.save([1, 2], path)
    else:
        changes = {"format": {"format": 99}, "theta": {"theta": 3}, "key": {"extra": 1}, "update": {"update": "6"}}
        torch.save(parts | changes[kind], path)


@pytest.mark.parametrize(
    "kind",
    ["empty", "text", "pickle", "cut", "one flipped bit", "code", "list", "format", "theta", "key", "update"],
)
def test_a_corrupt_checkpoint_is_refused(tmp_path, quick, capsys, kind):
    out = tmp_path / "run"
    start(out)
    damaged(kind, (out / "checkpoint.pt").read_bytes(), out / "checkpoint.pt")
    before = files(out)
    capsys.readouterr()
    for flags in (["--resume", "--meta-updates", "8"], ["--evaluate", str(out)]):
        assert (start(out, *flags) if flags[0] == "--resume" else run.main(flags)) == 2
        line = error_line(capsys)
        assert f"cannot read the checkpoint {out / 'checkpoint.pt'}" in line
        assert "weights_only" not in line  # torch's advice to switch its guard off is no remedy
        assert files(out) == before
    assert start(out, "--overwrite") == 0


@pytest.mark.parametrize("missing", ["method", "shots", "settings of another program"])
def test_a_checkpoint_without_its_settings_is_refused(tmp_path, quick, capsys, missing):
    out = tmp_path / "run"
    start(out)
    saved = checkpoint(out)
    saved["settings"].pop(missing, None)
    if missing not in FIELDS:
        saved["settings"] = {"learning_rate": 3}
    torch.save(saved, out / "checkpoint.pt")
    capsys.readouterr()
    assert run.main(["--evaluate", str(out)]) == 2
    line = error_line(capsys)
    assert str(out / "checkpoint.pt") in line
    assert (f"--{missing}" if missing in FIELDS else "'learning_rate'") in line


def test_a_checkpoint_of_another_network_or_method_is_not_evaluated(tmp_path, quick, capsys):
    out = tmp_path / "run"
    start(out)
    before = files(out)
    capsys.readouterr()
    for flags, old in ((("--width", "5"), 4), (("--method", "maml"), "fomaml"), (("--norm", "batch"), "none")):
        assert run.main(["--evaluate", str(out), *flags]) == 2
        assert f"was made with {flags[0]} {old}, not {flags[1]}" in error_line(capsys)
    assert run.main(["--evaluate", str(out), "--domain", "CosMixture2D"]) == 2
    line = error_line(capsys)
    assert "33 parameters" in line
    assert "37" in line
    assert files(out) == before


def test_a_checkpoint_of_another_run_is_not_resumed(tmp_path, quick, capsys):
    out, other = tmp_path / "run", tmp_path / "other"
    start(out)
    start(other, "--width", "5")
    (out / "checkpoint.pt").write_bytes((other / "checkpoint.pt").read_bytes())
    before = files(out)
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
def test_a_corrupt_file_of_a_run_is_named_and_overwrite_helps(tmp_path, quick, capsys, name, broken):
    out = tmp_path / "run"
    start(out)
    (out / "summary.json").unlink()
    (out / name).write_bytes(broken + b"\n")
    before = files(out)
    capsys.readouterr()
    assert start(out, "--resume") == 2
    assert str(out / name) in error_line(capsys)
    assert {k: v for k, v in files(out).items() if k != "config.json"} == {
        k: v for k, v in before.items() if k != "config.json"
    }
    if name != "config.json" or broken != b"7\n7\n":  # a valid file of somebody else's is not ours to replace
        assert start(out, "--overwrite") == 0


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


def test_a_disk_that_fills_up_ends_the_run_in_one_line_and_keeps_the_last_checkpoint(
    tmp_path, quick, monkeypatch, capsys
):
    out, replace, calls = tmp_path / "run", RunFolder.save, []

    def save(folder, state):
        calls.append(state.update)
        if state.update > 2:
            monkeypatch.setattr("os.fsync", full)
        replace(folder, state)

    def full(file):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(RunFolder, "save", save)
    assert start(out, "--checkpoint-interval", "2") == 2
    assert "No space left on device" in error_line(capsys)
    assert checkpoint(out)["update"] == 2


@pytest.mark.parametrize(
    "fault",
    [MemoryError(), torch.OutOfMemoryError("CUDA out of memory"), RuntimeError("DefaultCPUAllocator: no memory")],
    ids=lambda fault: type(fault).__name__,
)
def test_memory_that_runs_out_gets_one_line(tmp_path, monkeypatch, capsys, fault):
    def build(*settings):
        raise fault

    monkeypatch.setattr(run, "build", build)
    assert start(tmp_path / "run") == 2
    assert "out of memory" in error_line(capsys)


@pytest.mark.parametrize(
    ("flags", "tasks"),
    [
        (["--width", "60000"], 2),
        (["--width", "60000", "--meta-batch", "50"], 50),
        (["--width", "60000", "--task-chunk", "1"], 1),
    ],
    ids=str,
)
def test_a_network_that_no_memory_holds_is_refused_before_it_is_made(tmp_path, monkeypatch, capsys, flags, tasks):
    monkeypatch.setattr(build, "initialise", None)
    monkeypatch.setattr(os, "sysconf", lambda name: 2**18)  # pages of 256 KiB: 64 GiB
    assert start(tmp_path / "run", *flags) == 2
    line = error_line(capsys)
    assert "parameters, choose a smaller one, or a smaller --task-chunk" in line
    assert f"{tasks} tasks at once take at least" in line
    assert list(tmp_path.iterdir()) == []


def test_an_operation_without_a_deterministic_form_gets_one_line(tmp_path, monkeypatch, capsys):
    fault = RuntimeError(
        "scatter_add_cuda_kernel does not have a deterministic implementation, but you set "
        "'torch.use_deterministic_algorithms(True)'. You can turn off determinism just for this operation, or ..."
    )
    monkeypatch.setattr(run, "build", lambda *settings: (_ for _ in ()).throw(fault))
    assert start(tmp_path / "run", "--deterministic") == 2
    line = error_line(capsys)
    assert line.startswith("run.py: scatter_add_cuda_kernel does not have a deterministic implementation")
    assert line.endswith("; leave out --deterministic, or compute on the cpu\n")


def test_a_fault_of_the_program_is_not_hidden(tmp_path, monkeypatch):
    def build(*settings):
        raise RuntimeError("a bug")

    monkeypatch.setattr(run, "build", build)
    with pytest.raises(RuntimeError, match="a bug"):
        start(tmp_path / "run")
