"""How pictures look, and those of a run: its curves, and fitted tasks.

Curves of many variants differ in lightness, dashes and markers as well as in colour, so that a grey print tells them
apart. Marks stand at other places for every curve.
"""

import io
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, MaxNLocator, NullFormatter

from data.files import write_atomically

COLORS = ("#101c6b", "#7a1fa2", "#c62828", "#00796b", "#1e88e5", "#ef6c00", "#7cb342", "#d9a400")  # dark to light
DASHES = (6, 2), (1.5, 1.5), (6, 2, 1.5, 2), (3, 1.5), (9, 2, 1.5, 2, 1.5, 2), (12, 3), (3, 1.5, 1.5, 1.5)
LINES = "-", *((0, dashes) for dashes in DASHES)  # on, off, on, off, ... in points
MARKERS = "osD^vPX*"
METADATA = {"svg": {"Date": None}, "png": {}}  # without the time
LETTERS = 110  # in a line of the names below
MARKS, MARKED = 0.15, 6  # of a panel's diagonal, between two marks of a curve of more records than that
matplotlib.rcParams["svg.hashsalt"] = "amaml"  # the same picture gives the same file
matplotlib.rcParams["svg.fonttype"] = "none"  # text, in a third of the bytes of its outlines
matplotlib.rcParams["path.simplify_threshold"] = 0.3  # of a point, which nobody sees

POINTS = {
    "test": {"label": "test points", "color": "C0", "marker": "o"},
    "support": {"label": "support points", "color": "C1", "marker": "s"},
}
FRAME = 1.6  # an interval that ends above so many times the highest mean leaves the frame


def style(i: int, count: int) -> dict[str, Any]:
    """Of the ith of so many variants: dark to light in their order, the first of them thickest."""
    place = round(i * (len(COLORS) - 1) / max(count - 1, 1)) if count <= len(COLORS) else i % len(COLORS)
    return {
        "color": matplotlib.colors.to_rgb(COLORS[place]),
        "linestyle": LINES[i % len(LINES)],
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


def draw_curves(title: str, tests: list[dict[str, Any]], metrics: list[dict[str, Any]]) -> bytes:
    """curves.png: every protocol of the last meta-test; what adaptation ends with at every meta-test so far; training.

    tests: the entries of test.json; metrics: the lines of metrics.jsonl.
    """
    last, count = [tests[-1], *tests[-1]["also"]], tests[-1]["tasks"]
    alike = [test for test in tests if test["unit"] == tests[-1]["unit"]]
    parts = len(last) + (len(tests) > 1) + 1
    rows, columns = (2, 2) if parts == 4 else (1, parts)
    figure = Figure(figsize=(4.6 * columns, 3.5 * rows + 0.6), layout="constrained")
    tasks = "1 meta-test task" if count == 1 else f"mean and 95% interval over {count} meta-test tasks"
    figure.suptitle(f"{title}\n{tasks}", fontsize=11)
    axes = list(figure.subplots(rows, columns, squeeze=False).flat)
    for entry, scratch in zip(last, tests[-1].get("scratch") or [None] * len(last), strict=True):
        axis, unit = axes.pop(0), "fine-tuning epoch" if entry["unit"] == "epoch" else "inner step"
        _draw_means(axis, entry["epochs"], entry, scratch, xlabel=unit, ylabel=entry["metric"])
        axis.set_xscale("symlog", linthresh=10 if entry["unit"] == "epoch" else 1)  # 0, then powers of ten
        axis.set_xlim(0, entry["epochs"][-1] or None)
        axis.xaxis.set_major_formatter("{x:g}")
    if len(tests) > 1:
        ends = {name: {key: [t[name][key][-1] for t in alike] for key in ("mean", "ci95")} for name in POINTS}
        ylabel = f"{tests[-1]['metric']} after {tests[-1]['epochs'][-1]} {tests[-1]['unit']}s"
        _draw_means(axes[0], [t["update"] for t in alike], ends, xlabel="meta-update", ylabel=ylabel)
        axes.pop(0).xaxis.set_major_locator(MaxNLocator(5, steps=[1, 2, 5, 10], integer=True))
    _draw_training(axes.pop(0), metrics)
    return _png(figure)


def _draw_means(
    axes: Axes, x: list[int], values: dict[str, Any], scratch: dict[str, Any] | None = None, **labels: str
) -> None:
    """Means with their intervals over x, as in an entry of test.json; scratch: that of the random initialisation."""
    means = {name: pd.Series(values[name]["mean"], x) for name in POINTS}
    for name, look in POINTS.items():
        half = pd.Series(values[name]["ci95"], x, dtype=float).fillna(0)
        curve(axes, means[name].to_frame(), half, markersize=4, **look)
    if scratch:
        means["scratch"] = pd.Series(scratch["test"]["mean"], scratch["epochs"])
        axes.plot(means["scratch"], color="0.4", linestyle="--", label="scratch, test points", zorder=1)
    highest = max(mean.max() for mean in means.values())
    axes.set(ylim=(0, min(1.05 * axes.dataLim.ymax, FRAME * highest) or None), **labels)
    axes.legend(fontsize=8, frameon=False)


def _draw_training(axes: Axes, metrics: list[dict[str, Any]]) -> None:
    losses = pd.Series([m["query_loss"] for m in metrics], [m["update"] for m in metrics])
    if (window := len(losses) // 20) > 1:
        axes.plot(losses, "C0", alpha=0.3, linewidth=0.8, label="each update")
        axes.plot(losses.rolling(window).mean(), "C0", label=f"mean of {window} updates")
        axes.legend(fontsize=8, frameon=False)
    else:
        axes.plot(losses, "C0", marker="." if len(losses) < 30 else "")
    axes.set(xlabel="meta-update", ylabel="query loss after the inner loop", yscale="log")
    if losses.min() > 0:  # few ticks, as plain numbers
        locator = LogLocator(subs=(1, 2, 5))
        axes.yaxis.set(major_locator=locator, major_formatter="{x:g}", minor_formatter=NullFormatter())
    axes.xaxis.set_major_locator(MaxNLocator(5, steps=[1, 2, 5, 10], integer=True))


def draw_fits(
    title: str, support: Sequence[np.ndarray], x: np.ndarray, curves: np.ndarray, labels: Sequence[Sequence[str]]
) -> bytes:
    """fits.png: every task with its data, the truth, and the network before and after adaptation.

    support: the x (tasks, shots, d) and y (tasks, shots, 1) of the support points; curves: at x (tasks, points, d) the
    truth and the predictions before and after, (3, tasks, points, 1); labels: of both predictions, for each task. A
    curve a task for one input, four surfaces for two, the last of the errors after adaptation.
    """
    count, inputs = x.shape[0], x.shape[2]
    draw, columns, width, height = (_draw_curve, 1, 8.4, 2.6) if inputs == 1 else (_draw_surfaces, 4, 12.4, 2.9)
    figure = Figure(figsize=(width, height * count + 0.6), layout="constrained")
    figure.suptitle(title, fontsize=11)
    axes = figure.subplots(count, columns, squeeze=False, sharex=True)
    for i in range(count):
        draw(axes[i], [part[i] for part in support], x[i], curves[:, i, :, 0], labels[i])
        axes[i][0].set_title(f"meta-test task {i}" + ("\ntruth and support points" if columns > 1 else ""), fontsize=10)
        for axis in axes[i]:
            axis.label_outer()
    return _png(figure)


def _draw_curve(
    axes: list[Axes], support: list[np.ndarray], x: np.ndarray, curves: np.ndarray, labels: Sequence[str]
) -> None:
    (axis,) = axes
    for values, look, label in zip(curves, ("k", "C0--", "C3"), ("truth", *labels), strict=True):
        axis.plot(x[:, 0], values, look, label=label)
    axis.plot(*(part[:, 0] for part in support), "ko", markersize=5, label="support points")
    axis.set(xlabel="x", ylabel="y")
    axis.legend(fontsize=8, frameon=False, loc="center left", bbox_to_anchor=(1, 0.5), labelspacing=1)


def _draw_surfaces(
    axes: list[Axes], support: list[np.ndarray], x: np.ndarray, curves: np.ndarray, labels: Sequence[str]
) -> None:
    side, limits = round(len(x) ** 0.5), {"vmin": curves[0].min(), "vmax": curves[0].max()}
    error = np.abs(curves[2] - curves[0])
    looks = [limits] * 3 + [{"vmin": 0.0, "vmax": error.max(), "cmap": "magma"}]
    shown = zip(axes, (*curves, error), ["", *labels, "its absolute error"], looks, strict=True)
    for axis, values, label, look in shown:
        mesh = [part.reshape(side, side) for part in (x[:, 0], x[:, 1], values)]
        picture = axis.pcolormesh(*mesh, **look, shading="nearest")
        axis.set(xlabel="x1", ylabel="x2", aspect="equal")
        axis.set_title(label, fontsize=10)
        if axis is axes[2]:
            axis.figure.colorbar(picture, ax=list(axes[:3]), label="y", aspect=15)
    axes[0].scatter(*support[0].T, c=support[1][:, 0], **limits, edgecolors="white", linewidths=0.6, s=18)
    axes[3].figure.colorbar(picture, ax=axes[3], label="error", aspect=15)


def _png(figure: Figure) -> bytes:
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=120)
    return buffer.getvalue()
