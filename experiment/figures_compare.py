"""Curves of many runs: the metric while adapting, and while meta-training, a mean a variant with its range over seeds.

Curves differ in lightness, dashes and markers as well as in colour, so that a grey print tells them apart, and carry
their names at their ends.
"""

from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, StrMethodFormatter

from experiment.compare import Panel

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
FORMATS = {"svg": {"Date": None}, "pdf": {"CreationDate": None}, "png": {}}  # without the time, in each one's words
FRAME = 2.5  # a curve that ends above so many times the median end leaves the frame
APART = 0.055  # of a panel's height, between two names
matplotlib.rcParams["svg.hashsalt"] = "amaml"  # the same picture gives the same file


def draw(panel: Panel, out: Path) -> list[Path]:
    """PANEL-adaptation and PANEL-training in a folder, as SVG, PDF and PNG; the PNGs' paths."""
    pictures = {"adaptation": adaptation(panel)}
    if panel.frame.groupby("run")["update"].nunique().max() > 1:
        pictures["training"] = training(panel)
    for name, figure in pictures.items():
        for kind, metadata in FORMATS.items():
            figure.savefig(out / f"{panel.name}-{name}.{kind}", dpi=150, metadata=metadata)
    return [out / f"{panel.name}-{name}.png" for name in pictures]


def adaptation(panel: Panel) -> Figure:
    """Left on test points, right on the support set, over the epochs or steps of a meta-test."""
    figure, axes = _figure(panel)
    for axis, points, title in zip(axes, ("test", "support"), ("test points", "support set"), strict=True):
        own = panel.final.groupby("variant", observed=True)
        _draw(axis, panel, [of.pivot(index="epoch", columns="seed", values=points).dropna() for _, of in own])
        axis.set_xlabel({"epoch": "fine-tuning epoch"}.get(panel.unit, panel.unit))
        axis.set_title(f"on the {title}", fontsize=10)
    return figure


def training(panel: Panel) -> Figure:
    """The metric on test points at the end of every meta-test so far: left over updates, right over seconds."""
    figure, axes = _figure(panel)
    curves = []
    for _, own in panel.frame[panel.frame["end"]].groupby("variant", observed=True):
        curves.append(own.pivot(index="update", columns="seed", values="test").dropna())
        curves[-1].attrs["seconds"] = own.drop_duplicates("run")["seconds"].astype(float).mean()
    _draw(axes[0], panel, curves)
    _draw(axes[1], panel, [values.set_axis(values.index * values.attrs["seconds"]) for values in curves], "log")
    for axis, label in zip(axes, ("meta-updates", "seconds of meta-training"), strict=True):
        axis.set_xlabel(label)
        axis.set_title(f"after {panel.final['epoch'].max()} {panel.unit}s, on the test points", fontsize=10)
    return figure


def _figure(panel: Panel) -> tuple[Figure, Any]:
    figure = Figure(figsize=(9.0 + 0.14 * max(map(len, panel.labels)), 4.4), layout="constrained")
    several = panel.frame.groupby("variant", observed=True)["seed"].nunique().max() > 1
    band = ", band from the lowest to the highest seed" if several else ""
    figure.suptitle(f"{panel.title}\nmean of {panel.frame['tasks'].iloc[0]} meta-test tasks{band}", fontsize=11)
    return figure, figure.subplots(1, 2)


def style(i: int, count: int) -> dict[str, Any]:
    """Of the ith of so many variants: dark to light in their order, the first of them thickest."""
    return {
        "color": matplotlib.colormaps["plasma"](0.85 * i / max(count - 1, 1)),
        "linestyle": DASHES[i % len(DASHES)],
        "marker": MARKERS[i % len(MARKERS)],
        "linewidth": 2.4 if i == 0 else 1.6,
        "markersize": 4.5,
    }


def _draw(axis: Axes, panel: Panel, curves: list[pd.DataFrame], scale: str = "linear") -> None:
    """A curve a variant, a level all along x where it has one record only; names at the right ends."""
    axis.set(xscale=scale, ylabel=panel.metric, ylim=_frame(curves))
    styles = [style(i, len(curves)) for i in range(len(curves))]
    for i, (values, look) in enumerate(zip(curves, styles, strict=True)):
        if len(values) == 1:
            axis.axhline(values.iloc[0].mean(), **look | {"marker": ""})
            continue
        every = max(len(values) // 6, 1)
        curve(axis, values, markevery=((i * every) // len(curves), every), zorder=3 - i / 100, **look)
    if scale == "linear":
        axis.xaxis.set_major_locator(MaxNLocator(6, steps=[1, 2, 5, 10], integer=True))
        axis.set_xlim(left=0)
    else:
        axis.xaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
    axis.spines[["top", "right"]].set_visible(False)
    axis.grid(alpha=0.25, linewidth=0.6)
    right, top = axis.get_xlim()[1], axis.get_ylim()[1]
    axis.set_xlim(right=right)
    ends, colors = {}, {}
    for label, values, look in zip(panel.labels, curves, styles, strict=True):
        y = values.iloc[-1].mean()
        name = f"{label} ({y:.3g})" if y > top else label
        ends[name], colors[name] = (right if len(values) == 1 else values.index[-1], min(y, top)), look["color"]
    name_lines(axis, ends, colors)


def _frame(curves: list[pd.DataFrame]) -> tuple[float, float]:
    """The ends of the y axis: around all curves, but for those that are many times above the others."""
    peaks = np.array([values.to_numpy().max() for values in curves])
    high = float(peaks[peaks <= FRAME * np.median(peaks)].max())
    low = min(float(values.to_numpy().min()) for values in curves)
    margin = 0.08 * (high - low) or 0.1 * high
    return (max(low - margin, 0.0) if low >= 0 else low - margin), high + margin


def curve(axes: Axes, values: pd.DataFrame, **look: Any) -> tuple[float, float]:
    """Draw the mean of values (x, seeds), with a band from the lowest to the highest seed; the line's end."""
    mean, x = values.mean(axis="columns"), values.index.to_numpy()
    axes.plot(x, mean.to_numpy(), **look)
    if values.shape[1] > 1:
        low, high = values.min(axis="columns"), values.max(axis="columns")
        axes.fill_between(x, low, high, color=look["color"], alpha=0.13, linewidth=0)
    return float(x[-1]), float(mean.iloc[-1])


def name_lines(axes: Axes, ends: dict[str, tuple[float, float]], colors: dict[str, Any]) -> None:
    """Each name right of its line's end (x, y), pushed apart where they are close together; once the limits are set."""
    place, data = axes.transAxes.inverted(), axes.transData
    found = {name: place.transform(data.transform(end)) for name, end in ends.items()}
    ordered, height = sorted(found.items(), key=lambda item: item[1][1]), -1.0
    for left, (name, (x, y)) in zip(reversed(range(len(ordered))), ordered, strict=True):
        height = min(max(y, height + APART), 0.97 - APART * left)
        thin = {"arrowstyle": "-", "color": colors[name], "linewidth": 0.5}
        look = {"ha": "left", "va": "center", "fontsize": 8.5, "color": colors[name], "arrowprops": thin}
        look["bbox"] = {"facecolor": "white", "edgecolor": "none", "alpha": 0.8, "pad": 0.5}
        axes.annotate(name, (x, y), (x + 0.04, height), xycoords="axes fraction", textcoords="axes fraction", **look)
