"""Graphs of tensor operations: traced once, replayed, compiled where asked, and dropped when they are out of date.

A graph is traced the first time that a function of apply and loss meets a shape, dtype and device, and replayed
afterwards without the cost of Python and of the function transforms. Its result for the first task is compared with
that of plain autograd, at phi and nearby. Where torch cannot batch or trace a network, or does so wrongly, autograd
goes on task by task.

Tensors that apply and loss use without being given them (weights of an encoder, a tensor in a closure) are inputs of
the graph. Every call fetches those that stand at their places now (amaml.engine.closures).

Python values (a number, a flag, a branch taken) are constants of the graph. refresh() finds out when they changed: it
compares those within reach with what they were, and, but for networks made of torch's own layers alone, the loss of one
task with the graph and without. Where values
changed that make no difference to any graph, as counters do, they are not looked at any more. What is not seen: a
value that cannot be reached from apply and loss, and leaves the one loss as it was, to 100 roundings.

Graphs live as long as their apply and loss, at most MOST_GRAPHS of them. Of a compiled graph torch itself keeps the
loaded code, a few MiB.
"""

import contextlib
import warnings
import weakref
from collections import OrderedDict, defaultdict
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_flatten, tree_leaves

from amaml.engine import task
from amaml.engine.calling import check_surroundings, exclusive, no_random_draws, returning
from amaml.engine.closures import Path, changed, find_values
from amaml.engine.compiling import compiling
from amaml.engine.faults import described, go_apart, is_mistake, told
from amaml.engine.first_look import agrees, check_gradient, check_repeats, check_twice, points_meet
from amaml.engine.graph import Graph, Key, Probe
from amaml.engine.task import Definition, Function, Result, row_of
from amaml.engine.tracing import kind_of
from amaml.errors import changed_meanwhile
from amaml.points import Weighted

RENEWALS = 3  # after so many times that graphs were out of date a warning says what it costs
MOST_GRAPHS = 64  # of one apply and loss, of which the least recently used goes: up to 1 MiB each for small networks

Bound = dict[Definition, Function]  # by definition, calls with the same apply, loss, points and shapes as before


def replay(define: Definition, apply: Any, loss: Any, *arguments: Any, bound: Bound | None = None) -> Result:
    """define at the arguments: phi (tasks, P) first, the points x and y of the tasks last, which may be trees.

    bound: what a first call has looked up, for many that differ from it in the numbers of phi (and v) alone.
    Raises InputError under torch.autocast and torch.func, and for a network or loss that draws random numbers, fails by
    itself, gives another value at every call, has no derivative, or depends on what would get no gradient.
    """
    with told(apply), torch.set_grad_enabled(False):  # half the seconds of no_grad()
        call = None if bound is None else bound.get(define)
        if call is None:
            call = _looked_up(define, (apply, loss), arguments)
            if bound is not None:
                bound[define] = call
        return call(*arguments[:-2])


@torch.inference_mode(False)  # under it nothing can be derived
@torch.no_grad()
def refresh(apply: Any, loss: Any, theta: Tensor) -> None:
    """Drop the graphs of apply and loss for such a theta (P,) if they do not compute what these compute now.

    The price is a look at the values within reach, and one loss of one task, computed twice; waits for the device once.
    """
    check_surroundings(theta.device.type)
    with exclusive:
        _family((apply, loss), theta[None]).refresh((apply, loss), theta)


def in_use(apply: Any, loss: Any) -> set[int] | None:
    """The tensors that the graphs of apply and loss use without being given them, by their identities; None where one
    goes task by task, and may use any."""
    families = _families.get((id(apply), id(loss)), (None, None, {}))[2].values()
    made = [graph for family in families for graph in family.graphs.values()]
    if not made or any(graph.call is None or graph.points_meet for graph in made):
        return None
    return {id(tensor) for graph in made for tensor in graph.used((apply, loss)) or ()}


@torch.inference_mode(False)
@torch.no_grad()
def _looked_up(define: Definition, root: tuple, arguments: tuple) -> Function:
    """define as a function of all but the points."""
    *own, x, y = arguments
    (apply, _), phi = root, own[0]
    check_surroundings(phi.device.type)
    family = _family(root, phi)
    tensors, structure = tree_flatten(arguments)
    key = Key(define, compiling.get(), structure, tuple(map(kind_of, tensors)))
    graph = family.recent(key)
    used = None if graph is None else graph.used(root)
    if used is None:
        with exclusive:
            graph = family.add(key, root, arguments)
        used = graph.used(root)
    padded = graph.points_meet and not bool(y.weight.all())
    if padded and graph.call is not None:
        go_apart(apply, "points of a task meet, in batch norm or attention, and padding would join them", len(phi))
    if padded or graph.call is None:
        apart = define.one_by_one(*root, cut=padded)
        return lambda *own: apart(*own, x, y)
    return graph.of_own(tensors[len(own) :], used)


class Family:
    """The graphs of one apply and loss for one size, dtype and device of theta, all of one state of these."""

    def __init__(self) -> None:
        self.graphs: OrderedDict[Key, Graph] = OrderedDict()
        self.probe: Probe | None = None
        self.values: dict[Path, Any] = {}
        self.without_effect: set[Path] = set()  # values that changed, and no graph with them
        self.apart: dict[Definition, Graph] = {}  # what goes task by task
        self.has_gradient = False  # as far as was looked
        self.renewals = 0

    def recent(self, key: Key) -> Graph | None:
        """The graph, which is the last then to be dropped."""
        graph = self.graphs.get(key)
        if graph is not None:
            with contextlib.suppress(KeyError):  # another thread has dropped it since
                self.graphs.move_to_end(key)
        return graph

    def refresh(self, root: tuple, theta: Tensor) -> None:
        """Drop the graphs that are out of date."""
        if not self.graphs:
            return
        values, inputs = find_values(root), (path for graph in self.graphs.values() for path in graph.paths)
        moved = changed(self.values, values, inputs) - self.without_effect if values != self.values else set()
        stale = not values[()][1] and self.probe is not None and not self.probe.agrees(root, theta)
        if moved and not stale:
            stale = not all(graph.is_up_to_date(key, root) for key, graph in self.graphs.items())
            self.without_effect |= moved
        self.values = values
        if stale:
            if returning.get():
                raise changed_meanwhile("the module or the loss")
            self.graphs.clear()
            self.apart.clear()
            self.probe, self.has_gradient, self.renewals = None, False, self.renewals + 1
            if self.renewals == RENEWALS:
                warnings.warn(
                    f"apply or loss changed {RENEWALS} times, and were traced anew each time, as slow as a first call; "
                    "keep a number that changes in a tensor, and change the tensor",
                    RuntimeWarning,
                    stacklevel=2,
                )

    def add(self, key: Key, root: tuple, arguments: tuple) -> Graph:
        """A new graph, from the same state of apply and loss as the others."""
        theta, *_, x, y = row_of(arguments, 0)
        self.refresh(root, theta)
        if not self.graphs:
            self.values = find_values(root)
        of_loss = arguments[0], *arguments[-2:]
        with no_random_draws(theta.device):
            if not self.graphs:
                check_repeats(root, of_loss)
            if not self.has_gradient and key.define.kind is not task.loss:
                check_gradient(root, of_loss)
                self.has_gradient = True
            if key.define.kind in (task.hvp, task.pull_back):
                check_twice(root, of_loss)
            expected = key.define.of_row(*root, arguments, 0)
        graph = self._traced(key, root, arguments, expected)
        rounding = 0.0 if graph.traced is None else graph.traced.rounding
        meet = isinstance(y, Weighted) and points_meet(root, arguments, rounding)
        if self.probe is None and graph.call is not None:
            self.probe = Probe.of(root, theta, x, y)
        self.without_effect = set()  # on the other graphs
        self.graphs[key] = graph._replace(points_meet=meet)
        while len(self.graphs) > MOST_GRAPHS:
            self.graphs.popitem(last=False)
        return self.graphs[key]

    def _traced(self, key: Key, root: tuple, arguments: tuple, expected: Result) -> Graph:
        """A graph without a call where torch cannot batch or trace it, or does so wrongly."""
        if key.define in self.apart:
            return self.apart[key.define]
        wrong = False
        try:
            graph = Graph.of(key.trace(root), root, tree_leaves(arguments) if key.compiling else ())
            call, rounding = graph.of_own((), graph.used(root)), graph.traced.rounding
            if agrees(lambda *a: call(*tree_leaves(a)), key.define, root, arguments, expected, rounding):
                return graph
            reason, wrong = "its batched numbers are not those of a single task", True
        except Exception as fault:
            if is_mistake(fault):
                raise
            reason = described(fault, root[0])
        key.define.one_by_one(*root)(*arguments)  # which raises where it is no fault of batching
        go_apart(root[0], reason, len(arguments[0]))
        self.apart[key.define] = Graph(None, wrong=wrong)
        return self.apart[key.define]


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
