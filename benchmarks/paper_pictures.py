"""The pictures of results/paper: the figure's panels with the paper's points, and what long horizons are worth."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, LogLocator, NullFormatter, NullLocator, StrMethodFormatter

from benchmarks.line_names import name_lines

if TYPE_CHECKING:
    from benchmarks.paper import Result

# dark to light, dashes and markers: a grey print tells them apart
STYLES = {
    "amaml": {"color": "#0d0887", "linestyle": "-", "marker": "o", "linewidth": 2.6},
    "maml": {"color": "#7e03a8", "linestyle": (0, (6, 2)), "marker": "s"},
    "maml1": {"color": "#a82296", "linestyle": (0, (1.5, 1.5)), "marker": "D"},
    "fomaml": {"color": "#cb4679", "linestyle": (0, (6, 2, 1.5, 2)), "marker": "^"},
    "imaml": {"color": "#e56b5d", "linestyle": (0, (3, 1.5)), "marker": "v"},
    "reptile": {"color": "#f89441", "linestyle": (0, (9, 2, 1.5, 2, 1.5, 2)), "marker": "P"},
    "scratch": {"color": "#777777", "linestyle": (0, (1, 2)), "marker": "x"},
    "pretrained": {"color": "#aaaaaa", "linestyle": "-", "marker": "*"},
}
NAMES = {
    "amaml": "A-MAML",
    "maml": "MAML",
    "maml1": "MAML-1",
    "fomaml": "FOMAML",
    "imaml": "iMAML",
    "reptile": "Reptile",
    "scratch": "scratch",
    "pretrained": "pretrained",
}
LINE = {"linewidth": 1.6, "markersize": 5}  # of the horizons, where a style does not say
TOP = 1.6  # of the figure's axes; what starts above is told in figure.md
matplotlib.use("Agg")


def draw(
    figure: list[Result],
    horizons: list[Result],
    trained_on: list[Result],
    paper: dict[str, Any],
    updates: int,
    out: Path,
) -> None:
    """figure-SETTING and horizons-DOMAIN in a folder, as far as there are results; updates: for equal updates.

    trained_on: runs that began with Reptile's last theta of 200 steps.
    """
    for setting in ("released", "ours"):
        shown = [r for r in figure if r.labels["setting"] == setting and r.protocol == "finetune"]
        if shown:
            _panels(shown, setting, paper).savefig(out / f"figure-{setting}.png", dpi=110)
    for domain in dict.fromkeys(r.labels["domain"] for r in horizons):
        shown, after = (
            [r for r in some if r.labels["domain"] == domain and r.protocol == "inner"]
            for some in (horizons, trained_on)
        )
        _horizons(shown, domain, updates, after).savefig(out / f"horizons-{domain}.png", dpi=110)


def _seeds(results: list[Result]) -> str:
    counts = Counter(tuple(value for axis, value in r.labels.items() if axis != "seed") for r in results).values()
    fewest, most = min(counts), max(counts)
    if most == 1:
        return "one seed"
    return f"mean and range of {most} seeds" if fewest == most else f"mean and range of {fewest} to {most} seeds"


def _mean(results: list[Result], points: str) -> np.ndarray:
    return np.array([r.last[points]["mean"] for r in results])


def _panels(results: list[Result], setting: str, paper: dict[str, Any]) -> Figure:
    """Above the support set, below the test points, a panel a column: our curves, the paper's ends as open marks."""
    panels = [p for p in paper["panels"] if any(r.labels["panel"] == p for r in results)]
    figure = Figure(figsize=(3.1 * len(panels), 6.6), layout="constrained")
    axes = figure.subplots(2, len(panels), sharex=True, sharey=True, squeeze=False)
    for column, panel in enumerate(panels):
        published = paper["figure"][paper["panels"][panel]]
        for row, points in enumerate(("support", "test")):
            axis = axes[row, column]
            for method, style in STYLES.items():
                found = [r for r in results if r.labels["panel"] == panel and r.labels["method"] == method]
                if found:
                    x, y = found[0].last["epochs"], _mean(found, points)
                    axis.plot(x, y.mean(0), **{"linewidth": 1.5} | style | {"marker": ""})
                    axis.fill_between(x, y.min(0), y.max(0), color=style["color"], alpha=0.12, linewidth=0)
                for epoch, value in zip((0, 1000), published.get(method, ()), strict=False):
                    mark = {"marker": style["marker"], "color": style["color"], "markerfacecolor": "white"}
                    axis.plot([epoch], [min(value, TOP)], **mark, markersize=6, clip_on=False, zorder=4)
            axis.set(ylim=(0, TOP), xlim=(0, 1000), xticks=(0, 500, 1000))
            axis.set_title(f"{panel}, {'support set' if row == 0 else 'test points'}", fontsize=9)
            axis.grid(alpha=0.25, linewidth=0.6)
            axis.spines[["top", "right"]].set_visible(False)
        axes[1, column].set_xlabel("fine-tuning epoch")
    for axis in axes[:, 0]:
        axis.set_ylabel("nRMSE (1: predicting the mean)")
    handles = [matplotlib.lines.Line2D([], [], label=NAMES[m], markerfacecolor="white", **s) for m, s in STYLES.items()]
    figure.legend(handles=handles, loc="outside lower center", ncols=len(handles), frameon=False)
    where = {"released": "at the released setting", "ours": "at our settings"}[setting]
    text = f"The paper's figure, our runs {where}, {_seeds(results)}; open marks, the same above and below: the paper"
    figure.suptitle(text, fontsize=11)
    return figure


def _horizons(results: list[Result], domain: str, updates: int, trained_on: Sequence[Result] = ()) -> Figure:
    """Left the error after the own inner loop over the horizon, at equal updates; right over the seconds.

    trained_on: what became of Reptile's theta of 200 steps; right, from the end of Reptile's line.
    """
    figure = Figure(figsize=(11, 4.6), layout="constrained")
    left, right = figure.subplots(1, 2, sharey=True)
    ends_left, ends_right, colors = {}, {}, {}
    found = _grouped(results)
    for method in (m for m in STYLES if any(m == other for other, _ in found)):
        style = LINE | STYLES[method]
        steps = sorted(n for other, n in found if other == method)
        groups = [found[method, n] for n in steps]
        reached = [_reached(group, updates) for group in groups]
        ends = [[r.until(n).at("test", -1) for r in group] for group, n in zip(groups, reached, strict=True)]
        means = [np.mean(e) for e in ends]
        left.plot(steps, means, **style)
        fewer = [(n, mean) for n, mean, count in zip(steps, means, reached, strict=True) if count < updates]
        if fewer:
            left.plot(*zip(*fewer, strict=True), **style | {"linestyle": "none", "markerfacecolor": "white"}, zorder=4)
        left.fill_between(steps, [min(e) for e in ends], [max(e) for e in ends], color=style["color"], alpha=0.13)
        last = [np.mean([r.until(_reached(group)).at("test", -1) for r in group]) for group in groups]
        best = groups[int(np.argmin(last))]
        name = f"{NAMES[method]}, {best[0].labels['inner_steps']} steps"
        ends_left[NAMES[method]], ends_right[name] = (steps[-1], means[-1]), _over_seconds(right, best, style)
        colors[NAMES[method]] = colors[name] = style["color"]
    start = ends_right.get(f"{NAMES['reptile']}, 200 steps")
    for method in (m for m in STYLES if start and any(m == r.labels["method"] for r in trained_on)):
        group = [r for r in trained_on if r.labels["method"] == method]
        style = LINE | STYLES[method]
        name = "Reptile, longer" if method == "reptile" else f"Reptile, then {NAMES[method]}"
        ends_right[name], colors[name] = _one_step(right, start, group, style), style["color"]
    left.set(xscale="log", xlabel="inner steps in meta-training, and at the meta-test", ylabel="nRMSE on test points")
    left.xaxis.set_major_locator(FixedLocator([1, 5, 20, 50, 200, 1000]))
    left.xaxis.set_minor_locator(NullLocator())
    right.set(xscale="log", xlabel="seconds of meta-training, one CPU thread")
    right.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    right.xaxis.set_minor_formatter(NullFormatter())
    right.set_title("each method at the number of steps that ends lowest", fontsize=10)
    left.set_title(f"after {updates} meta-updates{_exceptions(results, updates)}", fontsize=10)
    for axis, ends in ((left, ends_left), (right, ends_right)):
        axis.xaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
        axis.grid(alpha=0.25, linewidth=0.6)
        axis.spines[["top", "right"]].set_visible(False)
        low, high = axis.get_xlim()
        axis.set_xlim(low, high * (high / low) ** 0.25)
        name_lines(axis, ends, colors)
    text = f"What long horizons are worth: {domain} 100/100, tanh network of 2 x 128, {_seeds(results)}"
    figure.suptitle(text, fontsize=12)
    return figure


def _grouped(results: list[Result]) -> dict[tuple[str, int], list[Result]]:
    """The seeds of every method and number of inner steps."""
    groups: dict[tuple[str, int], list[Result]] = {}
    for r in results:
        groups.setdefault((r.labels["method"], int(r.labels["inner_steps"])), []).append(r)
    return groups


def _reached(group: list[Result], most: float = np.inf) -> int:
    """The number of updates, of most at most, at which the seeds of one method and number of steps are compared."""
    return min(most, *(r.last["update"] for r in group))


def _exceptions(results: list[Result], updates: int) -> str:
    """What the open marks are: runs of fewer updates."""
    fewer: dict[tuple[int, int], list[str]] = {}
    for (method, steps), group in _grouped(results).items():
        if (reached := _reached(group, updates)) < updates:
            fewer.setdefault((reached, steps), []).append(NAMES[method])
    parts = [f"{', '.join(names)} {count} with {steps} steps" for (count, steps), names in fewer.items()]
    return f"\n(open marks: {'; '.join(parts)})" if parts else ""


def _over_seconds(axis: Axes, results: list[Result], style: dict[str, Any]) -> tuple[float, float]:
    """Draw the error over the seconds of meta-training; where the line ends."""
    found = [{test["update"]: test["test"]["mean"][-1] for test in r.tests} for r in results]
    updates = sorted(set.intersection(*map(set, found)))  # at which every seed was tested
    seconds = np.array(updates) * np.median([r.seconds for r in results])
    values = np.array([[one[update] for update in updates] for one in found])
    axis.plot(seconds, values.mean(0), **style)
    axis.fill_between(seconds, values.min(0), values.max(0), color=style["color"], alpha=0.13)
    return seconds[-1], values.mean(0)[-1]


def _one_step(
    axis: Axes, start: tuple[float, float], results: list[Result], style: dict[str, Any]
) -> tuple[float, float]:
    """Draw a line from where it starts to the last meta-test of runs that went on from there; where it ends."""
    seconds = start[0] + np.median([r.seconds for r in results]) * _reached(results)
    end = seconds, float(np.mean([r.at("test", -1) for r in results]))
    axis.plot(*zip(start, end, strict=True), **style | {"linestyle": ":"}, markevery=[1])
    return end
