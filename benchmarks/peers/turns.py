"""A process that computes named quantities when told to. Numpy alone, for it runs beside every library.

It says the names of what there is as JSON. Every line of standard input is then {name, seconds, limit, file}: compute
that quantity over and over for so many seconds, put the result into file, and answer with {seconds: the median of a
call, memory_mib: what it adds to the peak}, or with {fault: why} where a call raises or takes longer than limit.
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
    """A call took longer than its limit; no Exception, so that nothing goes on in another way."""


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


def serve(
    quantities: Mapping[str, Quantity], share: Callable[[str], int] = lambda name: 1, processor: Processor | None = None
) -> None:
    """Say what there is, and answer every line; share: how many meta-updates a call makes."""
    print(json.dumps(list(quantities)), flush=True)
    signal.signal(signal.SIGALRM, _over_time)
    for line in sys.stdin:
        told = json.loads(line)
        signal.setitimer(signal.ITIMER_REAL, told["limit"], 1)  # again: a finalizer swallows what is raised in it
        try:
            call, calls = quantities[told["name"]], share(told["name"])
            answer = _measured(call, calls, told["seconds"], told["file"], processor or Processor())
        except OverTime:
            answer = {"fault": f"over {told['limit']} s"}
        except Exception as fault:  # out of memory, a compiler's, a flow that is refused
            answer = {"fault": f"{type(fault).__name__}: {fault}".partition("\n")[0]}
        finally:
            signal.setitimer(signal.ITIMER_REAL, 0)
        print(json.dumps(answer), flush=True)


def _over_time(*_: Any) -> None:
    raise OverTime


def _measured(quantity: Quantity, calls: int, seconds: float, file: str, processor: Processor) -> dict[str, Any]:
    """The answer to a line."""
    before, taken = processor.forget_peak(), []
    while sum(taken) * calls < seconds or not taken:
        start = processor.clock()
        result = processor.array(quantity())
        taken.append((processor.clock() - start) / calls)
    memory = (processor.peak() - before) / 2**20
    np.save(file, result)
    return {"seconds": statistics.median(taken[1:] or taken), "memory_mib": memory, "waits": processor.waits(quantity)}
