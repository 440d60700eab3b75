"""The pictures of results/paper: the figure's panels with the paper's points, and what long horizons are worth."""

from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, LogLocator, NullFormatter, NullLocator, StrMethodFormatter

from experiment.figures_compare import curve, name_lines, style
from experiment.results import POINTS, until

NAMES = {
    "amaml": "A-MAML",
    "maml": "MAML",
    "maml1": "MAML-1",
    "fomaml": "FOMAML",
    "imaml": "iMAML",
    "reptile": "Reptile",
}
GREY = {"scratch": {"color": "#777777"}, "pretrained": {"color": "#aaaaaa"}}  # what is not meta-trained
NAMES |= {method: method for method in GREY}
STYLES = {method: style(i, len(NAMES) - 1) | GREY.get(method, {}) for i, method in enumerate(NAMES)}
TOP = 1.6  # of the figure's axes; what starts above is told in figure.md


def draw(
    figure: pd.DataFrame,
    horizons: pd.DataFrame,
    trained_on: pd.DataFrame,
    paper: dict[str, Any],
    updates: int,
    out: Path,
) -> None:
    """figure-SETTING and horizons-DOMAIN in a folder, as far as there are results; updates: for equal updates.

    The frames are those of benchmarks.paper; trained_on: runs that began with Reptile's last theta of 200 steps.
    """
    for setting in ("released", "ours") if len(figure) else ():
        shown = figure[(figure["setting"] == setting) & (figure["unit"] == "epoch") & figure["final"]]
        if len(shown):
            panels(shown, setting, paper).savefig(out / f"figure-{setting}.png", dpi=110)
    for domain in horizons["domain"].unique() if len(horizons) else ():
        own = (f[(f["domain"] == domain) & (f["unit"] != "epoch")] if len(f) else f for f in (horizons, trained_on))
        over_horizons(*own, domain, updates).savefig(out / f"horizons-{domain}.png", dpi=110)


def seeds_of(frame: pd.DataFrame) -> str:
    """How many seeds the curves of a frame have."""
    places = [name for name in frame.columns[: frame.columns.get_loc("then")] if name != "seed"]
    counts = frame.groupby(places, observed=True)["seed"].nunique()
    fewest, most = counts.min(), counts.max()
    if most == 1:
        return "one seed"
    return f"mean and range of {most} seeds" if fewest == most else f"mean and range of {fewest} to {most} seeds"


def panels(frame: pd.DataFrame, setting: str, paper: dict[str, Any]) -> Figure:
    """Above the support set, below the test points, a panel a column: our curves, the paper's ends as open marks."""
    names = [panel for panel in paper["panels"] if (frame["panel"] == panel).any()]
    figure = Figure(figsize=(3.1 * len(names), 6.6), layout="constrained")
    axes = figure.subplots(2, len(names), sharex=True, sharey=True, squeeze=False)
    for column, panel in enumerate(names):
        published = paper["figure"][paper["panels"][panel]]
        for axis, points in zip(axes[:, column], POINTS, strict=True):
            _panel(axis, frame[frame["panel"] == panel], points, published)
            axis.set_title(f"{panel}, {'support set' if points == 'support' else 'test points'}", fontsize=9)
        axes[1, column].set_xlabel("fine-tuning epoch")
    for axis in axes[:, 0]:
        axis.set_ylabel("nRMSE (1: predicting the mean)")
    handles = [matplotlib.lines.Line2D([], [], label=NAMES[m], markerfacecolor="white", **s) for m, s in STYLES.items()]
    figure.legend(handles=handles, loc="outside lower center", ncols=len(handles), frameon=False)
    where = {"released": "at the released setting", "ours": "at our settings"}[setting]
    text = f"The paper's figure, our runs {where}, {seeds_of(frame)}; open marks, the same above and below: the paper"
    figure.suptitle(text, fontsize=11)
    return figure


def _panel(axis: Axes, frame: pd.DataFrame, points: str, published: dict[str, tuple[float, float]]) -> None:
    for method, look in STYLES.items():
        own = frame[frame["method"] == method]
        if len(own):
            values = own.pivot(index="epoch", columns="seed", values=points)
            curve(axis, values, **look | {"marker": ""})
        for epoch, value in zip((0, 1000), published.get(method, ()), strict=False):
            mark = look | {"linestyle": "none", "markerfacecolor": "white"}
            axis.plot([epoch], [min(value, TOP)], **mark, clip_on=False, zorder=4)
    axis.set(ylim=(0, TOP), xlim=(0, 1000), xticks=(0, 500, 1000))
    axis.grid(alpha=0.25, linewidth=0.6)
    axis.spines[["top", "right"]].set_visible(False)


def over_horizons(frame: pd.DataFrame, trained_on: pd.DataFrame, domain: str, updates: int) -> Figure:
    """Left the error after the own inner loop over the horizon, at equal updates; right over the seconds.

    trained_on: what became of Reptile's theta of 200 steps; right, from the end of Reptile's line.
    """
    figure = Figure(figsize=(11, 4.6), layout="constrained")
    left, right = figure.subplots(1, 2, sharey=True)
    ends = frame[frame["end"]].assign(steps=frame["inner_steps"].astype(int))
    after = trained_on[trained_on["end"]] if len(trained_on) else ends.head(0)
    names = [method for method in STYLES if (ends["method"] == method).any()]
    on_left = {NAMES[m]: _over_steps(left, ends[ends["method"] == m], updates, STYLES[m]) for m in names}
    colors, on_right = {NAMES[m]: STYLES[m]["color"] for m in names}, {}
    for method in names:
        steps, best = _best(ends[ends["method"] == method])
        name = f"{NAMES[method]}, {steps} steps"
        on_right[name], colors[name] = _over_seconds(right, best, STYLES[method]), STYLES[method]["color"]
    start = on_right.get(f"{NAMES['reptile']}, 200 steps")
    for method in (m for m in STYLES if start and (after["method"] == m).any()):
        name = "Reptile, longer" if method == "reptile" else f"Reptile, then {NAMES[method]}"
        on_right[name] = _one_step(right, start, after[after["method"] == method], STYLES[method])
        colors[name] = STYLES[method]["color"]
    left.set(xscale="log", xlabel="inner steps in meta-training, and at the meta-test", ylabel="nRMSE on test points")
    left.xaxis.set_major_locator(FixedLocator([1, 5, 20, 50, 200, 1000]))
    left.xaxis.set_minor_locator(NullLocator())
    right.set(xscale="log", xlabel="seconds of meta-training, one CPU thread")
    right.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    right.xaxis.set_minor_formatter(NullFormatter())
    right.set_title("each method at the number of steps that ends lowest", fontsize=10)
    left.set_title(f"after {updates} meta-updates{exceptions(ends, updates)}", fontsize=10)
    for axis, places in ((left, on_left), (right, on_right)):
        axis.xaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
        axis.grid(alpha=0.25, linewidth=0.6)
        axis.spines[["top", "right"]].set_visible(False)
        low, high = axis.get_xlim()
        axis.set_xlim(low, high * (high / low) ** 0.25)
        name_lines(axis, places, colors)
    text = f"What long horizons are worth: {domain} 100/100, tanh network of 2 x 128, {seeds_of(frame)}"
    figure.suptitle(text, fontsize=12)
    return figure


def _reached(group: pd.DataFrame, most: float = np.inf) -> int:
    """The number of updates, of most at most, at which the seeds of one method and number of steps are compared."""
    return int(min(most, group.groupby("seed")["update"].max().min()))


def _over_steps(axis: Axes, ends: pd.DataFrame, updates: int, look: dict[str, Any]) -> tuple[float, float]:
    """Draw a method's error over its inner steps, open marks where it has fewer updates; where the line ends."""
    groups = {steps: (_reached(group, updates), group) for steps, group in ends.groupby("steps")}
    found = {steps: until(group, n).set_index("seed")["test"] for steps, (n, group) in groups.items()}
    end = curve(axis, values := pd.DataFrame(found).T, **look)
    fewer = values.mean(axis="columns")[[steps for steps, (n, _) in groups.items() if n < updates]]
    if len(fewer):
        axis.plot(fewer, **look | {"linestyle": "none", "markerfacecolor": "white"}, zorder=4)
    return end


def _best(ends: pd.DataFrame) -> tuple[int, pd.DataFrame]:
    """The number of steps at which a method ends lowest, and its meta-tests."""
    groups = dict(iter(ends.groupby("steps")))
    best = min(groups, key=lambda steps: until(groups[steps], _reached(groups[steps]))["test"].mean())
    return best, groups[best]


def exceptions(ends: pd.DataFrame, updates: int) -> str:
    """What the open marks are: runs of fewer updates."""
    fewer: dict[tuple[int, int], list[str]] = {}
    for (method, steps), group in ends.groupby(["method", "steps"], observed=True, sort=False):
        if (reached := _reached(group, updates)) < updates:
            fewer.setdefault((reached, steps), []).append(NAMES[method])
    parts = [f"{', '.join(names)} {count} with {steps} steps" for (count, steps), names in fewer.items()]
    return f"\n(open marks: {'; '.join(parts)})" if parts else ""


def _over_seconds(axis: Axes, ends: pd.DataFrame, look: dict[str, Any]) -> tuple[float, float]:
    """Draw the error over the seconds of meta-training, where every seed was tested; where the line ends."""
    values = ends.pivot(index="update", columns="seed", values="test").dropna()
    values.index = values.index * ends.drop_duplicates("seed")["seconds"].median()
    return curve(axis, values, **look)


def _one_step(axis: Axes, start: tuple[float, float], ends: pd.DataFrame, look: dict[str, Any]) -> tuple[float, float]:
    """Draw a line from where it starts to the last meta-test of runs that went on from there; where it ends."""
    seconds = start[0] + ends.drop_duplicates("seed")["seconds"].median() * _reached(ends)
    end = seconds, float(ends.loc[ends["final"], "test"].mean())
    axis.plot(*zip(start, end, strict=True), **look | {"linestyle": ":"}, markevery=[1])
    return end
