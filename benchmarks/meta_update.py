"""Seconds, memory, evaluations and accuracy of one meta-update, every method side by side on the same tasks.

    python -m benchmarks.meta_update --network alpine                     the figures of results/efficiency
    python -m benchmarks.meta_update --network alpine --trained results/.../checkpoint.pt

Times are medians over rounds that take every method in turn, after a warm-up that traces and compiles; a method's turn
is a few calls in a row where they are short, the first of them not counted, so that none pays for the caches that the
one before it filled. Memory is measured in a process of its own for every method. The reference is the converged flow
(benchmarks.reference).

A-MAML's solvers of the flow measure their error now and then, and choose their steps by it. They are settled on other
batches first. The time is that of a call which does not measure, times the mean evaluations of those batches, with what
measuring them took, over the evaluations of this call: what a call costs in a long run. Error and evaluations are those
of the call that was timed.
"""

import argparse
import ctypes
import gc
import json
import statistics
import subprocess
import sys
import time
import warnings
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch.utils.flop_counter import FlopCounterMode

from amaml import AMAML, Diverged, MetaGradient
from amaml.engine import derivatives
from amaml.flow.accuracy import relative_distance
from benchmarks import report
from benchmarks.problems import LIMITS, Problem, methods, problem
from benchmarks.reference import converged
from experiment.folder import environment

STEPS = (1, 10, 20, 50, 100, 200, 500, 1000, 2000, 5000)
TURN = 0.5  # seconds
# batches on which A-MAML settles, and how many of them, the first, do not count; fewer where calls are dear
SETTLING = {"alpine": (240, 60), "conv": (40, 10), "resnet": (40, 10)}
MEMORY_STEPS = (10, 50, 200, 500, 2000)  # a process each


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--network", choices=("alpine", "conv", "resnet"), default="alpine")
    parser.add_argument("--trained", help="checkpoint.pt of a run; its theta instead of an untrained one")
    parser.add_argument("--steps", type=int, nargs="+", default=STEPS, help="numbers of inner steps")
    parser.add_argument("--methods", nargs="+", help="names of methods (default: all)")
    parser.add_argument("--rounds", type=int, default=5, help="timed calls of each method")
    parser.add_argument("--dtype", default="float64", choices=("float64", "float32"))
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--compile", default="on", choices=("on", "off"))
    parser.add_argument("--skip-memory", action="store_true", help="no processes for the memory column")
    parser.add_argument("--out", default="results/efficiency", help="folder of the JSON, the table and the figure")
    parser.add_argument("--memory-of", nargs=2, metavar=("METHOD", "STEPS"), help="print its peak bytes and end")
    a = parser.parse_args()
    torch.set_num_threads(a.threads)
    p = problem(a.network, getattr(torch, a.dtype), a.device, a.trained)
    if a.memory_of:
        print(peak_bytes(p, a.memory_of[0], int(a.memory_of[1]), a.device))
        return
    warnings.simplefilter("ignore")  # of the packages
    name = f"{a.network}-{'trained' if a.trained else 'untrained'}-{a.device.split(':')[0]}"
    with derivatives.compiled(a.compile == "on"):
        rows = measure(p, a)
    result = {"environment": environment(a.device), "arguments": vars(a), "rows": rows}
    report.write(Path(a.out), name, result)


def measure(p: Problem, a: argparse.Namespace) -> list[dict[str, Any]]:
    """A row for every method and number of steps."""
    table = {name: make for name, make in methods(p).items() if not a.methods or name in a.methods}
    for name in ("higher", "torch-maml"):
        if name not in methods(p):
            print(f"{name} is not installed (pip install -r benchmarks/requirements.txt): left out", file=sys.stderr)
    rate, work = matmul_rate(p), flops(p)
    rows = []
    for steps in a.steps:
        learners = {n: make(steps) for n, make in table.items() if steps <= LIMITS.get(n, steps)}
        reference = converged(AMAML(p.apply, p.loss, p.inner_lr, steps), p.theta, p.tasks)
        settled = {n: settle(learner, p, *SETTLING[a.network]) for n, learner in learners.items()}
        first = {n: attempt(learner, p) for n, learner in learners.items()}
        learners = {n: learner for n, learner in learners.items() if not isinstance(first[n], str)}
        seconds: dict[str, list[float]] = {n: [] for n in learners}
        for _ in range(a.rounds):
            for n, learner in learners.items():
                seconds[n].append(timed(learner, p, a.device))
        for n, gradient in first.items():
            row = {"method": n, "steps": steps}
            if isinstance(gradient, str):
                row["refused"] = gradient
            else:
                row |= figures(gradient, reference.value, statistics.median(seconds[n]), settled[n], rate, work)
                measured = steps in MEMORY_STEPS and not a.skip_memory
                row["peak_bytes"] = memory_in_process(a, n, steps) if measured else None
            rows.append(row)
            print(json.dumps(row), flush=True)
    return rows


class Settled(NamedTuple):
    """Mean evaluations of a call in a long run, without those of measurements, and what these add."""

    evaluations: float
    measuring: float


def settle(learner: Any, p: Problem, calls: int, beginning: int) -> Settled | None:
    """Let A-MAML settle on other batches; None for methods that do not."""
    if not (isinstance(learner, AMAML) and learner.solver != "euler"):
        return None
    seen = []
    for n in range(1, calls + 1):
        try:
            gradient = learner.meta_gradient(p.theta, p.episode(n))
        except Diverged:
            continue
        if n > beginning:
            seen.append(gradient.observation)
    mean = statistics.fmean
    return Settled(mean(o.cost for o in seen), mean(o.measuring for o in seen)) if seen else None


def attempt(learner: Any, p: Problem) -> MetaGradient | str:
    """The warm-up: traces and compiles. A gradient that cannot be trusted is reported by its error."""
    try:
        learner.meta_gradient(p.theta, p.tasks)
        return learner.meta_gradient(p.theta, p.tasks)
    except Diverged as error:
        return str(error)


def timed(learner: Any, p: Problem, device: str) -> float:
    """Seconds of one call, to the end of its work on the device: the median of those that fit into TURN, but one.

    On one thread of the CPU these are seconds of computing, so that other work on the machine counts less.
    """
    clock = time.process_time if torch.get_num_threads() == 1 and device == "cpu" else time.perf_counter
    seconds: list[float] = []
    while sum(seconds) < TURN:
        start = clock()
        learner.meta_gradient(p.theta, p.tasks)
        if device.startswith("cuda"):
            torch.cuda.synchronize()
        seconds.append(clock() - start)
    return statistics.median(seconds[1:] or seconds)


def figures(
    gradient: MetaGradient,
    reference: torch.Tensor,
    seconds: float,
    settled: Settled | None,
    rate: float,
    work: dict[str, float],
) -> dict[str, Any]:
    """The columns of a row but the memory's; seconds: of the call with this gradient."""
    g, r, spent = gradient.value, reference, gradient.evaluations
    floor = (work["gradients"] * (spent.gradients + spent.recomputations) + work["hvps"] * spent.hvps) / rate
    return {
        "seconds": seconds * (sum(settled) / spent.total if settled else 1.0),
        "long_run": sum(settled) if settled else None,
        "measuring": settled.measuring / settled.evaluations if settled else None,
        "gradients": spent.gradients,
        "hvps": spent.hvps,
        "recomputations": spent.recomputations,
        "relative_error": relative_distance(g, r),
        "cosine": torch.nn.functional.cosine_similarity(g, r, dim=0).item(),
        "reported_error": gradient.error,
        "floor_fraction": floor / seconds,
    }


def matmul_rate(p: Problem) -> float:
    """Floating-point operations a second of a large matrix product, the machine's best."""
    a = torch.randn(512, 512, dtype=p.theta.dtype, device=p.theta.device)
    best = min(_seconds_of_product(a) for _ in range(20))
    return 2 * 512**3 / best


def _seconds_of_product(a: torch.Tensor) -> float:
    start = time.perf_counter()
    (a @ a).sum().item()
    return time.perf_counter() - start


def flops(p: Problem) -> dict[str, float]:
    """Operations in the matrix products and convolutions of one gradient and one Hessian-vector product."""
    phi, t = p.theta.expand(len(p.tasks), -1).contiguous(), p.tasks
    counts = {}
    with derivatives.compiled(False):
        for kind, call in (("gradients", derivatives.gradients), ("hvps", derivatives.hvps)):
            arguments = (phi,) if kind == "gradients" else (phi, phi)
            with FlopCounterMode(display=False) as counter:
                call(p.apply, p.loss, *arguments, t.support_x, t.support_y)
            counts[kind] = float(counter.get_total_flops())
    return counts


def peak_bytes(p: Problem, method: str, steps: int, device: str) -> int:
    """What one meta-update adds to the peak memory of a process that has made one with a single inner step.

    The single step traces the graphs, which takes some 70 MiB whatever the number of steps.
    """
    make = methods(p)[method]
    make(1).meta_gradient(p.theta, p.tasks)
    forget_peak(device)
    before = memory(device)
    make(steps).meta_gradient(p.theta, p.tasks)
    return memory(device) - before


def forget_peak(device: str) -> None:
    """Let memory() begin anew; on Linux, with what is free in the heap given back."""
    if device.startswith("cuda"):
        torch.cuda.reset_peak_memory_stats(device)
        return
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)
    Path("/proc/self/clear_refs").write_text("5")


def memory(device: str) -> int:
    """Peak bytes so far: of CUDA's allocator, or resident on the machine."""
    if device.startswith("cuda"):
        return torch.cuda.max_memory_allocated(device)
    status = Path("/proc/self/status").read_text()
    return 1024 * int(status.split("VmHWM:")[1].split()[0])


def memory_in_process(a: argparse.Namespace, method: str, steps: int) -> int:
    options = ["--network", a.network, "--dtype", a.dtype, "--device", a.device, "--threads", str(a.threads)]
    options += ["--trained", a.trained] if a.trained else []
    command = [sys.executable, "-W", "ignore", "-m", "benchmarks.meta_update", *options]
    done = subprocess.run([*command, "--memory-of", method, str(steps)], capture_output=True, text=True, check=True)
    return int(done.stdout)


if __name__ == "__main__":
    main()
