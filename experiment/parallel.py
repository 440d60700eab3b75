"""Runs the cells of a grid on this machine or on a cluster. Parsl is the engine.

A cell that is done is left alone. Every other one is a task of Parsl's HighThroughputExecutor: supervise.py with the
cell's commands, each of which goes on from where a killed one stopped. Exit status 2, a mistake or a diverged run, is
final; everything else, a lost machine included, is tried twice more.
"""

import json
import os
import shlex
import shutil
import socket
import sys
import time
from collections.abc import Iterable
from concurrent.futures import FIRST_COMPLETED, Future, wait
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tqdm import tqdm

from amaml.errors import InputError
from experiment import supervise
from experiment.cells import Cell, Grid, State, done, hours_left, in_words, record_path, state, states

FINAL = 2  # run.py's exit status for a mistake or a diverged run
RETRIES = 2
REFRESH_SECONDS = 10.0  # between two looks at the time left
END_SECONDS = 60.0  # that cells have for their checkpoint when all are stopped


@dataclass(frozen=True)
class Place:
    """Where cells run: workers at once on this machine, or in each of some pilot jobs of a SLURM partition.

    gpus: how many a node has; every worker gets one for itself. 0: none is used.
    """

    workers: int
    gpus: int = 0
    partition: str | None = None
    walltime: str = "04:00:00"
    account: str | None = None
    jobs: int = 1


def free_cores() -> int:
    """Cores of this machine that nothing else computes on, at least one."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, cores - round(os.getloadavg()[0]))


def run(grid: Grid, place: Place) -> int:
    """Run every cell that is not done; the number of those that failed. KeyboardInterrupt leaves all resumable."""
    todo = [cell for cell in grid.cells if not done(cell)]
    progress = Progress(grid, place)
    if not todo:
        progress.close()
        return 0
    for cell in todo:
        record_path(grid, cell).parent.mkdir(parents=True, exist_ok=True)
    import parsl  # optional: only what runs cells needs it

    os.environ["PATH"] = f"{Path(sys.executable).parent}:{os.environ['PATH']}"  # where Parsl's own programs are
    owner = f"{socket.gethostname()}:{os.getpid()}"
    kernel = parsl.load(_config(grid, place, owner))
    try:
        start = parsl.bash_app(shlex.join)
        _follow({start(_supervised(grid, cell, owner)): cell for cell in todo}, progress)
    finally:
        progress.close()
        kernel.cleanup()
        parsl.clear()
        _wait_for_end(grid, todo)
    if not progress.failed:
        shutil.rmtree(kernel.run_dir, ignore_errors=True)  # Parsl's own logs and scripts
    return progress.failed


def _follow(futures: dict[Future, Cell], progress: "Progress") -> None:
    """Show every cell that ends, until all have; raises InputError where there is nobody to run them."""
    from parsl.executors.errors import BadStateException
    from parsl.jobs.errors import TooManyJobFailuresError

    while futures:
        for future in wait(futures, REFRESH_SECONDS, FIRST_COMPLETED).done:
            fault = future.exception()
            if isinstance(fault, (BadStateException, TooManyJobFailuresError)):
                first = " ".join(str(fault).split()).partition(" Error 2: ")[0]  # of the jobs that could not start
                raise InputError(f"no worker could be started: {first}")
            progress.ended(futures.pop(future), fault)
        progress.refresh()


def _supervised(grid: Grid, cell: Cell, owner: str) -> list[str]:
    commands = json.dumps([step.command for step in cell.steps])
    return [sys.executable, supervise.__file__, str(record_path(grid, cell)), owner, commands]


def _retry_cost(fault: Exception, _: Any) -> float:
    return RETRIES + 1 if getattr(fault, "exitcode", None) == FINAL else 1


def _config(grid: Grid, place: Place, owner: str) -> Any:
    import parsl
    from parsl.executors import HighThroughputExecutor
    from parsl.providers import LocalProvider, SlurmProvider

    blocks = {"init_blocks": 1, "min_blocks": 0, "max_blocks": place.jobs}
    if place.partition is None:
        provider = LocalProvider(**blocks)
        network = {"address": "127.0.0.1", "heartbeat_period": 2, "heartbeat_threshold": 30}
    else:
        provider = SlurmProvider(
            partition=place.partition,
            account=place.account,
            walltime=place.walltime,
            cores_per_node=place.workers,
            gpus_per_node=place.gpus or None,
            exclusive=False,
            cmd_timeout=60,
            worker_init=f"cd {shlex.quote(str(Path.cwd()))}; export PATH={shlex.quote(os.environ['PATH'])}",
            **blocks,
        )
        network = {"heartbeat_period": 15, "heartbeat_threshold": 120}
    executor = HighThroughputExecutor(
        provider=provider,
        max_workers_per_node=place.workers,
        cores_per_worker=1e-3,  # as many workers as were asked for, whatever the machine has
        available_accelerators=place.gpus,
        interchange_launch_cmd=[sys.executable, supervise.__file__, "--guard", owner, "interchange.py"],
        **network,
    )
    return parsl.Config(
        executors=[executor],
        retries=RETRIES,
        retry_handler=_retry_cost,
        run_dir=str(grid.records / ".parsl"),
        strategy="simple",
        strategy_period=0.5 if place.partition is None else 5,  # seconds; the first pilot job starts after one
        initialize_logging=False,
    )


def _wait_for_end(grid: Grid, cells: Iterable[Cell]) -> None:
    """Wait until no cell runs any more, so that the same command may follow at once."""
    end = time.monotonic() + END_SECONDS
    while time.monotonic() < end and any(state(grid, cell).name == "running" for cell in cells):
        time.sleep(supervise.LOOK_SECONDS)


class Progress:
    """One bar over the cells on a terminal, a line a cell elsewhere."""

    def __init__(self, grid: Grid, place: Place) -> None:
        self.grid, self.workers, self.failed = grid, place.workers * place.jobs, 0
        self.count = sum(done(cell) for cell in grid.cells)
        layout = "{desc} {n_fmt}/{total_fmt} cells |{bar}| {elapsed}{postfix}"
        self.bar = tqdm(
            total=len(grid.cells),
            initial=self.count,
            desc=grid.name,
            bar_format=layout,
            disable=None,
            dynamic_ncols=True,
        )
        if self.bar.disable:
            print(f"{grid.name}: {self.count} of {len(grid.cells)} cells are done", flush=True)

    def ended(self, cell: Cell, fault: BaseException | None) -> None:
        """Show that a cell ended, well or with a fault."""
        now = state(self.grid, cell)
        self.count += 1
        self.failed += fault is not None
        result = f"done in {in_words(now.seconds)}" if fault is None else f"failed: {_reason(fault, now)}"
        if self.bar.disable:
            print(f"[{self.count}/{len(self.grid.cells)}] {cell.name}: {result}{self._left()}", flush=True)
        elif fault is not None:
            self.bar.write(f"{cell.name}: {result}")
        self.bar.update()

    def refresh(self) -> None:
        """Bring the time left up to date."""
        if not self.bar.disable:
            self.bar.set_postfix_str(
                self._left().removeprefix("; ") + (f", {self.failed} failed" if self.failed else "")
            )

    def _left(self) -> str:
        left = hours_left(states(self.grid), self.workers)
        return "" if left is None else f"; {in_words(3600 * left)} left"

    def close(self) -> None:
        """Leave the bar as it is."""
        self.bar.close()


def _reason(fault: BaseException, now: State) -> str:
    code = getattr(fault, "exitcode", None)
    if code is None:
        return " ".join(str(fault).split()) or type(fault).__name__
    return f"exit status {code}: {now.line}"


def check_parsl() -> None:
    """Raise InputError where Parsl is not installed."""
    from importlib.util import find_spec

    if find_spec("parsl") is None:
        raise InputError("Parsl is not installed, which runs the cells; pip install -r configs/parsl-requirements.txt")
