"""Curves of many runs: the metric while adapting, and while meta-training, a mean a variant in a band of its spread.

Curves differ in lightness, dashes and markers as well as in colour, so that a grey print tells them apart. Marks stand
at other places for every curve.
"""

import io
import re
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, MaxNLocator, NullFormatter, StrMethodFormatter

from data.files import write_atomically
from experiment.compare import Panel

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
FRAME = 2.5  # a curve that ends above so many times the median end leaves the frame
START = 1.1  # times the height of what follows: a start further from its middle leaves the frame
LETTERS = 110  # in a line of the names below
MARKS, MARKED = 0.15, 6  # of a panel's diagonal, between two marks of a curve of more records than that
matplotlib.rcParams["svg.hashsalt"] = "amaml"  # the same picture gives the same file
matplotlib.rcParams["svg.fonttype"] = "none"  # text, in a third of the bytes of its outlines
matplotlib.rcParams["path.simplify_threshold"] = 0.3  # of a point, which nobody sees


def draw(panel: Panel, out: Path) -> list[Path]:
    """PANEL-adaptation and PANEL-training in a folder, as SVG and PNG; the PNGs' paths."""
    pictures = {"adaptation": adaptation(panel)}
    if panel.frame.groupby("run")["update"].nunique().max() > 1:
        pictures["training"] = training(panel)
    for name, figure in pictures.items():
        save(figure, out / f"{panel.name}-{name}")
    return [out / f"{panel.name}-{name}.png" for name in pictures]


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


def adaptation(panel: Panel) -> Figure:
    """Left on test points, right on the support set, over the epochs or steps of a meta-test."""
    figure, axes = _figure(panel)
    for axis, points, title in zip(axes, ("test", "support"), ("test points", "support set"), strict=True):
        _draw(axis, panel, panel.final, "epoch", points, "symlog")
        axis.set_xlabel({"epoch": "fine-tuning epoch"}.get(panel.unit, panel.unit))
        axis.set_title(f"on the {title}", fontsize=11)
    legend(figure)
    return figure


def training(panel: Panel) -> Figure:
    """The metric on test points at the end of every meta-test so far: left over updates, right over seconds."""
    figure, axes = _figure(panel)
    ends = panel.frame[panel.frame["end"]]
    means = ends.drop_duplicates("run").groupby("variant", observed=True)["seconds"].mean()
    seconds = ends.assign(seconds=ends["update"] * ends["variant"].map(means).astype(float))
    _draw(axes[0], panel, ends, "update", "test")
    _draw(axes[1], panel, seconds, "seconds", "test", "log")
    for axis, label in zip(axes, ("meta-updates", "seconds of meta-training"), strict=True):
        axis.set_xlabel(label)
        axis.set_title(f"after {panel.final['epoch'].max()} {panel.unit}s, on the test points", fontsize=11)
    legend(figure)
    return figure


def _figure(panel: Panel) -> tuple[Figure, Any]:
    figure = Figure(figsize=(9.6, 4.8), layout="constrained")
    seeds, tasks = panel.seeds, panel.frame["tasks"].iloc[0]
    bands = {"from the lowest to the highest seed": seeds.max() > 1, "95% interval over the tasks": seeds.min() == 1}
    words = "; of a single seed, ".join(words for words, there in bands.items() if there)
    figure.suptitle(f"{panel.title}\nmean of {tasks} meta-test tasks; bands: {words}", fontsize=11)
    return figure, figure.subplots(1, 2)


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


def _draw(axis: Axes, panel: Panel, frame: pd.DataFrame, over: str, points: str, scale: str = "linear") -> None:
    """A curve a variant, a level all along x where it has one record only; one that leaves the frame says its end."""
    groups = [own for _, own in frame.groupby("variant", observed=True)]
    curves = [own.pivot(index=over, columns="seed", values=points).dropna() for own in groups]
    halves = [own.set_index(over)[f"{points}_ci95"] if own["seed"].nunique() == 1 else None for own in groups]
    axis.set(ylabel=panel.metric, ylim=_frame(curves))
    near = 10 if panel.unit == "epoch" else 1  # up to which symlog is linear
    axis.set_xscale(scale, **{"linthresh": near} if scale == "symlog" else {})
    axis.margins(x=0.02)
    locators = {"linear": MaxNLocator(6, steps=[1, 2, 5, 10], integer=True), "log": LogLocator(subs=(1, 2, 5))}
    if scale in locators:
        axis.xaxis.set_major_locator(locators[scale])
    axis.xaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
    axis.xaxis.set_minor_formatter(NullFormatter())
    plain(axis)
    for i, (label, values, half) in enumerate(zip(panel.labels, curves, halves, strict=True)):
        look, y = style(i, len(curves)), values.iloc[-1].mean()
        look["label"] = f"{label} ({y:.3g})" if y > axis.get_ylim()[1] else label
        if len(values) == 1:
            axis.axhline(y, **look | {"marker": ""})
        else:
            curve(axis, values, half, i / len(curves), zorder=3 - i / 100, **look)


def _frame(curves: list[pd.DataFrame]) -> tuple[float, float]:
    """The ends of the y axis: around all curves, but for ends and starts that are far from all others."""
    later = [values.iloc[min(1, len(values) - 1) :].to_numpy() for values in curves]
    peaks = np.array([values.max() for values in later])
    high = float(peaks[peaks <= FRAME * np.median(peaks)].max())
    low = min(float(values.min()) for values in later)
    starts = np.concatenate([values.iloc[0].to_numpy() for values in curves])
    near = starts[np.abs(starts - (low + high) / 2) <= START * (high - low)]
    low, high = (float(end([low, high, *near])) for end in (min, max))
    margin = 0.08 * (high - low) or 0.1 * high
    return (max(low - margin, 0.0) if low >= 0 else low - margin), high + margin


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
