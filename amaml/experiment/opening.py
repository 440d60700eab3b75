"""What a run finds in its folder: nothing, a run to go on with, a finished one, or one that must not be harmed."""

from collections.abc import Set
from pathlib import Path
from typing import Any, NamedTuple

from amaml.errors import InputError
from amaml.experiment.folder import Checkpoint, RunFolder
from amaml.experiment.registry import flag_name
from amaml.flow.derivatives import compiler_found

MAY_GROW = {"meta_updates"}  # a resumed run may be asked for more of these
LONG_RUN = 500  # updates from which --compile auto compiles


class Opening(NamedTuple):
    """finished: there is nothing left to do; start: the checkpoint to go on from, None for a run from its beginning."""

    finished: bool
    start: Checkpoint | None


def open_run(folder: RunFolder, settings: dict[str, Any], steering: Set[str]) -> Opening:
    """Look into the folder of a run; raises InputError where another run, or more than is asked for, would be harmed.

    settings: of the run that is asked for, "resume" and "overwrite" among them; steering: those that make no number.
    """
    if settings["overwrite"] and settings["resume"]:
        raise InputError("--resume goes on with a run and --overwrite discards it; choose one of them")
    there = None if settings["overwrite"] else folder.settings()
    if there is None:
        return Opening(False, None)
    _check_same(settings, there, steering, folder.path)
    updates, path = there.get("meta_updates"), folder.path
    if folder.finished and updates == settings["meta_updates"]:
        return Opening(True, None)
    if not settings["resume"]:
        state = f"a finished run of {updates} updates" if folder.finished else "an unfinished run"
        raise InputError(f"{path} holds {state}; go on with --resume or discard it with --overwrite")
    start = folder.load()
    if start is None and folder.finished:
        raise InputError(f"{path} has lost its checkpoint.pt; start anew with --overwrite")
    if start is not None:
        _check_same(settings, start.settings, steering, path / "checkpoint.pt")
        if start.update > settings["meta_updates"]:
            raise InputError(f"--meta-updates {settings['meta_updates']} is less than the {start.update} already made")
    return Opening(False, start)


def _check_same(settings: dict[str, Any], there: dict[str, Any], steering: Set[str], place: Path) -> None:
    """Raise InputError where settings on disk make another run than these."""
    for name, value in settings.items():
        if name not in steering | MAY_GROW and there.get(name) != value:
            raise InputError(
                f"{place} holds a run with {flag_name(name)} {there.get(name)}, not {value}; choose another --out "
                "or discard it with --overwrite"
            )


def compiles(compile: str, updates: int) -> bool:
    """Whether the graphs of a run are compiled: by --compile on, or auto, a long run and a C++ compiler."""
    if compile == "on" and not compiler_found():
        raise InputError("--compile on needs a C++ compiler (g++ or clang++), none was found; install one or use off")
    return compile == "on" or (compile == "auto" and updates >= LONG_RUN and compiler_found())
