"""The picture of results/efficiency: ratios beside the paper's, and names that can be read."""

import pandas as pd

from benchmarks.efficiency_picture import figure
from benchmarks.paper import PAPER


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


def test_one_legend_names_every_line_and_says_what_open_marks_are():
    drawing = figure(rows(amaml=0.3, fomaml=0.1).query("steps == 10"), PAPER["efficiency"])
    (legend,) = drawing.legends
    names = [text.get_text() for text in legend.get_texts()]
    assert names == ["A-MAML, rtol 1e-2", "FOMAML", "open: the paper, one GPU"]
