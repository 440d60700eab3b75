"""Runs the cells of a grid: each as processes of this machine, or as jobs of a cluster, through SLURM's srun.

A cell's commands go on from where a killed one stopped (--resume), and pass over what is finished, so that all there is
to do is to start them, so many at once, and to start them again. Exit status 2, a mistake or a diverged run, is final;
everything else, a lost node or the end of a job's time included, is tried twice more. A command outlives this program
where that is killed (SIGKILL), and has its run's folder for itself; the next start waits for its end.
"""

import contextlib
import os
import queue
import signal
import subprocess
import threading
import time
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass
from pathlib import Path

from filelock import FileLock, Timeout

from amaml.errors import InputError
from experiment import results
from experiment.cells import Cell, Grid, hours_left, in_words, states
from experiment.folder import LOCK, held

FINAL = 2  # run.py's exit status for a mistake or a diverged run
ATTEMPTS = 3
LOOK_SECONDS = 0.3  # between two looks at a command, and at whether to stop
STOPS = [128 + number for number in (signal.SIGHUP, signal.SIGINT, signal.SIGKILL, signal.SIGTERM)]  # exit statuses


@dataclass(frozen=True)
class Place:
    """Where cells run: so many at once on this machine, or as jobs of a SLURM partition.

    gpus: how many there are; every cell gets one for itself. 0: none is used.
    """

    workers: int
    gpus: int = 0
    partition: str | None = None
    walltime: str = "04:00:00"
    account: str | None = None

    def command(self, command: list[str]) -> list[str]:
        """What starts a command there."""
        if self.partition is None:
            return command
        asked = {"ntasks": 1, "cpus-per-task": 1, "partition": self.partition, "time": self.walltime}
        asked |= {"account": self.account, "gpus-per-node": 1 if self.gpus else None}
        return ["srun", "--quiet", *(f"--{name}={value}" for name, value in asked.items() if value), *command]

    def check(self) -> None:
        """Raise InputError where SLURM would take no such job."""
        if self.partition is not None:
            asked = subprocess.run(self.command(["--test-only", "true"]), capture_output=True, text=True)
            if asked.returncode:
                raise InputError(f"no job can be started: {asked.stderr.strip()}")


def free_cores() -> int:
    """Cores of this machine that nothing else computes on, at least one."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, cores - round(os.getloadavg()[0]))


def run(grid: Grid, place: Place) -> int:
    """Run every cell that is not done, with a line for each that ends and its numbers in the grid's CSV.

    Returns the number of those that failed. KeyboardInterrupt leaves all resumable.
    """
    place.check()
    left, workers, failed = [cell for cell in grid.cells if cell.name not in grid.done], _Workers(grid, place), 0
    print(f"{grid.name}: {len(grid.done)} of {len(grid.cells)} cells are done", flush=True)
    with ThreadPoolExecutor(place.workers) as pool:
        try:
            futures = {pool.submit(workers.run, cell): cell for cell in left}
            for number, future in enumerate(as_completed(futures), len(grid.done) + 1):
                cell, status = futures[future], future.result()
                if status == 0:
                    results.collect(grid, cell)
                failed += status != 0
                print(f"[{number}/{len(grid.cells)}] {_ended(grid, cell, status, place.workers)}", flush=True)
        finally:
            workers.stop.set()
            pool.shutdown(wait=True, cancel_futures=True)
    return failed


def _ended(grid: Grid, cell: Cell, status: int, workers: int) -> str:
    """How a cell ended, and how long the others take."""
    last, hours = grid.record(cell), hours_left(states(grid), workers)
    text = f"failed: exit status {status}: {last['line']}" if status else f"done in {in_words(last['seconds'])}"
    return f"{cell.name}: {text}" + ("" if hours is None else f"; {in_words(3600 * hours)} left")


class _Workers:
    """What the threads of the pool share: where they run cells, the GPUs that are free, whether to stop."""

    def __init__(self, grid: Grid, place: Place) -> None:
        self.grid, self.place, self.stop = grid, place, threading.Event()
        visible = os.environ.get("CUDA_VISIBLE_DEVICES", ",".join(map(str, range(place.gpus)))).split(",")
        self.gpus: queue.SimpleQueue[str | None] = queue.SimpleQueue()
        for i in range(place.workers):
            self.gpus.put(visible[i] if place.gpus and place.partition is None else None)

    def run(self, cell: Cell) -> int:
        """Run a cell's commands until they succeed, fail for good or are told to stop; the last exit status."""
        gpu, status = self.gpus.get(), 128 + signal.SIGTERM
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
        environment |= {} if gpu is None else {"CUDA_VISIBLE_DEVICES": gpu}
        log, lock = self.grid.file(cell, "log"), FileLock(self.grid.file(cell, "lock"))
        log.parent.mkdir(parents=True, exist_ok=True)
        try:
            while not (self.stop.is_set() or lock.is_locked):
                with contextlib.suppress(Timeout):  # another start of the grid is at it
                    lock.acquire(timeout=LOOK_SECONDS)
            while not self.stop.is_set() and held(cell.folder / LOCK):  # a run is, that a killed start has left behind
                time.sleep(LOOK_SECONDS)
            with log.open("a") as output:
                for _ in range(ATTEMPTS):
                    if self.stop.is_set():
                        break
                    status = self._attempt(cell, stdout=output, stderr=output, env=environment)
                    if status in (0, FINAL):
                        break
        finally:
            lock.release()
            self.gpus.put(gpu)
        return status

    def _attempt(self, cell: Cell, **options: object) -> int:
        """The exit status of the first command that fails, or of the last; written down with the time that it took."""
        before, started, status = self.grid.record(cell), time.time(), 0
        spent, number = before.get("seconds", 0.0), before.get("attempts", 0) + 1
        self.grid.write_record(cell, attempts=number, seconds=spent, state="started", started=started)
        options |= {"stdin": subprocess.DEVNULL, "start_new_session": True}  # Ctrl-C is for this program alone
        for step in cell.steps:
            if status := self._wait(subprocess.Popen(self.place.command(step.command), **options)):
                break
        ending = "stopped" if status in STOPS or self.stop.is_set() else "failed" if status else "done"
        line, seconds = _last_line(self.grid.file(cell, "log")) if status else "", spent + time.time() - started
        record = {"attempts": number, "seconds": round(seconds, 3), "state": ending, "status": status, "line": line}
        self.grid.write_record(cell, **record)
        return status

    def _wait(self, process: subprocess.Popen) -> int:
        """The exit status, 128 + signal where one ended it; told to stop, a run leaves a checkpoint."""
        told = False
        while True:
            try:
                status = process.wait(LOOK_SECONDS)
                return status if status >= 0 else 128 - status
            except subprocess.TimeoutExpired:
                if self.stop.is_set() and not told:
                    process.terminate()
                    told = True


def _last_line(path: Path) -> str:
    """The last line of a file that is not empty, but for what srun has to say of a command that failed."""
    lines = path.read_text(errors="replace").strip().splitlines()
    return next((line for line in reversed(lines) if not line.startswith("srun: error: ")), "".join(lines[-1:]))
