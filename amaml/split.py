"""A module as a function of the parameters that adapt and of those that all tasks share."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from amaml.errors import InputError, unknown
from amaml.models import arguments_of
from amaml.points import Points


class Split:
    """A module as a function of its adapted parameters and of all others: apply(phi (P,), x, shared)."""

    def __init__(self, module: nn.Module, names: list[str]) -> None:
        parameters = dict(module.named_parameters())
        self.module = module
        self.shapes = {name: parameters[name].shape for name in names}
        self.sizes = [shape.numel() for shape in self.shapes.values()]

    def __call__(self, phi: Tensor, x: Points, shared: Mapping[str, Tensor] | None = None) -> Any:
        with batch_statistics(self.module):
            return torch.func.functional_call(self.module, self.pieces(phi) | (shared or {}), *arguments_of(x))

    def pieces(self, phi: Tensor) -> dict[str, Tensor]:
        """phi (..., P) as named tensors."""
        pieces = zip(self.shapes.items(), phi.split(self.sizes, -1), strict=True)
        return {name: piece.unflatten(-1, shape) if shape else piece[..., 0] for (name, shape), piece in pieces}

    def shared(self) -> dict[str, Tensor]:
        """All other parameters of the module."""
        return {name: p for name, p in self.module.named_parameters() if name not in self.shapes}


def adapted_names(module: nn.Module, prefixes: tuple[str, ...] | None) -> list[str]:
    """The parameters that adapt names, in the module's order; raises InputError where a name means none."""
    trainable = {name: p for name, p in module.named_parameters() if p.requires_grad}
    if prefixes is None:
        return list(trainable)
    # under each of their names, of which a tied one has several
    named = {name: p for name, p in module.named_parameters(remove_duplicate=False) if p.requires_grad}
    if isinstance(prefixes, str):
        raise InputError(f"adapt must be a tuple of names, got {prefixes!r}; write adapt=({prefixes!r},)")
    for prefix in prefixes:
        if not any(_begins(name, prefix) for name in named):
            known = {part for name in named for part in (name, name.rsplit(".", 1)[0])}
            raise unknown("name in adapt, or one without trainable parameters:", prefix, known)
    wanted = {id(p) for name, p in named.items() if any(_begins(name, prefix) for prefix in prefixes)}
    found = [name for name, p in trainable.items() if id(p) in wanted]
    if not found:
        raise InputError("adapt is empty; name a parameter or a part of the module, or leave adapt out for all")
    return found


def _begins(name: str, prefix: str) -> bool:
    return name == prefix or name.startswith(prefix + ".")


@contextmanager
def batch_statistics(module: nn.Module) -> Iterator[None]:
    """Within this context batch norm uses the statistics of its batch, and leaves the running ones alone."""
    norms = [part for part in module.modules() if isinstance(part, nn.modules.batchnorm._NormBase)]
    before = [(part.track_running_stats, dict(part._buffers)) for part in norms]
    try:
        for part in norms:
            part.track_running_stats = False
            part._buffers.update(dict.fromkeys(part._buffers))
        yield
    finally:
        for part, (tracks, buffers) in zip(norms, before, strict=True):
            part.track_running_stats = tracks
            part._buffers.update(buffers)
