"""How long a meta-update takes."""

import time
from dataclasses import dataclass


@dataclass
class Clock:
    """Wall time of the updates alone: tests and checkpoints left out, and each process's first update, which traces."""

    updates: int = 0
    seconds: float = 0.0
    warm_up: float | None = None  # seconds of this process's first update
    _mark: float = 0.0  # when it was read last

    def start(self) -> None:
        """From here on time counts."""
        self._mark = time.perf_counter()

    def since(self) -> float:
        """Seconds since it was read last."""
        return time.perf_counter() - self._mark

    def book(self, updates: int) -> None:
        """The time since it was read last went into so many updates."""
        passed = self.since()
        self.start()
        if self.warm_up is None:
            self.warm_up = passed
        else:
            self.updates, self.seconds = self.updates + updates, self.seconds + passed

    def seconds_per_update(self) -> float | None:
        """The mean, None where there was no update but first ones."""
        return self.seconds / self.updates if self.updates else None
