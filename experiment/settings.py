"""The settings of an experiment: one table, from which the flags, the checks and the help text are made."""

import argparse
import math
import tomllib
from collections.abc import Iterable
from dataclasses import dataclass, field, fields, replace
from fractions import Fraction
from pathlib import Path
from typing import Any, NoReturn, get_args, get_origin

from amaml.errors import InputError, unknown
from amaml.flow.adjoint import ADJOINTS
from amaml.flow.mesh import SOLVERS
from amaml.flow.optimizers import RULES
from amaml.models import ACTIVATIONS, NORMS
from data import DOMAINS
from data.files import readable
from data.outside import OUTSIDE, Table, short
from experiment.checks import Check, check, choice, number, several, text
from experiment.methods import BOTH, LEARN_RATES, META_OPTIMIZERS, META_SCHEDULES, METHODS, NETWORKS, PROTOCOLS

FOLDER = Path(__file__).parents[1] / "configs"


def flag_name(setting: str) -> str:
    """The flag of the command line that gives a setting."""
    return "--" + setting.replace("_", "-")


_count = number(int, lambda n: 1 <= n < 2**31, "a positive integer below 2**31")
_index = number(int, lambda n: 0 <= n < 2**31, "zero or a positive integer below 2**31")
_seed = number(int, lambda n: 0 <= n < 2**63, "zero or a positive integer below 2**63")
_pictures = number(int, lambda n: 0 <= n <= 100, "an integer from 0 to 100")
# a float32 and the products of two settings must hold these
_positive = number(float, lambda x: 0 < x < 1e30, "a positive number below 1e30")
_nonnegative = number(float, lambda x: 0 <= x < 1e30, "zero or a positive number below 1e30")
_ROBUST = "none, length, or the multiple of the median length at which a task's gradient is cut, a positive number"
_cut = number(float, lambda x: 0 < x < 1e30, _ROBUST)
_fraction = number(float, lambda x: 0 < x < 1, "a number between 0 and 1")
_share = number(float, lambda x: 0 <= x < 1, "0 or a number below 1")
_WHEN = "zero or more inner steps, or from 0% to 100% of them"
_step = number(int, lambda n: 0 <= n < 2**31, _WHEN)
_part = text(r"(100|\d{1,2}(\.\d+)?)%", _WHEN)
_device = text(r"cpu|cuda(:\d+)?", "cpu, cuda or cuda:N")
_path = text(".+", "a path")
_switch = check(lambda v: v if isinstance(v, bool) else None, "true or false")


def _robust(flag: str, value: Any) -> str | float | None:
    """What amaml.robust.Robust names; "none" is the same as leaving it out."""
    if value in (None, "none", "length"):
        return None if value == "none" else value
    return _cut(flag, value)


def _when(flag: str, value: Any) -> int | str:
    """A number of inner steps, or as "50%" a part of them."""
    return (_part if str(value).endswith("%") else _step)(flag, value)


def _flag(check: Check, help: str, default: Any = None) -> Any:
    return field(default=default, metadata={"check": check, "help": help})


def _door(table: Table[Any], help: str) -> Any:
    """A choice among a table's names, or of an object of the user's own module."""

    def check(flag: str, value: Any) -> str:
        if value not in table and ":" not in str(value):
            raise unknown(flag.removeprefix("--"), str(value), [*table, OUTSIDE])
        table[value]  # raises InputError where it cannot be used
        return value

    return _flag(check, f"{help}: {', '.join(table)}; or {OUTSIDE}")


def _named(names: Iterable[str], help: str) -> Any:
    """A choice among names, which the help lists."""
    return _flag(choice(names), f"{help}: {', '.join(names)}")


@dataclass(frozen=True)
class Settings:
    """Everything that makes an experiment. The fields without a default here have theirs in defaults.toml."""

    domain: str = _door(DOMAINS, "task family")
    shots: int = _flag(_count, "support points a task; of each class for images")
    queries: int = _flag(_count, "query points a task; of each class for images")
    inner_steps: int = _flag(_count, "steps of the inner loop")
    inner_lr: float = _flag(_positive, "step size of the inner loop")
    device: str = _flag(_device, "where to compute: cpu, cuda, cuda:0, ...")
    method: str = _door(METHODS, "meta-learning method")
    meta_updates: int = _flag(_count, "meta-updates, steps of the optimiser of theta")
    meta_batch: int = _flag(_count, "tasks a meta-update")
    meta_lr: float = _flag(_positive, "step size of the optimiser of theta")
    meta_optimizer: str = _named(META_OPTIMIZERS, "optimiser of theta")
    meta_schedule: str | None = _flag(
        choice(META_SCHEDULES, "constant"), "meta_lr over the updates: constant (default), cosine (falls to zero)"
    )
    robust: str | float | None = _flag(
        _robust,
        "mean over the tasks of an update: none (default, the plain one), length (gradients scaled to length 1), or "
        "a number (gradients cut at so many times their median length)",
    )
    clip: float | None = _flag(
        lambda flag, value: _nonnegative(flag, value) or None,  # zero is the same as leaving it out
        "largest norm of the meta-gradient; longer ones are cut to it (default: no limit)",
    )
    solver: str = _named(SOLVERS, "how A-MAML follows the flow (euler: plain gradient descent)")
    adjoint: str = _flag(choice(ADJOINTS), "A-MAML's backward pass: discrete (exact transpose), continuous (paper)")
    rtol: float = _flag(_fraction, "relative error of the meta-gradient that A-MAML aims at (unused by euler)")
    prox: float | None = _flag(_nonnegative, "proximal term of A-MAML (default 0) and iMAML (default 2)")
    learn_rates: str | None = _flag(
        choice(LEARN_RATES, "none"), "amaml, anil: learn inner_lr: none, scalar (one for all), parameter (one for each)"
    )
    reptile_first: int | None = _flag(
        _count, "amaml, anil, maml: the first so many updates are Reptile's; rates learn after them (default: none)"
    )
    cg_steps: int = _flag(_count, "iMAML: conjugate-gradient iterations")
    cg_damping: float = _flag(_nonnegative, "iMAML: damping of the linear system")
    inner_optimizer: str = _named(RULES, "MAML: inner optimiser")
    inner_batch: int | None = _flag(
        _count, "MAML: support points of an inner step, drawn anew for each (default: all points)"
    )
    query_steps: list[int | str] | None = _flag(
        several(_when), "inner steps, or 50% of them, after which the outer loss is taken (default: the last)"
    )
    query_weights: list[float] | None = _flag(
        several(_nonnegative), "weights of the losses at --query-steps (default: equal)"
    )
    checkpoint_every: int | None = _flag(_count, "MAML: keep one state in so many (default: all that fit into 80 MiB)")
    task_chunk: int | None = _flag(
        _count, "tasks sent through the network at once (default: all, or a process's share)"
    )
    processes: int | None = _flag(_count, "processes that share the run, for cuda with a GPU each (default: 1)")
    compile: str = _flag(
        choice(("auto", "on", "off")), "compile the graphs: auto (in runs of 500 updates or more), on, off"
    )
    dtype: str = _named(("float64", "float32"), "precision")
    deterministic: bool = _flag(_switch, "CUDA: only operations that give the same bits every time", False)
    start_from: str | None = _flag(_path, "begin with the theta of this run folder or checkpoint")
    noise: float = _flag(_share, "Phantoms: noise of a ray, as a share of its photons (default 0)", default=0.0)
    seed: int = _flag(_seed, "seed of tasks, episodes and initial weights")
    test_interval: int = _flag(_index, "meta-updates between meta-tests; 0 tests only at the end")
    test_tasks: int = _flag(_count, "meta-test tasks")
    protocol: str = _flag(
        choice((*PROTOCOLS, BOTH)), "adaptation at meta-test: finetune (Adam epochs), inner (the inner loop), both"
    )
    test_epochs: int = _flag(_index, "finetune: Adam epochs at meta-test")
    test_steps: int | None = _flag(_count, "inner: inner steps at meta-test (default: --inner-steps)")
    checkpoint_interval: int = _flag(_count, "meta-updates between checkpoints, at most 30 s apart")
    network: str = _door(NETWORKS, "network")
    width: int = _flag(_count, "units of each hidden layer, or filters of the first convolution")
    activation: str = _named(ACTIVATIONS, "activation of mlp, fourier and conv4")
    norm: str = _flag(choice(NORMS), "normalisation of the mlp: none, batch (the batch's own statistics)")
    ways: int = _flag(_count, "images: classes of a task")
    out: str | None = _flag(_path, "folder of the run (default results/DOMAIN/...)")
    data_root: str | None = _flag(_path, "folder of data files (default $AMAML_DATA)")
    resume: bool = _flag(_switch, "go on with the run in the folder, if it has a checkpoint", False)
    overwrite: bool = _flag(_switch, "discard what the folder holds and start anew", False)
    evaluate: str | None = _flag(_path, "meta-test the run in this folder, or this checkpoint, instead of training")
    draw: int = _flag(_pictures, "draw so many adapted meta-test tasks in fits.png", 0)

    def folder(self) -> Path:
        """--out, or the run's place under results/."""
        if self.out is not None:
            return Path(self.out)
        episode = f"{self.shots}shot-{self.queries}query"
        names = short(self.domain), episode, f"{self.inner_steps}steps", short(self.method), f"seed{self.seed}"
        return Path("results", *names)


FIELDS = {f.name: f for f in fields(Settings)}
# what steers the program and leaves the numbers of a run alone
CONTROL = {"processes", "checkpoint_interval", "out", "data_root", "resume", "overwrite", "evaluate", "draw"}
TEST = {"test_interval", "test_tasks", "protocol", "test_epochs", "test_steps"}  # what leaves theta alone


def toml_of(path: Path, kind: str) -> dict[str, Any]:
    """What a TOML file of some kind holds; raises InputError for one that cannot be read."""
    with readable(f"the {kind} {path}", OSError, ValueError, remedy="it must be a TOML file"):
        return tomllib.loads(path.read_text(encoding="utf-8"))


def read_toml(path: Path) -> dict[str, Any]:
    """A file of settings; a table of a method's name in it holds what differs for that method, as a dict.

    Raises InputError for a file that cannot be read or holds a setting that cannot be used.
    """
    values, source = toml_of(path, "configuration"), f" in {path}"
    tables = {name: values.pop(name) for name in [*values] if name in METHODS and isinstance(values[name], dict)}
    for name, table in tables.items():
        for own in {"domain", "method"} & {*table}:
            raise InputError(f"{own}{source} is not for the table [{name}]; take it out of the table")
        tables[name] = {own: _valid(own, value, source) for own, value in table.items()}
    return {name: _valid(name, value, source) for name, value in values.items()} | tables


def _valid(name: str, value: Any, source: str) -> Any:
    if name not in FIELDS:
        raise unknown(f"setting{source}", name, FIELDS)
    if value is None and type(None) in get_args(FIELDS[name].type):
        return None
    return FIELDS[name].metadata["check"](flag_name(name) + source, value)


def checked(values: dict[str, Any], source: str = "") -> Settings:
    """Settings of the right types and ranges; raises InputError for the first that is not, or is missing."""
    values = {name: _valid(name, value, source) for name, value in values.items()}
    for name, setting in FIELDS.items():
        if name not in values and setting.default is None and type(None) not in get_args(setting.type):
            raise InputError(f"{flag_name(name)}{source} is missing")
    s = Settings(**values)
    return replace(s, **_along(s))


def _along(s: Settings) -> dict[str, Any]:
    """Parts of the inner loop as numbers of its steps, rounded up; those that meet have one weight, their sum."""
    steps = s.query_steps or []
    if all(isinstance(step, int) for step in steps):
        return {}
    numbers = [n if isinstance(n, int) else math.ceil(Fraction(n[:-1]) * s.inner_steps / 100) for n in steps]
    weights = s.query_weights or [1 / len(steps)] * len(steps)
    if len(weights) != len(steps):
        return {"query_steps": numbers}
    found: dict[int, float] = {}
    for n, weight in zip(numbers, weights, strict=True):
        found[n] = found.get(n, 0.0) + weight
    return {"query_steps": [*found], "query_weights": [*found.values()]}


def check_together(flags: Iterable[str], s: Settings) -> None:
    """Raise InputError for settings that do not go together, and for a flag that nothing chosen has a use for."""
    if s.norm == "batch" and min(s.shots, s.queries) < 2:
        raise InputError(f"--norm batch needs at least 2 points, got --shots {s.shots} and --queries {s.queries}")
    if s.start_from is not None and s.method == "scratch":
        remedy = f"test that theta by --evaluate {s.start_from}"
        raise InputError(f"--start-from {s.start_from} is not for --method scratch, whose theta is random; {remedy}")
    if s.start_from is not None and s.reptile_first:
        raise InputError("--reptile-first and --start-from both say what a run begins with; choose one of them")
    if "reptile_first" in flags and s.reptile_first >= s.meta_updates:
        most = s.meta_updates - 1
        raise InputError(f"--reptile-first {s.reptile_first} leaves no update to {s.method}; choose at most {most}")
    if "draw" in flags and s.draw > s.test_tasks:
        raise InputError(f"--draw {s.draw} is more than --test-tasks {s.test_tasks}; choose at most {s.test_tasks}")
    if s.query_weights is not None and s.query_steps is None:
        raise InputError("--query-weights are those of --query-steps; give both")
    if s.resume and s.overwrite:
        raise InputError("--resume goes on with a run and --overwrite discards it; choose one of them")
    tables = {"method": METHODS, "network": NETWORKS, "protocol": PROTOCOLS, "domain": DOMAINS}
    for flag in flags:
        for group, table in tables.items():
            users, chosen = [name for name, entry in table.items() if flag in entry.uses], getattr(s, group)
            users += [BOTH] if users and group == "protocol" else []
            if users and chosen not in users:
                for_whom = f"{flag_name(group)} {' or '.join(users)}, not for {chosen}"
                raise InputError(f"{flag_name(flag)} {getattr(s, flag)} is for {for_whom}; leave it out")


def merged(flags: dict[str, Any]) -> Settings:
    """defaults.toml, what the domain's kind shares, the domain's own file, their tables for the method, the flags."""
    if "domain" not in flags:
        raise InputError(f"--domain is missing; choose one of: {', '.join(DOMAINS)}")
    domain = _valid("domain", flags["domain"], "")
    paths = [FOLDER / f"{name}.toml" for name in (DOMAINS[domain].defaults, domain) if name]
    layers = [read_toml(path) for path in (FOLDER / "defaults.toml", *filter(Path.exists, paths))]
    values = {name: value for layer in layers for name, value in layer.items() if name in FIELDS} | flags
    method = _valid("method", values["method"], "")
    values |= {name: value for layer in layers for name, value in layer.get(method, {}).items()}
    if "query_steps" in flags:
        values.pop("query_weights", None)  # which belong to the steps of the same file
    s = checked(values | flags)
    check_together(flags, s)
    return s


def parse_flags(arguments: list[str]) -> dict[str, Any]:
    """The flags given; raises InputError for one that cannot be used, or does not exist (naming the nearest)."""
    parser = Parser(
        prog="run.py",
        usage="run.py [flag ...]",
        description="Meta-train, meta-test and report one experiment. What no flag says stands in "
        "configs/DOMAIN.toml or, for the synthetic families, synthetic.toml; else in defaults.toml there.",
        allow_abbrev=False,
        argument_default=argparse.SUPPRESS,
    )
    defaults = read_toml(FOLDER / "defaults.toml")
    for name, setting in FIELDS.items():
        about = setting.metadata["help"] + (f" (default {defaults[name]})" if name in defaults else "")
        about = about.replace("%", "%%")  # argparse fills in the others
        if setting.metadata["check"] is _switch:
            parser.add_argument(flag_name(name), action="store_true", help=about)
        else:
            many = any(get_origin(kind) is list for kind in get_args(setting.type))
            parser.add_argument(flag_name(name), help=about, metavar="X", nargs="+" if many else None)
    namespace, unread = parser.parse_known_args(arguments)
    if unread:
        raise unknown("flag", unread[0].split("=")[0], [flag_name(name) for name in FIELDS])
    return {name: _valid(name, value, "") for name, value in vars(namespace).items()}


class Parser(argparse.ArgumentParser):
    """Reports a mistake as an InputError, like every other part of the program."""

    def error(self, message: str) -> NoReturn:
        raise InputError(f"{message}; see --help")
