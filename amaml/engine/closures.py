"""What a function uses without being given it: tensors and Python values in closures, attributes, modules and globals.

A traced graph holds them as constants. A path from the function to a tensor allows to fetch the one that is there now
instead; the values tell whether the graph is out of date.
"""

import dis
import functools
from collections import deque
from collections.abc import Container, Iterable, Iterator, Mapping
from itertools import islice
from types import BuiltinFunctionType, CellType, CodeType, FunctionType, MappingProxyType, MethodType, ModuleType
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.modules.module import _has_any_global_hook

from amaml.engine.calling import exclusive

Step = tuple[bool, Any]  # whether an attribute, and its name; otherwise an item, and its key
Path = tuple[Step, ...]

MOST_OBJECTS = 20_000  # looked at in one search; a tensor farther away stays a constant of its graph
MOST_ITEMS = 100  # of a list or dict of data that are looked at for values that change
PLAIN = (str, bytes, int, float, complex, type(None), np.generic, BuiltinFunctionType, CodeType)
PLAIN += (torch.dtype, torch.device)
BOOKS = vars(nn.Module()).keys() - {"training"}  # what every module keeps of its own, mostly empty
ATTRIBUTES = BOOKS | {"__dict__", "__globals__"}  # where the keys of a dict are names in a program, not data
HOLDING = (Tensor, np.ndarray, set, frozenset, bytearray)  # and no tensors
CONTENT: Step = (True, "content")  # at the end of a path to one of them: what is in it
LEAVES = (*HOLDING, *PLAIN)
HOLDERS = {  # and the attributes in which they hold what they wrap
    functools.partial: ("func", "args", "keywords"),
    MethodType: ("__self__", "__func__"),
    CellType: ("cell_contents",),
    (staticmethod, classmethod): ("__func__",),
    property: ("fget",),
}
STATISTICS = ("running_mean", "running_var", "num_batches_tracked")
KNOWN = ("torch.nn.", "amaml.", "builtins", "functools", "collections")  # modules whose code holds no values of its own
FOREIGN = ("torch", "builtins", "numpy", "functools", "collections", "typing", "abc", "enum", "dataclasses", "amaml")


def find_paths(root: object, tensors: Mapping[str, Tensor]) -> dict[str, Path]:
    """By their names, the shortest path from root to each of these tensors that there is one to."""
    wanted, found = {id(tensor) for tensor in tensors.values()}, {}
    for path, child in _walk(root):
        if len(found) == len(wanted):
            break
        if id(child) in wanted:
            found.setdefault(id(child), path)
    return {name: found[id(tensor)] for name, tensor in tensors.items() if id(tensor) in found}


def find_requiring(root: object) -> list[tuple[Path, Tensor]]:
    """The tensors within reach that require a gradient, with their paths."""
    return [(path, child) for path, child in _walk(root) if isinstance(child, Tensor) and child.requires_grad]


class Watched:
    """The tensors that root uses, and how often each was written into; but for some of them, by their identities, and
    the running statistics of batch norm, which calls write into."""

    def __init__(self, root: object, out: Container[int]) -> None:
        with exclusive:
            found = ((path, child) for path, child in _walk(root, MOST_ITEMS) if isinstance(child, Tensor))
            self.seen = {p: (t, _version(t)) for p, t in found if id(t) not in out and p[-1][1] not in STATISTICS}
        self.root = root

    def narrow(self, names: Container[str], tensors: Container[int]) -> None:
        """Look at these tensors alone, by their identities, and at what is reached by no attribute of these names."""
        self.seen = {
            path: (tensor, version)
            for path, (tensor, version) in self.seen.items()
            if id(tensor) in tensors or not any(key in names for _, key in path[:3])
        }

    def changed(self) -> list[Path]:
        """Where another tensor stands now, or the same was written into; looks there no more."""
        with exclusive:
            now = {path: follow(path, self.root) for path in self.seen}
            paths = [path for path, (t, version) in self.seen.items() if now[path] is not t or _version(t) != version]
        for path in paths:
            del self.seen[path]
        return paths


def find_values(root: object) -> dict[Path, Any]:
    """The numbers, flags, strings and foreign functions that root uses, what small tensors, arrays and sets hold, and
    which tensors require a gradient; at () the default dtype, and whether all of this decides on what root computes: it
    is made of nothing but torch's layers and functions, and no mode or global hook changes what these do."""
    found, known = {}, not _has_any_global_hook()
    for path, child in _walk(root, MOST_ITEMS):
        if isinstance(child, Tensor):
            found[path] = child.requires_grad
        if isinstance(child, HOLDING):
            found[(*path, CONTENT)] = _content(child)
        elif isinstance(child, FunctionType | type):
            known = known and _module_of(child).startswith(KNOWN)
            if _foreign(child):
                found[path] = child
        elif isinstance(child, PLAIN):
            found[path] = child
        known = known and path != ()
    known = known and not torch._C._len_torch_function_stack() + torch._C._len_torch_dispatch_stack()
    return found | {(): (torch.get_default_dtype(), known)}


def _content(child: Any) -> Any:
    """What may be read of it as Python values."""
    if isinstance(child, Tensor):
        held = child.device.type == "cpu" and child.layout == torch.strided and child.numel() <= MOST_ITEMS
        held = held and not child.requires_grad and not torch._C._functorch.is_functorch_wrapped_tensor(child)
        return child.tolist() if held else None
    if isinstance(child, np.ndarray):
        return child.tobytes() if child.nbytes <= 8 * MOST_ITEMS else None
    return child.copy() if len(child) <= MOST_ITEMS else len(child)


def changed(then: dict[Path, Any], now: dict[Path, Any], inputs: Iterable[Path] = ()) -> set[Path]:
    """Where two of them differ, but in the numbers of tensors that are inputs; where a list or dict of data has grown,
    or a list holds other numbers, that list or dict, which may go on so."""
    paths = {path for path in then.keys() | now.keys() if then.get(path, then) != now.get(path, now)}
    paths -= {(*path, CONTENT) for path in inputs}
    grown = {path for path in paths if (path in then) != (path in now)}
    common = set.intersection(*({path[:n] for path in one if grown for n in range(len(path))} for one in (then, now)))

    def place(path: Path) -> Path:
        n = max(n for n in range(len(path)) if path[:n] in common) if path in grown else len(path) - 1
        of_data = n > 0 and path[n - 1][1] not in ATTRIBUTES
        return path[:n] if of_data and (path in grown or type(path[n][1]) is int) else path[: n + 1]

    return set(map(place, paths))


def follow(path: Path, root: object) -> Any:
    """What stands at the end of a path now; None where the path is broken."""
    try:
        for attribute, key in path:
            root = getattr(root, key) if attribute else root[key]
    except (AttributeError, LookupError, TypeError, ValueError):
        return None
    return root


def _version(tensor: Tensor) -> int:
    return 0 if tensor.is_inference() else tensor._version


def spelled(path: Path) -> str:
    """The names on a path that begins at (apply, loss), for people."""
    before = (key for _, key in path)
    names = [str(key) for key, last in zip((key for _, key in path[1:]), before, strict=False) if last != "__closure__"]
    hidden = "cell_contents", "_parameters", "_modules", "_buffers"
    return ".".join(name for name in names if not name.startswith("__") and name not in hidden)


def _walk(root: object, most_items: int | None = None) -> Iterator[tuple[Path, object]]:
    """Everything within reach, an object by its shortest path, a leaf by each of its; None at () where not all is."""
    seen, queue = {id(root): root}, deque([((), root)])  # held, so that no other object takes an identity over
    while queue and len(seen) < MOST_OBJECTS:
        path, owner = queue.popleft()
        for step, child in _children(owner, None if path and path[-1][1] in ATTRIBUTES else most_items):
            if isinstance(child, LEAVES):
                yield (*path, *step), child
            elif id(child) not in seen:
                seen[id(child)] = child
                queue.append(((*path, *step), child))
                if isinstance(child, FunctionType | type):
                    yield queue[-1]
    if queue:
        yield (), None


def _children(owner: object, most_items: int | None) -> Iterator[tuple[Path, object]]:
    """What an object holds, each with the steps that lead there."""
    if isinstance(owner, list | tuple | deque):
        yield from ((((False, i),), child) for i, child in zip(range(most_items or len(owner)), owner, strict=False))
    elif isinstance(owner, dict | MappingProxyType):
        yield from ((((False, key),), child) for key, child in list(islice(owner.items(), most_items)))
    elif isinstance(owner, FunctionType):
        if not _foreign(owner):
            yield from _attributes(owner, "__closure__", "__defaults__", "__kwdefaults__", "__dict__", "__code__")
            yield from _globals(owner)
    elif names := next((names for kind, names in HOLDERS.items() if isinstance(owner, kind)), ()):
        yield from _attributes(owner, *names)
    elif isinstance(owner, type):
        if not _foreign(owner):
            yield from _attributes(owner, "__dict__", "__bases__")
    elif isinstance(owner, nn.Module):
        skipped = owner.__class__.__module__.startswith("torch.nn.")
        for key, child in vars(owner).items():
            if key not in BOOKS or child:
                yield ((True, "__dict__"), (False, key)), child
        if not skipped:
            yield ((True, "__class__"),), owner.__class__
        elif isinstance(forward := owner.__class__.forward, FunctionType) and not _foreign(forward):  # put there
            yield ((True, "__class__"), (True, "forward")), forward
    elif not isinstance(owner, ModuleType):
        slots = (getattr(kind, "__slots__", ()) for kind in type(owner).__mro__)
        names = (name for one in slots for name in ((one,) if isinstance(one, str) else one))
        yield from _attributes(owner, "__dict__", "__class__", *names)


def _attributes(owner: object, *names: str) -> Iterator[tuple[Path, object]]:
    for name in names:
        try:
            yield ((True, name),), getattr(owner, name)
        except (AttributeError, ValueError):  # not there; an empty cell
            continue


def _globals(function: FunctionType) -> Iterator[tuple[Path, object]]:
    """The globals that a function names; of modules among them, their own globals that it names."""
    names, attributes = _names_in(function.__code__)
    for name in names & function.__globals__.keys():
        path, value = ((True, "__globals__"), (False, name)), function.__globals__[name]
        yield path, value
        if isinstance(value, ModuleType) and not _is_foreign(value.__name__):
            for inner in attributes & vars(value).keys():
                yield (*path, (True, "__dict__"), (False, inner)), vars(value)[inner]


@functools.lru_cache(4096)
def _names_in(code: CodeType) -> tuple[frozenset[str], frozenset[str]]:
    """Those of globals, and all names, attributes among them."""
    inner = [_names_in(constant) for constant in code.co_consts if isinstance(constant, CodeType)]
    read = (one.argval for one in dis.get_instructions(code) if one.opname in ("LOAD_GLOBAL", "LOAD_NAME"))
    return frozenset(read).union(*(a for a, _ in inner)), frozenset(code.co_names).union(*(b for _, b in inner))


def _foreign(thing: FunctionType | type) -> bool:
    """Whether it comes from a package whose functions and classes hold nothing of the user's."""
    return _is_foreign(_module_of(thing))


def _module_of(thing: FunctionType | type) -> str:
    """Where it was written; what functools.wraps tells is where that was which it wraps."""
    written = thing.__globals__.get("__name__") if isinstance(thing, FunctionType) else thing.__module__
    return written or ""


def _is_foreign(module: str) -> bool:
    return module.partition(".")[0] in FOREIGN
