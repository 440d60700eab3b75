"""Directions of first order beside the gradient: a cell's direction.json, and the table of all cells."""

import json

import pytest
from helpers.commands import start

from benchmarks import directions
from experiment.cells import Cell


def cell(folder, steps: str = "2") -> Cell:
    return Cell("", {"domain": "CosMixture", "method": "fomaml", "inner_steps": steps}, {}, folder, ())


def test_fomaml_follows_the_gradient_over_a_short_horizon_and_another_direction_over_a_long_one(tmp_path):
    values = {}
    for lr in ("1e-6", "1"):
        folder = tmp_path / lr
        assert start(folder, "--inner-lr", lr, "--meta-updates", "1") == 0
        directions.measure(folder)
        values[lr] = json.loads((folder / "direction.json").read_text())["cosine"]
        assert len(values[lr]) == directions.BATCHES
    assert values["1e-6"] == pytest.approx([1] * directions.BATCHES, abs=1e-6)
    assert all(-1 <= value < 0.9999 for value in values["1"])


def test_what_is_measured_is_kept_and_an_unfinished_cell_is_not_measured(tmp_path):
    measured, unfinished = tmp_path / "a", tmp_path / "b"
    for folder in (measured, unfinished):
        folder.mkdir()
        (folder / "checkpoint.pt").write_bytes(b"no checkpoint")
    (measured / "summary.json").write_text("{}")
    (measured / "direction.json").write_text(json.dumps({"cosine": [0.2, 0.4]}))
    for folder in (measured, unfinished):
        directions.measure(folder)
    text = directions.table([cell(measured), cell(unfinished, "5")])
    assert "| domain | method | 2 steps |" in text
    assert "| CosMixture | fomaml | 0.300 |" in text
