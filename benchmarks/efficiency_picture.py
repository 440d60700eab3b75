"""The picture of a benchmark run: seconds, seconds over those of FOMAML beside the paper's, and memory."""

from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, NullFormatter

from benchmarks.line_names import name_lines
from benchmarks.paper_pictures import NAMES, STYLES

A_MAML, LINE = STYLES["amaml"], {"linewidth": 1.5, "markersize": 4}
SHOWN = {  # a line's name and look
    "A-MAML auto 1e-2": ("A-MAML, rtol 1e-2", LINE | A_MAML),
    "A-MAML auto": ("A-MAML, rtol 1e-3", A_MAML | LINE | {"linestyle": (0, (4, 1))}),
    "released A-MAML": ("A-MAML as released", A_MAML | LINE | {"linestyle": (0, (1, 1.5)), "marker": "x"}),
    **{NAMES[name]: (NAMES[name], LINE | STYLES[name]) for name in ("maml", "imaml", "fomaml", "reptile")},
}
OPEN = {"linestyle": "none", "markerfacecolor": "none", "markersize": 11, "markeredgewidth": 1.5}
Points = dict[str, list[tuple[int, float]]]  # by method: inner steps and a number


def figure(rows: list[dict[str, Any]], paper: dict[str, Any]) -> Figure:
    """paper: the seconds of paper.toml's [efficiency], by method and inner steps, of which the ratios are drawn."""
    seconds, memory = _points(rows, "seconds", 1.0), _points(rows, "peak_bytes", 2.0**20)
    published = {name: [(int(steps), value) for steps, value in line.items()] for name, line in paper.items()}
    panels = [  # what is on the y axis, our lines, the paper's marks
        ("seconds a meta-update", seconds, {}),
        ("seconds over FOMAML's; open marks: the paper", _ratios(seconds), _ratios(published)),
    ]
    if memory:
        panels.append(("memory added by the inner steps, MiB", memory, {}))
    drawing = Figure(figsize=(5.6 * len(panels), 4.6), layout="constrained")
    for axes, (label, points, marks) in zip(drawing.subplots(1, len(panels), squeeze=False)[0], panels, strict=True):
        axes.set(xlabel="inner steps", ylabel=label, xscale="log", yscale="log")
        for method, line in points.items():
            axes.plot(*zip(*line, strict=True), **SHOWN[method][1])
        for method, line in marks.items():
            axes.plot(*zip(*line, strict=True), **SHOWN[method][1] | OPEN)
        steps = sorted({n for line in points.values() for n, _ in line})
        axes.set_xticks(steps, [str(n) for n in steps])
        axes.xaxis.set_minor_formatter(NullFormatter())
        axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axes.yaxis.set_major_formatter("{x:g}")
        axes.yaxis.set_minor_formatter(NullFormatter())
        axes.grid(color="#eeeeee")
        _label(axes, points)
    return drawing


def _points(rows: list[dict[str, Any]], key: str, unit: float) -> Points:
    found = {name: [(r["steps"], r[key] / unit) for r in rows if r["method"] == name and r.get(key)] for name in SHOWN}
    return {name: sorted(line) for name, line in found.items() if line}


def _ratios(points: Points) -> Points:
    """Over FOMAML's number at as many inner steps."""
    whole = dict(points.get("FOMAML", ()))
    ratios = {name: [(n, value / whole[n]) for n, value in line if n in whole] for name, line in points.items()}
    return {name: line for name, line in ratios.items() if line}


def _label(axes: Axes, points: Points) -> None:
    """The lines' names: right of those that go to the last number of steps, above the end of the others."""
    steps = {n for line in points.values() for n, _ in line}
    first, last = min(steps), max(steps)
    axes.set_xlim(right=last * max(last / first, 2.0) ** 0.42)
    axes.margins(y=0.08)
    axes.autoscale_view(scalex=False)
    names = {method: SHOWN[method][0] for method in points}
    colors = {names[method]: SHOWN[method][1]["color"] for method in points}
    name_lines(axes, {names[m]: line[-1] for m, line in points.items() if line[-1][0] == last}, colors)
    for name, line in ((names[m], line) for m, line in points.items() if line[-1][0] != last):
        look = {"ha": "center", "va": "center", "fontsize": 8.5, "color": colors[name]}
        axes.annotate(name, line[-1], (0, 12), textcoords="offset points", **look)
