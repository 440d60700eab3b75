"""The program behind reproduce.sh: run the cells of a grid, say how far they are, or compare finished runs."""

import os
import shlex
import shutil
import signal
import sys
import warnings
from argparse import Namespace
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from amaml.errors import InputError
from experiment import parallel, results
from experiment.grid import describe, read_grid, states, target_path
from experiment.launch import Ending
from experiment.settings import Parser

LIST = {"nargs": "+", "action": "extend"}
RUN: dict[str, dict[str, Any]] = {
    "target": {"help": "a target (configs/targets), or a grid of your own, GRID.toml"},
    "--seeds": LIST | {"type": int, "metavar": "N", "help": "seeds, instead of the grid's own"},
    "--only": LIST | {"default": [], "metavar": "AXIS=A,B", "help": "only these places on an axis"},
    "--workers": {"type": int, "metavar": "N", "help": "cells at once (default: free cores)"},
    "--gpus": {"type": int, "nargs": "?", "const": -1, "default": 0, "metavar": "N"}
    | {"help": "a GPU for every worker; N are on a machine (default: as many as this one has)"},
    "--slurm": {"metavar": "PARTITION", "help": "run each cell as a job on this partition"},
    "--walltime": {"default": "04:00:00", "metavar": "H:M:S", "help": "of a job (default 04:00:00)"},
    "--account": {"metavar": "A", "help": "whom SLURM charges"},
    "--jobs": {"type": int, "default": 1, "metavar": "N", "help": "jobs at a time, times --workers (default 1)"},
    "--again": {"action": "store_true", "help": "make also what stands in the CSV, where it is not here as a run"},
    "--dry-run": {"action": "store_true", "help": "print the commands of the cells that are not done"},
    "--status": {"action": "store_true", "help": "say how many are done, and how long the rest takes"},
}
COMPARE: dict[str, dict[str, Any]] = {
    "paths": {"nargs": "+", "type": Path, "metavar": "CSV_OR_RUN", "help": "CSVs, runs, or folders of either"},
    "--out": {"type": Path, "default": Path("results/comparison"), "help": "default: results/comparison"},
    "--only": LIST | {"default": [], "metavar": "AXIS=A,B", "help": "only these places, of CSVs"},
}


def parsed(flags: dict[str, dict[str, Any]], arguments: list[str], about: str | None) -> Namespace:
    """The arguments as these flags have them; only as {axis: places}."""
    parser = Parser(prog="reproduce.sh", description=about, allow_abbrev=False)
    for name, options in flags.items():
        parser.add_argument(name, **options)
    given = parser.parse_args(arguments)
    given.only = {name: values.split(",") for name, _, values in (only.partition("=") for only in given.only)}
    return given


def compare(given: Namespace) -> None:
    """Write the tables and pictures of what is given, and print the tables."""
    from experiment import compare, figures_compare, tables

    panels = compare.panels(*compare.read_runs(given.paths, given.only))
    given.out.mkdir(parents=True, exist_ok=True)
    pictures = {panel.name: figures_compare.draw(panel, given.out) for panel in panels}
    print(tables.write(panels, pictures, given.out))
    print(given.out)


def reproduce(given: Namespace) -> int:
    """Run, print or describe the cells that are asked for."""
    grid = read_grid(target_path(given.target), given.seeds, "cuda" if given.gpus else None)
    results.check_places(given.only, {name: {cell.labels[name] for cell in grid.cells} for name in grid.axes})
    wanted = [c for c in grid.cells if all(c.labels[name] in values for name, values in given.only.items())]
    grid = replace(grid, cells=wanted)
    grid = grid if given.again and not given.status else replace(grid, done=results.done(grid))
    if given.status:
        print(describe(states(grid), given.workers or parallel.free_cores()))
        return 0
    if given.dry_run:
        todo = (cell for cell in grid.cells if cell.name not in grid.done)
        print("\n".join(shlex.join(step.command) for cell in todo for step in cell.steps) or "every cell is done")
        return 0
    failed = parallel.run(grid, place_of(given))
    if failed:
        print(f"{failed} of {len(grid.cells)} cells failed; what they printed is below {grid.records}", file=sys.stderr)
    return 1 if failed else 0


def place_of(given: Namespace) -> parallel.Place:
    """Where to run them; raises InputError for what this machine does not have."""
    gpus = torch.cuda.device_count() if given.gpus == -1 else given.gpus
    if given.gpus and not gpus:
        raise InputError("--gpus: this machine has none; leave it out, or with --slurm say how many a node has")
    workers = given.workers if given.workers is not None else gpus or (1 if given.slurm else parallel.free_cores())
    for name, value in (("--workers", workers), ("--jobs", given.jobs)):
        if value < 1:
            raise InputError(f"{name} must be a positive integer, got {value}")
    if gpus and workers > gpus:
        raise InputError(f"--workers {workers} is more than the {gpus} GPUs of --gpus; every worker has one for itself")
    if given.slurm and shutil.which("srun") is None:
        raise InputError("--slurm: there is no srun here; start this on a machine of the cluster")
    at_once = workers * given.jobs if given.slurm else workers
    return parallel.Place(at_once, gpus, given.slurm, given.walltime, given.account)


def main(arguments: list[str]) -> int:
    """Exit status: 0 all cells are done, 1 some failed, 2 a mistake in the input, 130 a stop, 141 a closed pipe."""
    for number in (signal.SIGTERM, signal.SIGHUP):
        if signal.getsignal(number) != signal.SIG_IGN:  # as under nohup
            signal.signal(number, signal.default_int_handler)  # as Ctrl-C
    with Ending("reproduce.sh", "stopped; the same command goes on") as end:
        if arguments[:1] == ["compare"]:
            compare(parsed(COMPARE, arguments[1:], "Tables and pictures of many runs."))
        else:
            end.status = reproduce(parsed(RUN, arguments, __doc__))
    return end.status


if __name__ == "__main__":
    warnings.simplefilter("ignore")
    os.environ["MPLBACKEND"] = "agg"  # a notebook's own is not for other processes
    sys.exit(main(sys.argv[1:]))
