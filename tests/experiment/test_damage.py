"""Files that were damaged, and disks that are full: one line that names the file, nothing lost, a way to go on."""

import pickle

import pytest
import torch
from helpers.commands import checkpoint, files, refused, start

from experiment import folder as folders
from experiment.folder import RunFolder
from experiment.session import Session
from experiment.settings import FIELDS


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
        line = refused(capsys, finished, *flags)
        assert f"cannot read the checkpoint {finished / 'checkpoint.pt'}" in line
        assert "weights_only" not in line  # torch's advice to switch its guard off is no remedy
        assert files(finished) == before
    assert start(finished, "--overwrite") == 0


@pytest.mark.parametrize("missing", ["method", "settings of another program"])
def test_a_checkpoint_without_its_settings_is_refused(finished, capsys, missing):
    saved = checkpoint(finished)
    if missing in FIELDS:
        del saved["settings"][missing]
    else:
        saved["settings"] = {"learning_rate": 3}
    torch.save(saved, finished / "checkpoint.pt")
    line = refused(capsys, finished, "--evaluate", str(finished))
    assert str(finished) in line
    assert (f"--{missing}" if missing in FIELDS else "'learning_rate'") in line


def test_a_checkpoint_of_another_run_is_not_resumed(tmp_path, quick, capsys):
    out, other = tmp_path / "run", tmp_path / "other"
    start(out)
    start(other, "--width", "5")
    (out / "checkpoint.pt").write_bytes((other / "checkpoint.pt").read_bytes())
    capsys.readouterr()
    assert "--width 5, not 4" in refused(capsys, out, "--resume", "--meta-updates", "8")
    saved = checkpoint(out)  # its settings say 4, its theta does not
    saved["settings"]["width"] = 4
    torch.save(saved, out / "checkpoint.pt")
    before = files(out)
    assert "holds 46 parameters, the network has 33" in refused(capsys, out, "--resume", "--meta-updates", "8")
    assert files(out) == before


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


CUT = {
    "gap": (lambda lines: lines[:2] + lines[4:], "holds update 5 in line 3"),
    "twice": (lambda lines: lines[:2] + lines[1:], "holds update 2 in line 3"),
    "cut": (lambda lines: lines[:4], "ends with update 4 of 6"),
}


@pytest.mark.parametrize(("damage", "fragment"), CUT.values(), ids=CUT)
def test_missing_lines_of_the_metrics_are_noticed(finished, capsys, damage, fragment):
    path = finished / "metrics.jsonl"
    lines = path.read_text().splitlines(keepends=True)
    path.write_text("".join(damage(lines)))
    before = {name: held for name, held in files(finished).items() if name not in ("config.json", "summary.json")}
    line = refused(capsys, finished, "--resume", "--meta-updates", "8")
    assert (fragment in line, "--evaluate" in line) == (True, True)
    assert before.items() <= files(finished).items()
    path.write_text("".join(lines))
    assert start(finished, "--resume", "--meta-updates", "8") == 0


def no_space(*arguments):
    raise OSError(28, "No space left on device")


def test_a_disk_that_fills_up_costs_no_checkpoint(tmp_path, quick, monkeypatch, capsys):
    save = RunFolder.save

    def full(folder, state):
        if state.update > 2:
            monkeypatch.setattr("os.fsync", no_space)
        save(folder, state)

    monkeypatch.setattr(RunFolder, "save", full)
    assert "No space left on device" in refused(capsys, tmp_path, "--checkpoint-interval", "2")
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
