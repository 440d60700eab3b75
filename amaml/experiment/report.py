"""Tables and pictures of a run."""

from __future__ import annotations

import io
import math
import warnings
from typing import TYPE_CHECKING, Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, MaxNLocator, NullFormatter, StrMethodFormatter
from torch import Tensor

from amaml.experiment.evaluation import Curves, mean_and_interval
from amaml.experiment.folder import RunFolder
from amaml.experiment.machine import peak_memory_mib
from amaml.models import Apply
from amaml.tasks import Tasks

if TYPE_CHECKING:
    from amaml.experiment.session import Session

SUMMARY_EPOCHS = (0, 10, 100, 500, 1000)
AXES = {"epoch": "fine-tuning epoch", "inner step": "inner step"}
matplotlib.use("Agg")


def in_words(entry: dict[str, Any]) -> str:
    """What came of a meta-test, in a few words."""
    results = (f"{e['test']['mean'][-1]:.4f} after {e['epochs'][-1]} {e['unit']}s" for e in (entry, *entry["also"]))
    return f"{entry['metric']} {' and '.join(results)}"


def test_entry(update: int, curves: Curves, predictors: dict[str, np.ndarray], metric: str) -> dict[str, Any]:
    """A meta-test as it stands in test.json: mean and 95% half-interval over the tasks at every recorded epoch.

    predictors: the metric of simple predictors on the same test points, a value a task. A single task has no interval:
    null.
    """
    entry: dict[str, Any] = {
        "update": update,
        "tasks": int(curves.test.shape[1]),
        "metric": metric,
        "unit": curves.unit,
        "epochs": curves.epochs,
        "predictors": {name: _pair(values) for name, values in predictors.items()},
    }
    for name, values in (("support", curves.support), ("test", curves.test)):
        pairs = [_pair(row) for row in values]
        entry[name] = {"mean": [pair[0] for pair in pairs], "ci95": [pair[1] for pair in pairs]}
    return entry


def _pair(values: np.ndarray) -> tuple[float, float | None]:
    mean, half = mean_and_interval(values)
    return mean, None if math.isnan(half) else half


def at_epochs(entry: dict[str, Any]) -> list[dict[str, float | None]]:
    """The rows of the summary: the metric at epochs 0, 10, 100, 500, 1000 and the last, or at every inner step kept."""
    kept = SUMMARY_EPOCHS if entry["unit"] == "epoch" else entry["epochs"]
    wanted = sorted({e for e in kept if e in entry["epochs"]} | {entry["epochs"][-1]})
    rows = []
    for epoch in wanted:
        i = entry["epochs"].index(epoch)
        row: dict[str, float | None] = {"epoch": epoch}
        for name in ("support", "test"):
            row[name], row[f"{name}_ci95"] = entry[name]["mean"][i], entry[name]["ci95"][i]
        rows.append(row)
    return rows


def table(title: str, entry: dict[str, Any]) -> str:
    """The table a run ends with, of the last meta-test."""
    metric, lines = entry["metric"], [title]
    for part in (entry, *entry["also"]):
        lines.append(f"{part['unit']:>10}  {metric + ' on support':>22}  {metric + ' on test points':>24}")
        for row in at_epochs(part):
            support, test = (_with_interval(row[name], row[f"{name}_ci95"]) for name in ("support", "test"))
            lines.append(f"{row['epoch']:>10.0f}  {support:>22}  {test:>24}")
    lines += [f"{name:>34}  {_with_interval(*pair):>24}" for name, pair in entry["predictors"].items()]
    return "\n".join(lines)


def _with_interval(mean: float, half: float | None) -> str:
    return f"{mean:.4f}" if half is None else f"{mean:.4f} +- {half:.4f}"


def finish(folder: RunFolder, title: str, session: Session) -> str:
    """Write summary.json and curves.png of a run that has made its updates and tests; returns its table."""
    tests, clock = folder.read("test.json", []), session.clock
    metric = session.experiment.domain.objective.metric_name
    seconds, memory = clock.seconds_per_update(), peak_memory_mib(session.settings.device)
    speed = f"{seconds:.4f} s per update" if seconds is not None else "too short to time"
    if clock.warm_up is not None:
        speed += f" (the first {clock.warm_up:.1f} s, tracing{' and compiling' if session.compiled else ''})"
    text = table(title, tests[-1]) + f"\n{session.update} updates, {speed}, peak memory {memory:.0f} MiB"
    folder.write_bytes("curves.png", draw_curves(metric, tests, folder.metrics()))
    folder.write(
        "summary.json",
        {
            "metric": metric,
            "at_epochs": at_epochs(tests[-1]),
            "also": [{"unit": also["unit"], "at_epochs": at_epochs(also)} for also in tests[-1]["also"]],
            "predictors": tests[-1]["predictors"],
            "updates": session.update,
            "seconds_per_update": seconds,
            "first_update_seconds": clock.warm_up,
            "peak_memory_mib": memory,
            "table": text,
        },
    )
    return text


def draw_curves(metric: str, tests: list[dict[str, Any]], metrics: list[dict[str, Any]]) -> bytes:
    """curves.png: the metric over fine-tuning epochs of the last meta-test, and the query loss over updates."""
    figure = Figure(figsize=(10, 4), layout="constrained")
    left, right = figure.subplots(1, 2)
    _draw_adaptation(left, metric, tests[-1])
    _draw_training(right, metrics)
    return _png(figure)


def _draw_adaptation(axes: Axes, metric: str, test: dict[str, Any]) -> None:
    for name, label in (("test", "test points"), ("support", "support")):
        mean, half = np.array(test[name]["mean"]), np.nan_to_num(np.array(test[name]["ci95"], dtype=float))
        axes.plot(test["epochs"], mean, label=label, marker="" if len(mean) > 1 else "o")
        axes.fill_between(test["epochs"], mean - half, mean + half, alpha=0.25, linewidth=0)
    axes.set(xlabel=AXES[test["unit"]], ylabel=metric, ylim=(0, None))
    count = "1 meta-test task" if test["tasks"] == 1 else f"mean and 95% interval of {test['tasks']} meta-test tasks"
    axes.set_title(f"{count} after {test['update']} updates", fontsize=10)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.legend()


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
    drawable = tuple(input_shape) in ((1,), (2,))
    if not drawable:
        message = f"--draw shows tasks of one or two inputs, these have {tuple(input_shape)}: there will be no picture"
        warnings.warn(message, RuntimeWarning, stacklevel=2)
    return drawable


def draw_fits(apply: Apply, theta: Tensor, phi: Tensor, tasks: Tasks) -> bytes:
    """fits.png: every task with data, truth, and the network before and after adaptation.

    theta (P,), phi (tasks, P). A curve a task for one input, three surfaces for two (see can_draw).
    """
    inputs, count = tuple(tasks.support_x.shape[2:]), len(tasks)
    draw, columns, width = (_draw_curve, 1, 6.5) if inputs == (1,) else (_draw_surfaces, 3, 9.6)
    figure = Figure(figsize=(width, 3.2 * count), layout="constrained")
    axes = figure.subplots(count, columns, squeeze=False, sharex=True)
    for i in range(count):
        x = tasks.test_x[i]
        pictures = [tasks.test_y[i], apply(theta, x), apply(phi[i], x)]
        shown = [tasks.support_x[i], tasks.support_y[i], x, *pictures]
        draw(axes[i], f"meta-test task {i}", *(t.detach().double().cpu().numpy() for t in shown))
    return _png(figure)


def _draw_curve(axes, task, support_x, support_y, x, truth, before, after) -> None:
    axes[0].plot(x[:, 0], truth[:, 0], "k", label="truth")
    axes[0].plot(x[:, 0], before[:, 0], "C0--", label="before adaptation")
    axes[0].plot(x[:, 0], after[:, 0], "C3", label="after adaptation")
    axes[0].plot(support_x[:, 0], support_y[:, 0], "k.", label="support")
    axes[0].set(xlabel="x", ylabel="y")
    axes[0].set_title(task, fontsize=10)
    axes[0].label_outer()
    axes[0].legend(fontsize=8)


def _draw_surfaces(axes, task, support_x, support_y, x, truth, before, after) -> None:
    side = round(len(x) ** 0.5)
    low, high = truth.min(), truth.max()
    titles = (f"{task}: truth and support", "before adaptation", "after adaptation")
    for axis, values, title in zip(axes, (truth, before, after), titles, strict=True):
        mesh = [part.reshape(side, side) for part in (x[:, 0], x[:, 1], values[:, 0])]
        picture = axis.pcolormesh(*mesh, vmin=low, vmax=high, shading="nearest")
        axis.set(xlabel="x1", ylabel="x2", aspect="equal")
        axis.set_title(title, fontsize=10)
        axis.label_outer()
    axes[0].scatter(*support_x.T, c=support_y[:, 0], vmin=low, vmax=high, edgecolors="white", linewidths=0.6, s=18)
    axes[0].figure.colorbar(picture, ax=axes, label="y", aspect=15)


def _png(figure: Figure) -> bytes:
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=120)
    return buffer.getvalue()
