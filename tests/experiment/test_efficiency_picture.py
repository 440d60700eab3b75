"""The picture of results/efficiency: ratios beside the paper's, and names that can be read."""

import pandas as pd

from benchmarks.efficiency_picture import figure
from benchmarks.paper import PAPER
from experiment.figures_compare import APART


def rows(**seconds: float) -> pd.DataFrame:
    """At 10 and, ten times as many, 100 inner steps."""
    names = {"amaml": "A-MAML auto 1e-2", "fomaml": "FOMAML", "reptile": "Reptile"}
    measured = [
        {"method": names[name], "steps": steps, "seconds": value * steps, "peak_bytes": None}
        for name, value in seconds.items()
        for steps in (10, 100)
    ]
    return pd.DataFrame([*measured, {"method": "MAML", "steps": 100, "refused": "too long"}])


def test_ratios_are_over_fomaml_ours_and_the_papers():
    _, ratios = figure(rows(amaml=0.3, fomaml=0.1, reptile=0.1), PAPER["efficiency"]).axes
    drawn = [(list(line.get_xdata()), [round(y, 2) for y in line.get_ydata()]) for line in ratios.lines]
    assert ([10, 100], [3.0, 3.0]) in drawn
    assert ([200, 500], [1.5, 1.52]) in drawn  # 0.9 s and 2.35 s for FOMAML's 0.6 and 1.55
    assert ([200], [8.0]) in drawn  # MAML


def test_names_of_lines_that_end_together_are_pushed_apart():
    seconds, _ = figure(rows(amaml=0.1, fomaml=0.1, reptile=0.1), PAPER["efficiency"]).axes
    heights = sorted(text.xyann[1] for text in seconds.texts)
    assert [text.get_text() for text in seconds.texts] == ["A-MAML, rtol 1e-2", "FOMAML", "Reptile"]
    assert min(b - a for a, b in zip(heights[:-1], heights[1:], strict=True)) > 0.99 * APART


def test_one_number_of_steps_is_enough_for_a_picture():
    seconds, _ = figure(rows(amaml=0.3, fomaml=0.1).query("steps == 10"), PAPER["efficiency"]).axes
    assert {text.get_text() for text in seconds.texts} == {"A-MAML, rtol 1e-2", "FOMAML"}
