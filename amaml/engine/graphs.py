"""Graphs of tensor operations: traced once, replayed, compiled where asked, and dropped when they are out of date.

A graph is traced the first time that a function of apply and loss meets a shape, dtype and device, and replayed
afterwards without the cost of Python and of the function transforms. Two things must not be frozen in it:

Tensors that apply and loss use without being given them (weights of an encoder, a tensor in a closure) are inputs of
the graph. Every call fetches those that stand at their places now (amaml.engine.closures).

Python values (a number, a flag, a branch taken) are constants of the graph. refresh() finds out when they changed: it
computes the loss of one task both with the graph and without. The task is the first one that these graphs met, at the
theta of the call. What such a comparison cannot see: a change that leaves this one loss as it was, to 100 roundings.

Graphs live as long as their apply and loss. Of a compiled graph torch itself keeps the loaded code, a few MiB.
"""

import shutil
import warnings
import weakref
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.fx import GraphModule
from torch.fx.experimental.proxy_tensor import make_fx
from torch.utils._pytree import tree_flatten, tree_unflatten

from amaml.engine.calling import batchable, differentiable_twice
from amaml.engine.closures import Path, find_paths, follow
from amaml.engine.compiling import compile_graph
from amaml.errors import InputError
from amaml.points import map_points

Result = Tensor | tuple[Tensor, ...]
Function = Callable[..., Result]
Definition = Callable[[Any, Any], Function]  # (apply, loss) -> a function of tensors

ROUNDINGS = 100  # a relative difference of so many eps between a traced and an untraced loss is none
RENEWALS = 3  # after so many times that graphs were out of date a warning says what it costs

_compiling: ContextVar[bool] = ContextVar("compiling", default=False)

EXPLANATIONS = {  # by what torch's error contains
    "randomness error mode": "the network or the loss draws random numbers (active dropout?), and a random loss has no "
    "deterministic gradient; call module.eval() or take the random layer out",
    "rrelu_with_noise": "RReLU draws random slopes, and a random loss has no deterministic gradient; use nn.LeakyReLU",
    "Expected more than 1 value per channel": "batch norm needs more than one value a channel, and a task here has one "
    "point; take more support and query points, or another normalisation such as nn.LayerNorm or nn.GroupNorm",
    "running_mean or running_var, which will be updated": "a normalisation layer updates running statistics, and they "
    "would leak between tasks; call module.eval() or build it with track_running_stats=False",
    "data-dependent control flow": "the network or the loss branches on the values of a tensor, or makes a number of "
    "one by .item() or float(); a batch of tasks needs one way for all, such as torch.where",
}


@contextmanager
def compiled(on: bool = True) -> Iterator[None]:
    """Within this context graphs are compiled by torch.compile as well as traced: seconds each, once, for two to
    three times the speed of small networks. torch keeps what it compiled between processes. On CUDA the compiled
    graphs are replayed as CUDA graphs."""
    token = _compiling.set(on)
    try:
        yield
    finally:
        _compiling.reset(token)


def compiler_found() -> bool:
    """Whether torch.compile has what it needs on this machine, a C++ compiler."""
    return any(shutil.which(name) for name in ("g++", "clang++", "c++"))


@torch.no_grad()
def replay(define: Definition, one: Definition, apply: Any, loss: Any, *arguments: Any) -> Result:
    """define(apply, loss) at the arguments: phi (tasks, P) first, the points x and y of the tasks last, which may be
    dicts and tuples of tensors.

    one(apply, loss) is the loss of one task as a function of theta (P,), x and y. Raises InputError under
    torch.autocast, for a network that draws random numbers, and for a loss that differs from call to call.
    """
    phi, root = arguments[0], (apply, loss)
    _refuse_autocast(phi.device.type)
    family = _family(root, phi)
    tensors, structure = _flat(arguments)
    key = define, _compiling.get(), structure, _signature(tensors)
    tensors = [a.contiguous() for a in tensors]  # what is compiled holds for the layout of its examples
    graph = family.graphs.get(key)
    used = None if graph is None else graph.used(root)
    if used is None:
        graph = family.graphs[key] = family.trace(define, one, root, arguments)
        used = graph.used(root)
    return graph.call(*tensors, *used)


@torch.no_grad()
def refresh(one: Definition, apply: Any, loss: Any, theta: Tensor) -> None:
    """Drop the graphs of apply and loss for such a theta (P,) if they do not compute what these compute now.

    The price is one loss of one task, computed twice; waits for the device once.
    """
    _refuse_autocast(theta.device.type)
    _family((apply, loss), theta[None]).refresh(one, (apply, loss), theta)


class Graph(NamedTuple):
    """A traced function; its last arguments are the tensors that apply and loss use without being given them."""

    call: Function
    paths: list[Path]  # from (apply, loss) to those tensors
    layout: list[tuple]  # of each: size, strides, dtype and device

    def used(self, root: tuple) -> list[Tensor] | None:
        """Those tensors as they are now; None where one has gone, or has another layout."""
        try:
            tensors = [follow(path, root) for path in self.paths]
            return tensors if [_layout(tensor) for tensor in tensors] == self.layout else None
        except (AttributeError, LookupError, TypeError, ValueError):
            return None


class Probe(NamedTuple):
    """The points of one task, and the graph of its loss."""

    graph: Graph
    x: Any
    y: Any

    def agrees(self, one: Definition, root: tuple, theta: Tensor) -> bool:
        """Whether the graph still computes the loss; waits for the device."""
        used = self.graph.used(root)
        if used is None:
            return False
        try:
            with differentiable_twice():
                now = one(*root)(theta, self.x, self.y)
        except Exception:  # apply and loss do not take the old points any more
            return False
        then = self.graph.call(*_flat((theta, self.x, self.y))[0], *used)
        tolerance = ROUNDINGS * torch.finfo(now.dtype).eps if now.dtype.is_floating_point else 0.0
        return torch.allclose(now, then, rtol=tolerance, atol=0.0, equal_nan=True)


class Family:
    """The graphs of one apply and loss for one size, dtype and device of theta, all traced while the probe agreed."""

    def __init__(self) -> None:
        self.graphs: dict[tuple, Graph] = {}
        self.probe: Probe | None = None
        self.renewals = 0

    def refresh(self, one: Definition, root: tuple, theta: Tensor) -> None:
        """Drop the graphs that are out of date."""
        if self.probe is None or self.probe.agrees(one, root, theta):
            return
        self.graphs, self.probe, self.renewals = {}, None, self.renewals + 1
        if self.renewals == RENEWALS:
            warnings.warn(
                f"apply or loss changed {RENEWALS} times, and were traced anew each time, as slow as a first call; "
                "keep a number that changes in a tensor, and change the tensor",
                RuntimeWarning,
                stacklevel=2,
            )

    def trace(self, define: Definition, one: Definition, root: tuple, arguments: tuple) -> Graph:
        """A new graph, from the same state of apply and loss as the others."""
        theta, x, y = (map_points(lambda tensor: tensor[0].clone(), arguments[i]) for i in (0, -2, -1))
        self.refresh(one, root, theta)
        graph = _trace(define(*root), root, arguments, _compiling.get())
        if self.probe is None:
            probe = Probe(_trace(one(*root), root, (theta, x, y), False), x, y)
            if not probe.agrees(one, root, theta):
                raise InputError(
                    "apply or loss give another value every time they are called with the same tensors; such a loss "
                    "has no deterministic gradient: take out what is random or counts its calls"
                )
            self.probe = probe
        return graph


# by the identities of apply and loss, each entry with weak references to them
_families: dict[tuple[int, int], tuple[Any, Any, defaultdict[tuple, Family]]] = {}


def _family(root: tuple, phi: Tensor) -> Family:
    key = tuple(map(id, root))
    if key not in _families:
        _families[key] = *(_weak(part, lambda _: _families.pop(key, None)) for part in root), defaultdict(Family)
    return _families[key][2][phi.shape[1:], phi.dtype, phi.device]


def _weak(part: object, when_gone: Callable[[Any], Any]) -> Callable[[], object]:
    try:
        return weakref.ref(part, when_gone)
    except TypeError:  # an object that cannot be referred to weakly keeps its graphs for good
        return lambda: part


def _flat(arguments: tuple) -> tuple[Sequence[Tensor], Any]:
    """The tensors of the arguments, and what tree_unflatten needs; None where each argument is a tensor."""
    if all(isinstance(a, Tensor) for a in arguments):
        return arguments, None
    return tree_flatten(arguments)


def _signature(tensors: Sequence[Tensor]) -> tuple:
    return tuple((t.shape, t.dtype, t.device) for t in tensors)


def _layout(tensor: Tensor) -> tuple:
    return tensor.shape, tensor.stride(), tensor.dtype, tensor.device


def _refuse_autocast(device_type: str) -> None:
    if torch.amp.is_autocast_available(device_type) and torch.is_autocast_enabled(device_type):
        raise InputError(
            "torch.autocast is on, which rounds inside the derivatives; call outside of it, or within "
            f"torch.autocast({device_type!r}, enabled=False)"
        )


def _trace(function: Function, root: tuple, arguments: tuple, compiling: bool) -> Graph:
    tensors, structure = _flat(arguments)
    examples = [
        torch.zeros_like(a, memory_format=torch.contiguous_format) for a in tensors
    ]  # one tensor in two places would tie these for good
    try:
        with batchable(sharing=True):
            traced = make_fx(lambda *flat: function(*(tree_unflatten(flat, structure) if structure else flat)))(
                *examples
            )
    except (RuntimeError, ValueError) as fault:
        for sign, explanation in EXPLANATIONS.items():
            if sign in str(fault):
                raise InputError(explanation) from fault
        raise
    paths = _lift(traced, root)
    used = [follow(path, root) for path in paths]
    call = compile_graph(traced, examples + used) if compiling else traced
    return Graph(call, paths, [_layout(tensor) for tensor in used])


def _lift(traced: GraphModule, root: tuple) -> list[Path]:
    """Turn the constants of a graph that a path from root leads to into further inputs; the paths."""
    nodes = [node for node in traced.graph.nodes if node.op == "get_attr"]
    constants = {node.target: getattr(traced, node.target) for node in nodes}
    tensors = {name: c for name, c in constants.items() if isinstance(c, Tensor)}
    found = dict(zip(tensors, find_paths(root, list(tensors.values())), strict=True))
    *_, last = (node for node in traced.graph.nodes if node.op == "placeholder")
    for name in (name for name, path in found.items() if path is not None):
        with traced.graph.inserting_after(last):
            last = traced.graph.placeholder(name)
        for node in (node for node in nodes if node.target == name):
            node.replace_all_uses_with(last)
            traced.graph.erase_node(node)
        delattr(traced, name)
    traced.recompile()
    return [path for path in found.values() if path is not None]
