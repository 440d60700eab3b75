"""What a run shows while it goes on: a bar on a terminal, elsewhere a line a meta-test and a minute."""

import sys
import time
from contextlib import AbstractContextManager
from datetime import timedelta
from typing import Any

from tqdm import tqdm

EVERY = 60.0  # seconds between two lines


class Progress(AbstractContextManager["Progress"]):
    """A context; of so many updates some are made. shown: whether this process shows anything."""

    def __init__(self, updates: int, made: int, shown: bool = True) -> None:
        disable = None if shown else True  # None: where there is no terminal
        self._bar = tqdm(total=updates, initial=made, unit="update", disable=disable, dynamic_ncols=True)
        self._in_lines, self._last = shown and self._bar.disable, time.monotonic()
        self.updates, self.update, self._known = updates, made, [f"update {made}/{updates}"]

    def __exit__(self, *exception: object) -> None:
        self._bar.close()

    def trained(self, records: list[dict[str, Any]], seconds: float | None) -> None:
        """The updates of these lines of metrics.jsonl are made; seconds: of one, if known."""
        self._bar.update(len(records))
        self.update += len(records)
        loss = f"{records[-1]['query_loss']:.4f}"
        self._bar.set_postfix(query_loss=loss)
        self._known = [f"update {self.update}/{self.updates}", f"query loss {loss}"]
        if seconds:
            left = timedelta(seconds=round(seconds * (self.updates - self.update)))
            self._known += [f"{1 / seconds:.3g} updates/s", f"{left} left"]
        if time.monotonic() - self._last > EVERY:
            self._print()

    def tested(self, entry: dict[str, Any]) -> None:
        """A meta-test has this entry in test.json."""
        ends = (f"{p['test']['mean'][-1]:.4f} after {p['epochs'][-1]} {p['unit']}s" for p in (entry, *entry["also"]))
        self._print(f"meta-test after update {entry['update']}: {entry['metric']} {' and '.join(ends)}")

    def _print(self, *more: str) -> None:
        if self._in_lines:
            print(", ".join([*self._known, *more]), file=sys.stderr, flush=True)
            self._last = time.monotonic()
