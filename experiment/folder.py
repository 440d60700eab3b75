"""The folder of a run: configuration, metrics, checkpoints, results. Every file appears whole or not at all."""

import contextlib
import errno
import io
import itertools
import json
import os
import pickle
import re
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from amaml.errors import InputError
from data.files import temporary_name, write_atomically
from experiment.lock import NAME as LOCK
from experiment.lock import Lock
from experiment.machine import environment

FORMAT = 1
FILES = ("summary.json", "checkpoint.pt", "metrics.jsonl", "test.json", "curves.png", "fits.png", "config.json")
EVENTS = "tensorboard"
EVALUATION = re.compile(r"evaluation(-.*)?\.json|fits(-.*)?\.png")
TEMPORARY = ".tmp"
FULL = (errno.ENOSPC, errno.EDQUOT)


@dataclass
class Checkpoint:
    """All that a run needs to go on: settings, theta (P,), the optimiser's state, updates made and their seconds.

    compiled: whether its graphs are compiled, None in a checkpoint of an older version.
    """

    settings: dict[str, Any]
    theta: Tensor
    optimizer: dict[str, Any]
    update: int
    timed_updates: int = 0
    timed_seconds: float = 0.0
    compiled: bool | None = None
    control: dict[str, Any] | None = None  # of A-MAML's error, amaml.flow.control
    threads: int | None = None


class RunFolder:
    """One run's files.

    config.json       settings, versions, commit, machine
    metrics.jsonl     one line a meta-update: update, query_loss, gradient_norm, gradients, hvps
    checkpoint.pt     the last Checkpoint
    test.json         one entry a meta-test: the curves over epochs
    summary.json      the end result; a run that has it is finished
    curves.png, fits.png
    tensorboard/      event files, see experiment.events
    evaluation-*.json, fits-*.png   what --evaluate found
    lock              while a process works here: which one

    Every method raises InputError where the system refuses to read or write.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._lock, self._is_new = Lock(path), False

    @contextlib.contextmanager
    def alone(self) -> Iterator[None]:
        """Within this context no other process can work in the folder; raises InputError where one does already."""
        try:
            with usable(self.path):
                self._is_new = not self.path.exists()
                self._lock.take()
            yield
        finally:
            self._lock.release()

    @property
    def finished(self) -> bool:
        with usable(self.path):
            return (self.path / "summary.json").exists()

    @property
    def has_checkpoint(self) -> bool:
        with usable(self.path):
            return (self.path / "checkpoint.pt").exists()

    def create(self, settings: dict[str, Any]) -> None:
        """Make the folder and its config.json; from here on the run counts as unfinished."""
        with usable(self.path):
            self.path.mkdir(parents=True, exist_ok=True)
            if self._is_new:
                self._lock.take()
                if self._names():
                    raise InputError(f"another run has begun in {self.path} meanwhile; choose another --out")
            (self.path / "summary.json").unlink(missing_ok=True)
        self.write("config.json", {"settings": settings, **environment(settings["device"])})

    def clear(self) -> None:
        """Remove a run's files, config.json last; raises InputError for a folder that holds anything else."""
        with contextlib.suppress(_Corrupt):
            self.settings()
        self._only_ours((*FILES, EVENTS))
        self.clear_events()
        with usable(self.path):
            for name in (*filter(EVALUATION.fullmatch, sorted(self._names())), *FILES):
                temporary_name(self.path / name).unlink(missing_ok=True)
                (self.path / name).unlink(missing_ok=True)

    def clear_events(self) -> None:
        """Remove the event files; raises InputError for a folder of theirs that holds anything else."""
        events = self.path / EVENTS
        with usable(self.path):
            there = sorted(events.iterdir()) if events.is_dir() else []
            strangers = [path for path in there if "tfevents" not in path.name]
            strangers += [events] if events.is_file() else []
            if strangers:
                raise InputError(f"{strangers[0]} is no event file; move it away or choose another --out")
            for path in there:
                path.unlink()
            if events.exists():
                events.rmdir()

    def settings(self) -> dict[str, Any] | None:
        """The settings of the run that lives here, None in an empty or missing folder."""
        names = self._names()
        if "config.json" not in names:
            if names:
                raise InputError(f"{self.path} holds other files and no run; choose another --out")
            return None
        config = self._load("config.json")
        settings = config.get("settings") if isinstance(config, dict) else None
        if not isinstance(settings, dict):
            raise InputError(f"{self.path / 'config.json'} is no run's configuration; choose another --out")
        return settings

    def prepare_evaluation(self) -> None:
        """Make a folder for the files of an evaluation alone."""
        self._only_ours(())
        with usable(self.path):
            self.path.mkdir(parents=True, exist_ok=True)

    def write_evaluation(self, what: str, content: dict[str, Any], picture: bytes | None) -> Path:
        """Write evaluation-WHAT.json and its picture, numbered where that holds one of other settings; its path."""
        names = (what if n == 1 else f"{what}-{n}" for n in itertools.count(1))
        name = next(name for name in names if self._may_hold(f"evaluation-{name}.json", content))
        self.write(f"evaluation-{name}.json", content)
        if picture is not None:
            self.write_bytes(f"fits-{name}.png", picture)
        return self.path / f"evaluation-{name}.json"

    def _may_hold(self, name: str, content: dict[str, Any]) -> bool:
        """Whether an evaluation's file is not there yet, or holds the same evaluation."""
        try:
            there = self.read(name, content)
        except _Corrupt:
            return False
        return isinstance(there, dict) and all(there.get(key) == content[key] for key in ("settings", "update"))

    def _only_ours(self, allowed: tuple[str, ...]) -> None:
        """Raise InputError for a file that is neither allowed nor an evaluation's."""
        strangers = sorted(name for name in self._names() - set(allowed) if not EVALUATION.fullmatch(name))
        if strangers:
            raise InputError(f"{self.path} also holds {strangers[0]}; move that away or choose another --out")

    def _names(self) -> set[str]:
        """What the folder holds, without what a kill leaves of a file being written."""
        with usable(self.path):
            if self.path.exists() and not self.path.is_dir():
                raise InputError(f"{self.path} is a file; choose a folder as --out")
            names = {path.name for path in self.path.iterdir()} if self.path.exists() else set()
        return {name for name in names - {LOCK} if not name.endswith(TEMPORARY)}

    def write(self, name: str, content: Any) -> None:
        """Write a JSON file atomically."""
        self.write_bytes(name, (json.dumps(content, indent=1, allow_nan=False) + "\n").encode())

    def write_bytes(self, name: str, content: bytes) -> None:
        """Write a file atomically."""
        with usable(self.path):
            write_atomically(self.path / name, content)

    def read(self, name: str, default: Any) -> Any:
        """Read a JSON file, default where there is none."""
        return self._load(name) if (self.path / name).exists() else default

    def append_metrics(self, records: list[dict[str, Any]]) -> None:
        """Add lines to metrics.jsonl."""
        with usable(self.path), open(self.path / "metrics.jsonl", "a") as file:
            file.writelines(json.dumps(record) + "\n" for record in records)

    def metrics(self) -> list[dict[str, Any]]:
        """The lines of metrics.jsonl; one cut short by a kill is left out."""
        path = self.path / "metrics.jsonl"
        try:
            records = [json.loads(line) for line in path.read_text().split("\n")[:-1]]
            if not all(isinstance(record, dict) and "update" in record for record in records):
                raise ValueError("a line without an update's number")
        except FileNotFoundError:
            return []
        except (OSError, ValueError) as fault:
            raise _Corrupt(f"cannot read {path}: {fault}; start anew with --overwrite") from fault
        for number, record in enumerate(records, 1):
            if record["update"] != number:
                raise _Corrupt(f"{path} holds update {record['update']} in line {number}; {_MEND}")
        return records

    def rewind(self, update: int) -> None:
        """Drop what was recorded after an update, so that a resumed run repeats it."""
        kept = [json.dumps(m) + "\n" for m in self.metrics()[:update]]
        if len(kept) < update:
            raise _Corrupt(f"{self.path / 'metrics.jsonl'} ends with update {len(kept)} of {update}; {_MEND}")
        self.write_bytes("metrics.jsonl", "".join(kept).encode())
        self.write("test.json", [test for test in self.read("test.json", []) if test["update"] <= update])

    def save(self, checkpoint: Checkpoint) -> None:
        """Write checkpoint.pt atomically, after the metrics of its updates have reached the disk."""
        with usable(self.path), open(self.path / "metrics.jsonl", "a") as file:
            os.fsync(file.fileno())
        buffer = io.BytesIO()
        torch.save({"format": FORMAT, **vars(checkpoint)}, buffer)
        self.write_bytes("checkpoint.pt", buffer.getvalue())

    def load(self) -> Checkpoint | None:
        """The last checkpoint, None where there is none yet."""
        return load_checkpoint(self.path / "checkpoint.pt") if self.has_checkpoint else None

    def _load(self, name: str) -> Any:
        try:
            return json.loads((self.path / name).read_text())
        except (OSError, ValueError) as fault:
            raise _Corrupt(f"cannot read {self.path / name}: {fault}; start anew with --overwrite") from fault


@dataclass
class Mirror:
    """A run's folder as a process knows it that writes nothing: what it has to read again, in memory."""

    path: Path
    lines: list[dict[str, Any]]
    tests: list[dict[str, Any]]

    def metrics(self) -> list[dict[str, Any]]:
        """The lines of metrics.jsonl when the run began here."""
        return self.lines

    def append_metrics(self, records: list[dict[str, Any]]) -> None:
        """Nothing."""

    def read(self, name: str, default: Any) -> Any:
        """The meta-tests so far."""
        return self.tests

    def write(self, name: str, content: Any) -> None:
        """The meta-tests so far, with a new one."""
        self.tests = content

    def save(self, checkpoint: Checkpoint) -> None:
        """Nothing."""


_MEND = "put the missing lines back, or start anew with --overwrite (--evaluate tests its theta as it is)"


class _Corrupt(InputError):
    """A file that should be a run's cannot be read."""


@contextlib.contextmanager
def usable(folder: Path) -> Iterator[None]:
    """Turns the system's refusals into an InputError."""
    try:
        yield
    except OSError as fault:
        reason = fault.strerror or str(fault)
        if fault.errno in FULL:
            raise InputError(
                f"cannot write to {folder}: {reason}; free some space, then go on with --resume"
            ) from fault
        raise InputError(f"cannot use the folder {folder}: {reason}; choose another --out") from fault


def checkpoint_at(given: str) -> Path:
    """The checkpoint that a run folder, or the path of a checkpoint itself, names."""
    path = Path(given)
    return path / "checkpoint.pt" if path.is_dir() else path


def load_checkpoint(path: Path) -> Checkpoint:
    """Read a checkpoint to the CPU, weights only; raises InputError for a file that is missing, corrupt or another."""
    try:
        with zipfile.ZipFile(path) as archive:  # torch.load does not look at the checksums
            if archive.testzip() is not None:
                raise ValueError("it is damaged")
        content = torch.load(path, map_location="cpu", weights_only=True)
        if content.pop("format") != FORMAT:
            raise ValueError("it has another format")
        return _of_right_types(Checkpoint(**content))
    except Exception as fault:  # a file that somebody else wrote can raise anything
        raise InputError(
            f"cannot read the checkpoint {path}: {_reason(fault)}; it must be a checkpoint.pt of this program"
        ) from fault


def _reason(fault: Exception) -> str:
    if isinstance(fault, pickle.UnpicklingError):
        return "it holds more than tensors and plain values"
    return getattr(fault, "strerror", None) or str(fault).partition("\n")[0] or type(fault).__name__


def _of_right_types(checkpoint: Checkpoint) -> Checkpoint:
    kinds = {"settings": dict, "theta": Tensor, "optimizer": dict, "update": int}
    for name, kind in kinds.items():
        if not isinstance(getattr(checkpoint, name), kind):
            raise ValueError(f"its {name} is no {kind.__name__}")
    return checkpoint
