"""How many threads a run computes with: measured at the start, since more are not always faster.

On a machine whose cores are busy with other work, threads that wait for one another can make small operations tens of
times slower. Numbers depend on the count, by rounding, so that a run keeps the one it began with.
"""

import os
import statistics
import time
from collections.abc import Callable

import torch

CALLS = 5  # of which the median counts
GAIN = 1.2  # more threads must be faster by this factor


def choose(prepare: Callable[[], Callable[[], object]], given: int | None = None) -> int:
    """Set and return torch's number of threads: given, or OMP_NUM_THREADS, or else one or all, as is faster.

    prepare makes the work that is timed, and is called only where something is to be measured.
    """
    all_threads = torch.get_num_threads()
    if given is None and all_threads > 1 and "OMP_NUM_THREADS" not in os.environ:
        work = prepare()
        alone, together = (_seconds(work, count) for count in (1, all_threads))
        given = all_threads if together * GAIN < alone else 1
    torch.set_num_threads(given or all_threads)
    return torch.get_num_threads()


def _seconds(work: Callable[[], object], threads: int) -> float:
    """The median of some calls, after one that does not count."""
    torch.set_num_threads(threads)
    seconds = []
    for _ in range(1 + CALLS):
        start = time.perf_counter()
        work()
        seconds.append(time.perf_counter() - start)
    return statistics.median(seconds[1:])
