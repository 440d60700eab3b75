"""Measures named quantities, a line of JSON for each. Numpy alone, for it runs beside every library.

What a program of a library is told is its one argument, JSON: it measures the quantities whose names begin with one of
`names`. Each is called once, which traces and compiles (first), then for so many `seconds`, once at least. Its line is
{quantity, seconds: the median of a call, first, memory_mib: what a call adds to the peak, waits}, or {quantity, fault}
where a call raises or all of them take longer than `limit`. The result goes into `folder`.
"""

import ctypes
import gc
import json
import signal
import statistics
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

Quantity = Callable[[], Any]  # returns an array


class OverTime(BaseException):
    """A quantity took longer than its limit; no Exception, so that nothing goes on in another way."""


class Processor:
    """Of this machine. Seconds are of computing, so that other work on it counts less."""

    clock = staticmethod(time.process_time)

    def forget_peak(self) -> int:
        """The resident bytes, from which the peak is counted anew; the heap's free memory is given back first."""
        gc.collect()
        ctypes.CDLL(None).malloc_trim(0)
        Path("/proc/self/clear_refs").write_text("5")
        return self._resident("VmRSS")

    def peak(self) -> int:
        """The most resident bytes since then."""
        return self._resident("VmHWM")

    def array(self, result: Any) -> np.ndarray:
        """Returns when the result is computed."""
        return np.asarray(result, dtype=float)

    def waits(self, quantity: Quantity) -> int | None:
        """How often the host waits for its device in a call, where it has one."""
        return None

    @staticmethod
    def _resident(name: str) -> int:
        return 1024 * int(Path("/proc/self/status").read_text().split(f"{name}:")[1].split()[0])


def told() -> dict[str, Any]:
    """What this program is asked for."""
    return json.loads(sys.argv[1])


def result_file(folder: str | Path, library: str, quantity: str) -> Path:
    """Where a library's result lies."""
    return Path(folder, f"{library} {quantity}.npy")


def measure(
    quantities: Mapping[str, Quantity],
    told: dict[str, Any],
    share: Callable[[str], int] = lambda name: 1,
    processor: Processor | None = None,
) -> None:
    """Print the line of every quantity that is asked for; share: how many meta-updates a call makes."""
    signal.signal(signal.SIGALRM, _over_time)
    for name, quantity in quantities.items():
        if not name.startswith(tuple(told["names"])):
            continue
        signal.setitimer(signal.ITIMER_REAL, told["limit"], 1)  # again: a finalizer swallows what is raised in it
        try:
            file = result_file(told["folder"], told["library"], name)
            found = _measured(quantity, share(name), told["seconds"], file, processor or Processor())
        except OverTime:
            found = {"fault": f"over {told['limit']} s"}
        except Exception as fault:  # out of memory, a compiler's, a flow that is refused
            found = {"fault": f"{type(fault).__name__}: {fault}".partition("\n")[0]}
        finally:
            signal.setitimer(signal.ITIMER_REAL, 0)
        print(json.dumps({"quantity": name} | found), flush=True)


def _over_time(*_: Any) -> None:
    raise OverTime


def _measured(quantity: Quantity, updates: int, seconds: float, file: Path, processor: Processor) -> dict[str, Any]:
    def timed() -> float:
        start = processor.clock()
        results[:] = [processor.array(quantity())]
        return (processor.clock() - start) / updates

    results: list[np.ndarray] = []
    first, before, taken = timed(), processor.forget_peak(), []
    while not taken or sum(taken) * updates < seconds:
        taken.append(timed())
    memory = (processor.peak() - before) / 2**20
    np.save(file, results[0])
    return {
        "seconds": statistics.median(taken),
        "first": first,
        "memory_mib": memory,
        "waits": processor.waits(quantity),
    }
