"""How a run begins: from nothing, from another run's theta, from its own checkpoint; or not, since that does harm."""

from collections.abc import Iterable
from typing import Any, NamedTuple

from amaml.engine.compiling import compiler_found
from amaml.errors import InputError
from data.outside import short
from experiment.folder import Checkpoint, RunFolder, load_checkpoint
from experiment.settings import CONTROL, FIELDS, TEST, Settings, check_together, checked, flag_name

NETWORK = "learn_rates", "network", "width", "activation", "norm"  # what theta belongs to
TRAINING = "method", "start_from", "reptile_first", "meta_updates", "meta_batch", "robust"  # what made a theta
TRAINING += "meta_lr", "meta_optimizer", "meta_schedule", "clip"
LONG_RUN = 500  # updates from which --compile auto compiles


class Opening(NamedTuple):
    """What a run begins with.

    finished: there is nothing left to do; start: the checkpoint to go on from; origin: that of --start-from, whose
    theta a new run begins with; compiled: whether its graphs are.
    """

    finished: bool = False
    start: Checkpoint | None = None
    origin: Checkpoint | None = None
    compiled: bool = False


def open_run(folder: RunFolder, s: Settings) -> Opening:
    """Look into the folder; raises InputError where another run, or more of this one, would be harmed.

    A run without a checkpoint has nothing to lose and is started anew. A finished run whose tests alone are to be
    others goes on from its last checkpoint, where nothing but the tests is left to do.
    """
    there = None if s.overwrite else folder.settings()
    if there is None or not (folder.has("summary.json") or folder.has("checkpoint.pt")):
        return Opening(origin=_origin(s), compiled=_compiles(s))
    falls = " whose step size falls to its last update," if there.get("meta_schedule") else ""
    same = [name for name in FIELDS if name not in CONTROL | TEST and (falls or name != "meta_updates")]
    other_run = "choose another --out or discard it with --overwrite"
    _check_same(there, s, same, f"{folder.path} holds a run{falls} with", other_run)
    finished = folder.has("summary.json")
    complete = finished and there.get("meta_updates") == s.meta_updates
    if complete and all(there.get(name) == getattr(s, name) for name in TEST - {"test_interval"}):
        return Opening(finished=True)
    if not s.resume and not complete:
        state = f"a finished run of {there.get('meta_updates')} updates" if finished else "an unfinished run"
        raise InputError(f"{folder.path} holds {state}; go on with --resume or discard it with --overwrite")
    if not folder.has("checkpoint.pt"):
        raise InputError(f"{folder.path} has lost its checkpoint.pt; start anew with --overwrite")
    start = load_checkpoint(folder.path)
    _check_same(start.settings, s, same, f"{folder.path / 'checkpoint.pt'} holds a run{falls} with", other_run)
    if start.update > s.meta_updates:
        raise InputError(f"--meta-updates {s.meta_updates} is less than the {start.update} already made")
    if start.compiled and not compiler_found():
        missing = "there is no C++ compiler (g++ or clang++) now, without which its bits would be others"
        raise InputError(f"the run was compiled so far and {missing}; install one, or start anew with --overwrite")
    return Opening(start=start, compiled=start.compiled)


def _check_same(there: dict[str, Any], s: Settings, names: Iterable[str], what: str, remedy: str) -> None:
    """Raise InputError for the first of these settings that has another value there."""
    for name in names:
        if there.get(name) != getattr(s, name):
            raise InputError(f"{what} {flag_name(name)} {there.get(name)}, not {getattr(s, name)}; {remedy}")


def _origin(s: Settings) -> Checkpoint | None:
    """The checkpoint of --start-from; raises InputError where its theta is one of another network."""
    if not s.start_from:
        return None
    origin, what = load_checkpoint(s.start_from), f"--start-from {s.start_from} has a theta made with"
    _check_same(origin.settings, s, NETWORK, what, "give the same, or another run")
    return origin


def _compiles(s: Settings) -> bool:
    """Whether a new run's graphs are compiled; auto compiles a long run where there is a C++ compiler."""
    if s.compile == "on" and not compiler_found():
        raise InputError("--compile on needs a C++ compiler (g++ or clang++), none was found; install one or use off")
    return s.compile == "on" or (s.compile == "auto" and s.meta_updates >= LONG_RUN and compiler_found())


def evaluation_settings(flags: dict[str, Any], checkpoint: Checkpoint, processes: int) -> Settings:
    """The settings of --evaluate: the checkpoint's own and the flags beside it, which leave its theta as it is."""
    path, own = flags["evaluate"], checkpoint.settings
    anew = {"out": None, "resume": False, "overwrite": False, "draw": 0}
    s = checked(own | anew | flags | {"processes": processes}, source=f" in {path}")
    check_together(flags, s)
    given = [name for name in (*NETWORK, *TRAINING) if name in flags]
    _check_same(own, s, given, f"{path} was made with", "leave it out")
    return s


def evaluation_name(flags: dict[str, Any], s: Settings) -> str:
    """DOMAIN-SHOTSshot-PROTOCOL, and every other flag that makes its numbers: an evaluation replaces its like alone."""
    others = sorted(set(flags) - CONTROL - {"domain", "shots", "protocol"})
    return "-".join([short(s.domain), f"{s.shots}shot", s.protocol, *(f"{name}{flags[name]}" for name in others)])
