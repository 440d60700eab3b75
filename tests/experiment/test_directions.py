"""Directions of first order beside the gradient: what is measured of a cell, and the table of all."""

import pandas as pd
import pytest
from helpers.commands import start

from benchmarks.directions import BATCHES, COSINES, PLACE, cosines, measured, table
from experiment.cells import Cell


def test_fomaml_follows_the_gradient_over_a_short_horizon_and_another_direction_over_a_long_one(tmp_path):
    values = {}
    for lr in ("1e-6", "1"):
        assert start(tmp_path / lr, "--inner-lr", lr, "--meta-updates", "1") == 0
        values[lr] = cosines(tmp_path / lr / "checkpoint.pt")
        assert len(values[lr]) == BATCHES
    assert values["1e-6"] == pytest.approx([1] * BATCHES, abs=1e-6)
    assert all(-1 <= value < 0.9999 for value in values["1"])


def test_what_is_measured_is_kept_and_an_unfinished_cell_is_not_measured(tmp_path):
    (tmp_path / "checkpoint.pt").write_bytes(b"no checkpoint")
    places = [dict(zip(PLACE, ("CosMixture", "fomaml", steps, "0"), strict=True)) for steps in ("2", "5")]
    before = pd.DataFrame([["CosMixture", "fomaml", 2, 0, 0.2, 0.4, 0.3, 0.3]], columns=PLACE + COSINES)
    frame = measured(before, [Cell("", place, {}, tmp_path, ()) for place in places])  # no summary.json: unfinished
    assert frame.equals(before)
    (tmp_path / "summary.json").write_text("{}")
    assert measured(before, [Cell("", places[0], {}, tmp_path, ())]).equals(before)
    text = table(frame)
    assert "| domain | method | 2 steps |" in text
    assert "| CosMixture | fomaml | 0.300 |" in text
