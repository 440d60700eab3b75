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
from amaml.experiment.registry import META_OPTIMIZERS, flag_name
from amaml.experiment.stop import Stopped, StopRequest
from amaml.files import cache_folder
from configs.settings import CONTROL, Settings, check_together, checked, merged, parse_flags

if TYPE_CHECKING:
    from amaml.experiment.build import Experiment

NETWORK = ("method", "network", "width", "activation", "norm")  # what a checkpoint's theta is tied to


def experiment(s: Settings) -> None:
    """Train, test and report one run in its folder; a finished one is only reported."""
    from amaml.experiment import opening, report
    from amaml.experiment.folder import RunFolder
    from amaml.experiment.session import Session
    from amaml.flow.derivatives import compiled

    folder = RunFolder(s.folder())
    finished, start = opening.open_run(folder, asdict(s), CONTROL)
    to_compile = opening.compiles(s.compile, s.meta_updates)
    if finished:
        print(folder.read("summary.json", {})["table"])
        print(f"{folder.path} is finished; --evaluate {folder.path} tests or draws it again, --overwrite runs it again")
        return
    with compiled(to_compile), StopRequest() as stop:
        e = build(s)
        training = Session(
            folder=folder,
            settings=asdict(s),
            learner=e.learner,
            theta=e.theta,
            optimizer=META_OPTIMIZERS[s.meta_optimizer].call(s, [e.theta]),
            episode=e.domain.episode,
            test=lambda update: e.meta_test(e.theta, update, stop),
            updates=s.meta_updates,
            test_interval=s.test_interval,
            checkpoint_interval=s.checkpoint_interval,
            stop=stop,
            clip=s.clip,
        )
        if start is not None:
            training.restore(start)
        if s.overwrite:
            folder.clear()
        folder.create(asdict(s))
        folder.rewind(training.update)
        training.run()
        sizes = f"{s.shots} shots, {s.queries} queries, {s.inner_steps} inner steps"
        title = f"{s.domain}, {sizes}: {s.method}, seed {s.seed}"
        metric = e.domain.objective.metric_name
        print(report.finish(folder, title, metric, training, s.device, to_compile))
        print(folder.path)
        if s.draw:
            folder.write_bytes("fits.png", e.picture(e.theta))


def build(s: Settings) -> Experiment:
    """Data, network and learner of an experiment; raises InputError where the data do not suffice for the settings."""
    import torch

    from amaml.experiment import build as networks_and_learners
    from amaml.experiment import machine, report
    from data.episodes import Sampling, check_pool

    machine.check_device(s.device)
    special = {"ways": s.ways, "item_features": s.item_features, "train_tasks": s.train_tasks, "unseen": s.unseen}
    dtype = getattr(torch, s.dtype)
    sampling = Sampling(s.shots, s.queries, s.meta_batch, s.seed, dtype, s.device, s.data_root, **special)
    domain = data.make(s.domain, sampling)
    if s.inner_batch is not None:
        points = s.shots * (domain.outputs if domain.images else 1)
        check_pool("support points of a task", s.inner_batch, points, "--inner-batch")
    if s.draw:
        report.check_drawable(domain.input_shape)
        check_pool("meta-test tasks (--test-tasks)", s.draw, s.test_tasks, "--draw")
    domain.check_meta_test(s.test_tasks)  # a mistake in the test's settings shows before the training
    return networks_and_learners.build(s, domain)


def evaluate(flags: dict[str, Any]) -> None:
    """Meta-test a run folder or a checkpoint under its own settings and the flags given beside it."""
    from amaml.experiment import report
    from amaml.experiment.folder import RunFolder, load_checkpoint

    given = Path(flags["evaluate"])
    path = given / "checkpoint.pt" if given.is_dir() else given
    checkpoint = load_checkpoint(path)
    own = checkpoint.settings
    s = checked(own | {"out": None, "resume": False, "overwrite": False, "draw": 0} | flags, source=f" in {path}")
    check_together(flags, s)
    for name in NETWORK:
        if getattr(s, name) != own[name]:
            raise InputError(
                f"{path} was made with {flag_name(name)} {own[name]}, not {getattr(s, name)}; leave it out"
            )
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
    print(report.table(f"{path} on {s.domain}, {s.shots} shots", e.domain.objective.metric_name, entry))
    folder.write("evaluation.json", {"settings": asdict(s), **entry})
    if s.draw:
        folder.write_bytes("fits.png", e.picture(theta))
    print(folder.path)


def main(arguments: list[str]) -> int:
    """Exit status: 0 done, 2 a mistake in the input or a diverged run, 128 + signal after a stop."""
    try:
        flags = parse_flags(arguments)
        if "evaluate" in flags:
            evaluate(flags)
        else:
            experiment(merged(flags))
    except (InputError, Diverged) as error:
        return failed(error, 2)
    except Stopped as stopped:
        return failed(stopped, 128 + stopped.number)
    except KeyboardInterrupt:
        return failed("interrupted", 130)
    except (MemoryError, RuntimeError) as error:
        # torch.OutOfMemoryError, by its name: torch need not be loaded yet
        if not (
            isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError" or "CPUAllocator" in str(error)
        ):
            raise
        return failed("out of memory; try a smaller --meta-batch, --width or --test-tasks, or another --method", 2)
    return 0


def failed(reason: object, status: int) -> int:
    """Say why the program ends, in one line."""
    print(f"run.py: {' '.join(str(reason).split())}", file=sys.stderr)
    return status


if __name__ == "__main__":
    warnings.formatwarning = lambda message, *place: f"run.py: warning: {message}\n"
    if cache := cache_folder():
        os.environ.setdefault("TORCHINDUCTOR_CACHE_DIR", str(cache / "compiled"))  # what is compiled outlives a reboot
    sys.exit(main(sys.argv[1:]))
