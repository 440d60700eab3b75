"""Curves of many runs: the metric while adapting, and while meta-training, a mean a variant in a band of its spread."""

from pathlib import Path

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, MaxNLocator, NullFormatter

from experiment.compare import Panel
from experiment.figures import curve, legend, plain, save, style

FRAME = 2.5  # a curve that ends above so many times the median end leaves the frame
START = 1.1  # times the height of what follows: a start further from its middle leaves the frame


def draw(panel: Panel, out: Path) -> list[Path]:
    """PANEL-adaptation and PANEL-training in a folder, as SVG and PNG; the PNGs' paths."""
    pictures = {"adaptation": adaptation(panel)}
    if panel.frame.groupby("run")["update"].nunique().max() > 1:
        pictures["training"] = training(panel)
    for name, figure in pictures.items():
        save(figure, out / f"{panel.name}-{name}")
    return [out / f"{panel.name}-{name}.png" for name in pictures]


def adaptation(panel: Panel) -> Figure:
    """Left on test points, right on the support set, over the epochs or steps of a meta-test."""
    unit = "fine-tuning epoch" if panel.unit == "epoch" else panel.unit
    sides = (("test", "on the test points"), ("support", "on the support set"))
    return _figure(panel, *((panel.final, "epoch", points, "symlog", unit, title) for points, title in sides))


def training(panel: Panel) -> Figure:
    """The metric on test points at the end of every meta-test so far: left over updates, right over seconds."""
    ends = panel.frame[panel.frame["end"]]
    means = ends.drop_duplicates("run").groupby("variant", observed=True)["seconds"].mean()
    seconds = ends.assign(seconds=ends["update"] * ends["variant"].map(means).astype(float))
    title = f"after {panel.final['epoch'].max()} {panel.unit}s, on the test points"
    left = ends, "update", "test", "linear", "meta-updates", title
    return _figure(panel, left, (seconds, "seconds", "test", "log", "seconds of meta-training", title))


def _figure(panel: Panel, *sides: tuple[pd.DataFrame, str, str, str, str, str]) -> Figure:
    """Two of (records, what they are over, the points, the scale of that axis, its label, a title)."""
    figure = Figure(figsize=(9.6, 4.8), layout="constrained")
    seeds, tasks = panel.seeds, panel.frame["tasks"].iloc[0]
    bands = {"from the lowest to the highest seed": seeds.max() > 1, "95% interval over the tasks": seeds.min() == 1}
    words = "; of a single seed, ".join(words for words, there in bands.items() if there)
    figure.suptitle(f"{panel.title}\nmean of {tasks} meta-test tasks; bands: {words}", fontsize=11)
    for axis, (frame, over, points, scale, label, title) in zip(figure.subplots(1, 2), sides, strict=True):
        _draw(axis, panel, frame, over, points, scale)
        axis.set_xlabel(label)
        axis.set_title(title, fontsize=11)
    legend(figure)
    return figure


def _draw(axis: Axes, panel: Panel, frame: pd.DataFrame, over: str, points: str, scale: str) -> None:
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
    axis.xaxis.set(major_formatter="{x:g}", minor_formatter=NullFormatter())
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
