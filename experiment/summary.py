"""What a run says: a bar or lines while it goes on, at its end a table, summary.json and curves.png."""

import sys
import time
from datetime import timedelta
from typing import Any

from tqdm import tqdm

from experiment.folder import RunFolder

SUMMARY_EPOCHS = (0, 10, 100, 500, 1000)
EVERY = 60.0  # seconds between two lines


class Progress(tqdm):
    """A context; of so many updates some are made. shown: whether this process shows anything."""

    def __init__(self, updates: int, made: int, shown: bool = True) -> None:
        disable = None if shown else True  # None: where there is no terminal
        super().__init__(total=updates, initial=made, unit="update", disable=disable, dynamic_ncols=True)
        self._in_lines, self._last = shown and self.disable, time.monotonic()
        self.made, self._known = made, [f"update {made}/{updates}"]

    def trained(self, records: list[dict[str, Any]], seconds: float | None) -> None:
        """The updates of these lines of metrics.jsonl are made; seconds: of one, if known."""
        self.update(len(records))  # which counts where the bar is shown alone
        self.made += len(records)
        loss = f"{records[-1]['query_loss']:.4f}"
        self.set_postfix(query_loss=loss)
        self._known = [f"update {self.made}/{self.total}", f"query loss {loss}"]
        if seconds:
            left = timedelta(seconds=round(seconds * (self.total - self.made)))
            self._known += [f"{1 / seconds:.3g} updates/s", f"{left} left"]
        if time.monotonic() - self._last > EVERY:
            self._print()

    def tested(self, entry: dict[str, Any]) -> None:
        """A meta-test has this entry in test.json."""
        ends = (f"{p['test']['mean'][-1]:.4f} after {p['epochs'][-1]} {p['unit']}s" for p in (entry, *entry["also"]))
        self._print(f"meta-test after update {entry['update']}: {entry['metric']} {' and '.join(ends)}")

    def _print(self, *more: str) -> None:
        if self._in_lines:
            print(", ".join([*self._known, *more]), file=sys.stderr, flush=True)
            self._last = time.monotonic()


def at_epochs(entry: dict[str, Any]) -> list[dict[str, float | None]]:
    """The rows of the summary: the metric at epochs 0, 10, 100, 500, 1000 and the last, or at every inner step kept."""
    columns = {"epoch": entry["epochs"]}
    for name in ("support", "test"):
        columns |= {name: entry[name]["mean"], f"{name}_ci95": entry[name]["ci95"]}
    rows = [dict(zip(columns, values, strict=True)) for values in zip(*columns.values(), strict=True)]
    return [row for row in rows if entry["unit"] != "epoch" or row["epoch"] in (*SUMMARY_EPOCHS, entry["epochs"][-1])]


def table(title: str, entry: dict[str, Any]) -> str:
    """The table a run ends with, of the last meta-test, and beside it that of the network before any training."""
    parts, lines = (entry, *entry["also"]), [title]
    for part, scratch in zip(parts, entry.get("scratch", [None] * len(parts)), strict=True):
        cells = [f"{entry['metric']} on support", f"{entry['metric']} on test points", "scratch, on test points"]
        lines.append(_line(part["unit"], cells if "scratch" in entry else cells[:2]))
        beside = at_epochs(scratch) if scratch else []
        for i, row in enumerate(at_epochs(part)):
            cells = [_with_interval(row[name], row[f"{name}_ci95"]) for name in ("support", "test")]
            if "scratch" in entry:
                cells.append(_with_interval(beside[i]["test"], beside[i]["test_ci95"]) if beside else "diverged")
            lines.append(_line(f"{row['epoch']:.0f}", cells))
    lines += [f"{name:>34}  {_with_interval(*pair):>24}" for name, pair in entry["predictors"].items()]
    return "\n".join(lines)


def _line(first: str, cells: list[str]) -> str:
    return "  ".join([f"{first:>10}", f"{cells[0]:>22}", *(f"{cell:>24}" for cell in cells[1:])])


def _with_interval(mean: float, half: float | None) -> str:
    return f"{mean:.4f}" if half is None else f"{mean:.4f} +- {half:.4f}"


def write_summary(folder: RunFolder, title: str, costs: dict[str, Any]) -> str:
    """summary.json and curves.png of a run whose updates and tests are in its folder; returns its table.

    costs: updates, solver, seconds_per_update, first_update_seconds, compiled and peak_memory_mib, None where unknown.
    """
    from experiment.figures import draw_curves  # with matplotlib, which a mistake in a flag need not wait for

    tests = folder.read("test.json", [])
    last, seconds, first = tests[-1], costs["seconds_per_update"], costs["first_update_seconds"]
    said = [f"{costs['updates']} updates"]
    said.append(f"{seconds:.4f} s per update" if seconds is not None else "too short to time")
    said[-1] += f" (the first {first:.1f} s, tracing{' and compiling' if costs['compiled'] else ''})" if first else ""
    said += [f"peak memory {costs['peak_memory_mib']:.0f} MiB"] if costs["peak_memory_mib"] else []
    said += [f"solver {costs['solver']}"] if costs["solver"] else []
    text = table(title, last) + "\n" + ", ".join(said)
    folder.write("curves.png", draw_curves(title, tests, folder.metrics()))
    also = [{"unit": part["unit"], "at_epochs": at_epochs(part)} for part in last["also"]]
    results = {"metric": last["metric"], "at_epochs": at_epochs(last), "also": also, "predictors": last["predictors"]}
    folder.write("summary.json", results | costs | {"table": text})
    return text
