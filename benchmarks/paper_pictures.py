"""The pictures of results/paper: the figure's panels with the paper's points, and what long horizons are worth."""

import copy
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, Locator, LogLocator, NullLocator

from experiment.figures import curve, legend, plain, save, style
from experiment.results import POINTS

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
THIN = {"linewidth": 1.4, "markersize": 3.5}
STYLES = {method: style(i, len(NAMES)) | THIN | GREY.get(method, {}) for i, method in enumerate(NAMES)}
STYLES["amaml"]["linewidth"] = 2.2
SHORT = 50  # steps, at which learned rates are shown beside those of 200
RUNS = {  # of the targets horizons and horizons-work
    "amaml": "A-MAML",
    "amaml-rates": "A-MAML, learned rates",
    "amaml-rates-short": f"learned rates, {SHORT} steps",
    "fomaml": "FOMAML",
    "imaml": "iMAML",
    "reptile": "Reptile",
    "reptile-longer": "Reptile, longer",
    "maml-50": "MAML through 50 steps",
}
LOOKS = {run: style(i, len(RUNS)) for i, run in enumerate(RUNS)}
TOP = 1.6  # of the figure's axes; what starts above is told in figure.md


def draw(figure: pd.DataFrame, horizons: pd.DataFrame | None, paper: dict[str, Any], out: Path) -> None:
    """figure-SETTING-POINTS, horizons and lead in a folder, as far as there are results.

    The frames are those of benchmarks.paper; horizons: its meta-tests along training, with their work.
    """
    for setting in ("released", "ours") if len(figure) else ():
        shown = figure[(figure["setting"] == setting) & (figure["unit"] == "epoch") & figure["final"]]
        for points in POINTS if len(shown) else ():
            save(panels(shown, setting, points, paper), out / f"figure-{setting}-{points}")
    if horizons is not None:
        save(over_horizons(horizons[horizons["final"]]), out / "horizons")
        save(over_work(horizons), out / "lead")


def seeds_of(frame: pd.DataFrame) -> str:
    """How many seeds the curves of a frame have."""
    places = [name for name in frame.columns[: frame.columns.get_loc("then")] if name != "seed"]
    counts = frame.groupby(places, observed=True)["seed"].nunique()
    fewest, most = counts.min(), counts.max()
    if most == 1:
        return "one seed"
    count = str(most) if fewest == most else f"{fewest} to {most}"
    return f"mean, and bands from lowest to highest, of {count} seeds"


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
    legend(figure)
    return figure


def _panel(axis: Axes, frame: pd.DataFrame, points: str, published: dict[str, tuple[float, float]]) -> None:
    axis.set(ylim=(0, TOP), xlim=(-20, 1020), xticks=(0, 500, 1000), xlabel="fine-tuning epoch", ylabel="nRMSE")
    plain(axis)
    groups = {method: frame[frame["method"] == method] for method in STYLES}
    curves = {m: own.pivot(index="epoch", columns="seed", values=points) for m, own in groups.items() if len(own)}
    for i, (method, values) in enumerate(curves.items()):
        curve(axis, values, shift=i / len(curves), label=NAMES[method], **STYLES[method])
    for method, values in published.items():
        mark = STYLES[method] | {"linestyle": "none", "markerfacecolor": "none", "markersize": 7}
        axis.plot([0, 1000], np.minimum(values, TOP), **mark, clip_on=False, zorder=4)


def over_horizons(ends: pd.DataFrame) -> Figure:
    """A panel a domain: the error after the own inner loop over the inner steps, at the end of training."""
    several = ends.groupby("run", observed=True)["inner_steps"].transform("nunique") > 1
    worst = ends.groupby(["domain", "run", "inner_steps"], observed=True)["test"].transform("max")
    ends = ends[several & (worst < 1)].assign(steps=ends["inner_steps"].astype(int))  # 1: predicting the mean
    text = f"Error on new tasks, each method at its best setting; {seeds_of(ends)}"
    label, ticks = "inner steps in meta-training, and at the meta-test", FixedLocator(sorted({*ends["steps"]}))
    return _domains(ends, "steps", text, label, ticks)


def over_work(ends: pd.DataFrame) -> Figure:
    """A panel a domain: the error after 200 inner steps over the work of training, at every meta-test on the way."""
    short = ends[(ends["run"] == "amaml-rates") & (ends["inner_steps"] == str(SHORT))]
    ends = pd.concat([ends[ends["inner_steps"] == "200"], short.assign(run="amaml-rates-short")])
    mean = ends.groupby(["domain", "run", "update"], observed=True)["work"].transform("mean")
    text = f"Error on new tasks after 200 inner steps (learned rates also {SHORT}); {seeds_of(ends)}"
    label = "work of training, thousand gradients a task"
    return _domains(ends.assign(work=mean), "work", text, label, LogLocator(subs=(1, 2, 5)))


def _domains(ends: pd.DataFrame, over: str, text: str, label: str, ticks: Locator) -> Figure:
    """A panel a domain, a line a run: the test error over a column, on a logarithmic axis; names below."""
    domains = list(dict.fromkeys(ends["domain"]))
    figure = Figure(figsize=(9.6, 4.4), layout="constrained")
    figure.suptitle(text, fontsize=11)
    for axis, domain in zip(figure.subplots(1, len(domains), squeeze=False).flat, domains, strict=True):
        own = ends[ends["domain"] == domain]
        axis.set(xscale="log", xlim=(own[over].min() / 1.2, 1.2 * own[over].max()))
        axis.set(xlabel=label, ylabel="nRMSE on test points")
        axis.xaxis.set(major_locator=copy.copy(ticks), major_formatter="{x:g}", minor_locator=NullLocator())
        axis.set_title(domain, fontsize=10)
        plain(axis)
        for i, run in enumerate(RUNS):
            values = own[own["run"] == run].pivot(index=over, columns="seed", values="test")
            if len(values):
                curve(axis, values, shift=i / len(RUNS), label=RUNS[run], **LOOKS[run])
    legend(figure)
    return figure
