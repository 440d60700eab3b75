"""The pictures of a run: its curves, and fitted tasks."""

import io
import warnings
from typing import Any, NamedTuple

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

POINTS = (("test", "test points", "C0"), ("support", "support", "C1"))


def draw_curves(title: str, tests: list[dict[str, Any]], metrics: list[dict[str, Any]]) -> bytes:
    """curves.png: every protocol of the last meta-test; what adaptation ends with at every meta-test so far; training.

    tests: the entries of test.json; metrics: the lines of metrics.jsonl.
    """
    last, count = [tests[-1], *tests[-1]["also"]], tests[-1]["tasks"]
    alike = [test for test in tests if test["unit"] == tests[-1]["unit"]]
    parts = len(last) + (len(tests) > 1) + 1
    figure = Figure(figsize=(4.6 * parts, 4), layout="constrained")
    tasks = "1 meta-test task" if count == 1 else f"mean and 95% interval of {count} tasks"
    figure.suptitle(f"{title}\nmeta-tests: {tasks}", fontsize=11)
    axes = list(figure.subplots(1, parts))
    for entry in last:
        unit = "fine-tuning epoch" if entry["unit"] == "epoch" else "inner step"
        curves = {name: (entry[name]["mean"], entry[name]["ci95"]) for name, *_ in POINTS}
        _draw_means(axes.pop(0), entry["epochs"], curves, "", xlabel=unit, ylabel=entry["metric"])
    if len(tests) > 1:
        ends = {name: [[t[name][key][-1] for t in alike] for key in ("mean", "ci95")] for name, *_ in POINTS}
        ylabel = f"{tests[-1]['metric']} at the last {tests[-1]['unit']}"
        _draw_means(axes.pop(0), [t["update"] for t in alike], ends, "o", xlabel="meta-update", ylabel=ylabel)
    _draw_training(axes.pop(0), metrics)
    return _png(figure)


def _draw_means(axes: Axes, x: list[int], curves: dict[str, Any], marker: str, **labels: str) -> None:
    """Means with their intervals, (mean, half) by the name of the points."""
    for name, label, color in POINTS:
        mean, half = (np.nan_to_num(np.array(part, dtype=float)) for part in curves[name])
        axes.plot(x, mean, label=label, color=color, marker=marker if len(mean) > 1 else "o")
        axes.fill_between(x, mean - half, mean + half, alpha=0.25, linewidth=0, color=color)
    axes.xaxis.set_major_locator(MaxNLocator(5, integer=True))
    axes.set(ylim=(0, None), **labels)
    axes.legend()


def _draw_training(axes: Axes, metrics: list[dict[str, Any]]) -> None:
    updates, losses = [m["update"] for m in metrics], np.array([m["query_loss"] for m in metrics])
    window = len(losses) // 20
    if window > 1:
        smooth = np.convolve(losses, np.ones(window) / window, mode="valid")
        axes.plot(updates, losses, "C0", alpha=0.3, linewidth=0.8, label="each update")
        axes.plot(updates[window - 1 :], smooth, "C0", label=f"mean of {window} updates")
        axes.legend()
    else:
        axes.plot(updates, losses, "C0", marker="." if len(losses) < 30 else "")
    axes.set(xlabel="meta-update", ylabel="query loss after the inner loop", yscale="log")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))


def can_draw(input_shape: tuple[int, ...]) -> bool:
    """Whether draw_fits can show such tasks, those of one or two inputs; warns where it cannot."""
    if tuple(input_shape) in ((1,), (2,)):
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
        task = Fits(*(part[i] for part in fits[:-1]), fits.metric)
        errors = zip(("before", "after"), (task.errors_before, task.errors_after), strict=True)
        draw(axes[i], task, [f"{when} adaptation, {fits.metric} {error:.3g}" for when, error in errors])
        axes[i][0].set_title(f"meta-test task {i}", fontsize=10)
        for axis in axes[i]:
            axis.label_outer()
    return _png(figure)


def _draw_curve(axes: list[Axes], task: Fits, labels: list[str]) -> None:
    (axis,), x = axes, task.x[:, 0]
    axis.plot(x, task.truth[:, 0], "k", label="truth")
    axis.plot(x, task.before[:, 0], "C0--", label=labels[0])
    axis.plot(x, task.after[:, 0], "C3", label=labels[1])
    axis.plot(task.support_x[:, 0], task.support_y[:, 0], "k.", label="support")
    axis.set(xlabel="x", ylabel="y")
    axis.legend(fontsize=8)


def _draw_surfaces(axes: list[Axes], task: Fits, labels: list[str]) -> None:
    side, limits = round(len(task.x) ** 0.5), {"vmin": task.truth.min(), "vmax": task.truth.max()}
    for axis, values, label in zip(axes, (task.truth, task.before, task.after), ["", *labels], strict=True):
        mesh = [part.reshape(side, side) for part in (task.x[:, 0], task.x[:, 1], values[:, 0])]
        picture = axis.pcolormesh(*mesh, **limits, shading="nearest")
        axis.set(xlabel="x1", ylabel="x2", aspect="equal")
        axis.set_title(label, fontsize=10)
    axes[0].scatter(*task.support_x.T, c=task.support_y[:, 0], **limits, edgecolors="white", linewidths=0.6, s=18)
    axes[0].figure.colorbar(picture, ax=list(axes), label="y", aspect=15)


def _png(figure: Figure) -> bytes:
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=120)
    return buffer.getvalue()
