"""A traced graph without what tracing leaves behind: half of the operations of a small network, and the same numbers.

Function transforms leave operations that nothing uses (the loss, of which only the shape was wanted), that do nothing
(an expansion to the same shape, a product with 1, two transpositions), or that are there twice. Each costs a call, and
on CUDA a kernel: of 2-32-32-1 a Hessian-vector product takes half of the seconds without them. To the bit.
"""

import operator

import torch
from torch import Tensor
from torch._functorch.compile_utils import fx_graph_cse
from torch.fx import Graph, GraphModule, Node
from torch.fx.node import map_arg

aten = torch.ops.aten
LIKE = {aten.ones_like.default: 1.0, aten.zeros_like.default: 0.0}
SHAPING = aten.expand.default, aten.view.default, aten._unsafe_view.default
WITH_ONE = aten.mul.Scalar, aten.mul.Tensor, aten.div.Scalar, aten.div.Tensor, aten.pow.Tensor_Scalar


def simplify(traced: GraphModule) -> None:
    """Simplify a graph in place; one that writes into its tensors stays as it is."""
    if writing(traced.graph):
        return
    for node in traced.graph.nodes:
        if (value := LIKE.get(node.target)) is not None and (made := _made(node)) is not None:
            with traced.graph.inserting_before(node):  # of the shape alone
                kind = {"dtype": made.dtype, "device": made.device}
                full = traced.graph.call_function(aten.full.default, (list(made.shape), value), kind)
            full.meta = dict(node.meta)
            node.replace_all_uses_with(full)
        elif (same := _same(node)) is not None:
            node.replace_all_uses_with(same)
    traced.graph.eliminate_dead_code()
    traced.graph = fx_graph_cse(traced.graph)
    _own_results(traced)
    traced.graph.eliminate_dead_code()
    traced.recompile()


def writing(graph: Graph) -> list[Node]:
    """The nodes of a graph that write into their first argument."""
    schemas = {node: getattr(node.target, "_schema", None) for node in graph.nodes}
    return [node for node, schema in schemas.items() if schema is not None and schema.is_mutable]


def memory(node: Node) -> Node:
    """Where the memory of a node's result comes from."""
    schema = getattr(node.target, "_schema", None)
    of_first = schema is not None and any(result.alias_info is not None for result in schema.returns)
    return memory(node.args[0]) if of_first or node.target is operator.getitem else node


def _made(node: Node) -> Tensor | None:
    """What a node makes, as tracing noted it, where that is a tensor."""
    made = node.meta.get("val")
    return made if isinstance(made, Tensor) else None


def _same(node: Node) -> Node | None:
    """An earlier node of the same numbers in the same layout, for an operation that does nothing."""
    source = node.args[0] if node.args else None
    if not isinstance(source, Node) or _made(node) is None:
        return None
    if node.target is aten.transpose.int and source.target is aten.transpose.int:
        axes, before = ({axis % _made(node).ndim for axis in one.args[1:]} for one in (node, source))
        return source.args[0] if axes == before else None
    neutral = node.target in WITH_ONE and not isinstance(node.args[1], Node | Tensor) and node.args[1] == 1
    return source if (neutral or node.target in SHAPING) and _layout(node) == _layout(source) else None


def _layout(node: Node) -> tuple | None:
    made = _made(node)
    return None if made is None else (made.shape, made.stride(), made.dtype)


def _own_results(traced: GraphModule) -> None:
    """A result that would lie in an argument, or where another one does, is a copy: callers write into them."""
    (output,) = (node for node in traced.graph.nodes if node.op == "output")
    seen = set()

    def owned(node: Node) -> Node:
        if (root := memory(node)) not in seen and root.op not in ("placeholder", "get_attr"):
            seen.add(root)
            return node
        with traced.graph.inserting_before(output):
            copy = traced.graph.call_function(aten.clone.default, (node,))
        copy.meta = dict(node.meta)
        return copy

    output.args = map_arg(output.args, owned)
