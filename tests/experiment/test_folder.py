"""Run folders and checkpoints."""

import json

import pytest
import torch

from amaml import InputError
from experiment import folder as folder_module
from experiment.folder import Checkpoint, RunFolder, load_checkpoint

SETTINGS = {"device": "cpu", "width": 4, "prox": None}


def a_checkpoint(update=3):
    theta = torch.linspace(0, 1, 7, dtype=torch.float64)
    optimizer = torch.optim.Adam([theta.clone().requires_grad_()], lr=0.1)
    optimizer.param_groups[0]["params"][0].grad = theta
    optimizer.step()
    return Checkpoint(SETTINGS, theta, optimizer.state_dict(), update, 2, 0.5)


@pytest.fixture
def folder(tmp_path):
    made = RunFolder(tmp_path / "a" / "b")
    made.create(SETTINGS)
    return made


def test_a_new_folder_knows_its_settings(folder):
    assert folder.settings() == SETTINGS
    assert not folder.finished
    assert folder.load() is None
    assert folder.metrics() == []
    assert folder.read("test.json", "nothing") == "nothing"
    config = json.loads((folder.path / "config.json").read_text())
    assert {"settings", "versions", "commit", "device", "threads", "command"} == set(config)


def test_missing_and_empty_folders_hold_no_run(tmp_path):
    assert RunFolder(tmp_path / "nothing").settings() is None
    assert RunFolder(tmp_path).settings() is None
    (tmp_path / "config.json.tmp").write_text("{")  # a kill in the very first write
    assert RunFolder(tmp_path).settings() is None


def test_checkpoints_come_back_to_the_bit_without_pickled_code(folder):
    saved = a_checkpoint()
    folder.save(saved)
    loaded = folder.load()
    assert torch.equal(loaded.theta, saved.theta)
    assert (loaded.settings, loaded.update, loaded.timed_updates, loaded.timed_seconds) == (SETTINGS, 3, 2, 0.5)
    for name, value in saved.optimizer["state"][0].items():
        assert torch.equal(loaded.optimizer["state"][0][name], value)
    assert torch.load(folder.path / "checkpoint.pt", weights_only=True)["update"] == 3


def test_a_missing_checkpoint_is_a_mistake(tmp_path):
    for path in (tmp_path / "none.pt", tmp_path, tmp_path / "file" / "below.pt"):
        with pytest.raises(InputError, match="cannot read the checkpoint"):
            load_checkpoint(path)


def test_every_file_of_the_folder_is_written_atomically(folder, monkeypatch):
    written = []
    monkeypatch.setattr(folder_module, "write_atomically", lambda path, content: written.append(path.name))
    folder.create(SETTINGS)
    folder.save(a_checkpoint())
    folder.write("test.json", [])
    folder.write_bytes("curves.png", b"")
    folder.rewind(0)
    assert written == ["config.json", "checkpoint.pt", "test.json", "curves.png", "metrics.jsonl", "test.json"]


def test_rewinding_drops_what_came_later(folder):
    folder.append_metrics([{"update": n, "query_loss": 0.1 * n} for n in (1, 2, 3)])
    folder.append_metrics([{"update": 4, "query_loss": 1 / 3}])
    with open(folder.path / "metrics.jsonl", "a") as file:
        file.write('{"update": 5, "query')  # cut by a kill
    assert [m["update"] for m in folder.metrics()] == [1, 2, 3, 4]
    folder.write("test.json", [{"update": 2}, {"update": 4}])
    before = (folder.path / "metrics.jsonl").read_bytes()
    folder.rewind(3)
    assert (folder.path / "metrics.jsonl").read_bytes() == b"".join(before.splitlines(keepends=True)[:3])
    assert folder.read("test.json", None) == [{"update": 2}]
    folder.append_metrics([{"update": 4, "query_loss": 1 / 3}])
    assert (folder.path / "metrics.jsonl").read_bytes() == b"".join(before.splitlines(keepends=True)[:4])


def test_a_summary_makes_a_run_finished_until_it_goes_on(folder):
    folder.write("summary.json", {})
    assert folder.finished
    folder.create(SETTINGS)
    assert not folder.finished


def test_numbers_that_are_not_json_are_refused(folder):
    with pytest.raises(ValueError, match="JSON"):
        folder.write("test.json", {"x": float("nan")})


def test_clearing_removes_a_runs_files_and_nothing_else(folder):
    folder.save(a_checkpoint())
    for name in folder_module.FILES:
        (folder.path / name).touch()
    (folder.path / "checkpoint.pt.tmp").touch()
    folder.create(SETTINGS)
    folder.clear()
    assert list(folder.path.iterdir()) == []
    folder.create(SETTINGS)
    (folder.path / "notes.txt").touch()
    with pytest.raises(InputError, match="notes.txt"):
        folder.clear()
    assert (folder.path / "config.json").exists()


def test_an_evaluation_needs_a_folder_of_its_own(tmp_path, folder):
    alone = RunFolder(tmp_path / "evaluation")
    alone.prepare_evaluation()
    alone.write("evaluation.json", {})
    alone.prepare_evaluation()
    with pytest.raises(InputError, match="config.json"):
        folder.prepare_evaluation()
