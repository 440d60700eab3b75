"""Seconds, waits and memory of a meta-update over sizes: networks, tasks, inner steps, methods; a line each, at once.

    python -m benchmarks.sizes --device cuda:0 --network wide --way graphs --out sizes.csv

network: "alpine" 2-32-32-1, "wide" 2-256-256-1, both in float64, or "conv", Conv-4 in float32 (benchmarks.problems).
way: how the graphs of derivatives run: "traced", "compiled" by torch.compile, or, on CUDA, replayed as CUDA "graphs".
first: seconds of the first call; it traces and compiles what no method before it had. seconds: the median of what fits
into TURN, one call at least. waits: how often the host waited for the device in a call. peak_mib: of CUDA's allocator.
Whatever a cell ends with, a fault or its limit of time, is its line, and the next one begins.
"""

import argparse
import csv
import itertools
import os
import signal
import statistics
import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from amaml import compiled
from benchmarks.problems import LIMITS, Problem, methods, problem

METHODS = ("A-MAML euler", "FOMAML", "MAML", "A-MAML auto")
COLUMNS = (
    "network",
    "way",
    "tasks",
    "steps",
    "method",
    "first",
    "seconds",
    "waits",
    "peak_mib",
    "evaluations",
    "fault",
)
TURN = 1.0  # seconds


class OverTime(BaseException):
    """A cell took longer than its limit; no Exception, so that nothing goes on in another way."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--network", choices=("alpine", "wide", "conv"), default="alpine")
    parser.add_argument("--way", choices=("traced", "compiled", "graphs"), default="traced")
    parser.add_argument("--tasks", type=int, nargs="+", default=(5, 500))
    parser.add_argument("--steps", type=int, nargs="+", default=(200, 5000), help="numbers of inner steps")
    parser.add_argument("--methods", nargs="+", default=METHODS)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--limit", type=int, default=40, help="seconds for a cell")
    parser.add_argument("--out", required=True, help="the CSV file, to which lines are added")
    a = parser.parse_args()
    torch.set_num_threads(1)
    os.environ["TORCHINDUCTOR_CUDAGRAPHS"] = str(int(a.way == "graphs"))
    signal.signal(signal.SIGALRM, over_time)
    dtype, network = (torch.float32, "conv") if a.network == "conv" else (torch.float64, "alpine")
    width, new = 256 if a.network == "wide" else 32, not Path(a.out).exists()
    problems = {n: problem(network, dtype, a.device, None, tasks=n, width=width) for n in a.tasks}
    with Path(a.out).open("a", newline="") as file, compiled(a.way != "traced"):
        writer = csv.DictWriter(file, COLUMNS)
        if new:
            writer.writeheader()
        for steps, (tasks, p), method in itertools.product(a.steps, problems.items(), a.methods):
            if steps <= LIMITS.get(method, steps):
                row = {"network": a.network, "way": a.way, "tasks": tasks, "steps": steps, "method": method}
                row |= cell(p, method, steps, a.device, a.limit)
                writer.writerow(row)
                file.flush()
                print(*(f"{value:.4g}" if isinstance(value, float) else value for value in row.values()), flush=True)


def over_time(*_: Any) -> None:
    raise OverTime


def cell(p: Problem, method: str, steps: int, device: str, limit: int) -> dict[str, Any]:
    """The columns that are measured, or the fault."""
    signal.alarm(limit)
    try:
        return measured(p, methods(p)[method](steps), device)
    except OverTime:
        return {"fault": f"over {limit} s"}
    except Exception as fault:  # out of memory, a compiler's, a flow that is refused
        return {"fault": f"{type(fault).__name__}: {fault}".partition("\n")[0]}
    finally:
        signal.alarm(0)


def measured(p: Problem, learner: Any, device: str) -> dict[str, Any]:
    """The numbers of a learner's meta-updates."""
    cuda = device.startswith("cuda")

    def call() -> float:
        start = time.perf_counter()
        learner.meta_gradient(p.theta, p.tasks)
        if cuda:
            torch.cuda.synchronize()
        return time.perf_counter() - start

    if cuda:
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(device)
    first, seconds = call(), [call()]
    while sum(seconds) < TURN:
        seconds.append(call())
    row = {"first": first, "seconds": statistics.median(seconds)}
    if cuda:
        row["peak_mib"] = torch.cuda.max_memory_allocated(device) / 2**20
    with waits(cuda) as seen:
        row["evaluations"] = learner.meta_gradient(p.theta, p.tasks).evaluations.total
    return row | ({"waits": len(seen)} if cuda else {})


@contextmanager
def waits(cuda: bool) -> Iterator[list]:
    """Within this context CUDA warns wherever the host waits for the device; the warnings."""
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        if cuda:
            torch.cuda.set_sync_debug_mode("warn")
        try:
            yield seen
        finally:
            if cuda:
                torch.cuda.set_sync_debug_mode("default")


if __name__ == "__main__":
    main()
