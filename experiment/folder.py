"""The folder of a run: configuration, metrics, checkpoints, results. Every file appears whole or not at all."""

import contextlib
import errno
import io
import json
import os
import pickle
import re
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import filelock
import torch

from amaml.errors import InputError
from data.files import Damaged, readable, temporary_name, write_atomically
from experiment.evaluation import TASK_COLUMNS
from experiment.machine import environment

FORMAT = 3
FILES = ("summary.json", "checkpoint.pt", "metrics.jsonl", "test.json", "tasks.csv", "curves.png", "config.json")
LOCK = ".lock"  # held while a process works in the folder
PATIENCE = 0.2  # seconds that a run waits for it: somebody may be looking whether it is held
EVALUATION = re.compile(r"evaluation(-.*)?\.(json|csv)|fits(-.*)?\.png")  # what --evaluate and --draw write
UNREADABLE = OSError, ValueError, TypeError, KeyError  # what a damaged file of a run raises
ANEW = "start anew with --overwrite"
MEND = f"put the missing lines back, or {ANEW} (--evaluate tests its theta as it is)"


@dataclass
class Checkpoint:
    """All that a run needs to go on.

    model: the state_dict of the network, its learned rates and the learner's memory; optimizer: that of the optimiser;
    update: how many are made; timed_updates, timed_seconds: how many were timed, and how long they took; compiled:
    whether its graphs were so far, since that makes the bits.
    """

    settings: dict[str, Any]
    model: dict[str, Any]
    optimizer: dict[str, Any]
    update: int
    compiled: bool
    timed_updates: int = 0
    timed_seconds: float = 0.0


class RunFolder:
    """One run's files (docs/reference/files.md). A run that has its summary.json is finished.

    Where the system refuses, methods raise its OSError, of which usable() says what to do.
    """

    def __init__(self, path: Path) -> None:
        self.path, self._lock = path, filelock.FileLock(path / LOCK)

    @contextlib.contextmanager
    def alone(self, writes: bool = True) -> Iterator[None]:
        """Within this context no other run can work in the folder; raises InputError where one does already.

        writes: whether this process does, or another one of the same run.
        """
        if writes and "config.json" in self._names():  # a folder that holds no run is left as it is
            self._take()
        try:
            yield
        finally:
            self._lock.release()

    def _take(self) -> None:
        with contextlib.suppress(PermissionError):  # nobody writes to a read-only folder
            try:
                self._lock.acquire(timeout=PATIENCE)
            except filelock.Timeout:
                remedy = "wait for its end, or choose another --out"
                raise InputError(f"{self.path} is in use by another process; {remedy}") from None

    def has(self, name: str) -> bool:
        """Whether a file is there."""
        return (self.path / name).exists()

    def create(self, settings: dict[str, Any]) -> None:
        """Make the folder and its config.json; from here on the run counts as unfinished."""
        self.path.mkdir(parents=True, exist_ok=True)
        if not self._lock.is_locked:
            self._take()
            if self._lock.is_locked and "config.json" in self._names():
                raise InputError(f"another run has begun in {self.path} meanwhile; choose another --out")
        (self.path / "summary.json").unlink(missing_ok=True)
        self.write("config.json", {"settings": settings, **environment(settings["device"])})

    def clear(self) -> None:
        """Remove a run's files, config.json last; raises InputError for a folder that holds anything else."""
        with contextlib.suppress(Damaged):
            self.settings()
        self.check_ours(*FILES)
        for name in (*filter(EVALUATION.fullmatch, self._names()), *FILES):
            temporary_name(self.path / name).unlink(missing_ok=True)
            (self.path / name).unlink(missing_ok=True)

    def settings(self) -> dict[str, Any] | None:
        """The settings of the run that lives here, None in an empty or missing folder."""
        names = self._names()
        if "config.json" not in names:
            if names:
                raise InputError(f"{self.path} holds other files and no run; choose another --out")
            return None
        config = self.read("config.json")
        settings = config.get("settings") if isinstance(config, dict) else None
        if not isinstance(settings, dict):
            raise InputError(f"{self.path / 'config.json'} is no run's configuration; choose another --out")
        return settings

    def check_ours(self, *allowed: str) -> None:
        """Raise InputError for a file that is neither allowed nor an evaluation's."""
        strangers = sorted(name for name in self._names() - {*allowed} if not EVALUATION.fullmatch(name))
        if strangers:
            raise InputError(f"{self.path} also holds {strangers[0]}; move that away or choose another --out")

    def _names(self) -> set[str]:
        """What the folder holds, without its lock and what a kill leaves of a file being written."""
        if self.path.exists() and not self.path.is_dir():
            raise InputError(f"{self.path} is a file; choose a folder as --out")
        names = {path.name for path in self.path.iterdir()} if self.path.exists() else set()
        return {name for name in names - {LOCK} if not name.endswith(".tmp")}

    def write(self, name: str, content: Any) -> None:
        """Write a JSON file atomically; bytes as they are."""
        if not isinstance(content, bytes):
            content = (json.dumps(content, indent=1, allow_nan=False) + "\n").encode()
        write_atomically(self.path / name, content)

    def read(self, name: str, default: Any = None) -> Any:
        """Read a JSON file, default where there is none."""
        with readable(self.path / name, *UNREADABLE, remedy=ANEW):
            return json.loads((self.path / name).read_text()) if self.has(name) else default

    def append_metrics(self, records: list[dict[str, Any]]) -> None:
        """Add lines to metrics.jsonl."""
        with open(self.path / "metrics.jsonl", "a") as file:
            file.writelines(json.dumps(record) + "\n" for record in records)

    def metrics(self) -> list[dict[str, Any]]:
        """The lines of metrics.jsonl; one cut short by a kill is left out."""
        path = self.path / "metrics.jsonl"
        if not path.exists():
            return []
        with readable(path, *UNREADABLE, remedy=ANEW):
            records = [json.loads(line) for line in path.read_text().split("\n")[:-1]]
            numbers = [record["update"] for record in records]
        for place, number in enumerate(numbers, 1):
            if number != place:
                raise InputError(f"{path} holds update {number} in line {place}; {MEND}")
        return records

    def write_tasks(self, lines: list[str], name: str = "tasks.csv", since: int = 0) -> None:
        """Write a CSV of experiment.evaluation.task_lines, in place of what the file holds of updates from since on."""
        path = self.path / name
        there = path.read_text().splitlines()[1:] if since and path.exists() else []
        kept = [line for line in there if int(line.partition(",")[0]) < since]
        self.write(name, "\n".join([TASK_COLUMNS, *kept, *lines, ""]).encode())

    def rewind(self, update: int) -> None:
        """Drop what was recorded after an update, so that a resumed run repeats it."""
        kept = [json.dumps(m) + "\n" for m in self.metrics()[:update]]
        if len(kept) < update:
            raise InputError(f"{self.path / 'metrics.jsonl'} ends with update {len(kept)} of {update}; {MEND}")
        self.write("metrics.jsonl", "".join(kept).encode())
        self.write("test.json", [test for test in self.read("test.json", []) if test["update"] <= update])
        if self.has("tasks.csv"):
            self.write_tasks([], since=update + 1)

    def save(self, checkpoint: Checkpoint) -> None:
        """Write checkpoint.pt atomically, after the metrics of its updates have reached the disk."""
        with open(self.path / "metrics.jsonl", "a") as file:
            os.fsync(file.fileno())
        buffer = io.BytesIO()
        torch.save({"format": FORMAT, **vars(checkpoint)}, buffer)
        self.write("checkpoint.pt", buffer.getvalue())


def held(lock: Path) -> bool:
    """Whether somebody holds the lock of this file."""
    if not lock.exists():
        return False
    try:
        with contextlib.suppress(PermissionError), filelock.FileLock(lock).acquire(timeout=0):
            pass
    except filelock.Timeout:
        return True
    return False


@contextlib.contextmanager
def usable(folder: Path) -> Iterator[None]:
    """Turns the system's refusals into an InputError."""
    try:
        yield
    except BrokenPipeError:  # of whoever reads what is printed
        raise
    except OSError as fault:
        reason = fault.strerror or str(fault)
        if fault.errno in (errno.ENOSPC, errno.EDQUOT):
            remedy = "free some space, then go on with --resume"
            raise InputError(f"cannot write to {folder}: {reason}; {remedy}") from fault
        raise InputError(f"cannot use the folder {folder}: {reason}; choose another --out") from fault


def load_checkpoint(given: str | Path) -> Checkpoint:
    """The checkpoint of a run's folder, or of its own path, on the CPU; raises InputError where it cannot be read."""
    path = Path(given)
    path = path / "checkpoint.pt" if path.is_dir() else path
    try:
        with zipfile.ZipFile(path) as archive:  # torch.load does not look at the checksums
            if archive.testzip() is not None:
                raise ValueError("it is damaged")
        content = torch.load(path, map_location="cpu", weights_only=True)
        if (made := content.pop("format")) != FORMAT:
            raise ValueError(f"it has format {made}, this version reads {FORMAT}")
        checkpoint = Checkpoint(**content)
        for name, kind in {"settings": dict, "model": dict, "optimizer": dict, "update": int}.items():
            if not isinstance(getattr(checkpoint, name), kind):
                raise ValueError(f"its {name} is no {kind.__name__}")
    except Exception as fault:  # a file that somebody else wrote can raise anything
        reason = getattr(fault, "strerror", None) or str(fault).partition("\n")[0] or type(fault).__name__
        if isinstance(fault, pickle.UnpicklingError):
            reason = "it holds more than tensors and plain values"
        remedy = "give a run's folder or its checkpoint.pt"
        raise InputError(f"cannot read the checkpoint {path}: {reason}; {remedy}") from fault
    return checkpoint
