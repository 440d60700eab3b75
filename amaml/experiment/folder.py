"""The folder of a run: configuration, metrics, checkpoints, results. Every file appears whole or not at all."""

import contextlib
import io
import json
import pickle
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from amaml.errors import InputError
from amaml.experiment.machine import environment
from amaml.files import temporary_name, write_atomically

FORMAT = 1
EVALUATION = ("evaluation.json", "fits.png")
FILES = ("summary.json", "checkpoint.pt", "metrics.jsonl", "test.json", "curves.png", *EVALUATION, "config.json")


@dataclass
class Checkpoint:
    """All that a run needs to go on: settings, theta (P,), the optimiser's state, updates made and their seconds."""

    settings: dict[str, Any]
    theta: Tensor
    optimizer: dict[str, Any]
    update: int
    timed_updates: int = 0
    timed_seconds: float = 0.0
    control: dict[str, Any] | None = None  # of A-MAML's error, amaml.flow.control


class RunFolder:
    """One run's files.

    config.json       settings, versions, commit, machine
    metrics.jsonl     one line a meta-update: update, query_loss, gradient_norm, gradients, hvps
    checkpoint.pt     the last Checkpoint
    test.json         one entry a meta-test: the curves over epochs
    summary.json      the end result; a run that has it is finished
    curves.png, fits.png, evaluation.json

    Every method raises InputError where the system refuses to read or write.
    """

    def __init__(self, path: Path) -> None:
        self.path = path

    @property
    def finished(self) -> bool:
        with _usable(self.path):
            return (self.path / "summary.json").exists()

    def create(self, settings: dict[str, Any]) -> None:
        """Make the folder and its config.json; from here on the run counts as unfinished."""
        with _usable(self.path):
            self.path.mkdir(parents=True, exist_ok=True)
            (self.path / "summary.json").unlink(missing_ok=True)
        self.write("config.json", {"settings": settings, **environment(settings["device"])})

    def clear(self) -> None:
        """Remove a run's files, config.json last; raises InputError for a folder that holds anything else."""
        with contextlib.suppress(_Corrupt):
            self.settings()
        self._only(FILES)
        with _usable(self.path):
            for path in (self.path / name for name in FILES):
                temporary_name(path).unlink(missing_ok=True)
                path.unlink(missing_ok=True)

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
        self._only(EVALUATION)
        with _usable(self.path):
            self.path.mkdir(parents=True, exist_ok=True)

    def _only(self, allowed: tuple[str, ...]) -> None:
        strangers = sorted(self._names() - set(allowed))
        if strangers:
            raise InputError(f"{self.path} also holds {strangers[0]}; move that away or choose another --out")

    def _names(self) -> set[str]:
        """What the folder holds, without what a kill leaves of a file being written."""
        with _usable(self.path):
            if self.path.exists() and not self.path.is_dir():
                raise InputError(f"{self.path} is a file; choose a folder as --out")
            names = {path.name for path in self.path.iterdir()} if self.path.exists() else set()
        return names - {temporary_name(self.path / name).name for name in FILES}

    def write(self, name: str, content: Any) -> None:
        """Write a JSON file atomically."""
        self.write_bytes(name, (json.dumps(content, indent=1, allow_nan=False) + "\n").encode())

    def write_bytes(self, name: str, content: bytes) -> None:
        """Write a file atomically."""
        with _usable(self.path):
            write_atomically(self.path / name, content)

    def read(self, name: str, default: Any) -> Any:
        """Read a JSON file, default where there is none."""
        return self._load(name) if (self.path / name).exists() else default

    def append_metrics(self, records: list[dict[str, Any]]) -> None:
        """Add lines to metrics.jsonl."""
        with _usable(self.path), open(self.path / "metrics.jsonl", "a") as file:
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
        return records

    def rewind(self, update: int) -> None:
        """Drop what was recorded after an update, so that a resumed run repeats it."""
        kept = [json.dumps(m) + "\n" for m in self.metrics() if m["update"] <= update]
        self.write_bytes("metrics.jsonl", "".join(kept).encode())
        self.write("test.json", [test for test in self.read("test.json", []) if test["update"] <= update])

    def save(self, checkpoint: Checkpoint) -> None:
        """Write checkpoint.pt atomically."""
        buffer = io.BytesIO()
        torch.save({"format": FORMAT, **vars(checkpoint)}, buffer)
        self.write_bytes("checkpoint.pt", buffer.getvalue())

    def load(self) -> Checkpoint | None:
        """The last checkpoint, None where there is none yet."""
        path = self.path / "checkpoint.pt"
        return load_checkpoint(path) if path.exists() else None

    def _load(self, name: str) -> Any:
        try:
            return json.loads((self.path / name).read_text())
        except (OSError, ValueError) as fault:
            raise _Corrupt(f"cannot read {self.path / name}: {fault}; start anew with --overwrite") from fault


class _Corrupt(InputError):
    """A file that should be a run's cannot be read."""


@contextlib.contextmanager
def _usable(folder: Path) -> Iterator[None]:
    """Turns the system's refusals into an InputError."""
    try:
        yield
    except OSError as fault:
        reason = fault.strerror or str(fault)
        raise InputError(f"cannot use the folder {folder}: {reason}; choose another --out") from fault


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
