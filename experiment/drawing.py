"""How curves look, and pictures are saved.

Curves differ in lightness, dashes and markers as well as in colour, so that a grey print tells them apart. Marks stand
at other places for every curve.
"""

import io
import re
from pathlib import Path
from typing import Any

import matplotlib
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from data.files import write_atomically

COLORS = ("#101c6b", "#7a1fa2", "#c62828", "#00796b", "#1e88e5", "#ef6c00", "#7cb342", "#d9a400")  # dark to light
DASHES = [  # on, off, on, off, ... in points
    "-",
    (0, (6, 2)),
    (0, (1.5, 1.5)),
    (0, (6, 2, 1.5, 2)),
    (0, (3, 1.5)),
    (0, (9, 2, 1.5, 2, 1.5, 2)),
    (0, (12, 3)),
    (0, (3, 1.5, 1.5, 1.5)),
]
MARKERS = "osD^vPX*"
METADATA = {"svg": {"Date": None}, "png": {}}  # without the time
LETTERS = 110  # in a line of the names below
MARKS, MARKED = 0.15, 6  # of a panel's diagonal, between two marks of a curve of more records than that
matplotlib.rcParams["svg.hashsalt"] = "amaml"  # the same picture gives the same file
matplotlib.rcParams["svg.fonttype"] = "none"  # text, in a third of the bytes of its outlines
matplotlib.rcParams["path.simplify_threshold"] = 0.3  # of a point, which nobody sees


def style(i: int, count: int) -> dict[str, Any]:
    """Of the ith of so many variants: dark to light in their order, the first of them thickest."""
    place = round(i * (len(COLORS) - 1) / max(count - 1, 1)) if count <= len(COLORS) else i % len(COLORS)
    return {
        "color": matplotlib.colors.to_rgb(COLORS[place]),
        "linestyle": DASHES[i % len(DASHES)],
        "marker": MARKERS[i % len(MARKERS)],
        "linewidth": 2.4 if i == 0 else 1.6,
        "markersize": 4.5,
    }


def plain(axis: Axes) -> None:
    """Two sides of a frame, and a faint grid."""
    axis.spines[["top", "right"]].set_visible(False)
    axis.grid(alpha=0.25, linewidth=0.6)


def curve(axes: Axes, values: pd.DataFrame, half: pd.Series | None = None, shift: float = 0.0, **look: Any) -> None:
    """Draw the mean of values (x, seeds), with marks at even distances, in a band.

    The band goes from the lowest to the highest seed, or, with half the interval over the tasks, so far on either side.
    shift: of the marks, from 0 to 1, so that those of different curves stand beside each other.
    """
    mean = values.mean(axis="columns")
    low, high = (mean - half, mean + half) if half is not None else (values.min(axis=1), values.max(axis=1))
    axes.plot(values.index, mean, markevery=(shift * MARKS, MARKS) if len(mean) > MARKED else 1, **look)
    axes.fill_between(values.index, low, high, color=look["color"], alpha=0.15, linewidth=0)


def legend(figure: Figure) -> None:
    """The names of all lines, below."""
    pairs = (zip(*axis.get_legend_handles_labels(), strict=True) for axis in figure.axes)
    named = {label: line for pair in pairs for line, label in pair}
    columns = max(1, min(5, LETTERS // (8 + max(map(len, named)))))  # a line's sample is as wide as 8
    figure.legend([*named.values()], [*named], loc="outside lower center", ncols=columns, frameon=False, fontsize=9)


def save(figure: Figure, path: Path) -> None:
    """Write a figure to PATH.svg and PATH.png."""
    for kind, metadata in METADATA.items():
        content = io.BytesIO()
        figure.savefig(content, format=kind, dpi=150, metadata=metadata)
        written = content.getvalue()
        if kind == "svg":
            written = re.sub(rb"(\.\d\d)\d+", rb"\1", written)  # hundredths of a point are enough
            written = re.sub(rb" *\n(?=[LCz\"])", b" ", written)  # a path a line
        write_atomically(path.with_name(f"{path.name}.{kind}"), written)
