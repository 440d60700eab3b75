"""A grid of runs as data: a TOML file becomes cells, a cell the commands that make it; and how far each cell is.

docs/how-to/many-runs.md says what such a file holds; every file in configs/targets is one.
"""

import contextlib
import itertools
import json
import os
import signal
import string
import sys
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from statistics import fmean
from typing import Any, NamedTuple

from amaml.errors import InputError, unknown
from data.files import write_atomically
from experiment.folder import LOCK, held
from experiment.settings import CONTROL, FIELDS, Settings, flag_name, merged, toml_of

ROOT = Path(__file__).parent.parent
TARGETS = ROOT / "configs" / "targets"
OTHERS = ("about", "out", "override", "then")  # keys that are no axis
REFUSED = CONTROL - {"data_root", "checkpoint_interval", "draw"}  # flags that are not for a grid
# columns of the results beside the axes and the numbers
FACTS = ("then", "update", "tasks", "metric", "seconds", "gradients", "hvps", "commit", "machine", "command")
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
        """The seconds of all attempts; when the last one started, its exit status, None before its end; or empty."""
        with contextlib.suppress(OSError, ValueError):
            return json.loads(self.file(cell, "json").read_text())
        return {}

    def write_record(self, cell: Cell, **record: Any) -> None:
        """Write down how an attempt goes."""
        write_atomically(self.file(cell, "json"), (json.dumps(record) + "\n").encode())


def read_grid(path: Path, seeds: list[int] | None = None, device: str | None = None) -> Grid:
    """The grid of a file, with other seeds or another device than its own if these are given.

    Raises InputError for a file that cannot be read, a key or value that cannot be used, or cells that share a folder.
    """
    content = toml_of(path, "grid") | ({"seed": seeds} if seeds else {}) | ({"device": device} if device else {})
    fixed, axes = _split(content, path)
    named = {*FIELDS} - {"domain", "method"}  # whose values need the name of their flag before them
    parts = [f"{name}{{{name}}}" if name in named else f"{{{name}}}" for name in axes]
    content.setdefault("out", "/".join(["results", path.stem, *sorted(parts, key=lambda part: "{seed}" in part)]))
    start = Path(os.path.dirname(content["out"].split("{")[0]))  # the folder of all cells
    cells = [_cell(fixed, place, content, start, path) for place in itertools.product(*axes.values())]
    _check_folders(cells, path)
    return Grid(path.stem, cells, start / ".cells" / path.stem, start.parent / f"{path.stem}.csv")


def target_path(name: str) -> Path:
    """A target's file, or a grid's own; raises InputError for a name that is neither."""
    known = {path.stem: path for path in TARGETS.glob("*.toml")}
    if not (name in known or name.endswith(".toml")):
        raise unknown("target", name, known)
    return known.get(name, Path(name))


Axis = list[tuple[str, str, dict[str, Any]]]  # (its name, the label, the flags) of every place


def _split(content: dict[str, Any], path: Path) -> tuple[dict[str, Any], dict[str, Axis]]:
    """The flags that every cell has, and the axes, the seed's first."""
    fixed, axes = {}, {}
    for key, value in content.items():
        if key in OTHERS:
            continue
        if key in FACTS:
            raise InputError(f"{path}: {key} is a column of the results, and no name for an axis; choose another")
        if key in FIELDS and not isinstance(value, list):
            fixed[key] = value
        elif isinstance(value, list) and value and all(key in FIELDS or isinstance(v, dict) for v in value):
            axes[key] = [_place(key, v) for v in value]
        elif key in FIELDS or isinstance(value, list):
            raise InputError(f"{path}: {key} must be a value, or a list of at least one value or table; got {value!r}")
        else:
            raise unknown(f"key in {path}", key, [*FIELDS, *OTHERS])
    return fixed, dict(sorted(axes.items(), key=lambda axis: axis[0] != "seed"))


def _place(axis: str, value: Any) -> tuple[str, str, dict[str, Any]]:
    """A value of the flag that the axis is named after, or a table of flags with a label."""
    flags = dict(value) if isinstance(value, dict) else {axis: value}
    label = flags.pop("label", "-".join(map(str, flags.values())))
    return axis, str(label), flags


def _cell(fixed: dict[str, Any], place: tuple, content: dict[str, Any], start: Path, path: Path) -> Cell:
    """The cell at a place on every axis."""
    labels, flags = {name: label for name, label, _ in place}, dict(fixed)
    for _, _, own in place:
        flags |= own
    for rule in content.get("override", []):
        when, values = rule.get("when", {}), {name: str(value) for name, value in (flags | labels).items()}
        for name in {*when} - {*values}:
            raise unknown(f"axis or flag of an override in {path}", name, values)
        asked = {name: value if isinstance(value, list) else [value] for name, value in when.items()}
        if all(values[name] in map(str, places) for name, places in asked.items()):
            flags |= {name: value for name, value in rule.items() if name != "when"}
    where = f"{path}, cell {'/'.join(labels.values())}"
    folder = Path(_filled(content["out"], flags | labels, where))
    if "start_from" in flags:
        flags["start_from"] = _filled(str(flags["start_from"]), flags | labels, where)
    s = _checked(flags, where)
    steps = [Step(_command({**flags, "out": str(folder), "resume": True}), folder / "summary.json")]
    for extra in content.get("then", []):
        other = Path(_filled(extra.get("out", "{out}"), flags | labels | {"out": folder}, where))
        own = {name: value for name, value in extra.items() if name != "out"}
        _checked(flags | own, where)
        device = {"device": flags["device"]} if "device" in flags else {}
        command = _command({"evaluate": str(folder), **device, **own, "out": str(other)})
        steps.append(Step(command, other / "evaluation*.json"))
    settings = {name: getattr(s, name) for name in flags if name not in CONTROL}
    return Cell(os.path.relpath(folder, start), labels, settings, folder, tuple(steps))


def _filled(template: str, values: dict[str, Any], where: str) -> str:
    for _, name, _, _ in string.Formatter().parse(template):
        if name is not None and name not in values:
            raise unknown(f"{{name}} in the folder of {where}", name, values)
    return template.format(**values)


def _checked(flags: dict[str, Any], where: str) -> Settings:
    """The settings of a cell; raises InputError where run.py would."""
    try:
        if refused := sorted(REFUSED & {*flags}):
            raise InputError(f"{refused[0]} is not for a grid; leave it out")
        return merged(flags)
    except InputError as fault:
        raise InputError(f"{where}: {fault}") from fault


def _command(flags: dict[str, Any]) -> list[str]:
    """run.py with these flags, in the order of the settings."""
    command = [sys.executable, str(ROOT / "run.py")]
    for name in sorted(flags, key=list(FIELDS).index):
        if flags[name] is not False:
            value = flags[name] if isinstance(flags[name], list) else [flags[name]]
            command += [flag_name(name), *(str(part) for part in value if part is not True)]
    return command


def _check_folders(cells: list[Cell], path: Path) -> None:
    seen: dict[Path, Cell] = {}
    for cell in cells:
        for step in cell.steps:
            if (other := seen.setdefault(step.makes, cell)) is not cell:
                differ = next((n for n in cell.labels if cell.labels[n] != other.labels[n]), "seed")
                raise InputError(f"{path}: two cells share the folder {step.makes.parent}; put {{{differ}}} in out")
        if len({step.makes for step in cell.steps}) < len(cell.steps):
            raise InputError(f"{path}: entries of `then` share a folder; give each an out of its own")


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
    if not status:
        return State(cell, "waiting")
    lines = grid.file(cell, "log").read_text(errors="replace").strip().splitlines()
    own = [line for line in lines if not line.startswith("srun: error: ")]  # all but that a command has failed
    return State(cell, "failed", seconds, (own or lines or [""])[-1])


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
    left, spent = hours_left(known, count["running"] or workers), in_words(sum(s.seconds for s in known))
    known_left = "" if left is None else f"{in_words(3600 * left)}; spent in cells so far: {spent}"
    return "\n".join([*lines, f"time left: {known_left or 'unknown until the first cell is done'}"])


def in_words(seconds: float) -> str:
    """A time as one says it."""
    hours, minutes = divmod(round(seconds / 60), 60)
    return f"{seconds:.0f} s" if seconds < 100 else f"{hours} h {minutes:02d} min" if hours else f"{minutes} min"
