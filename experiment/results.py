"""Results as data: one CSV a grid, a line a meta-test, which git keeps where it ignores the folders of the runs.

results/README.md says what the columns are.
"""

import contextlib
import json
import math
import re
import shlex
from collections.abc import Iterable, Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pandas as pd
from filelock import FileLock

from amaml.errors import InputError, unknown
from data.files import write_atomically
from experiment.grid import FACTS, Cell, Grid, Step
from experiment.settings import merged, parse_flags

POINTS = ("support", "test")
UNITS = {"epoch": "epoch", "step": "inner step"}  # in a column's name, and in a meta-test's entry
RECORD = re.compile(r"(support|test)_(epoch|step)_(\d+)(_ci95)?")
DIGITS, INTERVAL_DIGITS = 7, 4  # significant ones that are kept: those of float32, and of an interval


def rows(file: Path) -> list[dict[str, Any]]:
    """The meta-tests of a finished run (its summary.json) or of an evaluation of it (evaluation*.json), a dict a line.

    Left out are meta-tests that the last one did not repeat, and a protocol by which the run was not tested at its end.
    """
    content, run = read_json(file), run_of(file)
    summary, config = (read_json(run / name) if run else {} for name in ("summary.json", "config.json"))
    facts = {"metric": content.get("metric", summary.get("metric")), "seconds": summary.get("seconds_per_update")}
    facts |= {"gradients": None, "hvps": None}  # of an update, also those computed again
    if run:
        updates = pd.read_json(run / "metrics.jsonl", lines=True)
        facts["gradients"] = (updates["gradients"] + updates["recomputations"]).mean()
        facts["hvps"] = updates["hvps"].mean()
    facts |= {"commit": (config.get("commit") or "")[:12], "machine": config.get("device")}
    entries = read_json(file.parent / "test.json") if file.name == "summary.json" else [content]
    parts = [{"update": entry["update"], **part} for entry in entries for part in (entry, *entry.get("also", []))]
    last = {part["unit"]: part for part in parts}
    found: dict[int, dict[str, Any]] = {}
    for part in parts:
        end = last[part["unit"]]
        same = (part["epochs"], part["tasks"]) == (end["epochs"], end["tasks"])
        if same and end["update"] == content.get("updates", end["update"]):
            row = found.setdefault(part["update"], {"update": part["update"], "tasks": part["tasks"], **facts})
            row.update(_records(part))
    return list(found.values())


def run_of(file: Path) -> Path | None:
    """The folder of the run that a result is of, where that is still there."""
    places = file.parent, Path(read_json(file).get("evaluated", file.parent))
    return next((path for path in places if (path / "summary.json").exists()), None)


def _records(part: dict[str, Any]) -> Iterator[tuple[str, float | None]]:
    """Columns and numbers of one protocol of a meta-test."""
    unit = next(short for short, unit in UNITS.items() if unit == part["unit"])
    for points in POINTS:
        for suffix, name in (("", "mean"), ("_ci95", "ci95")):
            values = part[points].get(name, [])
            yield from ((f"{points}_{unit}_{n}{suffix}", v) for n, v in zip(part["epochs"], values, strict=False))
    for name, (mean, interval) in part.get("predictors", {}).items():
        yield from ((f"predictor_{name}", mean), (f"predictor_{name}_ci95", interval))


def read_json(path: Path) -> Any:
    """The content of a file; empty where there is none."""
    return json.loads(path.read_text()) if path.exists() else {}


def collect(grid: Grid, cell: Cell) -> None:
    """Put the numbers of a finished cell into the grid's CSV, in place of what stands there for it; it is done then."""
    lines = [
        {**cell.labels, "then": n, **{name: _rounded(name, value) for name, value in row.items()}}
        | {"command": command_of(step)}
        for n, step in enumerate(cell.steps)
        for file in sorted(step.makes.parent.glob(step.makes.name))
        for row in rows(file)
    ]
    grid.records.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(f"{grid.records}.lock"):
        others = [line for line in _lines(grid) if any(line[axis] != label for axis, label in cell.labels.items())]
        frame = pd.DataFrame(others + lines, dtype=object)
        frame = frame.sort_values([*cell.labels, "then", "update"], key=lambda column: column.map(_in_order))
        frame = frame[sorted(frame, key=_of_column)]
        write_atomically(grid.csv, frame.to_csv(index=False, lineterminator="\n").encode())
    grid.done[cell.name] = _seconds(lines[0])


def done(grid: Grid) -> dict[str, float]:
    """The names of the cells whose results stand in the grid's CSV as they are asked for, and their seconds."""
    lines = {(*(line[axis] for axis in grid.axes), line["then"]): line for line in _lines(grid)}
    found = {}
    for cell in grid.cells:
        steps = [lines.get((*cell.labels.values(), str(n))) for n in range(len(cell.steps))]
        if all(steps) and _as_asked(cell, steps[0]["command"]):
            found[cell.name] = _seconds(steps[0])
    return found


def _lines(grid: Grid) -> list[dict[str, str]]:
    if not grid.csv.exists():
        return []
    return pd.read_csv(grid.csv, dtype=str, keep_default_na=False).to_dict("records")


def _seconds(line: dict[str, Any]) -> float:
    return float(line["seconds"] or 0) * int(line["update"])


def _as_asked(cell: Cell, command: str) -> bool:
    """Whether a command gives the settings that the cell asks for; False where it has flags that are no more."""
    if command == command_of(cell.steps[0]):
        return True
    with contextlib.suppress(InputError):
        settings = asdict(merged(parse_flags(shlex.split(command)[2:])))
        return all(settings[name] == value for name, value in cell.settings.items())
    return False


def command_of(step: Step) -> str:
    """A step's command as one types it in the folder that the grid writes below."""
    return shlex.join(["python", "run.py", *(flag for flag in step.command[2:] if flag != "--resume")])


def _rounded(name: str, value: Any) -> Any:
    """To as many digits as are kept."""
    digits = INTERVAL_DIGITS if name.endswith("_ci95") else DIGITS
    return f"{value:.{digits}g}" if type(value) is float else value


def _in_order(label: Any) -> tuple[float, str]:
    """Numbers by their value, before words."""
    try:
        return float(label), ""
    except ValueError:
        return math.inf, str(label)


def _of_column(name: str) -> tuple:
    """The order of the columns: the place and the facts, as they come; epochs, steps; predictors."""
    if found := RECORD.fullmatch(name):
        points, unit, n, interval = found.groups()
        return 1, list(UNITS).index(unit), points, interval or "", int(n)
    return (2 if name.startswith("predictor_") else 0,)


def check_places(only: dict[str, list[str]], known: dict[str, Iterable[str]]) -> None:
    """Raise InputError for an axis of --only, or a place on it, that is not among those known."""
    for name, values in only.items():
        if name not in known:
            raise unknown("axis of --only", name, known)
        for value in values:
            if value not in known[name]:
                raise unknown(f"{name} of --only", value, known[name])


def read(path: Path) -> pd.DataFrame:
    """A CSV as a line a record: what the file says of each meta-test, and unit, epoch, support, test, *_ci95."""
    return tidy(pd.read_csv(path, dtype=dict.fromkeys(FACTS[-3:], str)))


def tidy(wide: pd.DataFrame) -> pd.DataFrame:
    """A line a record of lines a meta-test."""
    found = {name: match.groups("") for name in wide if (match := RECORD.fullmatch(name))}
    records = wide[list(found)].astype(float)
    names = [(UNITS[unit], int(n), points + interval) for points, unit, n, interval in found.values()]
    records.columns = pd.MultiIndex.from_tuples(names, names=["unit", "epoch", None])
    records = records.stack(["unit", "epoch"], future_stack=True).dropna(how="all").reset_index(["unit", "epoch"])
    return wide.drop(columns=list(found)).join(records).reset_index(drop=True)


def marked(frame: pd.DataFrame) -> pd.DataFrame:
    """A tidy frame with two more columns; final: of the run's last meta-test, end: a meta-test's last record.

    Runs, and protocols of a run's test, differ in the grid's axes, which stand before the column then, in that and in
    unit.
    """
    place = list(frame.columns[: frame.columns.get_loc("then") + 1])
    runs = frame.groupby([*place, "unit"], observed=True)
    final, end = (frame[name] == runs[name].transform("max") for name in ("update", "epoch"))
    return frame.assign(final=final, end=end)
