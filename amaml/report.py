"""Tables and pictures of a run."""

import resource
import sys
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
import torch
from matplotlib.figure import Figure
from torch import Tensor

from amaml.errors import InputError
from amaml.evaluation import Curves, mean_and_interval
from amaml.models import Apply
from amaml.tasks import Tasks

SUMMARY_EPOCHS = (0, 10, 100, 500, 1000)
matplotlib.use("Agg")


def test_entry(update: int, curves: Curves) -> dict[str, Any]:
    """A meta-test as it stands in test.json: mean and 95% half-interval over the tasks at every recorded epoch."""
    entry: dict[str, Any] = {"update": update, "tasks": int(curves.test.shape[1]), "epochs": curves.epochs}
    for name, values in (("support", curves.support), ("test", curves.test)):
        pairs = [mean_and_interval(row) for row in values]
        entry[name] = {"mean": [mean for mean, _ in pairs], "ci95": [half for _, half in pairs]}
    return entry


def at_epochs(entry: dict[str, Any]) -> list[dict[str, float]]:
    """The rows of the summary: the metric at epochs 0, 10, 100, 500, 1000 and at the last one."""
    wanted = sorted({e for e in SUMMARY_EPOCHS if e in entry["epochs"]} | {entry["epochs"][-1]})
    rows = []
    for epoch in wanted:
        i = entry["epochs"].index(epoch)
        row: dict[str, float] = {"epoch": epoch}
        for name in ("support", "test"):
            row[name], row[f"{name}_ci95"] = entry[name]["mean"][i], entry[name]["ci95"][i]
        rows.append(row)
    return rows


def peak_memory_mib(device: str) -> float:
    """Peak memory so far: of the device's allocator on CUDA, of the process elsewhere."""
    if device.startswith("cuda"):
        return torch.cuda.max_memory_allocated(device) / 2**20
    unit = 1 if sys.platform == "darwin" else 2**10  # ru_maxrss is in bytes there, in KiB on Linux
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 2**20


def table(title: str, metric: str, rows: list[dict[str, float]]) -> str:
    """The table a run ends with."""
    lines = [title, f"{'epoch':>8}  {metric + ' on support':>22}  {metric + ' on test points':>24}"]
    for row in rows:
        support = f"{row['support']:.4f} +- {row['support_ci95']:.4f}"
        test = f"{row['test']:.4f} +- {row['test_ci95']:.4f}"
        lines.append(f"{row['epoch']:>8.0f}  {support:>22}  {test:>24}")
    return "\n".join(lines)


def draw_curves(path: Path, metric: str, tests: list[dict[str, Any]], metrics: list[dict[str, Any]]) -> None:
    """curves.png: the metric over fine-tuning epochs of the last meta-test, and the query loss over updates."""
    figure = Figure(figsize=(10, 4), layout="constrained")
    left, right = figure.subplots(1, 2)
    last = tests[-1]
    for name, label in (("test", "test points"), ("support", "support")):
        mean, half = np.array(last[name]["mean"]), np.nan_to_num(np.array(last[name]["ci95"], dtype=float))
        left.plot(last["epochs"], mean, label=label)
        left.fill_between(last["epochs"], mean - half, mean + half, alpha=0.25)
    left.set(xlabel="fine-tuning epoch", ylabel=metric, ylim=(0, None))
    left.set_title(f"{last['tasks']} meta-test tasks after {last['update']} updates, mean and 95% interval", fontsize=9)
    left.legend()
    updates, losses = [m["update"] for m in metrics], np.array([m["query_loss"] for m in metrics])
    right.plot(updates, losses, alpha=0.3, linewidth=0.8, label="each update")
    window = max(1, len(losses) // 50)
    if window > 1:
        smooth = np.convolve(losses, np.ones(window) / window, mode="valid")
        right.plot(updates[window - 1 :], smooth, label=f"mean of {window}")
    right.set(xlabel="meta-update", ylabel="query loss", yscale="log")
    right.legend()
    figure.savefig(path, dpi=120)


def draw_fits(path: Path, apply: Apply, theta: Tensor, phi: Tensor, tasks: Tasks, count: int) -> None:
    """fits.png: count meta-test tasks with data, truth, and the network before and after adaptation.

    theta (P,), phi (tasks, P). A curve a task for one input, three surfaces for two; InputError for more.
    """
    inputs = tasks.support_x.shape[2:]
    if inputs not in ((1,), (2,)):
        raise InputError(f"--draw shows tasks of one or two inputs, these have {tuple(inputs)}; leave it out")
    draw = _draw_curve if inputs == (1,) else _draw_surfaces
    count = min(count, len(tasks))
    columns = 1 if inputs == (1,) else 3
    figure = Figure(figsize=(6 if columns == 1 else 11, 3.2 * count), layout="constrained")
    axes = figure.subplots(count, columns, squeeze=False)
    for i in range(count):
        x = tasks.test_x[i]
        pictures = [tasks.test_y[i], apply(theta, x), apply(phi[i], x)]
        shown = [tasks.support_x[i], tasks.support_y[i], x, *pictures]
        draw(axes[i], *(t.detach().double().cpu().numpy() for t in shown))
        axes[i, 0].set_ylabel(f"meta-test task {i}")
    figure.savefig(path, dpi=110)


def _draw_curve(axes, support_x, support_y, x, truth, before, after) -> None:
    axes[0].plot(x[:, 0], truth[:, 0], "k", label="truth")
    axes[0].plot(x[:, 0], before[:, 0], "C0--", label="before adaptation")
    axes[0].plot(x[:, 0], after[:, 0], "C3", label="after adaptation")
    axes[0].plot(support_x[:, 0], support_y[:, 0], "k.", label="support")
    axes[0].legend(fontsize=8)


def _draw_surfaces(axes, support_x, support_y, x, truth, before, after) -> None:
    side = round(len(x) ** 0.5)
    low, high = truth.min(), truth.max()
    for axis, values, title in zip(
        axes,
        (truth, before, after),
        ("truth and support points", "before adaptation", "after adaptation"),
        strict=True,
    ):
        mesh = [part.reshape(side, side) for part in (x[:, 0], x[:, 1], values[:, 0])]
        picture = axis.pcolormesh(*mesh, vmin=low, vmax=high, shading="nearest")
        axis.set_title(title, fontsize=9)
    axes[0].scatter(*support_x.T, c=support_y[:, 0], vmin=low, vmax=high, edgecolors="white", linewidths=0.6, s=18)
    axes[0].figure.colorbar(picture, ax=axes)
