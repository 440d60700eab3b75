"""Curves of many runs: the metric while adapting, and while meta-training, a mean a variant with bars of its spread.

Curves differ in lightness, dashes and markers as well as in colour, so that a grey print tells them apart. Bars stand
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
from matplotlib.transforms import ScaledTranslation

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
MARKS = 6  # a curve, where it has more records than that
BESIDE = 1.2  # points between the bars of two curves
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
    bars = {"from the lowest to the highest seed": seeds.max() > 1, "95% interval over the tasks": seeds.min() == 1}
    words = "; of a single seed, ".join(words for words, there in bars.items() if there)
    figure.suptitle(f"{panel.title}\nmean of {tasks} meta-test tasks; bars: {words}", fontsize=11)
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
    along = [x for values in curves if len(values) > 1 for x in values.index] or [0, 1]
    first, last = min(along), max(along)
    axis.set_xlim(
        {"linear": (-last / 60, 1.02 * last), "symlog": (-near / 15, 1.1 * last)}.get(scale, (first / 1.2, 1.1 * last))
    )
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
            curve(axis, values, half, (i, len(curves)), zorder=3 - i / 100, **look)


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


def curve(
    axes: Axes, values: pd.DataFrame, half: pd.Series | None = None, place: tuple[int, int] = (0, 1), **look: Any
) -> None:
    """Draw the mean of values (x, seeds), with marks and bars. Once the limits along x are set.

    A bar goes from the lowest to the highest seed, or, with half the interval over the tasks, so far on either side.
    place: which curve of how many this is; marks and bars of different curves stand beside each other.
    """
    mean, (i, count) = values.mean(axis="columns"), place
    low, high = (mean - half, mean + half) if half is not None else (values.min(axis=1), values.max(axis=1))
    across = axes.transScale.transform(np.column_stack([values.index, mean]))[:, 0]
    wanted = across[0] + np.ptp(across) * (np.arange(MARKS) + (i + 0.5) / count) / MARKS
    marked = sorted({int(np.abs(across - x).argmin()) for x in wanted}) if len(mean) > MARKS else range(len(mean))
    axes.plot(values.index, mean, markevery=list(marked), **look)
    apart = BESIDE * (i - (count - 1) / 2) if len(mean) <= MARKS else 0.0
    beside = ScaledTranslation(apart / 72, 0, axes.figure.dpi_scale_trans)
    ends = [part.iloc[list(marked)] for part in (low, high)]
    bars = {"color": look["color"], "linewidth": 1.2, "alpha": 0.8, "zorder": look.get("zorder", 2)}
    axes.vlines(values.index[list(marked)], *ends, transform=axes.transData + beside, **bars)
    axes.update_datalim([(x, end) for part in ends for x, end in part.items()])


def legend(figure: Figure) -> None:
    """The names of all lines, below."""
    pairs = (zip(*axis.get_legend_handles_labels(), strict=True) for axis in figure.axes)
    named = {label: line for pair in pairs for line, label in pair}
    columns = max(1, min(5, LETTERS // (8 + max(map(len, named)))))  # a line's sample is as wide as 8
    figure.legend([*named.values()], [*named], loc="outside lower center", ncols=columns, frameon=False, fontsize=9)
