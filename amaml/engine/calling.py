"""Under what settings of torch a network is called."""

import contextlib
import functools
import os
import pickle
import random
import threading
import warnings
from collections.abc import Callable, Iterator
from contextvars import ContextVar
from typing import Any, ParamSpec, TypeVar

import numpy as np
import torch
from torch import Tensor, nn
from torch.autograd import forward_ad
from torch.distributions import Distribution
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_map

from amaml.errors import InputError

P = ParamSpec("P")
R = TypeVar("R")

PRODUCTS = "mm", "spmm", "_sparse_mm", "matmul", "__matmul__", "mv"
RECURRENT = "lstm", "gru", "rnn_tanh", "rnn_relu", "lstm_cell", "gru_cell"

exclusive = threading.RLock()  # of the one thread in which modules stand at other parameters than their own
if hasattr(os, "register_at_fork"):  # a child must not begin within such a call, which nobody would end there
    os.register_at_fork(before=exclusive.acquire, after_in_parent=exclusive.release, after_in_child=exclusive.release)

# on the way back through an inner loop, of which apply and loss must be what they were
returning: ContextVar[bool] = ContextVar("returning", default=False)

_sharing: ContextVar[bool] = ContextVar("sharing", default=False)
_held: ContextVar[contextlib.ExitStack | None] = ContextVar("held", default=None)


def uncompiled(method: Callable[P, R]) -> Callable[P, R]:
    """The method, which torch.compile leaves as it is where it compiles a caller: the graphs in it are its own."""

    @functools.wraps(method)
    def call(*args: P.args, **keywords: P.kwargs) -> R:
        run = torch.compiler.disable(method) if torch.compiler.is_dynamo_compiling() else method
        return run(*args, **keywords)

    return call


def check_transforms() -> None:
    """Raise InputError within a transform of torch.func, and in forward mode."""
    if torch._C._functorch.peek_interpreter_stack() is not None or forward_ad._current_level >= 0:
        raise InputError(
            "no transform of torch.func (vmap, grad, jacrev, jvp) and no forward mode goes through an inner loop; take "
            "its gradient by torch.autograd, as .backward(), and give what is to be batched as tasks"
        )


def check_surroundings(device_type: str) -> None:
    """Raise InputError within torch.autocast, within a transform of torch.func, and in forward mode."""
    check_transforms()
    if torch.amp.is_autocast_available(device_type) and torch.is_autocast_enabled(device_type):
        raise InputError(
            "torch.autocast is on, which rounds inside the derivatives; call outside of it, or within "
            f"torch.autocast({device_type!r}, enabled=False)"
        )


@contextlib.contextmanager
def setting(variable: ContextVar[R], value: R) -> Iterator[None]:
    """Within this context a variable of the context has another value."""
    token = variable.set(value)
    try:
        yield
    finally:
        variable.reset(token)


@contextlib.contextmanager
def replacing(owner: object, name: str, value: Any) -> Iterator[None]:
    """Within this context an attribute of an object has another value."""
    before = getattr(owner, name)
    setattr(owner, name, value)
    try:
        yield
    finally:
        setattr(owner, name, before)


@contextlib.contextmanager
def standing() -> Iterator[None]:
    """Within this context modules that were called stay at their parameters, for a loss that reads these too, and for
    backward passes that call parts of them again."""
    with contextlib.ExitStack() as stack:
        stack.enter_context(setting(_held, stack))
        yield


@contextlib.contextmanager
def to_the_end(context: contextlib.AbstractContextManager) -> Iterator[Any]:
    """The context, left at the end of standing() where there is one."""
    if (stack := _held.get()) is not None:
        yield stack.enter_context(context)
        return
    with context as result:
        yield result


@contextlib.contextmanager
def differentiable_twice() -> Iterator[None]:
    """Within this context attention is computed by matrix products, whose derivatives have derivatives (those of the
    fused kernels have none), torch.compile is off inside of networks, and hooks of saved tensors are those of networks
    alone. One thread at a time: these are settings of the whole process."""
    with exclusive, contextlib.ExitStack() as stack:
        before = torch.backends.mha.get_fastpath_enabled()
        stack.callback(torch.backends.mha.set_fastpath_enabled, before)
        torch.backends.mha.set_fastpath_enabled(False)
        stack.enter_context(sdpa_kernel(SDPBackend.MATH))
        stack.enter_context(torch.compiler.set_stance("force_eager"))
        stack.enter_context(_Differentiable())
        stack.enter_context(_own_graph())
        yield


@contextlib.contextmanager
def batchable(sharing: bool = False) -> Iterator[None]:
    """differentiable_twice() without what asks for the values of tensors: the search for anomalies, and the checks of
    torch.distributions. sharing: whether modules see the parameters themselves, not copies."""
    with differentiable_twice(), contextlib.ExitStack() as stack:
        stack.callback(Distribution.set_default_validate_args, Distribution._validate_args)
        Distribution.set_default_validate_args(False)
        stack.enter_context(torch.autograd.set_detect_anomaly(False))
        stack.enter_context(warnings.catch_warnings())
        warnings.filterwarnings("ignore", "There is a performance drop", UserWarning)  # while it is traced
        stack.enter_context(_Batchable())
        stack.enter_context(setting(_sharing, sharing))
        yield


@contextlib.contextmanager
def no_random_draws(device: torch.device) -> Iterator[None]:
    """Raises InputError where the context draws from the generator of torch, Python or NumPy, and leaves torch's as it
    was."""
    cuda = device.type == "cuda"

    def state() -> tuple:
        of_torch = torch.cuda.get_rng_state(device) if cuda else torch.get_rng_state()
        return of_torch.numpy().tobytes(), random.getstate(), pickle.dumps(np.random.get_state())  # noqa: NPY002

    with torch.random.fork_rng([device] if cuda else []):
        before = state()
        try:
            yield
        finally:
            if before != state():
                raise InputError(
                    "the network or the loss draws random numbers (active dropout?), and a random loss has no "
                    "deterministic gradient; call module.eval() or take the random layer out"
                )


@contextlib.contextmanager
def _own_graph() -> Iterator[None]:
    """Within this context hooks of saved tensors that stand around the call (save_on_cpu, a checkpoint) are off."""
    autograd, hooks = torch._C._autograd, []
    while (pair := autograd._top_saved_tensors_default_hooks(True)) is not None:
        hooks.append(pair)
        autograd._pop_saved_tensors_default_hooks()
    try:
        yield
    finally:
        for pair in reversed(hooks):
            autograd._push_saved_tensors_default_hooks(*pair)


class _Differentiable(TorchFunctionMode):
    """Within this context what has no second derivative is computed by what has one, recurrent layers without mkldnn
    and cuDNN, the hard sigmoid by its definition; and a view as complex numbers is one of a copy, at an even place."""

    def __torch_function__(self, function: Callable, types: Any, arguments: tuple = (), options: Any = None) -> Any:
        options, name = options or {}, getattr(function, "__name__", "")
        if name == "view_as_complex":
            one = torch.ones_like(arguments[0])  # not 1, which a graph leaves out; a clone has no copy on the way back
            return function(arguments[0] * one, **options)
        if name == "hardsigmoid":
            return nn.functional.relu6(arguments[0] + 3) / 6
        if name in RECURRENT:
            with replacing(torch.backends.mkldnn, "enabled", False), replacing(torch.backends.cudnn, "enabled", False):
                return function(*arguments, **options)
        return function(*arguments, **options)


class _Batchable(TorchFunctionMode):
    """Within this context tensor.data is tensor.detach(): under nested transforms the former hides the tensor from the
    innermost one alone, and second derivatives would be wrong. The first states of recurrent layers are of each task,
    for what is written into what comes of them. Padding of an embedding has no gradient: torch.vmap forgets it.
    Products with sparse matrices are sums over their entries, as torch.vmap has none.
    Reverse derivatives within forward ones, as in torch.func.hessian, are refused: tracing would crash the process."""

    def __torch_function__(self, function: Callable, types: Any, arguments: tuple = (), options: Any = None) -> Any:
        if function == Tensor.data.__get__:
            return arguments[0].detach()
        if function is Tensor.register_hook:
            raise NotImplementedError("a hook of a tensor is for the gradient of one task")
        levels = torch._C._functorch.get_interpreter_stack() or ()
        if function is torch.autograd.grad and any(level.key().name == "Jvp" for level in levels):
            raise NotImplementedError(
                "torch.func.hessian ends tracing in a segmentation fault; jacrev(grad(f)) does not"
            )
        if function is nn.functional.embedding:
            return _embedding(*arguments, **options)
        name = getattr(function, "__name__", "")
        if name in PRODUCTS and isinstance(arguments[0], Tensor) and arguments[0].layout is torch.sparse_coo:
            return _sparse_product(*arguments)
        packed = name in RECURRENT and isinstance(arguments[1], Tensor) and not arguments[1].is_floating_point()
        if name in RECURRENT and not packed:  # whose sizes stand in the place of states
            zero = torch.zeros_like(arguments[0]).sum()
            arguments = arguments[0], tree_map(lambda state: state + zero, arguments[1]), *arguments[2:]
        return function(*arguments, **(options or {}))


def _embedding(index: Tensor, weight: Tensor, padding_idx: int | None = None, **options: Any) -> Tensor:
    if options.get("scale_grad_by_freq"):
        raise NotImplementedError("scale_grad_by_freq would count over all tasks")
    # beyond the last row torch.vmap reads those of the next task, without a word
    index = torch.arange(len(weight), device=index.device).gather(0, index.flatten().long()).view_as(index)
    found = nn.functional.embedding(index, weight, **options)
    return found if padding_idx is None else torch.where((index == padding_idx)[..., None], found.detach(), found)


def _sparse_product(matrix: Tensor, x: Tensor) -> Tensor:
    matrix = matrix.coalesce()
    (to, of), values = matrix.indices(), matrix.values().view(-1, *[1] * (x.ndim - 1))
    return x.new_zeros(len(matrix), *x.shape[1:]).index_add(0, to, values * x[of])


def own_copy(tensor: Tensor) -> Tensor:
    """What a module gets for a parameter: a copy, which it may write into; while it is traced, the parameter."""
    return tensor if _sharing.get() else tensor.clone()
