"""The cells of a grid of runs: what they are, and how far each is."""

import contextlib
import json
import signal
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from statistics import fmean
from typing import Any, NamedTuple

from data.files import write_atomically
from experiment.folder import LOCK, held

STOPS = [128 + number for number in (signal.SIGHUP, signal.SIGINT, signal.SIGKILL, signal.SIGTERM)]  # exit statuses
STATES = ("done", "running", "failed", "stopped", "waiting")  # stopped: goes on with the next start


class Step(NamedTuple):
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
    """The cells of a file, the first axis (the seed) varying slowest.

    records: the folder of what is known about each; csv: the file of their results; done: those whose results stand in
    it, and need not be made again, with the seconds that they took.
    """

    name: str
    cells: list[Cell]
    records: Path
    csv: Path
    done: dict[str, float] = field(default_factory=dict)

    @property
    def axes(self) -> list[str]:
        """Their names."""
        return list(self.cells[0].labels)

    def file(self, cell: Cell, kind: str) -> Path:
        """Of what is known of a cell: its json (the record), log or lock."""
        return self.records / f"{cell.name}.{kind}"

    def record(self, cell: Cell) -> dict[str, Any]:
        """How many attempts there were, their seconds; when the last one started, its exit status, None before its
        end. Empty before the first.
        """
        with contextlib.suppress(OSError, ValueError):
            return json.loads(self.file(cell, "json").read_text())
        return {}

    def write_record(self, cell: Cell, **record: Any) -> None:
        """Write down how an attempt goes."""
        write_atomically(self.file(cell, "json"), (json.dumps(record) + "\n").encode())


class State(NamedTuple):
    """A name of STATES; seconds spent; of a failed cell the last line printed."""

    cell: Cell
    name: str
    seconds: float = 0.0
    line: str = ""


def states(grid: Grid) -> list[State]:
    """How every cell stands."""
    return [_state(grid, cell) for cell in grid.cells]


def _state(grid: Grid, cell: Cell) -> State:
    record = grid.record(cell)
    seconds, status = record.get("seconds", 0.0), record.get("status", 0)
    if held(grid.file(cell, "lock")) or held(cell.folder / LOCK):
        return State(cell, "running", seconds + time.time() - record.get("started", time.time()))
    if cell.name in grid.done:
        return State(cell, "done", seconds or grid.done[cell.name])
    if status is None or status in STOPS:
        return State(cell, "stopped", seconds)
    return State(cell, "failed", seconds, _last_line(grid.file(cell, "log"))) if status else State(cell, "waiting")


def _last_line(path: Path) -> str:
    """The last line of a file that is not empty, but for what srun has to say of a command that failed."""
    lines = path.read_text(errors="replace").strip().splitlines()
    return next((line for line in reversed(lines) if not line.startswith("srun: error: ")), "".join(lines[-1:]))


def hours_left(known: list[State], workers: int) -> float | None:
    """What is left at this many workers, a cell taking as long as the finished ones most like it; None without one."""
    finished = [s for s in known if s.name == "done" and s.seconds]
    open_ = [s for s in known if s.name in ("running", "stopped", "waiting")]
    if not finished:
        return None if open_ else 0.0
    left = 0.0
    for state in open_:
        alike = [len(state.cell.labels.items() & other.cell.labels.items()) for other in finished]
        expected = fmean(s.seconds for s, likeness in zip(finished, alike, strict=True) if likeness == max(alike))
        left += max(expected - state.seconds, 0.0)
    return left / max(workers, 1) / 3600


def describe(known: list[State], workers: int) -> str:
    """The lines of --status."""
    count = Counter(s.name for s in known)
    lines = [f"{len(known)} cells: " + ", ".join(f"{count[name]} {name}" for name in STATES if count[name])]
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
