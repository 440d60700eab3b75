"""Runs the cells of a grid: each as processes of this machine, or as jobs of a cluster, through SLURM's srun.

A cell's commands go on from where a killed one stopped (--resume), and pass over what is finished, so that all there is
to do is to start them, so many at once, and to start them again. Exit status 2, a mistake or a diverged run, is final;
everything else, a lost node or the end of a job's time included, is tried twice more. A command outlives this program
where that is killed (SIGKILL), and has its run's folder for itself; the next start waits for its end.
"""

import asyncio
import contextlib
import os
import subprocess
import time
from dataclasses import dataclass
from typing import Any

from filelock import AsyncFileLock

from amaml.errors import InputError
from experiment import results
from experiment.folder import LOCK, held
from experiment.grid import Cell, Grid, hours_left, in_words, states

FINAL = 2  # run.py's exit status for a mistake or a diverged run
ATTEMPTS = 3
LOOK_SECONDS = 0.3  # between two looks at whether a cell is free


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
    print(f"{grid.name}: {len(grid.done)} of {len(grid.cells)} cells are done", flush=True)
    return asyncio.run(_all(grid, place))


async def _all(grid: Grid, place: Place) -> int:
    left, failed = [cell for cell in grid.cells if cell.name not in grid.done], 0
    visible = os.environ.get("CUDA_VISIBLE_DEVICES", ",".join(map(str, range(place.gpus)))).split(",")
    workers: asyncio.Queue[str | None] = asyncio.Queue()  # the free ones, each by its GPU
    for i in range(place.workers):
        workers.put_nowait(visible[i] if place.gpus and place.partition is None else None)
    async with asyncio.TaskGroup() as group:  # a stop of this program is one of every cell that runs
        started = [group.create_task(_run(grid, place, cell, workers)) for cell in left]
        for number, ended in enumerate(asyncio.as_completed(started), len(grid.done) + 1):
            cell, status = await ended
            if status == 0:
                results.collect(grid, cell)
            failed += status != 0
            known = states(grid)
            this, hours = next(state for state in known if state.cell is cell), hours_left(known, place.workers)
            text = f"failed: exit status {status}: {this.line}" if status else f"done in {in_words(this.seconds)}"
            text += "" if hours is None else f"; {in_words(3600 * hours)} left"
            print(f"[{number}/{len(grid.cells)}] {cell.name}: {text}", flush=True)
    return failed


async def _run(grid: Grid, place: Place, cell: Cell, workers: asyncio.Queue[str | None]) -> tuple[Cell, int]:
    """Run a cell's commands by the next free worker until they succeed or fail for good; the last exit status."""
    gpu = await workers.get()
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
    environment |= {} if gpu is None else {"CUDA_VISIBLE_DEVICES": gpu}
    log, alone = grid.file(cell, "log"), AsyncFileLock(grid.file(cell, "lock"), run_in_executor=False)
    log.parent.mkdir(parents=True, exist_ok=True)
    try:
        async with alone:  # another start of the grid may be at it
            while held(cell.folder / LOCK):  # a run is, that a killed start has left behind
                await asyncio.sleep(LOOK_SECONDS)
            with log.open("a") as output:
                for _ in range(ATTEMPTS):
                    status = await _attempt(grid, place, cell, stdout=output, stderr=output, env=environment)
                    if status in (0, FINAL):
                        break
    finally:
        workers.put_nowait(gpu)
    return cell, status


async def _attempt(grid: Grid, place: Place, cell: Cell, **options: Any) -> int:
    """The exit status of the first command that fails, or of the last; written down with the time that it took."""
    spent, started, status = grid.record(cell).get("seconds", 0.0), time.time(), None
    grid.write_record(cell, started=started, status=status, seconds=spent)
    try:
        for step in cell.steps:
            if status := await _status_of(place.command(step.command), **options):
                break
    finally:
        grid.write_record(cell, started=started, status=status, seconds=round(spent + time.time() - started, 3))
    return status


async def _status_of(command: list[str], **options: Any) -> int:
    """The exit status of a command, 128 + signal where one ended it; told to stop, a run leaves a checkpoint."""
    options |= {"stdin": subprocess.DEVNULL, "start_new_session": True}  # Ctrl-C is for this program alone
    process = await asyncio.create_subprocess_exec(*command, **options)
    try:
        status = await process.wait()
    except asyncio.CancelledError:
        process.terminate()
        while process.returncode is None:  # a stop may cancel this more than once
            with contextlib.suppress(asyncio.CancelledError):
                await process.wait()
        raise
    return status if status >= 0 else 128 - status
