"""A traced graph compiled by torch's inductor, and replayed as a CUDA graph on CUDA; as it is where that fails or errs.

torch's compiler can be wrong in silence, so every graph is compared once, compiled with traced, on the first tensors
that it meets. Two of its faults are known, on the CPU in torch 2.11 to 2.13, and avoided:
It writes in place what is written into a tensor that nobody reads afterwards, even where that is expanded and its rows
are one memory. Batching over tasks makes such tensors: index_add, index_copy and the gradient of index_select erred by
30 to 650%.
It forgets the order of writes into views of complex numbers: the Hessian-vector product of an FFT layer erred by 30%.
Complex numbers gain little (1.2 to 1.4 times the speed on a Fourier neural operator), so their graphs stay traced.
"""

import contextlib
import math
import os
import shutil
import warnings
from collections.abc import Callable, Iterator
from contextvars import ContextVar
from typing import Any

import torch
from torch import Tensor
from torch._guards import TracingContext, tracing
from torch._subclasses import FakeTensorMode
from torch.fx import GraphModule
from torch.fx.experimental.proxy_tensor import make_fx
from torch.fx.experimental.symbolic_shapes import ShapeEnv

from amaml.engine.calling import setting
from amaml.engine.task import Result
from amaml.engine.tracing import rounding, values

# operations whose result is their first tensor with a part written anew
WRITING = "_unsafe_index_put", "index_add", "index_copy", "index_fill", "index_put", "index_reduce", "masked_scatter"
WRITING += "put", "scatter", "scatter_add", "scatter_reduce"
CONTIGUOUS = {"memory_format": torch.contiguous_format}
ROUNDINGS = 10  # so many times what one rounding of every input changes is rounding, too
EXACT = torch.float32, torch.float64  # of numbers whose operations are written anew
COLUMNS = 16  # where b of a product has fewer, the transposed product has longer loops; 8: as fast
# bytes of the matrix whose rows a product runs over again and again, which stay in the nearest cache; with 2**17
# gradients of 96 and 128 units take 1.5 to 1.9 times the seconds (float64)
LARGEST = 2**15

compiling: ContextVar[bool] = ContextVar("compiling", default=False)  # graphs that are made from here on


@contextlib.contextmanager
def compiled(on: bool = True) -> Iterator[None]:
    """Within this context graphs are compiled by torch.compile as well as traced: seconds each, once, for two to
    four times the speed of small networks. torch keeps what it compiled between processes. On CUDA the compiled
    graphs are replayed as CUDA graphs."""
    with setting(compiling, on):
        yield


def compiler_found() -> bool:
    """Whether torch.compile has what it needs on this machine, a C++ compiler."""
    return any(shutil.which(name) for name in ("g++", "clang++", "c++"))


def compile_graph(traced: GraphModule, examples: list[Tensor], apply: Any) -> Callable[..., Result]:
    """The graph compiled for tensors like the examples, which are the first that it meets, each in a memory of its own.

    As it was traced where it holds complex numbers or sparse matrices; with one warning, where the device's compiler or
    its CUDA graphs fail; with one warning that names the network in apply, where the compiled graph gives another
    result.
    """
    device, plain = examples[0].device.type, all(example.layout is torch.strided for example in examples)
    are_complex = (value.is_complex() for node in traced.graph.nodes for value in values(node))
    if device in _without_compiler or not plain or any(are_complex):
        return traced
    _own_what_is_written(traced)
    # a direction of zeros would hide every error
    examples = [torch.ones_like(a) if a.is_floating_point() and not a.any() else a for a in examples]
    try:
        with warnings.catch_warnings(action="ignore"):  # those of the compiler's own parts
            compiled = _compiled_for(device, traced, examples)
            for _ in range(3 if device == "cuda" else 1):  # a CUDA graph is warmed up, recorded, replayed
                found = compiled(*examples)
    except Exception as fault:  # compilers fail in many ways
        _without_compiler.add(device)
        reason = next((line for line in str(fault).splitlines() if line.strip()), type(fault).__name__)
        _warn(f"torch.compile fails on this {device} device ({reason.strip()})")
        return traced
    error = _error(traced, found, examples)
    if error and (name := _name(apply)) not in _wrongly_compiled:
        _wrongly_compiled.add(name)
        _warn(f"torch.compile makes wrong numbers of {name}, off by {error:.1e} of the largest")
    return traced if error else compiled


def _compiled_for(device: str, traced: GraphModule, examples: list[Tensor]) -> Callable[..., Result]:
    if device != "cuda":  # without dynamo, which takes 60 us a call to find what a graph's key has told
        return _by_inductor(traced, examples)
    # the key of a graph already guards shapes, dtypes and devices
    options = {"guard_filter_fn": lambda guards: [False] * len(guards)}
    options |= {"triton.cudagraphs": os.environ.get("TORCHINDUCTOR_CUDAGRAPHS") != "0"}  # torch's own switch
    replayed = torch.compile(traced, dynamic=False, options=options)

    def fresh(*arguments: Tensor) -> Result:
        torch.compiler.cudagraph_mark_step_begin()  # a CUDA graph writes every result to the same place
        result = replayed(*arguments)
        return result.clone() if isinstance(result, Tensor) else tuple(part.clone() for part in result)

    return fresh


def _by_inductor(traced: GraphModule, examples: list[Tensor]) -> Callable[..., Result]:
    """As C++ from the first operation to the last; with Python between the kernels where that fails, 15% slower."""
    shapes = ShapeEnv(assume_static_by_default=True)  # without one torch would not keep what it compiles
    mode = FakeTensorMode(shape_env=shapes, allow_non_fake_inputs=True)
    with mode:  # the terms of a product, which are never made, may be large
        known = [mode.from_tensor(example, static_shapes=True) for example in examples]
        lowered = make_fx(traced, decomposition_table=LOWERED)(*known)
    with tracing(TracingContext(mode)):
        try:
            found = torch._inductor.compile(lowered, examples, {"cpp_wrapper": True})
        except Exception:
            found = torch._inductor.compile(lowered, examples)
    return lambda *arguments: tuple(r) if isinstance(r := found(*arguments), list) else r


def tanh(x: Tensor) -> Tensor:
    """To 3 eps relative to tanh x, at 0.55 of the seconds of inductor's on the CPU: (exp(2x) - 1) / (exp(2x) + 1), and
    near 0, where that cancels, the seventh convergent of Lambert's continued fraction."""
    z = x * x
    near = x * (((z + 378) * z + 17325) * z + 135135) / (((28 * z + 3150) * z + 62370) * z + 135135)
    return torch.where(x.abs() < 0.4, near, 1 - 2 / (torch.exp(2 * x) + 1))


def bmm(a: Tensor, b: Tensor) -> Tensor:
    """Of small matrices, on a CPU with vectors of 512 bits and for a single column, by loops over vectors of columns.

    For (100, 32) times (32, 32) these take 0.4 (float64) and 0.6 (float32) of the seconds of MKL, which uses shorter
    vectors on AMD's cores, and inductor puts what follows into them. Its own loop for a column is a slow one.
    """
    column, wide = b.shape[2] == 1, torch.backends.cpu.get_cpu_capability() == "AVX512"
    if a.shape[2] == 1 or a.dtype not in EXACT or not (column or wide):
        return NotImplemented
    swap = not column and (b.shape[2] < COLUMNS <= a.shape[1] or (b.stride(2) != 1 and a.stride(1) == 1))
    one, other = (b.mT, a.mT) if swap else (a, b)
    if other[0].numel() * other.element_size() >= LARGEST:
        return NotImplemented
    made = _loops(_in_memory(one), _in_memory(other if other.stride(2) == 1 else other.clone(**CONTIGUOUS)))
    return made.mT.contiguous() if swap else made


def _loops(a: Tensor, b: Tensor) -> Tensor:
    """a (tasks, m, k) times b (tasks, k, n): of float32 up to five rows of a at once, of float64 two terms of a sum."""
    if a.dtype == torch.float32:  # either way takes 1.2 times the seconds for the other
        rows = next(n for n in (4, 5, 3, 2, 1) if a.shape[1] % n == 0)
        return torch.stack([(a[:, i::rows, :, None] * b[:, None]).sum(2) for i in range(rows)], 2).flatten(1, 2)
    even = a.shape[2] // 2 * 2
    first, second = (a[:, :, i:even:2, None] * b[:, None, i:even:2] for i in (0, 1))
    total = (first + second).sum(2)
    return total if even == a.shape[2] else total + a[:, :, even:] * b[:, even:]


def _in_memory(tensor: Tensor) -> Tensor:
    """The same to inductor, which computes it before what uses it instead of anew for every use."""
    if tensor.is_contiguous():
        return tensor.as_strided(tensor.shape, tensor.stride())
    return _in_memory(tensor.mT).mT if tensor.mT.is_contiguous() else tensor  # a part of what is in memory


LOWERED = {
    torch.ops.aten.bmm.default: bmm,
    torch.ops.aten.tanh.default: lambda x: tanh(x) if x.dtype in EXACT else NotImplemented,
}


def _own_what_is_written(traced: GraphModule) -> None:
    """Copy every expanded tensor before an operation of WRITING."""
    for node in traced.graph.nodes:
        if getattr(getattr(node.target, "overloadpacket", None), "__name__", None) in WRITING:
            base = node.args[0]
            if any(0 in value.stride() for value in values(base)):
                with traced.graph.inserting_before(node):
                    node.update_arg(0, traced.graph.call_function(torch.ops.aten.clone.default, (base,), CONTIGUOUS))
    traced.recompile()


def _error(traced: GraphModule, found: Result, examples: list[Tensor]) -> float:
    """The distance of found from the traced result; 0 where rounding in the values on the way to it explains that."""
    expected = traced(*examples)
    error, eps = _distance(found, expected), rounding(traced.graph)
    if error <= eps ** (2 / 3):  # 4e-11 in float64, 2e-5 in float32
        return 0.0
    seed = torch.Generator(examples[0].device).manual_seed(0)
    random = [torch.zeros_like(a).uniform_(-1, 1, generator=seed) if a.is_floating_point() else None for a in examples]
    moved = [a if r is None else a * (1 + eps * r) for a, r in zip(examples, random, strict=True)]
    return 0.0 if error <= ROUNDINGS * _distance(traced(*moved), expected) else error


def _distance(found: Result, expected: Result) -> float:
    """The largest difference between two results, relative to the largest number expected; NaN equals NaN."""
    if not isinstance(expected, Tensor):
        return max(_distance(one, other) for one, other in zip(found, expected, strict=True))
    one, other = (result.detach().cpu().double().reshape(-1) for result in (found, expected))
    apart = (one - other).abs().nan_to_num(math.inf)[~((one == other) | (one.isnan() & other.isnan()))]
    return apart.max().item() / (other.nan_to_num(0.0, 0.0, 0.0).abs().max().item() or 1.0) if len(apart) else 0.0


def _name(apply: Any) -> str:
    """The class of the network, or the name of the function."""
    network = getattr(apply, "module", apply)
    return getattr(network, "__qualname__", type(network).__name__)


def _warn(fault: str) -> None:
    advice = "two to four times as long for small networks. --compile off avoids the attempt"
    warnings.warn(f"{fault}; going on with the traced graphs, which take {advice}", RuntimeWarning, stacklevel=3)


_without_compiler: set[str] = set()  # kinds of devices on which torch.compile has failed in this process
_wrongly_compiled: set[str] = set()  # names of networks that were warned of
