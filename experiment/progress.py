"""How far a run is: a bar where stderr is a terminal, and otherwise, in a batch log, a line now and then."""

from __future__ import annotations

import sys
import threading
from datetime import timedelta

from tqdm import tqdm

EVERY = 60.0  # seconds between two lines


class Progress:
    """To be used as a context. Without a terminal it prints a line at every meta-test and at least every minute."""

    def __init__(self, updates: int, made: int, shown: bool = True) -> None:
        """updates: how many there will be; made: how many there are already; shown: whether anything is printed."""
        self.shown = shown
        self.updates, self.update = updates, made
        self.loss: float | None = None
        self.seconds: float | None = None  # per update
        self.doing, self.tested = "", ""
        self._over = threading.Event()
        self._lines = threading.Thread(target=self._print_lines, daemon=True)

    def __enter__(self) -> Progress:
        self._bar = tqdm(
            total=self.updates,
            initial=self.update,
            unit="update",
            disable=None if self.shown else True,
            dynamic_ncols=True,
            file=sys.stderr,
        )
        self._in_lines = self.shown and self._bar.disable
        if self._in_lines:
            self._lines.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self._over.set()
        self._bar.close()
        if self._in_lines:
            self._lines.join()

    def trained(self, update: int, loss: float | None, seconds: float | None) -> None:
        """The updates up to this one are made; loss: of the last that was not left out; seconds: of one, if known."""
        self._bar.update(update - self.update)
        if loss is not None:
            self._bar.set_postfix(query_loss=f"{loss:.4f}")
            self.loss = loss
        self.update, self.seconds, self.doing = update, seconds, ""

    def testing(self) -> None:
        """A meta-test begins."""
        self.doing = "meta-testing"

    def tested_with(self, result: str) -> None:
        """A meta-test has ended with this result."""
        self.doing, self.tested = "", f"meta-test after update {self.update}: {result}"
        if self._in_lines:
            print(self.line(), file=sys.stderr, flush=True)

    def line(self) -> str:
        """update, query loss, updates a second, time left, last meta-test; what is not known yet is left out."""
        parts = [f"update {self.update}/{self.updates}"]
        if self.loss is not None:
            parts.append(f"query loss {self.loss:.4f}")
        if self.seconds:
            left = timedelta(seconds=round(self.seconds * (self.updates - self.update)))
            parts += [f"{1 / self.seconds:.3g} updates/s", f"{left} left"]
        return ", ".join(parts + [part for part in (self.doing, self.tested) if part])

    def _print_lines(self) -> None:
        while not self._over.wait(EVERY):
            print(self.line(), file=sys.stderr, flush=True)
