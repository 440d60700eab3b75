"""One experiment, from flags to results: parse, build, meta-train, meta-test, report. See --help and the README."""

import math
import os
import sys
import warnings
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

import data
from amaml import AMAML, Diverged, InputError, MetaLearner, accuracy, half_mse, mlp, mse, rmse
from amaml.experiment import report
from amaml.experiment.evaluation import fine_tune, inner_loop
from amaml.experiment.folder import Checkpoint, RunFolder, load_checkpoint
from amaml.experiment.networks import conv4, initialise, resnet12
from amaml.experiment.session import Session, Stopped, StopRequest
from amaml.files import cache_folder
from amaml.flow.derivatives import Loss, compiled, compiler_found
from amaml.learner import Chunked
from amaml.models import Apply
from amaml.tasks import Tasks
from baselines import FOMAML, IMAML, MAML, Reptile
from configs.settings import CONTROL, Settings, checked, flag_name, merged, parse_flags
from data.episodes import check_pool

OPTIMIZERS = {"sgd": torch.optim.SGD, "adam": torch.optim.Adam}
MAY_GROW = {"meta_updates"}  # a resumed run may be asked for more of these
NETWORK = ("method", "network", "width", "activation", "norm")  # what a checkpoint's theta is tied to
LONG_RUN = 500  # updates from which --compile auto compiles
UNITS = {"finetune": "epoch", "inner": "inner step"}
RECORDED_STEPS = (0, 1, 5, 10)  # of the inner loop at meta-test, besides the last
IMAGES_AT_ONCE = 50  # meta-test tasks of images that go through a network together, unless --task-chunk says


def build_learner(s: Settings, apply: Apply, loss: Loss) -> MetaLearner:
    """The table of methods."""
    common = {"apply": apply, "loss": loss, "inner_lr": s.inner_lr, "inner_steps": s.inner_steps}
    flow = {"solver": s.solver, "adjoint": s.adjoint, "rtol": s.rtol, "checkpoints": s.trajectory_checkpoints}
    implicit = {"cg_steps": s.cg_steps, "damping": s.cg_damping}
    unrolled = {
        "checkpoint_every": s.checkpoint_every,
        "inner_optimizer": s.inner_optimizer,
        "inner_batch": s.inner_batch,
    }
    methods: dict[str, Callable[[], MetaLearner]] = {
        "amaml": lambda: AMAML(**common, **flow, prox=0.0 if s.prox is None else s.prox),
        "maml": lambda: MAML(**common, **unrolled),
        "maml1": lambda: MAML(**common | unrolled | {"inner_steps": 1}),
        "fomaml": lambda: FOMAML(**common),
        "imaml": lambda: IMAML(**common, **implicit, prox=2.0 if s.prox is None else s.prox),
        "reptile": lambda: Reptile(**common),
    }
    learner = methods[s.method]()
    return learner if s.task_chunk is None else Chunked(learner, s.task_chunk)


def build_network(s: Settings, domain: data.Domain) -> nn.Module:
    """The table of networks."""
    shape, outputs = domain.input_shape, domain.outputs
    if s.network not in ("mlp", "linear") and len(shape) != 3:
        raise InputError(f"--network {s.network} takes images, {s.domain} has none; choose mlp or linear")
    networks: dict[str, Callable[[], nn.Module]] = {
        "mlp": lambda: mlp(math.prod(shape), outputs, s.width, s.activation, s.norm),
        "linear": lambda: nn.Linear(math.prod(shape), outputs),
        "conv4": lambda: conv4(shape, outputs, s.width, activation=s.activation),
        "conv4-strided": lambda: conv4(shape, outputs, s.width, strided=True, activation=s.activation),
        "resnet12": lambda: resnet12(shape, outputs, [s.width * k for k in (1, 2, 4, 8)]),
    }
    network = networks[s.network]()
    return nn.Sequential(nn.Flatten(), network) if s.network in ("mlp", "linear") and len(shape) > 1 else network


@dataclass(frozen=True)
class Experiment:
    """What the settings build: the domain, the network as a function, its first parameters, the learner."""

    settings: Settings
    domain: data.Domain
    apply: Apply
    theta: Tensor
    learner: MetaLearner

    def at_steps(self, steps: int) -> MetaLearner:
        """The learner with another number of inner steps (and --method maml1 as MAML, which adapts alike)."""
        learner = self.learner.learner if isinstance(self.learner, Chunked) else self.learner
        return replace(learner, inner_steps=steps)

    @property
    def loss(self) -> Loss:
        return cross_entropy if self.domain.classification else half_mse

    @property
    def metric(self) -> tuple[str, Loss]:
        """What the tables show, and the function of one task that computes it."""
        if self.domain.classification:
            return "accuracy", accuracy
        return ("nRMSE", rmse) if self.domain.standardised else ("MSE", mse)


def build(s: Settings) -> Experiment:
    """Data, network and learner of an experiment."""
    if s.norm == "batch" and min(s.shots, s.queries) < 2:
        raise InputError(f"--norm batch needs at least 2 points, got --shots {s.shots} and --queries {s.queries}")
    check_method(s)
    dtype = getattr(torch, s.dtype)
    special = {"ways": s.ways, "item_features": s.item_features, "train_tasks": s.train_tasks, "unseen": s.unseen}
    sampling = data.Sampling(s.shots, s.queries, s.meta_batch, s.seed, dtype, s.device, s.data_root, **special)
    domain = data.make(s.domain, sampling)
    if s.inner_batch is not None:
        points = s.shots * (s.ways if len(domain.input_shape) == 3 else 1)
        check_pool("support points of a task", s.inner_batch, points, "--inner-batch")
    theta, apply = initialise(lambda: build_network(s, domain), s.seed, dtype, s.device)
    if s.draw:
        report.check_drawable(domain.input_shape)
        check_pool("meta-test tasks (--test-tasks)", s.draw, s.test_tasks, "--draw")
    loss = cross_entropy if domain.classification else half_mse
    return Experiment(s, domain, apply, theta, build_learner(s, apply, loss))


def check_method(s: Settings) -> None:
    """Raise InputError where a method's gradient is not defined for the inner loop that is asked for."""
    if s.method in ("maml", "maml1"):
        return
    flow = "the flow of full-batch gradient descent" if s.method == "amaml" else "plain gradient descent"
    for name, plain in {"inner_optimizer": "sgd", "inner_batch": None, "checkpoint_every": None}.items():
        given = getattr(s, name)
        if given != plain:
            raise InputError(
                f"{flag_name(name)} {given} is for maml, {s.method} differentiates {flow}; leave it out, or choose "
                "--method maml"
            )


def meta_test(e: Experiment, theta: Tensor, update: int, stop: StopRequest) -> tuple[dict[str, Any], Tensor, Tasks]:
    """Adapt to every meta-test task from theta; the entry for test.json, the adapted phi and the tasks."""
    s, tasks = e.settings, e.domain.meta_test(e.settings.test_tasks)
    _, metric = e.metric
    predictors = getattr(e.domain, "predictors", lambda count: {})(s.test_tasks)

    def go_on(record: int) -> None:
        stop.check(update)

    try:
        if s.protocol == "finetune":
            curves, phi = fine_tune(e.apply, e.loss, metric, theta, tasks, s.test_epochs, on_record=go_on)
        else:
            last = s.test_steps or s.inner_steps
            steps = sorted({n for n in RECORDED_STEPS if n < last} | {last})
            chunk = s.task_chunk or (IMAGES_AT_ONCE if len(e.domain.input_shape) == 3 else len(tasks))
            curves, phi = inner_loop(e.at_steps, e.apply, metric, theta, tasks, steps, chunk, on_record=go_on)
    except Diverged as fault:
        raise Diverged(f"meta-test after update {update}: {fault}") from fault
    return report.test_entry(update, curves, UNITS[s.protocol], predictors), phi, tasks


def experiment(s: Settings) -> None:
    """Train, test and report one run in its folder; a finished one is only reported."""
    folder, start = open_folder(s)
    if folder.finished and start is None and not s.overwrite:
        print(folder.read("summary.json", {})["table"])
        print(f"{folder.path} is finished; --evaluate {folder.path} tests or draws it again, --overwrite runs it again")
        return
    e = build(s)
    e.domain.meta_test(s.test_tasks)  # a mistake in the test's settings shows before the training
    optimizer = OPTIMIZERS[s.meta_optimizer]([e.theta], lr=s.meta_lr)
    with StopRequest() as stop:
        session = Session(
            folder=folder,
            settings=asdict(s),
            learner=e.learner,
            theta=e.theta,
            optimizer=optimizer,
            episode=e.domain.episode,
            clip=s.clip,
            test=lambda update: meta_test(e, e.theta, update, stop)[0],
            updates=s.meta_updates,
            test_interval=s.test_interval,
            checkpoint_interval=s.checkpoint_interval,
            check_gradient=s.check_gradient if s.method == "amaml" and s.solver != "euler" else 0,
            stop=stop,
        )
        if start is not None:
            session.restore(start)
        if s.overwrite:
            folder.clear()
        folder.create(asdict(s))
        folder.rewind(session.update)
        session.run()
        finish(e, folder, session)
    if s.draw:
        _, phi, tasks = meta_test(e, e.theta, session.update, StopRequest())
        folder.write_bytes("fits.png", report.draw_fits(e.apply, e.theta, phi, tasks, s.draw))


def open_folder(s: Settings) -> tuple[RunFolder, Checkpoint | None]:
    """The run's folder, and the checkpoint to go on from; raises InputError where another run would be harmed."""
    folder = RunFolder(s.folder())
    if s.overwrite and s.resume:
        raise InputError("--resume goes on with a run and --overwrite discards it; choose one of them")
    there = None if s.overwrite else folder.settings()
    if there is None:
        return folder, None
    check_same(s, there, folder.path)
    if folder.finished and there.get("meta_updates") == s.meta_updates:
        return folder, None
    if not s.resume:
        state = f"a finished run of {there.get('meta_updates')} updates" if folder.finished else "an unfinished run"
        raise InputError(f"{folder.path} holds {state}; go on with --resume or discard it with --overwrite")
    start = folder.load()
    if start is None and folder.finished:
        raise InputError(f"{folder.path} has lost its checkpoint.pt; start anew with --overwrite")
    if start is not None:
        check_same(s, start.settings, folder.path / "checkpoint.pt")
        if start.update > s.meta_updates:
            raise InputError(f"--meta-updates {s.meta_updates} is less than the {start.update} already made")
    return folder, start


def check_same(s: Settings, there: dict[str, Any], place: Path) -> None:
    """Raise InputError where settings on disk make another run than these."""
    for name, value in asdict(s).items():
        if name not in CONTROL | MAY_GROW and there.get(name) != value:
            raise InputError(
                f"{place} holds a run with {flag_name(name)} {there.get(name)}, not {value}; choose another --out "
                "or discard it with --overwrite"
            )


def finish(e: Experiment, folder: RunFolder, session: Session) -> None:
    """Write summary.json and the pictures, print the table."""
    s, tests = e.settings, folder.read("test.json", [])
    seconds, memory = session.seconds_per_update(), report.peak_memory_mib(s.device)
    title = f"{s.domain}, {s.shots} shots, {s.queries} queries, {s.inner_steps} inner steps: {s.method}, seed {s.seed}"
    speed = f"{seconds:.4f} s per update" if seconds is not None else "too short to time"
    if session.warm_up_seconds is not None:
        speed += f" (the first {session.warm_up_seconds:.1f} s, tracing{' and compiling' if compiles(s) else ''})"
    name, _ = e.metric
    text = report.table(title, name, tests[-1]) + f"\n{session.update} updates, {speed}, peak memory {memory:.0f} MiB"
    folder.write_bytes("curves.png", report.draw_curves(name, tests, folder.metrics()))
    folder.write(
        "summary.json",
        {
            "metric": name,
            "at_epochs": report.at_epochs(tests[-1]),
            "predictors": tests[-1]["predictors"],
            "updates": session.update,
            "seconds_per_update": seconds,
            "first_update_seconds": session.warm_up_seconds,
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
    own = checkpoint.settings
    s = checked(own | {"out": None, "resume": False, "overwrite": False, "draw": 0} | flags, source=f" in {path}")
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
    entry, phi, tasks = meta_test(e, theta, checkpoint.update, StopRequest())
    print(report.table(f"{path} on {s.domain}, {s.shots} shots", e.metric[0], entry))
    folder.write("evaluation.json", {"settings": asdict(s), **entry})
    if s.draw:
        folder.write_bytes("fits.png", report.draw_fits(e.apply, theta, phi, tasks, s.draw))
    print(folder.path)


def compiles(s: Settings) -> bool:
    """Whether the run's graphs are compiled: the settings decide, so that a resumed run does as the first one did."""
    if s.compile == "on" and not compiler_found():
        raise InputError("--compile on needs a C++ compiler (g++ or clang++), none was found; install one or use off")
    return s.compile == "on" or (s.compile == "auto" and s.meta_updates >= LONG_RUN and compiler_found())


def main(arguments: list[str]) -> int:
    """Exit status: 0 done, 2 a mistake in the input or a diverged run, 128 + signal after a stop."""
    try:
        flags = parse_flags(arguments)
        if "evaluate" in flags:
            evaluate(flags)
        else:
            s = merged(flags)
            with compiled(compiles(s)):
                experiment(s)
    except (InputError, Diverged) as error:
        return failed(error, 2)
    except Stopped as stopped:
        return failed(stopped, 128 + stopped.number)
    except KeyboardInterrupt:
        return failed("interrupted", 130)
    except (MemoryError, RuntimeError) as error:
        if not isinstance(error, (MemoryError, torch.OutOfMemoryError)) and "CPUAllocator" not in str(error):
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
