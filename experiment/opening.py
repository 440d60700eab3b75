"""What a run finds in its folder: nothing, a run to go on with, a finished one, or one that must not be harmed."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from torch import Tensor

from amaml.engine.derivatives import compiler_found
from amaml.errors import InputError
from experiment.folder import Checkpoint, RunFolder, checkpoint_at, load_checkpoint
from experiment.registry import flag_name

NETWORK = "learn_rates", "network", "width", "activation", "norm"  # what theta belongs to
LONG_RUN = 500  # updates from which --compile auto compiles


class Opening(NamedTuple):
    """finished: there is nothing left to do; start: the checkpoint to go on from, None for a run from its beginning."""

    finished: bool
    start: Checkpoint | None


@dataclass(frozen=True)
class Asked:
    """The settings of the run that is asked for, and which of them may differ from those of the run in the folder.

    steering: they make no number; testing: they say how theta is tested. meta_updates may grow, except where the step
    size falls towards the last.
    """

    settings: dict[str, Any]
    steering: frozenset[str]
    testing: frozenset[str]

    def open(self, folder: RunFolder) -> Opening:
        """Look into the folder; raises InputError where another run, or more of this one, would be harmed.

        A run without a checkpoint has nothing to lose and is started anew. A finished run whose tests alone are to be
        others goes on from its last checkpoint, where nothing but the tests is left to do.
        """
        there = None if self.settings["overwrite"] else folder.settings()
        if there is None or not (folder.finished or folder.has_checkpoint):
            return Opening(False, None)
        self._check_same(there, folder.path)
        complete = folder.finished and there.get("meta_updates") == self.settings["meta_updates"]
        if complete and self._tests_as(there):
            return Opening(True, None)
        if not self.settings["resume"] and not complete:
            state = f"a finished run of {there.get('meta_updates')} updates" if folder.finished else "an unfinished run"
            raise InputError(f"{folder.path} holds {state}; go on with --resume or discard it with --overwrite")
        start = folder.load()
        if start is None:
            raise InputError(f"{folder.path} has lost its checkpoint.pt; start anew with --overwrite")
        self._check_same(start.settings, folder.path / "checkpoint.pt")
        if start.update > self.settings["meta_updates"]:
            updates = self.settings["meta_updates"]
            raise InputError(f"--meta-updates {updates} is less than the {start.update} already made")
        return Opening(False, start)

    def _check_same(self, there: dict[str, Any], place: Path) -> None:
        """Raise InputError where settings on disk make another run than these."""
        falls = there.get("meta_schedule") is not None
        grows = set() if falls else {"meta_updates"}
        for name, value in self.settings.items():
            other = there.get(name, False if isinstance(value, bool) else None)  # of a switch newer than the run
            if name not in {*self.steering, *self.testing, *grows} and other != value:
                why = ", towards which its step size falls" if name == "meta_updates" else ""
                raise InputError(
                    f"{place} holds a run with {flag_name(name)} {other}{why}, not {value}; choose another --out "
                    "or discard it with --overwrite"
                )

    def _tests_as(self, there: dict[str, Any]) -> bool:
        """Whether the last meta-test of settings on disk is that of these."""
        return all(there.get(name) == self.settings[name] for name in self.testing - {"test_interval"})


def origin(settings: dict[str, Any]) -> Tensor | None:
    """The theta (P,) of another run that a new one begins with, None for random weights.

    Raises InputError where it cannot be read, or is one of another network.
    """
    if settings["start_from"] is None:
        return None
    path = checkpoint_at(settings["start_from"])
    checkpoint = load_checkpoint(path)
    for name in NETWORK:
        there = checkpoint.settings.get(name)
        if there != settings[name]:
            raise InputError(
                f"--start-from {path} has a theta made with {flag_name(name)} {there or 'none'}, not "
                f"{settings[name] or 'none'}; give the same, or another run"
            )
    return checkpoint.theta


def compiles(compile: str, updates: int, start: Checkpoint | None) -> bool:
    """Whether the graphs of a run are compiled: as they were before its checkpoint, since that makes other bits.

    At its beginning --compile decides; auto compiles a long run where there is a C++ compiler.
    """
    if start is not None and start.compiled is not None:
        if start.compiled and not compiler_found():
            raise InputError(
                "the run was compiled so far and there is no C++ compiler (g++ or clang++) now, without which its bits "
                "would be others; install one, or start anew with --overwrite"
            )
        return start.compiled
    if compile == "on" and not compiler_found():
        raise InputError("--compile on needs a C++ compiler (g++ or clang++), none was found; install one or use off")
    return compile == "on" or (compile == "auto" and updates >= LONG_RUN and compiler_found())
