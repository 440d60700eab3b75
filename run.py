"""One experiment, from flags to results: parse, build, meta-train, meta-test, report. See --help and the README.

torch is imported where it is first needed, after the flags were checked: a mistake is told at once.
"""

from __future__ import annotations

import os
import sys
import warnings
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import data
from amaml.errors import Diverged, InputError
from amaml.experiment.ending import status_of
from amaml.experiment.registry import WITH_KINKS, flag_name
from amaml.experiment.stop import StopRequest
from amaml.files import cache_folder
from configs.settings import CONTROL, TEST, Settings, check_together, checked, merged, parse_flags

if TYPE_CHECKING:
    from amaml.experiment.build import Experiment
    from amaml.experiment.session import Session

NETWORK = ("method", "learn_rates", "network", "width", "activation", "norm")  # what a checkpoint's theta is tied to


def experiment(s: Settings) -> None:
    """Train, test and report one run in its folder; a finished one is only reported."""
    from amaml.experiment import machine, opening, report, threads
    from amaml.experiment.folder import RunFolder
    from amaml.experiment.session import Session
    from amaml.flow.derivatives import compiled

    folder = RunFolder(s.folder())
    with folder.alone(), machine.deterministic(s.deterministic):
        finished, start = opening.Asked(asdict(s), CONTROL, TEST).open(folder)
        if finished:
            print(folder.read("summary.json", {})["table"])
            print(f"{folder.path} is finished; --evaluate {folder.path} tests or draws it, --overwrite runs it again")
            return
        to_compile = opening.compiles(s.compile, s.meta_updates, start)
        e = build(s)
        threads.choose(e.support_gradients, start and start.threads)
        with compiled(to_compile), StopRequest() as stop:
            session = Session(folder, e, stop, to_compile)
            if start is not None:
                session.restore(start)
            if s.overwrite:
                folder.clear()
            folder.create(asdict(s))
            folder.rewind(session.update)
            train(session, s)
            sizes = f"{s.shots} shots, {s.queries} queries, {s.inner_steps} inner steps"
            print(report.finish(folder, f"{s.domain}, {sizes}: {s.method}, seed {s.seed}", session))
            if (picture := e.picture(e.theta)) is not None:
                folder.write_bytes("fits.png", picture)
            print(folder.path)


def build(s: Settings) -> Experiment:
    """Data, network and learner."""
    from amaml.experiment import build, machine

    machine.check_device(s.device)
    return build.build(s, data.of_settings(s))


def train(session: Session, s: Settings) -> None:
    """All updates and meta-tests that are left to do; names the remedy first where the network has no smooth flow."""
    try:
        session.run()
    except Diverged as fault:
        if s.method == "amaml" and s.solver != "euler" and s.activation in WITH_KINKS:
            raise Diverged(f"{s.activation} has no smooth flow, choose --solver euler; {fault}") from fault
        raise


def evaluate(flags: dict[str, Any]) -> None:
    """Meta-test a run folder or a checkpoint under its own settings and the flags given beside it."""
    from amaml.experiment import machine, report
    from amaml.experiment.folder import RunFolder, load_checkpoint

    given = Path(flags["evaluate"])
    path = given / "checkpoint.pt" if given.is_dir() else given
    checkpoint = load_checkpoint(path)
    own = checkpoint.settings
    s = checked(own | {"out": None, "resume": False, "overwrite": False, "draw": 0} | flags, source=f" in {path}")
    check_together(flags, s)
    for name in NETWORK:
        made = own.get(name)  # an older run knows fewer settings
        if getattr(s, name) != made:
            raise InputError(f"{path} was made with {flag_name(name)} {made}, not {getattr(s, name)}; leave it out")
    with machine.deterministic(s.deterministic):
        e = build(s)
        if e.theta.shape != checkpoint.theta.shape:
            raise InputError(
                f"{path} holds {len(checkpoint.theta)} parameters, the network for {s.domain} has {len(e.theta)}; "
                "evaluate it on a domain with as many inputs and outputs"
            )
        folder = RunFolder(Path(s.out) if s.out else path.parent)
        if s.out and folder.path.resolve() != path.parent.resolve():
            folder.prepare_evaluation()
        theta = checkpoint.theta.to(e.theta)
        entry = e.meta_test(theta, checkpoint.update, StopRequest())
        picture = e.picture(theta)
    print(report.table(f"{path} on {s.domain}, {s.shots} shots", entry))
    made = {"settings": {name: value for name, value in asdict(s).items() if name not in CONTROL}, **entry}
    made["evaluated"] = str(given)
    print(folder.write_evaluation(f"{s.domain}-{s.shots}shot-{s.protocol}", made, picture))


def main(arguments: list[str]) -> int:
    """Exit status: 0 done, 2 a mistake in the input or a diverged run, 128 + signal after a stop."""

    def program() -> None:
        flags = parse_flags(arguments)
        if "evaluate" in flags:
            evaluate(flags)
        else:
            experiment(merged(flags))

    return status_of(program)


if __name__ == "__main__":
    warnings.formatwarning = lambda message, *place: f"run.py: warning: {message}\n"
    if cache := cache_folder():
        os.environ.setdefault("TORCHINDUCTOR_CACHE_DIR", str(cache / "compiled"))  # what is compiled outlives a reboot
    sys.exit(main(sys.argv[1:]))
