"""Where a function finds the tensors that it uses but is not given: in closures, attributes, modules and globals.

A traced graph holds such tensors as constants. A path from the function to the tensor allows to fetch the one that is
there now instead.
"""

import functools
from collections import deque
from collections.abc import Iterator, Sequence
from operator import attrgetter, itemgetter
from types import BuiltinFunctionType, CellType, CodeType, FunctionType, MappingProxyType, MethodType, ModuleType
from typing import Any

from torch import Tensor

Path = tuple[Any, ...]  # getters, to be called one after the other: the first with the function itself

MOST_OBJECTS = 20_000  # looked at in one search; a tensor farther away stays a constant of its graph
LEAVES = (Tensor, str, bytes, int, float, complex, type(None), BuiltinFunctionType, CodeType)
FOREIGN = ("torch", "builtins", "numpy", "functools")  # packages whose functions and classes hold no user's tensors


def find_paths(root: object, tensors: Sequence[Tensor]) -> list[Path | None]:
    """The shortest path from root to each tensor, None where there is none."""
    wanted, found = {id(tensor) for tensor in tensors}, {}
    seen, queue = {id(root)}, deque([((), root)])
    while queue and len(found) < len(wanted) and len(seen) < MOST_OBJECTS:
        path, owner = queue.popleft()
        for step, child in _children(owner):
            if id(child) in wanted:
                found.setdefault(id(child), path + step)
            if id(child) not in seen and not isinstance(child, LEAVES):
                seen.add(id(child))
                queue.append((path + step, child))
    return [found.get(id(tensor)) for tensor in tensors]


def follow(path: Path, root: object) -> Any:
    """What stands at the end of a path now; an error of Python's where the path is broken."""
    for getter in path:
        root = getter(root)
    return root


def _children(owner: object) -> Iterator[tuple[Path, object]]:
    """What an object holds, each with the getters that lead there."""
    if isinstance(owner, list | tuple):
        yield from (((itemgetter(i),), child) for i, child in enumerate(owner))
    elif isinstance(owner, dict | MappingProxyType):
        yield from (((itemgetter(key),), child) for key, child in list(owner.items()))
    elif isinstance(owner, FunctionType):
        if not _foreign(owner):
            yield from _attributes(owner, "__closure__", "__defaults__", "__kwdefaults__", "__dict__")
            yield from _globals(owner)
    elif isinstance(owner, functools.partial):
        yield from _attributes(owner, "func", "args", "keywords")
    elif isinstance(owner, MethodType):
        yield from _attributes(owner, "__self__", "__func__")
    elif isinstance(owner, CellType):
        yield from _attributes(owner, "cell_contents")
    elif isinstance(owner, staticmethod | classmethod):
        yield from _attributes(owner, "__func__")
    elif isinstance(owner, property):
        yield from _attributes(owner, "fget")
    elif isinstance(owner, type):
        if not _foreign(owner):
            yield from _attributes(owner, "__dict__", "__bases__")
    elif not isinstance(owner, ModuleType):
        slots = (name for kind in type(owner).__mro__ for name in _names(getattr(kind, "__slots__", ())))
        yield from _attributes(owner, "__dict__", "__class__", *slots)


def _attributes(owner: object, *names: str) -> Iterator[tuple[Path, object]]:
    for name in names:
        try:
            yield (attrgetter(name),), getattr(owner, name)
        except (AttributeError, ValueError):  # not there; an empty cell
            continue


def _globals(function: FunctionType) -> Iterator[tuple[Path, object]]:
    """The globals that a function names; of modules among them, their own globals that it names."""
    names = set(_names_in(function.__code__))
    for name in names & function.__globals__.keys():
        path, value = (attrgetter("__globals__"), itemgetter(name)), function.__globals__[name]
        yield path, value
        if isinstance(value, ModuleType):
            for inner in names & vars(value).keys():
                yield (*path, attrgetter("__dict__"), itemgetter(inner)), vars(value)[inner]


def _names_in(code: CodeType) -> Iterator[str]:
    yield from code.co_names
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            yield from _names_in(constant)


def _names(slots: str | Sequence[str]) -> Sequence[str]:
    return (slots,) if isinstance(slots, str) else slots


def _foreign(thing: FunctionType | type) -> bool:
    return (thing.__module__ or "").split(".")[0] in FOREIGN
