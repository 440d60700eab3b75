"""What a run shows while it goes on: lines in a batch log, points for TensorBoard."""

import importlib.util

import pytest
from helpers.commands import OFTEN, Killed, content, error_line, killed_at_write, metrics, start

from experiment import progress
from experiment.progress import Progress


def entry(update: int) -> dict:
    points = {"mean": [1.2, 0.9], "ci95": [0.1, 0.1]}
    part = {"update": update, "metric": "nRMSE", "unit": "epoch", "epochs": [0, 10], "test": points, "support": points}
    return part | {"also": []}


def test_there_is_a_line_at_every_meta_test_and_about_every_minute(capsys, monkeypatch):
    with Progress(500, 100) as shown:
        shown.trained([{"update": 101, "query_loss": 0.5}], None)
        assert capsys.readouterr().err == ""
        shown.trained(
            [{"update": n, "query_loss": 0.25} for n in range(102, 200)] + [{"update": 200, "skipped": True}], 0.125
        )
        shown.tested(entry(200))
        line = "update 200/500, query loss 0.2500, 8 updates/s, 0:00:38 left"
        assert capsys.readouterr().err == f"{line}, meta-test after update 200: nRMSE 0.9000 after 10 epochs\n"
        monkeypatch.setattr(progress, "EVERY", 0.0)
        shown.trained([{"update": 201, "query_loss": 0.5}], 0.1)
        assert capsys.readouterr().err == "update 201/500, query loss 0.5000, 10 updates/s, 0:00:30 left\n"


def test_other_processes_of_a_run_show_nothing(capsys):
    with Progress(500, 0, shown=False) as shown:
        shown.trained([{"update": 1, "query_loss": 0.5}], None)
        shown.tested(entry(1))
    assert capsys.readouterr().err == ""


def points(out) -> dict[str, list[tuple[int, float]]]:
    """What TensorBoard shows of a run."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    shown = EventAccumulator(str(out / "tensorboard")).Reload()
    return {tag: [(e.step, e.value) for e in shown.Scalars(tag)] for tag in shown.Tags()["scalars"]}


def recorded(out) -> dict[str, list[tuple[int, float]]]:
    """The same, from the files that are the truth."""
    found: dict = {}
    for record in metrics(out):
        for name in record.keys() - {"update"}:
            found.setdefault(f"meta-training/{name}", []).append((record["update"], record[name]))
    for entry in content(out, "test.json"):
        for part in (entry, *entry["also"]):
            for where in ("support", "test"):
                tag = f"meta-test/nRMSE on {where}, after {part['epochs'][-1]} {part['unit']}s"
                found.setdefault(tag, []).append((part["update"], part[where]["mean"][-1]))
    return found


@pytest.mark.parametrize("killed", [False, True])
def test_every_update_and_meta_test_is_a_point_once(tmp_path, quick, monkeypatch, killed):
    pytest.importorskip("tensorboard")
    flags = [*OFTEN, "--protocol", "both", "--tensorboard"]
    if killed:
        with monkeypatch.context() as patch:
            killed_at_write(patch, 9)
            with pytest.raises(Killed):
                start(tmp_path, *flags)
    assert start(tmp_path, *flags, "--resume") == 0
    shown, truth = points(tmp_path), recorded(tmp_path)
    assert shown.keys() == truth.keys()
    for tag, series in truth.items():
        assert [step for step, _ in shown[tag]] == [step for step, _ in series]
        assert [value for _, value in shown[tag]] == pytest.approx([value for _, value in series], rel=1e-6)
    assert start(tmp_path, *OFTEN, "--overwrite") == 0
    assert not (tmp_path / "tensorboard").exists()


def test_without_its_package_the_remedy_is_named_and_nothing_is_begun(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    assert start(tmp_path / "run", "--tensorboard") == 2
    assert "--tensorboard needs the package tensorboard; pip install -r configs/" in error_line(capsys)
    assert not (tmp_path / "run").exists()
