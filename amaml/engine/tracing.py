"""A function of tensors as a graph of torch's operations."""

import contextlib
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from types import SimpleNamespace
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.fx import Graph, GraphModule, Node
from torch.fx.experimental.proxy_tensor import make_fx

from amaml.engine.calling import batchable, replacing
from amaml.engine.closures import Path, find_paths
from amaml.engine.faults import is_mistake
from amaml.engine.simplifying import memory, simplify, writing

TF32 = 2.0**-11  # the rounding of products of float32 on CUDA, where the tensor cores make them


class Trace(NamedTuple):
    """A traced function; its last arguments are the tensors that root holds at the paths."""

    module: GraphModule | None
    code: str
    paths: tuple[Path, ...]
    constants: dict[str, Any]
    rounding: float

    def same(self, other: "Trace") -> bool:
        """Whether both compute the same."""
        if (self.code, self.paths, self.constants.keys()) != (other.code, other.paths, other.constants.keys()):
            return False
        return all(_equal(constant, other.constants[name]) for name, constant in self.constants.items())

    def lean(self) -> Callable:
        """The function without its graph, of which each node takes 10 KiB."""
        return partial(type(self.module).forward, SimpleNamespace(**self.constants))


def trace(function: Callable, examples: Sequence[Tensor], root: object) -> Trace:
    """The graph of a function at the examples; tensors that it uses and that root leads to are further inputs.

    Raises what torch raises where it cannot trace the function.
    """
    traced = _make(function, examples)
    if _written(traced.graph):
        traced = _make(lambda *tensors: function(*(tensor.clone() for tensor in tensors)), examples)
        if _written(traced.graph):
            raise RuntimeError("the network or the loss writes into a tensor that is not its own")
    simplify(traced)
    paths, constants = _lift(traced, root)
    return Trace(traced, traced.code, paths, constants, rounding(traced.graph))


def values(node: Node) -> list[Tensor]:
    """The tensors that a node makes, without their numbers, as tracing noted them."""
    made = node.meta.get("val")
    return [value for value in (made if isinstance(made, list | tuple) else [made]) if isinstance(value, Tensor)]


def rounding(graph: Graph) -> float:
    """The coarsest among the numbers of a graph, relative to these: parts of a network may be of half precision."""
    made = (value for node in graph.nodes for value in values(node) if value.is_floating_point() or value.is_complex())
    kinds = {(value.dtype, value.is_cuda) for value in made}
    return max((TF32 if kind == (torch.float32, True) else torch.finfo(kind[0]).eps for kind in kinds), default=0.0)


def kind_of(tensor: Tensor) -> tuple[torch.Size, torch.dtype, torch.device]:
    """What a graph is traced for."""
    return tensor.shape, tensor.dtype, tensor.device


def examples_of(kinds: Iterable[tuple]) -> list[Tensor]:
    """Tensors of random numbers in [0, 1), of which no matrix is singular and that may be probabilities; of zeros where
    they are integers."""
    generator, cpu = torch.Generator().manual_seed(0), {"dtype": torch.float64, "device": "cpu"}
    return [
        torch.rand(shape, generator=generator, **cpu).to(device, dtype)
        if dtype.is_floating_point
        else torch.zeros(shape, dtype=dtype, device=device)
        for shape, dtype, device in kinds
    ]


def _equal(one: Any, other: Any) -> bool:
    if not isinstance(one, Tensor) or not isinstance(other, Tensor):
        return one is other
    return one is other or (one.shape == other.shape and one.dtype == other.dtype and torch.equal(one, other))


def _make(function: Callable, examples: Sequence[Tensor]) -> GraphModule:
    """The graph; networks that look at values get a second chance, for some leave that out within torch.compile."""
    fault = None  # torch's own context for the second is not in all versions
    for within in (contextlib.nullcontext(), replacing(torch.compiler, "_is_compiling_flag", True)):
        try:
            with batchable(sharing=True), within:
                return make_fx(function)(*examples)
        except Exception as one:
            if is_mistake(one):
                raise
            fault = fault or one
    raise fault


def _written(graph: Graph) -> bool:
    """Whether a graph writes into one of its inputs or constants, by way of views too."""
    written = (node.args[0] for node in writing(graph))
    return any(memory(node).op in ("placeholder", "get_attr") for node in written if isinstance(node, Node))


def _lift(traced: GraphModule, root: object) -> tuple[tuple[Path, ...], dict[str, Any]]:
    """Turn the constants of a graph that root leads to into further inputs; their paths, and the constants left."""
    nodes = [node for node in traced.graph.nodes if node.op == "get_attr"]
    constants = {node.target: getattr(traced, node.target) for node in nodes}
    paths = find_paths(root, {name: c for name, c in constants.items() if isinstance(c, Tensor)})
    *_, last = (node for node in traced.graph.nodes if node.op == "placeholder")
    for name in paths:
        with traced.graph.inserting_after(last):
            last = traced.graph.placeholder(name)
        for node in (node for node in nodes if node.target == name):
            node.replace_all_uses_with(last)
            traced.graph.erase_node(node)
        delattr(traced, name)
    traced.recompile()
    return tuple(paths.values()), {name: c for name, c in constants.items() if name not in paths}
