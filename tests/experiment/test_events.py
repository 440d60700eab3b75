"""--tensorboard: event files say what metrics.jsonl and test.json say, every point once."""

import importlib.util

import pytest
from helpers.commands import assert_same_run, content, error_line, metrics, start
from test_run_resume import OFTEN, Killed, killed_at_write

pytest.importorskip("tensorboard")
BOTH = [*OFTEN, "--protocol", "both"]


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


def assert_shown_as_recorded(out):
    shown, truth = points(out), recorded(out)
    assert shown.keys() == truth.keys()
    for tag, series in truth.items():
        assert [step for step, _ in shown[tag]] == [step for step, _ in series]
        assert [value for _, value in shown[tag]] == pytest.approx([value for _, value in series], rel=1e-6)


def test_every_update_and_meta_test_is_a_point(tmp_path, quick):
    assert start(tmp_path / "run", *BOTH, "--tensorboard") == 0
    assert len(points(tmp_path / "run")["meta-training/query_loss"]) == 6
    assert_shown_as_recorded(tmp_path / "run")


@pytest.mark.parametrize("late", [True, False])
def test_a_resumed_run_shows_no_point_twice_and_none_too_few(tmp_path, quick, monkeypatch, late):
    start(tmp_path / "whole", *BOTH)
    with monkeypatch.context() as patch:
        killed_at_write(patch, 9)
        with pytest.raises(Killed):
            start(tmp_path / "run", *BOTH, *([] if late else ["--tensorboard"]))
    assert start(tmp_path / "run", *BOTH, "--tensorboard", "--resume") == 0
    assert_shown_as_recorded(tmp_path / "run")
    assert_same_run(tmp_path / "run", tmp_path / "whole")


def test_a_finished_run_shows_its_points_when_asked(tmp_path, quick):
    start(tmp_path / "run", *BOTH)
    assert start(tmp_path / "run", *BOTH, "--tensorboard") == 0
    assert_shown_as_recorded(tmp_path / "run")


def test_going_on_without_the_flag_leaves_no_points_that_were_taken_back(tmp_path, quick, monkeypatch):
    with monkeypatch.context() as patch:
        killed_at_write(patch, 9)
        with pytest.raises(Killed):
            start(tmp_path / "run", *BOTH, "--tensorboard")
    assert start(tmp_path / "run", *BOTH, "--resume") == 0
    assert not (tmp_path / "run" / "tensorboard").exists()


def test_overwriting_a_run_discards_its_events_and_nothing_else(tmp_path, quick, capsys):
    out = tmp_path / "run"
    start(out, *BOTH, "--tensorboard")
    start(out, *BOTH, "--overwrite")
    assert not (out / "tensorboard").exists()
    start(out, *BOTH, "--tensorboard", "--overwrite")
    (out / "tensorboard" / "mine").write_text("kept")
    capsys.readouterr()
    assert start(out, *BOTH, "--overwrite") == 2
    assert "tensorboard/mine is no event file; move it away" in error_line(capsys)
    assert (out / "tensorboard" / "mine").read_text() == "kept"


def test_without_its_package_the_remedy_is_named_and_nothing_is_begun(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    assert start(tmp_path / "run", "--tensorboard") == 2
    assert "--tensorboard needs the package tensorboard; pip install -r configs/" in error_line(capsys)
    assert not (tmp_path / "run").exists()
