"""What a run and an evaluation end with: tables, and the files of results."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import numpy as np

from experiment.evaluation import Curves, mean_and_interval
from experiment.folder import RunFolder
from experiment.machine import peak_memory_mib
from experiment.pictures import draw_curves

if TYPE_CHECKING:
    from experiment.session import Session

SUMMARY_EPOCHS = (0, 10, 100, 500, 1000)


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
    """The table a run ends with, of the last meta-test, and beside it that of the network before any training."""
    parts, lines = (entry, *entry["also"]), [title]
    beside = entry.get("scratch", [None] * len(parts))
    heads = [f"{entry['metric']} on support", f"{entry['metric']} on test points"]
    heads += ["scratch, on test points"] if "scratch" in entry else []
    for part, other in zip(parts, beside, strict=True):
        lines.append(_line(part["unit"], heads))
        rows = at_epochs(part)
        for row, other_row in zip(rows, at_epochs(other) if other else [None] * len(rows), strict=True):
            cells = [_with_interval(row[name], row[f"{name}_ci95"]) for name in ("support", "test")]
            if "scratch" in entry:
                cells.append(_with_interval(other_row["test"], other_row["test_ci95"]) if other_row else "diverged")
            lines.append(_line(f"{row['epoch']:.0f}", cells))
    lines += [f"{name:>34}  {_with_interval(*pair):>24}" for name, pair in entry["predictors"].items()]
    return "\n".join(lines)


def _line(first: str, cells: list[str]) -> str:
    return "  ".join([f"{first:>10}", f"{cells[0]:>22}", *(f"{cell:>24}" for cell in cells[1:])])


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
    folder.write_bytes("curves.png", draw_curves(title, tests, folder.metrics()))
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
