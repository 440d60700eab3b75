"""A process that computes named quantities when told to. Numpy alone, for it runs beside every library.

A line of standard input, NAME; SECONDS; FILE: compute NAME over and over for so many seconds, put the result into
FILE.npy, and answer with the median seconds of a call, those of the first, and what a call adds to the resident memory,
in bytes. Seconds are of computing, so that other work on the machine counts less.
"""

import statistics
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np

Quantity = Callable[[], np.ndarray]  # returns when it is computed


def serve(quantities: Mapping[str, Quantity], share: Callable[[str], int] = lambda name: 1) -> None:
    """Say what there is, and answer every line; share: how many meta-updates a call makes."""
    print("; ".join(quantities), flush=True)
    for line in sys.stdin:
        name, seconds, path = line.rstrip("\n").split("; ")
        before, taken = _forget_peak(), []
        while sum(taken) < float(seconds) or not taken:
            start = time.process_time()
            result = quantities[name]()
            taken.append((time.process_time() - start) / share(name))
        np.save(path, np.asarray(result, dtype=float))
        print(statistics.median(taken[1:] or taken), taken[0], _resident("VmHWM") - before, sep="; ", flush=True)


def _forget_peak() -> int:
    """The resident bytes, from which the peak is counted anew."""
    Path("/proc/self/clear_refs").write_text("5")
    return _resident("VmRSS")


def _resident(name: str) -> int:
    return 1024 * int(Path("/proc/self/status").read_text().split(f"{name}:")[1].split()[0])
