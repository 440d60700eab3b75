"""The pictures of a run: its curves, and fitted tasks."""

from __future__ import annotations

import io
import warnings
from typing import Any, NamedTuple

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, MaxNLocator, NullFormatter, StrMethodFormatter

AXES = {"epoch": "fine-tuning epoch", "inner step": "inner step"}
POINTS = (("test", "test points", "C0"), ("support", "support", "C1"))
matplotlib.use("Agg")


def draw_curves(title: str, tests: list[dict[str, Any]], metrics: list[dict[str, Any]]) -> bytes:
    """curves.png: every protocol of the last meta-test; what adaptation ends with at every meta-test so far; training.

    tests: the entries of test.json; metrics: the lines of metrics.jsonl.
    """
    last = [tests[-1], *tests[-1]["also"]]
    parts = len(last) + (len(tests) > 1) + 1
    figure = Figure(figsize=(4.6 * parts, 4), layout="constrained")
    count = "1 meta-test task" if tests[-1]["tasks"] == 1 else f"mean and 95% interval of {tests[-1]['tasks']} tasks"
    figure.suptitle(f"{title}\nmeta-tests: {count}", fontsize=11)
    axes = list(figure.subplots(1, parts))
    for entry in last:
        _draw_adaptation(axes.pop(0), entry)
    if len(tests) > 1:
        _draw_tests(axes.pop(0), tests)
    _draw_training(axes.pop(0), metrics)
    return _png(figure)


def _draw_adaptation(axes: Axes, test: dict[str, Any]) -> None:
    for name, label, color in POINTS:
        _draw_mean(axes, test["epochs"], test[name]["mean"], test[name]["ci95"], label, color)
    axes.set(xlabel=AXES[test["unit"]], ylabel=test["metric"], ylim=(0, None))
    axes.set_title(f"meta-test after {test['update']} updates", fontsize=10)
    axes.legend()


def _draw_tests(axes: Axes, tests: list[dict[str, Any]]) -> None:
    """The metric at the last epoch or step of every meta-test of the first protocol."""
    alike = [test for test in tests if test["unit"] == tests[-1]["unit"]]
    for name, label, color in POINTS:
        mean, half = ([test[name][key][-1] for test in alike] for key in ("mean", "ci95"))
        _draw_mean(axes, [test["update"] for test in alike], mean, half, label, color, marker="o")
    axes.set(xlabel="meta-update", ylabel=tests[-1]["metric"], ylim=(0, None))
    axes.set_title(f"at the last {AXES[tests[-1]['unit']]} of every meta-test", fontsize=10)
    axes.legend()


def _draw_mean(axes: Axes, x, mean, half, label: str, color: str, marker: str = "") -> None:
    mean, half = np.array(mean), np.nan_to_num(np.array(half, dtype=float))
    axes.plot(x, mean, label=label, color=color, marker=marker if len(mean) > 1 else "o")
    axes.fill_between(x, mean - half, mean + half, alpha=0.25, linewidth=0, color=color)
    axes.xaxis.set_major_locator(MaxNLocator(5, integer=True))


def _draw_training(axes: Axes, metrics: list[dict[str, Any]]) -> None:
    made = [m for m in metrics if "query_loss" in m]  # a batch that was left out has none
    updates, losses = [m["update"] for m in made], np.array([m["query_loss"] for m in made])
    window = len(losses) // 20
    if window > 1:
        smooth = np.convolve(losses, np.ones(window) / window, mode="valid")
        axes.plot(updates, losses, "C0", alpha=0.3, linewidth=0.8, label="each update")
        axes.plot(updates[window - 1 :], smooth, "C0", label=f"mean of {window} updates")
        axes.legend()
    else:
        axes.plot(updates, losses, "C0", marker="." if len(losses) < 30 else "")
    axes.set(xlabel="meta-update", ylabel="query loss", yscale="log")
    axes.set_title("after the inner loop, in meta-training", fontsize=10)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 3, 5)))
    axes.yaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
    axes.yaxis.set_minor_formatter(NullFormatter())


def can_draw(input_shape: tuple[int, ...]) -> bool:
    """Whether draw_fits can show such tasks, those of one or two inputs; warns where it cannot."""
    if input_shape in ((1,), (2,)):
        return True
    message = f"--draw shows tasks of one or two inputs, these have {tuple(input_shape)}: there will be no picture"
    warnings.warn(message, RuntimeWarning, stacklevel=2)
    return False


class Fits(NamedTuple):
    """Fitted tasks in the units of their data, as arrays: x (tasks, points, d), y and predictions (tasks, points, 1).

    before, after: the network's predictions at x, with their errors (tasks,); metric: the name of these.
    """

    support_x: np.ndarray
    support_y: np.ndarray
    x: np.ndarray
    truth: np.ndarray
    before: np.ndarray
    after: np.ndarray
    errors_before: np.ndarray
    errors_after: np.ndarray
    metric: str


def draw_fits(title: str, fits: Fits) -> bytes:
    """fits.png: every task with its data, the truth, and the network before and after adaptation.

    A curve a task for one input, three surfaces for two (see can_draw).
    """
    count, inputs = fits.x.shape[0], fits.x.shape[2]
    draw, columns, width = (_draw_curve, 1, 6.5) if inputs == 1 else (_draw_surfaces, 3, 9.6)
    figure = Figure(figsize=(width, 3.2 * count + 0.4), layout="constrained")
    figure.suptitle(title, fontsize=11)
    axes = figure.subplots(count, columns, squeeze=False, sharex=True)
    for i in range(count):
        draw(axes[i], f"meta-test task {i}", Fits(*(part[i] for part in fits[:-1]), fits.metric))
    return _png(figure)


def _draw_curve(axes, name: str, task: Fits) -> None:
    metric, x = task.metric, task.x[:, 0]
    axes[0].plot(x, task.truth[:, 0], "k", label="truth")
    axes[0].plot(x, task.before[:, 0], "C0--", label=f"before adaptation, {metric} {task.errors_before:.3g}")
    axes[0].plot(x, task.after[:, 0], "C3", label=f"after adaptation, {metric} {task.errors_after:.3g}")
    axes[0].plot(task.support_x[:, 0], task.support_y[:, 0], "k.", label="support")
    axes[0].set(xlabel="x", ylabel="y")
    axes[0].set_title(name, fontsize=10)
    axes[0].label_outer()
    axes[0].legend(fontsize=8)


def _draw_surfaces(axes, name: str, task: Fits) -> None:
    side = round(len(task.x) ** 0.5)
    low, high = task.truth.min(), task.truth.max()
    titles = (
        f"{name}: truth and support",
        f"before adaptation, {task.metric} {task.errors_before:.3g}",
        f"after adaptation, {task.metric} {task.errors_after:.3g}",
    )
    for axis, values, title in zip(axes, (task.truth, task.before, task.after), titles, strict=True):
        mesh = [part.reshape(side, side) for part in (task.x[:, 0], task.x[:, 1], values[:, 0])]
        picture = axis.pcolormesh(*mesh, vmin=low, vmax=high, shading="nearest")
        axis.set(xlabel="x1", ylabel="x2", aspect="equal")
        axis.set_title(title, fontsize=10)
        axis.label_outer()
    points = {"c": task.support_y[:, 0], "vmin": low, "vmax": high}
    axes[0].scatter(*task.support_x.T, **points, edgecolors="white", linewidths=0.6, s=18)
    axes[0].figure.colorbar(picture, ax=axes, label="y", aspect=15)


def _png(figure: Figure) -> bytes:
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=120)
    return buffer.getvalue()
