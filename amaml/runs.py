"""The folder of a run: configuration, metrics, checkpoints, results. Every file appears whole or not at all."""

import io
import json
import os
import pickle
import platform
import shutil
import subprocess
import sys
import zipfile
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from amaml.errors import InputError

PACKAGES = ("torch", "torchdiffeq", "numpy", "scipy", "matplotlib", "tqdm")
FORMAT = 1


@dataclass
class Checkpoint:
    """All that a run needs to go on: settings, theta (P,), the optimiser's state, updates made and their seconds."""

    settings: dict[str, Any]
    theta: Tensor
    optimizer: dict[str, Any]
    update: int
    timed_updates: int = 0
    timed_seconds: float = 0.0


class RunFolder:
    """One run's files.

    config.json       settings, versions, commit, machine
    metrics.jsonl     one line a meta-update: update, query_loss, gradient_norm, gradients, hvps
    checkpoint.pt     the last Checkpoint
    test.json         one entry a meta-test: the curves over epochs
    summary.json      the end result; a run that has it is finished
    """

    def __init__(self, path: Path) -> None:
        self.path = path

    @property
    def finished(self) -> bool:
        return (self.path / "summary.json").exists()

    def create(self, settings: dict[str, Any]) -> None:
        """Make the folder and its config.json; raises InputError where it cannot be written."""
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            self.write("config.json", {"settings": settings, **environment(settings["device"])})
        except OSError as fault:
            raise InputError(
                f"cannot write the run folder {self.path}: {fault.strerror}; choose another --out"
            ) from None

    def clear(self) -> None:
        """Remove a run's files, and only a run's: a folder of anything else is refused."""
        if not self.path.exists():
            return
        if not (self.path / "config.json").exists() and any(self.path.iterdir()):
            raise InputError(f"{self.path} is not the folder of a run; choose another --out")
        shutil.rmtree(self.path)

    def settings(self) -> dict[str, Any] | None:
        """The settings of the run that lives here, None in an empty or missing folder."""
        if self.path.exists() and not self.path.is_dir():
            raise InputError(f"{self.path} is a file; choose a folder as --out")
        config = self.path / "config.json"
        if not config.exists():
            if self.path.exists() and any(self.path.iterdir()):
                raise InputError(f"{self.path} holds other files and no run; choose another --out")
            return None
        return self._load("config.json").get("settings", {})

    def write(self, name: str, content: Any) -> None:
        """Write a JSON file atomically."""
        write_atomically(self.path / name, (json.dumps(content, indent=1) + "\n").encode())

    def read(self, name: str, default: Any) -> Any:
        """Read a JSON file, default where there is none."""
        return self._load(name) if (self.path / name).exists() else default

    def append_metrics(self, records: list[dict[str, Any]]) -> None:
        """Add lines to metrics.jsonl."""
        with open(self.path / "metrics.jsonl", "a") as file:
            file.writelines(json.dumps(record) + "\n" for record in records)

    def metrics(self) -> list[dict[str, Any]]:
        """The lines of metrics.jsonl; one cut short by a kill is left out."""
        try:
            lines = (self.path / "metrics.jsonl").read_text().split("\n")[:-1]
        except FileNotFoundError:
            return []
        return [json.loads(line) for line in lines]

    def rewind(self, update: int) -> None:
        """Drop what was recorded after an update, so that a resumed run repeats it."""
        kept = [json.dumps(m) + "\n" for m in self.metrics() if m["update"] <= update]
        write_atomically(self.path / "metrics.jsonl", "".join(kept).encode())
        self.write("test.json", [test for test in self.read("test.json", []) if test["update"] <= update])
        (self.path / "summary.json").unlink(missing_ok=True)

    def save(self, checkpoint: Checkpoint) -> None:
        """Write checkpoint.pt atomically."""
        buffer = io.BytesIO()
        torch.save({"format": FORMAT, **vars(checkpoint)}, buffer)
        write_atomically(self.path / "checkpoint.pt", buffer.getvalue())

    def load(self, device: str) -> Checkpoint | None:
        """The last checkpoint, None where there is none yet."""
        path = self.path / "checkpoint.pt"
        return load_checkpoint(path, device) if path.exists() else None

    def _load(self, name: str) -> Any:
        try:
            return json.loads((self.path / name).read_text())
        except (OSError, ValueError) as fault:
            raise InputError(f"cannot read {self.path / name}: {fault}; start anew with --overwrite") from fault


def load_checkpoint(path: Path, device: str = "cpu") -> Checkpoint:
    """Read a checkpoint, weights only; raises InputError for a file that is missing, corrupt or something else."""
    try:
        content = torch.load(path, map_location=device, weights_only=True)
        if content.pop("format") != FORMAT:
            raise ValueError("another format")
        return Checkpoint(**content)
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RuntimeError, EOFError) as fault:
        raise InputError(_unreadable(path, fault)) from fault
    except (pickle.UnpicklingError, zipfile.BadZipFile) as fault:
        raise InputError(_unreadable(path, fault)) from fault


def _unreadable(path: Path, fault: Exception) -> str:
    reason = str(fault).splitlines()[0] if str(fault) else type(fault).__name__
    return f"cannot read the checkpoint {path}: {reason}; it must be a checkpoint.pt of this program"


def write_atomically(path: Path, content: bytes) -> None:
    """Write through a temporary file in the same folder, so that a kill leaves the old file or the new one."""
    temporary = path.with_name(path.name + ".tmp")
    with open(temporary, "wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    os.replace(temporary, path)


def environment(device: str) -> dict[str, Any]:
    """Versions, commit and machine: what a number needs beside it."""
    return {
        "versions": {
            "python": platform.python_version(),
            **{name: metadata.version(name) for name in PACKAGES},
        },
        "commit": _commit(),
        "device": torch.cuda.get_device_name(device) if device.startswith("cuda") else platform.machine(),
        "threads": torch.get_num_threads(),
        "command": sys.argv[1:],
    }


def _commit() -> str | None:
    command = ["git", "-C", str(Path(__file__).parent), "rev-parse", "HEAD"]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return None
