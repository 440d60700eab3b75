"""A module as a function without traces: after a call it is as it was."""

import contextlib
import operator
from collections import deque
from collections.abc import Iterable, Iterator
from types import ModuleType
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

CONTAINERS = (dict, list, set, deque)


@contextlib.contextmanager
def given_back(module: nn.Module) -> Iterator[None]:
    """Within this context a module is a function without traces; afterwards all that its parts hold is as it was, and
    what objects in their attributes hold.

    Buffers and other tensors in attributes are copies, which forward may write into; layers that keep running
    statistics use those of the batch; what is compiled or parallel is the plain module.
    """
    parts = [vars(part) for part in module.modules()]
    held = (one for part in parts for one in part.values() if not isinstance(one, type | ModuleType | nn.Module))
    objects = [vars(one) for one in held if hasattr(one, "__dict__")]
    before = [(kept, kept.copy()) for kept in _containers(parts + objects)]
    parametrize._cache.clear()  # of what was computed at other parameters
    try:
        copies: dict[int, Tensor] = {}
        parameters = {id(part["_parameters"]) for part in parts}  # which stand there already, in a call within a call
        for kept, _ in before:
            if id(kept) not in parameters:
                _own_tensors(kept, copies)
        for part in list(module.modules()):
            _make_pure(part)
        yield
    finally:
        parametrize._cache.clear()
        for kept, then in before:
            if (kept or then) and not _same(kept, then):
                kept.clear()
                kept.update(then) if isinstance(kept, dict | set) else kept.extend(then)


def unwrapped(module: nn.Module) -> nn.Module:
    """The module that torch.compile or a data-parallel wrapper holds; itself where it is none."""
    if isinstance(module, nn.DataParallel | nn.parallel.DistributedDataParallel):
        return unwrapped(module.module)
    plain = vars(module).get("_modules", {}).get("_orig_mod")
    return module if plain is None else unwrapped(plain)


def _own_tensors(kept: Any, copies: dict[int, Tensor]) -> None:
    """Put copies into a dict or list in the place of its tensors, the same one for the same tensor."""
    items = kept.items() if isinstance(kept, dict) else enumerate(kept) if isinstance(kept, list) else ()
    for key, value in items:  # of which no key is added or goes
        if isinstance(value, Tensor) and not isinstance(value, nn.Parameter):
            if id(value) not in copies:
                copies[id(value)] = value.clone()
            kept[key] = copies[id(value)]


def _make_pure(part: nn.Module) -> None:
    for name, child in part._modules.items():
        if child is not None:
            part._modules[name] = unwrapped(child)
    if isinstance(part, nn.modules.batchnorm._NormBase):
        part.track_running_stats = False
        part._buffers.update(dict.fromkeys(part._buffers))
    if isinstance(part, nn.Embedding | nn.EmbeddingBag):
        part.sparse = False  # the same gradient, in the form that has derivatives
    if part._compiled_call_impl is not None:
        vars(part)["_compiled_call_impl"] = None


def _containers(containers: Iterable[Any]) -> list[Any]:
    """These, and the dicts, lists, sets and deques in them."""
    found = list(containers)
    seen = set(map(id, found))
    for one in found:
        for child in one.values() if isinstance(one, dict) else one:
            if isinstance(child, CONTAINERS) and id(child) not in seen:
                seen.add(id(child))
                found.append(child)
    return found


def _same(kept: Any, then: Any) -> bool:
    """Whether a container holds the very objects that it held then."""
    if isinstance(kept, set):
        return kept == then
    if isinstance(kept, dict):
        return list(kept) == list(then) and all(map(operator.is_, kept.values(), then.values()))
    return len(kept) == len(then) and all(map(operator.is_, kept, then))


def announce_backward(module: nn.Module) -> None:
    """Tell a DistributedDataParallel, as its forward does, that a backward pass to its parameters follows: it then
    takes their mean over the processes."""
    parallel = isinstance(module, nn.parallel.DistributedDataParallel)
    if parallel and torch.is_grad_enabled() and module.require_backward_grad_sync:
        module.reducer.prepare_for_forward()
        module.reducer.prepare_for_backward([])
