"""What a run shows while it goes on: a bar where stderr is a terminal, lines elsewhere, points for TensorBoard."""

import importlib.util
import sys
import time
from datetime import timedelta
from pathlib import Path
from typing import Any

from tqdm import tqdm

from amaml.errors import InputError

EVERY = 60.0  # seconds between two lines
REQUIREMENTS = "configs/tensorboard-requirements.txt"


class Progress:
    """To be used as a context. Without a terminal it prints a line at every meta-test and about every minute."""

    def __init__(self, updates: int, made: int, shown: bool = True, events: Path | None = None) -> None:
        """updates: how many there will be; made: how many there are; events: the folder of TensorBoard's files.

        Of a run that goes on, TensorBoard drops what an earlier process wrote after the update it goes on from.
        """
        self.updates, self.update, self.writer = updates, made, None
        self._known = [f"update {made}/{updates}"]
        disable = None if shown else True
        self._bar = tqdm(total=updates, initial=made, unit="update", disable=disable, dynamic_ncols=True)
        self._in_lines, self._last = shown and self._bar.disable, time.monotonic()
        if events:
            from torch.utils.tensorboard import SummaryWriter

            self.writer = SummaryWriter(events, purge_step=made + 1)

    def __enter__(self) -> "Progress":
        return self

    def __exit__(self, *exception: object) -> None:
        self._bar.close()
        if self.writer:
            self.writer.close()

    def trained(self, records: list[dict[str, Any]], seconds: float | None) -> None:
        """The updates of these lines of metrics.jsonl are made; seconds: of one, if known."""
        made = len(records)
        self._bar.update(made)
        self.update += made
        self._known = [f"update {self.update}/{self.updates}"]
        losses = [record["query_loss"] for record in records if "query_loss" in record]
        if losses:
            self._bar.set_postfix(query_loss=f"{losses[-1]:.4f}")
            self._known.append(f"query loss {losses[-1]:.4f}")
        if seconds:
            left = timedelta(seconds=round(seconds * (self.updates - self.update)))
            self._known += [f"{1 / seconds:.3g} updates/s", f"{left} left"]
        if time.monotonic() - self._last > EVERY:
            self._print("")
        for record in records:
            self._points("meta-training", record["update"], {n: v for n, v in record.items() if n != "update"})

    def tested(self, entry: dict[str, Any]) -> None:
        """A meta-test has this entry in test.json."""
        parts = [entry, *entry["also"]]
        ends = [f"after {part['epochs'][-1]} {part['unit']}s" for part in parts]
        results = [f"{part['test']['mean'][-1]:.4f} {end}" for part, end in zip(parts, ends, strict=True)]
        self._print(f"meta-test after update {entry['update']}: {entry['metric']} {' and '.join(results)}")
        for part, end in zip(parts, ends, strict=True):
            means = {f"{entry['metric']} on {name}, {end}": part[name]["mean"][-1] for name in ("support", "test")}
            self._points("meta-test", entry["update"], means)
        if self.writer:
            self.writer.flush()

    def _print(self, more: str) -> None:
        if self._in_lines:
            print(", ".join([*self._known, *([more] if more else [])]), file=sys.stderr, flush=True)
            self._last = time.monotonic()

    def _points(self, group: str, update: int, values: dict[str, float]) -> None:
        if self.writer:
            for name, value in values.items():
                self.writer.add_scalar(f"{group}/{name}", float(value), update)


def check_tensorboard() -> None:
    """Raise InputError where TensorBoard's package is missing."""
    if importlib.util.find_spec("tensorboard") is None:
        raise InputError(f"--tensorboard needs the package tensorboard; pip install -r {REQUIREMENTS}, or leave it out")
