"""The cells of a grid of runs: what they are, and how far each is by its files alone."""

import json
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from experiment import supervise


@dataclass(frozen=True)
class Step:
    """A command, and the file that it leaves when it is done, which may be a pattern."""

    command: list[str]
    makes: Path


@dataclass(frozen=True)
class Cell:
    """One run: its name, its place on every axis, the settings asked for, its folder, the commands that make it."""

    name: str
    labels: dict[str, str]
    settings: dict[str, Any]
    folder: Path
    steps: tuple[Step, ...]


@dataclass(frozen=True)
class Grid:
    """The cells of a file, the first axis (the seed) varying slowest; records holds what is known about each."""

    name: str
    cells: list[Cell]
    records: Path


def record_path(grid: Grid, cell: Cell) -> Path:
    """Where supervise.py keeps what it knows of a cell."""
    return grid.records / cell.name


def done(cell: Cell) -> bool:
    """Whether the cell's files are there, and its run has the flags that the grid asks for."""
    there = (any(step.makes.parent.glob(step.makes.name)) for step in cell.steps)
    return all(there) and _as_asked(cell)


def _as_asked(cell: Cell) -> bool:
    try:
        settings = json.loads((cell.folder / "config.json").read_text())["settings"]
    except (OSError, ValueError, KeyError):
        return True  # results kept without their configuration
    return all(settings.get(name, value) == value for name, value in cell.settings.items())


@dataclass(frozen=True)
class State:
    """done, running, failed, stopped (goes on with the next start) or waiting; seconds spent; the last line printed."""

    cell: Cell
    name: str
    seconds: float = 0.0
    line: str = ""


def state(grid: Grid, cell: Cell) -> State:
    """How a cell stands, by its files alone."""
    path = record_path(grid, cell)
    record = supervise.read_record(path)
    seconds = float(record.get("seconds", 0.0))
    lock = path.with_name(path.name + ".lock")
    if lock.exists():
        held = supervise.locked(lock)
        if held is None:
            return State(cell, "running", seconds)
        held.close()
    if done(cell):
        return State(cell, "done", seconds)
    name = {"failed": "failed", "started": "stopped", "stopped": "stopped"}.get(record.get("state", ""), "waiting")
    return State(cell, name, seconds, record.get("line", ""))


def states(grid: Grid) -> list[State]:
    """How every cell stands."""
    return [state(grid, cell) for cell in grid.cells]


def hours_left(known: list[State], workers: int) -> float | None:
    """What is left at this many workers, a cell taking as long as the finished ones most like it; None without one."""
    finished = [s for s in known if s.name == "done" and s.seconds]
    open_ = [s for s in known if s.name in ("running", "stopped", "waiting")]
    if not finished:
        return None if open_ else 0.0
    return sum(max(_expected(s.cell, finished) - s.seconds, 0.0) for s in open_) / max(workers, 1) / 3600


def _expected(cell: Cell, finished: list[State]) -> float:
    likeness = [sum(s.cell.labels[name] == label for name, label in cell.labels.items()) for s in finished]
    nearest = [s.seconds for s, alike in zip(finished, likeness, strict=True) if alike == max(likeness)]
    return sum(nearest) / len(nearest)


def describe(known: list[State], workers: int) -> str:
    """The lines of --status."""
    count = Counter(s.name for s in known)
    names = ("done", "running", "failed", "stopped", "waiting")
    lines = [f"{len(known)} cells: " + ", ".join(f"{count[name]} {name}" for name in names if count[name])]
    lines += [f"  failed   {s.cell.name}: {s.line}" for s in known if s.name == "failed"]
    lines += [f"  running  {s.cell.name}: {in_words(s.seconds)}" for s in known if s.name == "running"]
    left = hours_left(known, count["running"] or workers)
    if left is None:
        return "\n".join([*lines, "time left: unknown until the first cell is done"])
    spent = sum(s.seconds for s in known)
    return "\n".join([*lines, f"time left: {in_words(3600 * left)}; spent in cells so far: {in_words(spent)}"])


def in_words(seconds: float) -> str:
    """A time as one says it."""
    hours, minutes = divmod(round(seconds / 60), 60)
    return f"{seconds:.0f} s" if seconds < 100 else f"{hours} h {minutes:02d} min" if hours else f"{minutes} min"
