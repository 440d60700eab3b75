"""First and second derivatives of a loss, batched over tasks and traced once.

Every function takes apply and loss, parameters phi (tasks, P), inputs x (tasks, points, *input) and targets y, and
returns one row a task. The computation is traced to a graph of tensor operations the first time it meets a network,
loss, shape, dtype and device, and replayed afterwards without the cost of the function transforms. A network that
branches on its values, or draws random numbers, is refused by torch.vmap with an error.
"""

import functools
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar

import torch
from torch import Tensor
from torch.func import grad, grad_and_value, vjp, vmap
from torch.fx.experimental.proxy_tensor import make_fx

from amaml.models import Apply

_compiling: ContextVar[bool] = ContextVar("compiling", default=False)

Loss = Callable[[Tensor, Tensor], Tensor]  # (prediction, target) of one task -> scalar mean


def batch_losses(apply: Apply, loss: Loss) -> Callable[[Tensor, Tensor, Tensor], Tensor]:
    """The untraced function (phi, x, y) -> losses (tasks,), for code that differentiates it itself."""
    return vmap(lambda phi, x, y: loss(apply(phi, x), y))


def losses(apply: Apply, loss: Loss, phi: Tensor, x: Tensor, y: Tensor) -> Tensor:
    """loss(apply(phi, x), y) for every task, (tasks,). One forward pass. Serves metrics too."""
    return _replay("losses", apply, loss, phi, x, y)


def gradients(apply: Apply, loss: Loss, phi: Tensor, x: Tensor, y: Tensor) -> Tensor:
    """The gradient in phi of every task's loss, (tasks, P)."""
    return _replay("gradients", apply, loss, phi, x, y)


def gradients_and_losses(apply: Apply, loss: Loss, phi: Tensor, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    """gradients (tasks, P) and losses (tasks,) from one pass."""
    return _replay("gradients_and_losses", apply, loss, phi, x, y)


def hvps(apply: Apply, loss: Loss, phi: Tensor, v: Tensor, x: Tensor, y: Tensor) -> Tensor:
    """Hessian-vector products H(phi) v of every task's loss, (tasks, P), v (tasks, P).

    Reverse over reverse: the Hessian is symmetric, and more operators have a double reverse rule than a forward one.
    """
    return _replay("hvps", apply, loss, phi, v, x, y)


def _definition(kind: str, apply: Apply, loss: Loss) -> Callable[..., Tensor | tuple[Tensor, Tensor]]:
    def one(phi: Tensor, x: Tensor, y: Tensor) -> Tensor:
        return loss(apply(phi, x), y)

    def one_hvp(phi: Tensor, v: Tensor, x: Tensor, y: Tensor) -> Tensor:
        return vjp(lambda p: grad(one)(p, x, y), phi)[1](v)[0]

    definitions = {
        "losses": one,
        "gradients": grad(one),
        "gradients_and_losses": grad_and_value(one),
        "hvps": one_hvp,
    }
    return vmap(definitions[kind])


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
def _replay(kind: str, apply: Apply, loss: Loss, *arguments: Tensor) -> Tensor | tuple[Tensor, Tensor]:
    signature = tuple((a.shape, a.dtype, a.device) for a in arguments)
    graph = _graph(kind, apply, loss, signature, _compiling.get())
    return graph(*(a.contiguous() for a in arguments))  # what is compiled holds for the layout of its examples


@functools.lru_cache(maxsize=128)
def _graph(kind: str, apply: Apply, loss: Loss, signature: tuple, compiling: bool) -> Callable:
    examples = [torch.zeros(shape, dtype=dtype, device=device) for shape, dtype, device in signature]
    traced = make_fx(_definition(kind, apply, loss))(*examples)
    if not compiling:
        return traced
    # the cache key above already guards shapes, dtypes and devices
    options = {"guard_filter_fn": torch.compiler.skip_all_guards_unsafe}
    if examples[0].device.type != "cuda":
        compiled_graph = torch.compile(traced, dynamic=False, options=options)
        compiled_graph(*examples)  # compiled for these: a call with one tensor in two places would tie them for good
        return compiled_graph
    replayed = torch.compile(traced, dynamic=False, options=options | {"triton.cudagraphs": True})

    def fresh(*arguments: Tensor) -> Tensor | tuple[Tensor, ...]:
        torch.compiler.cudagraph_mark_step_begin()  # a CUDA graph writes every result to the same place
        result = replayed(*arguments)
        return result.clone() if isinstance(result, Tensor) else tuple(part.clone() for part in result)

    fresh(*examples)
    return fresh
