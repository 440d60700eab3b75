"""How a network is called: under what settings of torch, and a module so that it can be given back as it was."""

import contextlib
import functools
import operator
import os
import pickle
import random
import threading
import warnings
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from contextvars import ContextVar
from types import ModuleType
from typing import Any, ParamSpec, TypeVar

import numpy as np
import torch
from torch import Tensor, nn
from torch.autograd import forward_ad
from torch.distributions import Distribution
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.utils import parametrize
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_map

from amaml.errors import InputError

P = ParamSpec("P")
R = TypeVar("R")

CONTAINERS = (dict, list, set, deque)
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
def standing() -> Iterator[None]:
    """Within this context modules that were called stay at their parameters, for a loss that reads these too, and for
    backward passes that call parts of them again."""
    with contextlib.ExitStack() as stack:
        token = _held.set(stack)
        stack.callback(_held.reset, token)
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
        token = _sharing.set(sharing)
        stack.callback(_sharing.reset, token)
        yield


@contextlib.contextmanager
def no_random_draws(device: torch.device) -> Iterator[None]:
    """Raises InputError where the context draws from the generator of torch, Python or NumPy, and leaves torch's as it
    was."""
    cuda = device.type == "cuda"

    def state() -> tuple:
        of_torch = torch.cuda.get_rng_state(device) if cuda else torch.get_rng_state()
        return of_torch.numpy().tobytes(), random.getstate(), pickle.dumps(np.random.get_state())  # noqa: NPY002

    fault = None
    with torch.random.fork_rng([device] if cuda else []):
        before = state()
        try:
            yield
        except Exception as one:
            fault = one
        drawn = before != state()
    if drawn:
        raise InputError(
            "the network or the loss draws random numbers (active dropout?), and a random loss has no deterministic "
            "gradient; call module.eval() or take the random layer out"
        ) from fault
    if fault is not None:
        raise fault


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
            with _off(torch.backends.mkldnn), _off(torch.backends.cudnn):
                return function(*arguments, **options)
        return function(*arguments, **options)


@contextlib.contextmanager
def _off(backend: Any) -> Iterator[None]:
    before, backend.enabled = backend.enabled, False
    try:
        yield
    finally:
        backend.enabled = before


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
        if function is torch.autograd.grad and "Jvp" in _transforms():
            raise NotImplementedError(
                "torch.func.hessian ends tracing in a segmentation fault; jacrev(grad(f)) does not"
            )
        if function is nn.functional.embedding:
            return _embedding(*arguments, **options)
        name = getattr(function, "__name__", "")
        if name in PRODUCTS and isinstance(arguments[0], Tensor) and arguments[0].layout is torch.sparse_coo:
            return _sparse_product(*arguments)
        if name in RECURRENT and not _is_count(arguments[1]):
            zero = torch.zeros_like(arguments[0]).sum()
            arguments = arguments[0], tree_map(lambda state: state + zero, arguments[1]), *arguments[2:]
        return function(*arguments, **(options or {}))


def _transforms() -> list[str]:
    """Those of torch.func that are under way."""
    return [level.key().name for level in torch._C._functorch.get_interpreter_stack() or ()]


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


def _is_count(argument: Any) -> bool:
    """Whether it is the sizes of a packed sequence, in the place of states."""
    return isinstance(argument, Tensor) and not argument.is_floating_point()


@contextlib.contextmanager
def given_back(module: nn.Module) -> Iterator[None]:
    """Within this context a module is a function without traces; afterwards all that its parts hold is as it was, and
    what objects in their attributes hold.

    Buffers and other tensors in attributes are copies, which forward may write into; layers that keep running
    statistics use those of the batch; what is compiled or parallel is the plain module.
    """
    parts = [vars(part) for part in module.modules()]
    held = (one for part in parts for one in part.values() if not isinstance(one, type | ModuleType | nn.Module))
    objects = [vars(one) for one in held if hasattr(one, "__dict__")]
    before = [(kept, kept.copy()) for kept in _containers(parts + objects)]
    parametrize._cache.clear()  # of what was computed at other parameters
    try:
        copies: dict[int, Tensor] = {}
        parameters = {id(part["_parameters"]) for part in parts}  # which stand there already, in a call within a call
        for kept, _ in before:
            if id(kept) not in parameters:
                _own_tensors(kept, copies)
        for part in list(module.modules()):
            _make_pure(part)
        yield
    finally:
        parametrize._cache.clear()
        for kept, then in before:
            if (kept or then) and not _same(kept, then):
                kept.clear()
                kept.update(then) if isinstance(kept, dict | set) else kept.extend(then)


def announce_backward(module: nn.Module) -> None:
    """Tell a DistributedDataParallel, as its forward does, that a backward pass to its parameters follows: it then
    takes their mean over the processes."""
    parallel = isinstance(module, nn.parallel.DistributedDataParallel)
    if parallel and torch.is_grad_enabled() and module.require_backward_grad_sync:
        module.reducer.prepare_for_forward()
        module.reducer.prepare_for_backward([])


def unwrapped(module: nn.Module) -> nn.Module:
    """The module that torch.compile or a data-parallel wrapper holds; itself where it is none."""
    if isinstance(module, nn.DataParallel | nn.parallel.DistributedDataParallel):
        return unwrapped(module.module)
    plain = vars(module).get("_modules", {}).get("_orig_mod")
    return module if plain is None else unwrapped(plain)


def own_copy(tensor: Tensor) -> Tensor:
    """What a module gets for a parameter: a copy, which it may write into; while it is traced, the parameter."""
    return tensor if _sharing.get() else tensor.clone()


def _own_tensors(kept: Any, copies: dict[int, Tensor]) -> None:
    """Put copies into a dict or list in the place of its tensors, the same one for the same tensor."""
    items = kept.items() if isinstance(kept, dict) else enumerate(kept) if isinstance(kept, list) else ()
    for key, value in items:  # of which no key is added or goes
        if isinstance(value, Tensor) and not isinstance(value, nn.Parameter):
            if id(value) not in copies:
                copies[id(value)] = value.clone()
            kept[key] = copies[id(value)]


def _make_pure(part: nn.Module) -> None:
    for name, child in part._modules.items():
        if child is not None:
            part._modules[name] = unwrapped(child)
    if isinstance(part, nn.modules.batchnorm._NormBase):
        part.track_running_stats = False
        part._buffers.update(dict.fromkeys(part._buffers))
    if isinstance(part, nn.Embedding | nn.EmbeddingBag):
        part.sparse = False  # the same gradient, in the form that has derivatives
    if part._compiled_call_impl is not None:
        vars(part)["_compiled_call_impl"] = None


def _containers(containers: Iterable[Any]) -> list[Any]:
    """These, and the dicts, lists, sets and deques in them."""
    found = list(containers)
    seen = set(map(id, found))
    for one in found:
        for child in one.values() if isinstance(one, dict) else one:
            if isinstance(child, CONTAINERS) and id(child) not in seen:
                seen.add(id(child))
                found.append(child)
    return found


def _same(kept: Any, then: Any) -> bool:
    """Whether a container holds the very objects that it held then."""
    if isinstance(kept, set):
        return kept == then
    if isinstance(kept, dict):
        return list(kept) == list(then) and all(map(operator.is_, kept.values(), then.values()))
    return len(kept) == len(then) and all(map(operator.is_, kept, then))
