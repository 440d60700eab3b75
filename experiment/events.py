"""--tensorboard: what a run's folder records, as event files for TensorBoard.

metrics.jsonl and test.json remain the truth. The event files of a folder are made anew from them at every start, so
that a resumed run, or one that asks for them late, shows every point once.
"""

from __future__ import annotations

import importlib.util
from typing import Any

from amaml.errors import InputError
from experiment.folder import EVENTS, RunFolder, usable

PACKAGE, FILE = "tensorboard", "configs/tensorboard-requirements.txt"


def check_installed() -> None:
    """Raise InputError where TensorBoard's package is missing."""
    if importlib.util.find_spec(PACKAGE) is None:
        raise InputError(f"--tensorboard needs the package {PACKAGE}; pip install -r {FILE}, or leave it out")


class Events:
    """Writes a point for every number of an update and of a meta-test. Raises InputError where the system refuses."""

    def __init__(self, folder: RunFolder) -> None:
        """Replace the folder's event files by those of what it records so far."""
        from torch.utils.tensorboard import SummaryWriter

        folder.clear_events()
        self._folder = folder.path
        with usable(self._folder):  # a viewer that is open drops the points of the files that were there
            self._writer = SummaryWriter(self._folder / EVENTS, purge_step=0)
        self.trained(folder.metrics())
        for entry in folder.read("test.json", []):
            self.tested(entry)

    def trained(self, records: list[dict[str, Any]]) -> None:
        """Lines of metrics.jsonl."""
        with usable(self._folder):
            for record in records:
                for name, value in record.items():
                    if name != "update":
                        self._writer.add_scalar(f"meta-training/{name}", float(value), record["update"])

    def tested(self, entry: dict[str, Any]) -> None:
        """An entry of test.json: the metric after its last epoch or inner step."""
        with usable(self._folder):
            for part in (entry, *entry["also"]):
                for points in ("support", "test"):
                    name = f"meta-test/{part['metric']} on {points}, after {part['epochs'][-1]} {part['unit']}s"
                    self._writer.add_scalar(name, part[points]["mean"][-1], part["update"])
            self._writer.flush()

    def close(self) -> None:
        """Write what is left."""
        with usable(self._folder):
            self._writer.close()
