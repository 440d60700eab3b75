"""One experiment, from flags to results: parse, build, meta-train, meta-test, report. See --help and the README."""

import math
import sys
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import data
from amaml import AMAML, Diverged, InputError, MetaLearner, half_mse, mlp, report, rmse
from amaml.evaluation import fine_tune
from amaml.models import Apply, initialise
from amaml.runs import Checkpoint, RunFolder, load_checkpoint
from amaml.tasks import Tasks
from amaml.training import Session, Stopped, StopRequest
from baselines import FOMAML, IMAML, MAML, Reptile
from configs.settings import CONTROL, Settings, checked, flag_name, merged, parse_flags

OPTIMIZERS = {"sgd": torch.optim.SGD, "adam": torch.optim.Adam}
MAY_GROW = {"meta_updates"}  # a resumed run may be asked for more of these
NETWORK = ("method", "width", "activation", "norm")  # what a checkpoint's theta is tied to


def build_learner(s: Settings, apply: Apply) -> MetaLearner:
    """The table of methods."""
    common = {"apply": apply, "loss": half_mse, "inner_lr": s.inner_lr, "inner_steps": s.inner_steps}
    flow = {"solver": s.solver, "adjoint": s.adjoint, "rtol": s.rtol}
    implicit = {"cg_steps": s.cg_steps, "damping": s.cg_damping}
    methods: dict[str, Callable[[], MetaLearner]] = {
        "amaml": lambda: AMAML(**common, **flow, prox=0.0 if s.prox is None else s.prox),
        "maml": lambda: MAML(**common),
        "maml1": lambda: MAML(**common | {"inner_steps": 1}),
        "fomaml": lambda: FOMAML(**common),
        "imaml": lambda: IMAML(**common, **implicit, prox=2.0 if s.prox is None else s.prox),
        "reptile": lambda: Reptile(**common),
    }
    return methods[s.method]()


@dataclass(frozen=True)
class Experiment:
    """What the settings build: the domain, the network as a function, its first parameters, the learner."""

    settings: Settings
    domain: data.Domain
    apply: Apply
    theta: Tensor
    learner: MetaLearner

    @property
    def metric(self) -> str:
        return "nRMSE" if self.domain.standardised else "RMSE"


def build(s: Settings) -> Experiment:
    """Data, network and learner of an experiment."""
    dtype = getattr(torch, s.dtype)
    domain = data.make(s.domain, data.Sampling(s.shots, s.queries, s.meta_batch, s.seed, dtype, s.device, s.data_root))
    theta, apply = initialise(
        lambda: mlp(math.prod(domain.input_shape), domain.outputs, s.width, s.activation, s.norm),
        s.seed,
        dtype,
        s.device,
    )
    return Experiment(s, domain, apply, theta, build_learner(s, apply))


def meta_test(e: Experiment, theta: Tensor, update: int, stop: StopRequest) -> tuple[dict[str, Any], Tensor, Tasks]:
    """Fine-tune every meta-test task from theta; the entry for test.json, the adapted phi and the tasks."""
    s, tasks = e.settings, e.domain.meta_test(e.settings.test_tasks)
    curves, phi = fine_tune(
        e.apply, half_mse, rmse, theta, tasks, s.test_epochs, on_record=lambda epoch: stop.check(update)
    )
    return report.test_entry(update, curves), phi, tasks


def experiment(s: Settings) -> None:
    """Train, test and report one run in its folder; a finished one is only reported."""
    folder, start = open_folder(s)
    if folder.finished and start is None:
        print(folder.read("summary.json", {})["table"])
        print(f"{folder.path} is finished; --overwrite runs it again")
        return
    e = build(s)
    e.domain.meta_test(s.test_tasks)  # a mistake in the test's settings shows before the training
    folder.create(asdict(s))
    folder.rewind(start.update if start else 0)
    optimizer = OPTIMIZERS[s.meta_optimizer]([e.theta], lr=s.meta_lr)
    with StopRequest() as stop:
        session = Session(
            folder=folder,
            settings=asdict(s),
            learner=e.learner,
            theta=e.theta,
            optimizer=optimizer,
            episode=e.domain.episode,
            test=lambda update: meta_test(e, e.theta, update, stop)[0],
            updates=s.meta_updates,
            test_interval=s.test_interval,
            checkpoint_interval=s.checkpoint_interval,
            stop=stop,
        )
        if start is not None:
            session.restore(start)
        session.run()
        finish(e, folder, session)
        if s.draw:
            _, phi, tasks = meta_test(e, e.theta, session.update, stop)
            report.draw_fits(folder.path / "fits.png", e.apply, e.theta, phi, tasks, s.draw)


def open_folder(s: Settings) -> tuple[RunFolder, Checkpoint | None]:
    """The run's folder, and the checkpoint to go on from; raises InputError where another run would be harmed."""
    folder = RunFolder(s.folder())
    if s.overwrite:
        folder.clear()
    there = folder.settings()
    if there is None:
        return folder, None
    may_differ = CONTROL | MAY_GROW
    for name, value in asdict(s).items():
        if name not in may_differ and there.get(name) != value:
            raise InputError(
                f"{folder.path} holds a run with {flag_name(name)} {there.get(name)}, not {value}; choose another --out "
                "or discard it with --overwrite"
            )
    if folder.finished and there["meta_updates"] == s.meta_updates:
        return folder, None
    if not s.resume:
        raise InputError(f"{folder.path} holds an unfinished run; go on with --resume or discard it with --overwrite")
    start = folder.load()
    if start is not None and start.update > s.meta_updates:
        raise InputError(f"--meta-updates {s.meta_updates} is less than the {start.update} already made")
    return folder, start


def finish(e: Experiment, folder: RunFolder, session: Session) -> None:
    """Write summary.json and the pictures, print the table."""
    s, tests = e.settings, folder.read("test.json", [])
    rows = report.at_epochs(tests[-1])
    seconds, memory = session.seconds_per_update(), report.peak_memory_mib(s.device)
    title = f"{s.domain}, {s.shots} shots, {s.queries} queries, {s.inner_steps} inner steps: {s.method}, seed {s.seed}"
    speed = f"{seconds:.4f} s per update" if seconds is not None else "too short to time"
    text = report.table(title, e.metric, rows) + f"\n{session.update} updates, {speed}, peak memory {memory:.0f} MiB"
    report.draw_curves(folder.path / "curves.png", e.metric, tests, folder.metrics())
    folder.write(
        "summary.json",
        {
            "metric": e.metric,
            "at_epochs": rows,
            "updates": session.update,
            "seconds_per_update": seconds,
            "peak_memory_mib": memory,
            "table": text,
        },
    )
    print(text)
    print(folder.path)


def evaluate(flags: dict[str, Any]) -> None:
    """Meta-test a run folder or a checkpoint under its own settings and the flags given beside it."""
    given = Path(flags["evaluate"])
    path = given / "checkpoint.pt" if given.is_dir() else given
    checkpoint = load_checkpoint(path)
    own = checked(checkpoint.settings, source=f" in {path}")
    s = checked(checkpoint.settings | {"out": None, "resume": False, "overwrite": False} | flags)
    for name in NETWORK:
        if getattr(s, name) != getattr(own, name):
            raise InputError(f"{path} was made with {flag_name(name)} {getattr(own, name)}, not {getattr(s, name)}")
    e = build(s)
    if e.theta.shape != checkpoint.theta.shape:
        raise InputError(
            f"{path} holds {len(checkpoint.theta)} parameters, the network for {s.domain} has {len(e.theta)}; "
            "evaluate it on a domain with as many inputs and outputs"
        )
    theta = checkpoint.theta.to(e.theta)
    with StopRequest() as stop:
        entry, phi, tasks = meta_test(e, theta, checkpoint.update, stop)
    folder = RunFolder(Path(s.out) if s.out else path.parent)
    folder.path.mkdir(parents=True, exist_ok=True)
    folder.write("evaluation.json", {"settings": asdict(s), **entry})
    print(report.table(f"{path} on {s.domain}, {s.shots} shots", e.metric, report.at_epochs(entry)))
    if s.draw:
        report.draw_fits(folder.path / "fits.png", e.apply, theta, phi, tasks, s.draw)
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
        print(f"run.py: {error}", file=sys.stderr)
        return 2
    except Stopped as stopped:
        print(f"run.py: {stopped}", file=sys.stderr)
        return 128 + stopped.number
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
