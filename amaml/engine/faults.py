"""What to say where torch fails: which line and layer, why, and what to do instead."""

import contextlib
import os
import re
import traceback
import warnings
from pathlib import Path
from typing import Any
from weakref import WeakSet

import torch
from torch import nn

from amaml.errors import Diverged, InputError

# how the names of files begin that are not the user's
OWN = tuple(f"{folder}{os.sep}" for folder in (Path(torch.__file__).parent, Path(__file__).parents[1]))
OWN += "<string>", "<eval_with_key>", "<frozen"
NO_DERIVATIVE = re.compile(
    r"derivative for '?(?:aten::)?(\w+)'? is not implemented|differentiate twice a (function)|(\w+).*double backward"
)
REMEDIES = {  # by what torch's error contains
    "Expected more than 1 value per channel": "batch norm needs more than one value a channel, and a task here has one "
    "point; take more support and query points, or another normalisation such as nn.LayerNorm or nn.GroupNorm",
    "use_reentrant": "this kind of checkpointing knows no torch.autograd.grad; give it use_reentrant=False",
}

_told: "WeakSet[Any]" = WeakSet()  # functions of which a warning was given


def is_mistake(fault: Exception) -> bool:
    """Whether a fault is as it should reach the caller: an error of this library's, or memory that ran out."""
    return isinstance(fault, InputError | Diverged | torch.OutOfMemoryError | MemoryError)


class told:
    """Within this context what the network or the loss raises is no fault of batching, and reaches the caller in one
    line. (As a class it takes a third of what a generator does, at every evaluation.)"""

    def __init__(self, apply: Any) -> None:
        self.apply = apply

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: Any, fault: BaseException | None, trace: Any) -> None:
        if isinstance(fault, Exception) and not (is_mistake(fault) or isinstance(fault, Warning)):  # where these raise
            raise explained(fault, self.apply) from fault


def explained(fault: Exception, apply: Any) -> InputError | Diverged:
    """The error for a network or loss that fails for a single task by itself."""
    if isinstance(fault, torch.linalg.LinAlgError):
        return Diverged(
            f"{described(fault, apply)}; try a smaller inner_lr, or add a small multiple of the identity to the matrix"
        )
    for sign, remedy in REMEDIES.items():
        if sign in str(fault):
            return InputError(remedy)
    missing = NO_DERIVATIVE.search(str(fault))
    if missing is None:
        return InputError(f"the network or the loss fails for one task by itself: {described(fault, apply)}")
    operation = next(filter(None, missing.groups()))
    other = " or cdist's compute_mode='use_mm_for_euclid_dist'" if "cdist" in operation else ""
    return InputError(
        f"{operation} has no second derivative in torch, which an exact meta-gradient needs; take method "
        f"'fomaml'{other}, or another operation ({described(fault, apply)})"
    )


def described(fault: Exception, apply: Any) -> str:
    """Where it happened, as far as that is known, and the first line of what torch says."""
    line = next((line.strip().rstrip(".") for line in str(fault).splitlines() if line.strip()), "")
    return f"{_place(fault, apply)}{type(fault).__name__}: {line[:200]}"


def go_apart(apply: Any, reason: str, tasks: int) -> None:
    """Warn, once for each apply, that the tasks go one by one; raise where it is to be batched."""
    said = f"torch cannot batch the network or the loss over the tasks ({reason})"
    if getattr(apply, "batched", False):
        raise InputError(f"{said}; batched=False goes task by task")
    with contextlib.suppress(TypeError):  # what cannot be referred to weakly is told of every time
        if apply in _told:
            return
        _told.add(apply)
    warnings.warn(
        f"{said}; they go through it one by one, {tasks} passes in the place of one, and untraced: for small networks "
        f"about {10 * tasks} times slower. batched=True raises this as an error",
        RuntimeWarning,
        stacklevel=3,
    )


def _place(fault: Exception, apply: Any) -> str:
    """The innermost layer on the way to the fault, and the innermost line of neither torch nor this library."""
    frames = list(traceback.walk_tb(fault.__traceback__))
    places = ((f.f_code.co_filename, n) for f, n in frames)
    lines = [f"{Path(file).name} line {n}" for file, n in places if not file.startswith(OWN)]
    layers = [f.f_locals["self"] for f, _ in frames if isinstance(f.f_locals.get("self"), nn.Module)]
    found = [_named(layers[-1], getattr(apply, "module", None))] if layers else []
    found += lines[-1:]
    return f"{', '.join(found)}: " if found else ""


def _named(layer: nn.Module, module: nn.Module | None) -> str:
    names = (name for name, part in module.named_modules() if part is layer) if module is not None else ()
    name = next(iter(names), "")
    return f"layer {name!r} ({type(layer).__name__})" if name else type(layer).__name__
