"""One experiment, from flags to results: parse, build, meta-train, meta-test, report. See --help and the README."""

import math
import os
import sys
import warnings
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from amaml import compiled
from amaml.errors import InputError
from data.files import cache_folder
from experiment import machine
from experiment.build import build
from experiment.distributed import Group, joined
from experiment.folder import RunFolder, load_checkpoint, usable
from experiment.launch import Ending, launch
from experiment.opening import evaluation_name, evaluation_settings, open_run
from experiment.session import Session
from experiment.settings import CONTROL, Settings, merged, parse_flags
from experiment.summary import table, write_summary


def main(arguments: list[str]) -> int:
    """Exit status: 0 done, 2 a mistake in the input or a diverged run, 128 + signal after a stop, 1 where another
    process of the run was lost."""
    with Ending() as end, joined() as group:
        end.quiet = not group.first
        flags = parse_flags(arguments)
        s = None if "evaluate" in flags else merged(flags)
        asked = flags.get("processes", group.world)
        if group.world == 1 and asked > 1:
            end.status = launch(asked, Path(__file__), arguments)
        elif asked != group.world:
            raise InputError(f"--processes {asked} under torchrun, which has started {group.world}; leave it out")
        elif s is None:
            evaluate(flags, group)
        else:
            experiment(s, group)
    return end.status


def experiment(s: Settings, group: Group) -> None:
    """Train, test and report one run in its folder; a finished one is only reported. The first process alone writes."""
    share = math.ceil(s.meta_batch / group.world) if group.world > 1 else None
    s = replace(s, processes=group.world, task_chunk=s.task_chunk or share)
    folder = RunFolder(s.folder())
    with usable(folder.path), folder.alone(group.first), machine.deterministic(s.deterministic), group.stop:
        opening = group.of_first(lambda: open_run(folder, s))
        if opening.finished:
            remedy = f"--evaluate {folder.path} tests or draws it, --overwrite runs it again"
            if group.first:
                print(folder.read("summary.json", {})["table"])
                print(f"{folder.path} is finished; {remedy}")
            return
        e = group.together(lambda: build(s, group))
        with compiled(opening.compiled):
            session = Session(folder, e, group, opening)
            session.run()
            if group.first:
                print(write_summary(folder, e.title, session.costs))
                if (picture := e.picture()) is not None:
                    folder.write("fits.png", picture)
                print(folder.path)


def evaluate(flags: dict[str, Any], group: Group) -> None:
    """Meta-test a run folder or a checkpoint under its own settings and the flags given beside it."""
    path = Path(flags["evaluate"])
    checkpoint = group.of_first(lambda: load_checkpoint(path))
    s = evaluation_settings(flags, checkpoint, group.world)
    home = path if path.is_dir() else path.parent
    folder = RunFolder(Path(s.out) if s.out else home)
    with usable(folder.path), machine.deterministic(s.deterministic), group.stop:
        e = group.together(lambda: build(s, group))
        e.restore(checkpoint, str(path), "evaluate it on a domain with as many inputs and outputs")
        if group.first and s.out and folder.path.resolve() != home.resolve():
            folder.check_ours()
            folder.path.mkdir(parents=True, exist_ok=True)
        entry, lines = e.meta_test(checkpoint.update)
        if group.first:
            print(table(f"{path} on {s.domain}, {s.shots} shots", entry))
            own = {name: value for name, value in asdict(s).items() if name not in CONTROL}
            name = evaluation_name(flags, s)
            if (picture := e.picture()) is not None:
                folder.write(f"fits-{name}.png", picture)
            folder.write_tasks(lines, f"evaluation-{name}.csv")
            folder.write(f"evaluation-{name}.json", {"settings": own, **entry, "evaluated": str(path)})
            print(folder.path / f"evaluation-{name}.json")


if __name__ == "__main__":
    warnings.formatwarning = lambda message, *place: f"run.py: warning: {message}\n"
    os.environ["MPLBACKEND"] = "agg"  # a notebook's own is not for other processes
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # for --deterministic; read once a process
    if cache := cache_folder():
        os.environ.setdefault("TORCHINDUCTOR_CACHE_DIR", str(cache / "compiled"))  # what is compiled outlives a reboot
    sys.exit(main(sys.argv[1:]))
