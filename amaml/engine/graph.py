"""One traced graph: what it is for, what it uses, and the loss of one task, which tells whether it is out of date."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils._pytree import tree_flatten, tree_leaves, tree_map, tree_unflatten

from amaml.engine import task
from amaml.engine.closures import Path, follow
from amaml.engine.compiling import compile_graph
from amaml.engine.task import Definition, Function
from amaml.engine.tracing import Trace, examples_of, kind_of, trace


class Key(NamedTuple):
    """What a graph is for."""

    define: Definition
    compiling: bool
    structure: Any  # of the arguments' tree
    signature: tuple[tuple, ...]  # shape, dtype and device of each tensor

    def trace(self, root: tuple) -> Trace:
        """define as apply and loss are now, at examples: one tensor in two places would tie these for good."""
        function = _of_tensors(self.define.batched(*root), self.structure)
        return trace(function, examples_of(self.signature), root)


class Graph(NamedTuple):
    """A traced function; its last arguments are the tensors that apply and loss use without being given them."""

    call: Function | None  # None: task by task
    paths: tuple[Path, ...] = ()  # from (apply, loss) to those tensors
    layout: tuple[tuple, ...] = ()  # of each: size, strides, dtype, device, and whether it requires a gradient
    traced: Trace | None = None
    points_meet: bool = False  # whether predictions depend on the other points of their task, so that padding matters
    wrong: bool = False  # whether it goes task by task for its numbers, not because torch cannot trace it

    @classmethod
    def of(cls, traced: Trace, root: tuple, examples: Sequence[Tensor] = ()) -> "Graph":
        """Compiled where there are examples of its arguments, on which it is compared with what was traced."""
        used = [follow(path, root).resolve_neg() for path in traced.paths]
        met = [a.resolve_neg().clone(memory_format=torch.contiguous_format) for a in examples]
        call = compile_graph(traced.module, [*met, *used], root[0]) if examples else traced.lean()
        return cls(call, traced.paths, tuple(map(_layout, used)), traced._replace(module=None))

    def used(self, root: tuple) -> list[Tensor] | None:
        """Those tensors as they are now; None where one has gone, or has another layout."""
        found = [follow(path, root) for path in self.paths]
        if not all(isinstance(tensor, Tensor) for tensor in found):
            return None
        tensors = [tensor.resolve_neg() for tensor in found]
        return tensors if tuple(map(_layout, tensors)) == self.layout else None

    def of_own(self, points: Sequence[Tensor], used: list[Tensor]) -> Function:
        """It as a function of all but the points; what is compiled holds for the layout of its examples."""
        call, rest = self.call, [*(tensor.resolve_neg().contiguous() for tensor in points), *used]
        return lambda *own: call(*[tensor.contiguous() for tensor in own], *rest)

    def is_up_to_date(self, key: Key, root: tuple) -> bool:
        """Whether it is what would be traced now."""
        try:
            if self.wrong:
                return True
            now = key.trace(root)  # which succeeds where it did not before, if what stood in the way is gone
            return self.traced is not None and now.same(self.traced)
        except Exception:  # apply and loss do not take such points any more, or cannot be traced still
            return self.call is None


class Probe(NamedTuple):
    """The points of one task, and the graph of its loss."""

    graph: Graph
    x: Any
    y: Any

    @classmethod
    def of(cls, root: tuple, theta: Tensor, x: Any, y: Any) -> "Probe | None":
        """None where the loss cannot be traced, or needs autograd."""
        tensors, structure = tree_flatten((theta, x, y))
        function = _of_tensors(Definition(task.loss).of_one(*root), structure)
        try:
            probe = cls(Graph.of(trace(function, examples_of(map(kind_of, tensors)), root), root), x, y)
        except Exception:
            return None
        return probe if probe.agrees(root, theta) else None

    def agrees(self, root: tuple, theta: Tensor) -> bool:
        """Whether the graph still computes the loss; waits for the device."""
        used = self.graph.used(root)
        if used is None:
            return False
        try:
            row = tree_map(Tensor.clone, (theta, self.x, self.y))
            now = Definition(task.loss).recorded(*root, row, graph=False)
        except Exception:  # apply and loss do not take the old points any more
            return False
        return task.same(now, self.graph.of_own((), used)(*tree_leaves((theta, self.x, self.y))))


def _of_tensors(function: Function, structure: Any) -> Function:
    return lambda *flat: function(*tree_unflatten(flat, structure))


def _layout(tensor: Tensor) -> tuple:
    sparse = tensor.layout is torch.sparse_coo
    lies = (tensor._nnz(), tensor.is_coalesced()) if sparse else tensor.stride()
    return tensor.shape, lies, tensor.dtype, tensor.device, tensor.requires_grad
