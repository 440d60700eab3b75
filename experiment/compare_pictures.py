"""The pictures of a comparison: the metric while adapting, and while meta-training, a curve a method.

Curves differ in lightness, dashes and markers as well as in colour, so that a grey print tells them apart, and carry
their names at their ends.
"""

from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, StrMethodFormatter

from experiment.compare import Panel, Run

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
FORMATS = ("svg", "pdf", "png")
FRAME = 2.5  # a curve that ends above so many times the median end leaves the frame
LABEL = 0.058  # height of a curve's name, in fractions of the axes
matplotlib.use("Agg")
matplotlib.rcParams["svg.hashsalt"] = "amaml"  # the same picture gives the same file


def draw(panel: Panel, out: Path) -> list[Path]:
    """PANEL-adaptation and PANEL-training in a folder, as SVG, PDF and PNG; the PNGs' paths."""
    pictures = [_save(_adaptation(panel), out / f"{panel.name}-adaptation")]
    if any(len(run.tests) > 1 for variant in panel.variants for run in variant.runs.values()):
        pictures.append(_save(_training(panel), out / f"{panel.name}-training"))
    return pictures


def _save(figure: Figure, path: Path) -> Path:
    for kind in FORMATS:
        metadata = {"png": {}, "svg": {"Date": None}, "pdf": {"CreationDate": None}}[kind]
        figure.savefig(path.with_name(f"{path.name}.{kind}"), dpi=150, metadata=metadata)
    return path.with_name(f"{path.name}.png")


def _adaptation(panel: Panel) -> Figure:
    """Left on test points, right on the support set, over the epochs or steps of a meta-test."""
    figure, axes = _figure(panel)
    for axis, points, title in zip(axes, ("test", "support"), ("test points", "support set"), strict=True):
        curves = []
        for variant in panel.variants:
            x = variant.any.tests[-1]["epochs"]
            rows = [run.tests[-1][points]["mean"] for run in variant.runs.values() if run.tests[-1]["epochs"] == x]
            curves.append((np.array(x), np.array(rows)))
        _draw(axis, panel, curves)
        axis.set_xlabel({"epoch": "fine-tuning epoch"}.get(panel.unit, panel.unit))
        axis.set_title(f"on the {title}", fontsize=10)
    return figure


def _training(panel: Panel) -> Figure:
    """The metric on test points at the end of every meta-test so far: left over updates, right over seconds."""
    figure, axes = _figure(panel)
    for axis, by_time in zip(axes, (False, True), strict=True):
        curves = []
        for variant in panel.variants:
            runs = [run for run in variant.runs.values() if _updates(run) == _updates(variant.any)]
            x = np.array(_updates(variant.any), dtype=float)
            seconds = [run.seconds for run in runs if run.seconds is not None]
            x = x * (np.mean(seconds) if seconds else np.nan) if by_time else x
            curves.append((x, np.array([[test["test"]["mean"][-1] for test in run.tests] for run in runs])))
        _draw(axis, panel, curves, "log" if by_time else "linear")
        last = panel.variants[0].any.tests[-1]["epochs"][-1]
        axis.set_xlabel("seconds of meta-training" if by_time else "meta-updates")
        axis.set_title(f"after {last} {panel.unit}s, on the test points", fontsize=10)
    return figure


def _updates(run: Run) -> list[int]:
    return [test["update"] for test in run.tests]


def _figure(panel: Panel) -> tuple[Figure, Any]:
    longest = max(len(variant.label) for variant in panel.variants)
    figure = Figure(figsize=(9.0 + 0.14 * longest, 4.4), layout="constrained")
    axes = figure.subplots(1, 2)
    tasks = panel.variants[0].any.tests[-1]["tasks"]
    several = any(len(variant.runs) > 1 for variant in panel.variants)
    band = ", band from the lowest to the highest seed" if several else ""
    figure.suptitle(f"{panel.title}\nmean of {tasks} meta-test tasks{band}", fontsize=11)
    return figure, axes


def _style(panel: Panel, i: int) -> dict[str, Any]:
    """Dark to light in the order of the variants, the first of them thickest."""
    shade = 0.85 * i / max(len(panel.variants) - 1, 1)
    return {
        "color": matplotlib.colormaps["plasma"](shade),
        "linestyle": DASHES[i % len(DASHES)],
        "marker": MARKERS[i % len(MARKERS)],
        "linewidth": 2.4 if i == 0 else 1.6,
        "markersize": 4.5,
    }


Curve = tuple[np.ndarray, np.ndarray]  # x (records,) and values (seeds, records)


def _draw(axis: Axes, panel: Panel, curves: list[Curve], scale: str = "linear") -> None:
    """A curve a variant, a level all along x where it has one record only; names at the right ends."""
    axis.set(xscale=scale, ylabel=panel.metric, ylim=_frame([values for _, values in curves]))
    for i, (x, values) in enumerate(curves):
        style, mean = _style(panel, i), values.mean(0)
        if len(mean) == 1:
            axis.axhline(mean[0], **style | {"marker": ""})
            continue
        every = max(len(x) // 6, 1)
        axis.plot(x, mean, markevery=((i * every) // len(panel.variants), every), zorder=3 - i / 100, **style)
        if len(values) > 1:
            axis.fill_between(x, values.min(0), values.max(0), color=style["color"], alpha=0.13, linewidth=0)
    if scale == "linear":
        axis.xaxis.set_major_locator(MaxNLocator(6, steps=[1, 2, 5, 10], integer=True))
        axis.set_xlim(left=0)
    else:
        axis.xaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
    axis.spines[["top", "right"]].set_visible(False)
    axis.grid(alpha=0.25, linewidth=0.6)
    right = axis.get_xlim()[1]
    axis.set_xlim(right=right)
    _name_ends(axis, panel, [(right if len(x) == 1 else x[-1], values.mean(0)[-1]) for x, values in curves])


def _frame(values: list[np.ndarray]) -> tuple[float, float]:
    """The ends of the y axis: around all curves, but for those that are many times above the others."""
    peaks = np.array([v.max() for v in values])
    high = float(peaks[peaks <= FRAME * np.median(peaks)].max())
    low = min(float(v.min()) for v in values)
    margin = 0.08 * (high - low) or 0.1 * high
    return (max(low - margin, 0.0) if low >= 0 else low - margin), high + margin


def _name_ends(axis: Axes, panel: Panel, ends: list[tuple[float, float]]) -> None:
    """The variants' names beside the right ends of their curves, moved apart where they would overlap."""
    to_fraction = axis.transData + axis.transAxes.inverted()
    points = [np.clip(to_fraction.transform(end), 0.0, 1.0) for end in ends]
    labels = [variant.label for variant in panel.variants]
    labels = [f"{t} ({y:.3g})" if y > axis.get_ylim()[1] else t for t, (_, y) in zip(labels, ends, strict=True)]
    for i, place in enumerate(
        _apart([(float(x), float(y), 0.025 * len(t)) for (x, y), t in zip(points, labels, strict=True)])
    ):
        style = _style(panel, i)
        line = {"arrowstyle": "-", "color": style["color"], "linewidth": 0.9, "shrinkA": 0, "shrinkB": 3}
        axis.annotate(
            labels[i],
            xy=points[i],
            xycoords="axes fraction",
            xytext=(points[i][0] + 0.05, place),
            textcoords="axes fraction",
            va="center",
            fontsize=8.5,
            annotation_clip=False,
            arrowprops=line | {"relpos": (0.0, 0.5)},
        )


def _apart(boxes: list[tuple[float, float, float]]) -> list[float]:
    """Heights for labels at (x, y, width), as near to y as can be without one on another; in fractions of the axes."""
    heights = [y for _, y, _ in boxes]
    for _ in range(200):  # pushes two that overlap apart by half of what is missing each, until none do
        still = True
        order = sorted(range(len(boxes)), key=lambda i: (heights[i], boxes[i][1]))
        for k, i in enumerate(order):
            for j in order[k + 1 :]:
                beside = min(boxes[i][0] + boxes[i][2], boxes[j][0] + boxes[j][2]) > max(boxes[i][0], boxes[j][0])
                missing = LABEL - (heights[j] - heights[i])
                if beside and missing > 1e-3:
                    heights[i] = max(heights[i] - missing / 2, 0.0)
                    heights[j], still = heights[j] + missing / 2, False
        if still:
            break
    return heights
