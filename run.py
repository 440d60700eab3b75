"""One experiment, from flags to results: parse, build, meta-train, meta-test, report. See --help and the README.

torch is imported where it is first needed, after the flags were checked: a mistake is told at once.
"""

from __future__ import annotations

import math
import os
import sys
import warnings
from contextlib import closing, nullcontext
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import data
from amaml.errors import Diverged, InputError
from data.files import cache_folder
from experiment.ending import status_of
from experiment.launch import launch
from experiment.processes import Group, check_device, joined
from experiment.registry import WITH_KINKS, flag_name
from experiment.settings import CONTROL, TEST, Settings, check_together, checked, merged, parse_flags

if TYPE_CHECKING:
    from torch import Tensor

    from experiment.build import Experiment
    from experiment.folder import Checkpoint
    from experiment.session import Session

# what the training of a checkpoint's theta was
TRAINING = "method", "start_from", "meta_updates", "meta_batch", "meta_lr", "meta_optimizer", "meta_schedule", "clip"


def experiment(s: Settings, group: Group) -> None:
    """Train, test and report one run in its folder; a finished one is only reported. The first process alone writes."""
    from amaml.engine.derivatives import compiled
    from experiment import events, machine, opening, report, threads
    from experiment.folder import RunFolder
    from experiment.session import Session

    if s.tensorboard:
        events.check_installed()
    folder = RunFolder(s.folder())
    with folder.alone() if group.first else nullcontext(), machine.deterministic(s.deterministic):
        finished, start = group.of_first(lambda: opening.Asked(asdict(s), CONTROL, TEST).open(folder))
        if finished:
            if group.first:
                if s.tensorboard:
                    events.Events(folder).close()
                print(folder.read("summary.json", {})["table"])
                print(
                    f"{folder.path} is finished; --evaluate {folder.path} tests or draws it, --overwrite runs it again"
                )
            return
        origin = None if start else group.of_first(lambda: opening.origin(asdict(s)))
        to_compile = group.of_first(lambda: opening.compiles(s.compile, s.meta_updates, start))
        e = group.together(lambda: build(s, group))
        count = group.of_first(lambda: threads.choose(e.training_work, start and start.threads))
        threads.choose(e.training_work, count)  # as many in every process
        with compiled(to_compile), group.stop as stop:
            session = Session(folder, e, stop, to_compile, shown=group.first)
            begin(session, start, origin, s, group)
            with closing(events.Events(folder)) if s.tensorboard and group.first else nullcontext() as session.events:
                train(session, s)
            if group.first:
                print(report.finish(folder, e.title, session))
                if (picture := e.picture(e.theta)) is not None:
                    folder.write_bytes("fits.png", picture)
                print(folder.path)


def begin(session: Session, start: Checkpoint | None, origin: Tensor | None, s: Settings, group: Group) -> None:
    """Take over the checkpoint, or the theta to begin with, and make the folder ready.

    A process that does not write gets what it has to read.
    """
    from experiment.folder import Mirror

    def take_over() -> None:
        if start is not None:
            session.restore(start)
        elif origin is not None:
            session.begin_at(origin)

    def prepare() -> Mirror:
        folder = session.folder
        take_over()
        if s.overwrite:
            folder.clear()
        folder.create(asdict(s))
        folder.rewind(session.update)
        folder.clear_events()  # which may go further; --tensorboard makes them anew
        return Mirror(folder.path, folder.metrics(), folder.read("test.json", []))

    mirror = group.of_first(prepare)
    if not group.first:
        session.folder = mirror
        take_over()


def build(s: Settings, group: Group) -> Experiment:
    """Data, network and learner."""
    from experiment import build, machine

    machine.check_device(s.device)
    check_device(s.device, group)
    return build.build(s, data.of_settings(s), group.each)


def train(session: Session, s: Settings) -> None:
    """All updates and meta-tests that are left to do; names the remedy first where the network has no smooth flow."""
    try:
        session.run()
    except Diverged as fault:
        if s.method == "amaml" and s.solver != "euler" and s.activation in WITH_KINKS:
            raise Diverged(f"{s.activation} has no smooth flow, choose --solver euler; {fault}") from fault
        raise


def evaluate(flags: dict[str, Any], group: Group) -> None:
    """Meta-test a run folder or a checkpoint under its own settings and the flags given beside it."""
    from experiment import machine, opening, report
    from experiment.folder import RunFolder, checkpoint_at, load_checkpoint

    path = checkpoint_at(flags["evaluate"])
    checkpoint = group.of_first(lambda: load_checkpoint(path))
    own = checkpoint.settings
    s = checked(
        own | {"out": None, "resume": False, "overwrite": False, "draw": 0} | flags | {"processes": group.world},
        source=f" in {path}",
    )
    check_together(flags, s)
    for name in (*opening.NETWORK, *TRAINING):
        made = own.get(name)  # an older run knows fewer settings
        if name in flags and getattr(s, name) != made:
            raise InputError(f"{path} was made with {flag_name(name)} {made}, not {getattr(s, name)}; leave it out")
    with machine.deterministic(s.deterministic):
        e = group.together(lambda: build(s, group))
        if e.theta.shape != checkpoint.theta.shape:
            raise InputError(
                f"{path} holds {len(checkpoint.theta)} parameters, the network for {s.domain} has {len(e.theta)}; "
                "evaluate it on a domain with as many inputs and outputs"
            )
        folder = RunFolder(Path(s.out) if s.out else path.parent)
        if group.first and s.out and folder.path.resolve() != path.parent.resolve():
            folder.prepare_evaluation()
        theta = checkpoint.theta.to(e.theta)
        entry = e.meta_test(theta, checkpoint.update, group.stop)
        if not group.first:
            return
        picture = e.picture(theta)
    print(report.table(f"{path} on {s.domain}, {s.shots} shots", entry))
    made = {"settings": {name: value for name, value in asdict(s).items() if name not in CONTROL}, **entry}
    made["evaluated"] = str(Path(flags["evaluate"]))
    print(folder.write_evaluation(f"{s.domain}-{s.shots}shot-{s.protocol}", made, picture))


def main(arguments: list[str]) -> int:
    """Exit status: 0 done, 2 a mistake in the input or a diverged run, 128 + signal after a stop, 1 where another
    process of the run was lost."""

    def program(group: Group) -> int | None:
        flags = parse_flags(arguments)
        s = None if "evaluate" in flags else merged(flags)
        asked = flags.get("processes", group.world)
        if group.world == 1 and asked > 1:
            return launch(asked, Path(__file__), arguments)
        if asked != group.world:
            raise InputError(f"--processes {asked} under torchrun, which has started {group.world}; leave it out")
        if s is None:
            return evaluate(flags, group)
        if group.world > 1 and s.task_chunk is None:
            s = replace(s, task_chunk=math.ceil(s.meta_batch / group.world))
        return experiment(replace(s, processes=group.world), group)

    def member() -> int:
        with joined() as group:
            return status_of(lambda: group.run(program), quiet=not group.first)

    return status_of(member)


if __name__ == "__main__":
    warnings.formatwarning = lambda message, *place: f"run.py: warning: {message}\n"
    if cache := cache_folder():
        os.environ.setdefault("TORCHINDUCTOR_CACHE_DIR", str(cache / "compiled"))  # what is compiled outlives a reboot
    sys.exit(main(sys.argv[1:]))
