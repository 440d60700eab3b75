"""The pictures of results/paper: the figure's panels with the paper's points, and what long horizons are worth."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, LogLocator, NullLocator, StrMethodFormatter

from experiment.figures_compare import curve, name_lines, plain, save, shared, style
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
STYLES = {method: style(i, len(NAMES)) | GREY.get(method, {}) for i, method in enumerate(NAMES)}
CHOSEN = "chosen"  # what the names of the trials on reported seeds begin with
NEAR = 0.02  # curves that are nowhere further apart share a name
TOP = 1.6  # of the figure's axes; what starts above is told in figure.md


def draw(
    figure: pd.DataFrame,
    horizons: pd.DataFrame,
    trained_on: pd.DataFrame,
    trials: pd.DataFrame,
    paper: dict[str, Any],
    updates: int,
    out: Path,
) -> None:
    """figure-SETTING-POINTS, horizons-DOMAIN and lead in a folder, as far as there are results.

    The frames are those of benchmarks.paper; trained_on: runs that began with Reptile's last theta of 200 steps;
    updates: at which methods are compared.
    """
    if len(lead := chosen(trials)):
        save(over_updates(lead), out / "lead")
    for setting in ("released", "ours") if len(figure) else ():
        shown = figure[(figure["setting"] == setting) & (figure["unit"] == "epoch") & figure["final"]]
        for points in POINTS if len(shown) else ():
            save(panels(shown, setting, points, paper), out / f"figure-{setting}-{points}")
    for domain in horizons["domain"].unique() if len(horizons) else ():
        own = (f[(f["domain"] == domain) & (f["unit"] != "epoch")] if len(f) else f for f in (horizons, trained_on))
        save(over_horizons(*own, domain, updates), out / f"horizons-{domain}")


def chosen(trials: pd.DataFrame) -> pd.DataFrame:
    """Those of the targets lead, lead-rates and lead-after, on the seeds that are reported."""
    return trials[trials["trial"].astype(str).str.startswith(CHOSEN)] if len(trials) else trials


def seeds_of(frame: pd.DataFrame) -> str:
    """How many seeds the curves of a frame have."""
    places = [name for name in frame.columns[: frame.columns.get_loc("then")] if name != "seed"]
    counts = frame.groupby(places, observed=True)["seed"].nunique()
    fewest, most = counts.min(), counts.max()
    if most == 1:
        return "one seed"
    count = str(most) if fewest == most else f"{fewest} to {most}"
    return f"mean, and bars from lowest to highest, of {count} seeds"


def panels(frame: pd.DataFrame, setting: str, points: str, paper: dict[str, Any]) -> Figure:
    """A panel a family and number of points: our curves on one kind of points, the paper's ends as open marks."""
    names = [panel for panel in paper["panels"] if (frame["panel"] == panel).any()]
    rows = 2 if len(names) > 3 else 1
    figure = Figure(figsize=(11, 0.9 + 2.9 * rows), layout="constrained")
    axes = figure.subplots(rows, -(-len(names) // rows), sharex=True, sharey=True, squeeze=False)
    for axis, panel in zip(axes.flat, names, strict=False):
        _panel(axis, frame[frame["panel"] == panel], points, paper["figure"][paper["panels"][panel]])
        family, _, count = panel.rpartition("-")
        axis.set_title(f"{family}, {count} support points", fontsize=10)
        axis.label_outer()
    where = {"released": "the released setting", "ours": "our settings"}[setting]
    on = {"test": "test points", "support": "the support set"}[points]
    text = f"The paper's figure at {where}, errors on {on}; {seeds_of(frame)}\n"
    figure.suptitle(text + "open marks: the paper's curves at epochs 0 and 1000, in the method's colour", fontsize=11)
    return figure


def _panel(axis: Axes, frame: pd.DataFrame, points: str, published: dict[str, tuple[float, float]]) -> None:
    axis.set(ylim=(0, TOP), xlim=(-20, 1020), xticks=(0, 500, 1000), xlabel="fine-tuning epoch", ylabel="nRMSE")
    plain(axis)
    groups = {method: frame[frame["method"] == method] for method in STYLES}
    curves = {m: own.pivot(index="epoch", columns="seed", values=points) for m, own in groups.items() if len(own)}
    ends = {m: curve(axis, v, place=(i, len(curves)), **_line(m)) for i, (m, v) in enumerate(curves.items())}
    for method, values in published.items():
        mark = _line(method) | {"linestyle": "none", "markerfacecolor": "none", "markersize": 7}
        axis.plot([0, 1000], np.minimum(values, TOP), **mark, clip_on=False, zorder=4)
    names = {method: NAMES[method] for method in curves}
    together = shared({names[method]: values for method, values in curves.items()}, NEAR)
    shown = {together[names[m]]: (end, STYLES[m]["color"]) for m, end in ends.items() if names[m] in together}
    name_lines(
        axis, {name: end for name, (end, _) in shown.items()}, {name: color for name, (_, color) in shown.items()}
    )


def _line(method: str) -> dict[str, Any]:
    return STYLES[method] | {"linewidth": 2.2 if method == "amaml" else 1.4, "markersize": 3.5}


def over_updates(frame: pd.DataFrame) -> Figure:
    """A panel a domain: the error after the own inner loop over the meta-updates, a line a method and trial."""
    ends = frame[(frame["unit"] != "epoch") & frame["end"]]
    methods = ends["method"].astype(str).map(NAMES)
    ends = ends.assign(name=methods + ends["trial"].astype(str).str.removeprefix(CHOSEN))
    looks = {name: style(i, ends["name"].nunique()) for i, name in enumerate(sorted({*ends["name"]}))}
    domains = list(dict.fromkeys(ends["domain"]))
    figure = Figure(figsize=(9.6, 4.0), layout="constrained")
    for axis, domain in zip(figure.subplots(1, len(domains), squeeze=False).flat, domains, strict=True):
        own = ends[ends["domain"] == domain]
        last = own["update"].max()
        axis.set(xlim=(own["update"].min() - 20, 1.3 * last), xticks=sorted({*own["update"]}), xlabel="meta-updates")
        plain(axis)
        values = {n: group.pivot(index="update", columns="seed", values="test") for n, group in own.groupby("name")}
        drawn = {n: curve(axis, v, place=(i, len(values)), **looks[n]) for i, (n, v) in enumerate(values.items())}
        axis.set_ylabel("nRMSE on test points")
        axis.set_ylim(axis.get_ylim())
        axis.set_title(domain, fontsize=10)
        name_lines(axis, drawn, {name: look["color"] for name, look in looks.items()})
    steps = ends["epoch"].max()
    figure.suptitle(
        f"After {steps} inner steps on new tasks, each method at its best setting; {seeds_of(frame)}", fontsize=11
    )
    return figure


def over_horizons(frame: pd.DataFrame, trained_on: pd.DataFrame, domain: str, updates: int) -> Figure:
    """Left the error after the own inner loop over the horizon, at equal updates; right over the seconds.

    trained_on: what became of Reptile's theta of 200 steps; right, from the end of Reptile's line.
    """
    figure = Figure(figsize=(9.6, 4.4), layout="constrained")
    left, right = figure.subplots(1, 2, sharey=True)
    ends = frame[frame["end"]].assign(steps=frame["inner_steps"].astype(int))
    after = trained_on[trained_on["end"]] if len(trained_on) else ends.head(0)
    names = [method for method in STYLES if (ends["method"] == method).any()]
    counts = sorted({*ends["steps"]})
    _prepare(left, counts, "inner steps in meta-training, and at the meta-test")
    left.xaxis.set_major_locator(FixedLocator([n for n in (1, 5, 20, 50, 200, 1000) if n in counts]))
    places = {method: (i, len(names)) for i, method in enumerate(names)}
    on_left = {NAMES[m]: _over_steps(left, ends[ends["method"] == m], updates, places[m], STYLES[m]) for m in names}
    colors, on_right = {NAMES[m]: STYLES[m]["color"] for m in names}, {}
    best = {method: _best(ends[ends["method"] == method]) for method in names}
    spent = {method: _seconds(own) for method, (_, own) in best.items()}
    _prepare(right, [x for values in spent.values() for x in values.index], "seconds of meta-training, one CPU thread")
    right.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    for method, values in spent.items():
        name = f"{NAMES[method]} ({best[method][0]})"
        on_right[name], colors[name] = (
            curve(right, values, place=places[method], **STYLES[method]),
            colors[NAMES[method]],
        )
    start = on_right.get(f"{NAMES['reptile']} (200)")
    for method in (m for m in STYLES if start and (after["method"] == m).any()):
        name = "Reptile, longer" if method == "reptile" else f"Reptile, then {NAMES[method]}"
        on_right[name] = _one_step(right, start, after[after["method"] == method], STYLES[method])
        colors[name] = STYLES[method]["color"]
    left.set_ylabel("nRMSE on test points")
    left.set_title(f"after {updates} meta-updates{exceptions(ends, updates)}", fontsize=10)
    right.set_title("each method at the number of steps (in brackets)\nthat ends lowest", fontsize=10)
    left.set_ylim(left.get_ylim())  # of both; names are placed by it
    for axis, lines in ((left, on_left), (right, on_right)):
        name_lines(axis, lines, colors)
    figure.suptitle(f"{domain}, 100 support points, tanh network of 2 x 128; {seeds_of(frame)}", fontsize=11)
    return figure


def _prepare(axis: Axes, x: Sequence[float], label: str) -> None:
    """A logarithmic axis from the least to the largest x, with room for names."""
    low, high = min(x), max(x)
    axis.set(xscale="log", xlabel=label, xlim=(low / 1.2, high * max(high / low, 2.0) ** 0.3))
    axis.xaxis.set_minor_locator(NullLocator())
    axis.xaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
    plain(axis)


def _reached(group: pd.DataFrame, most: float = np.inf) -> int:
    """The number of updates, of most at most, at which the seeds of one method and number of steps are compared."""
    return int(min(most, group.groupby("seed")["update"].max().min()))


def _over_steps(
    axis: Axes, ends: pd.DataFrame, updates: int, place: tuple[int, int], look: dict[str, Any]
) -> tuple[float, float]:
    """Draw a method's error over its inner steps, open marks where it has fewer updates; where the line ends."""
    groups = {steps: (_reached(group, updates), group) for steps, group in ends.groupby("steps")}
    found = {steps: until(group, n).set_index("seed")["test"] for steps, (n, group) in groups.items()}
    end = curve(axis, values := pd.DataFrame(found).T, place=place, **look)
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
    parts = [f"{', '.join(names)} with {steps} steps after {count}" for (count, steps), names in fewer.items()]
    return f"\n(open marks: {'; '.join(parts)})" if parts else ""


def _seconds(ends: pd.DataFrame) -> pd.DataFrame:
    """The error over the seconds of meta-training, where every seed was tested, a column a seed."""
    values = ends.pivot(index="update", columns="seed", values="test").dropna()
    return values.set_axis(values.index * ends.drop_duplicates("seed")["seconds"].median())


def _one_step(axis: Axes, start: tuple[float, float], ends: pd.DataFrame, look: dict[str, Any]) -> tuple[float, float]:
    """Draw a line from where it starts to the last meta-test of runs that went on from there; where it ends."""
    seconds = start[0] + ends.drop_duplicates("seed")["seconds"].median() * _reached(ends)
    end = seconds, float(ends.loc[ends["final"], "test"].mean())
    axis.plot(*zip(start, end, strict=True), **look | {"linestyle": ":"}, markevery=[1])
    return end
