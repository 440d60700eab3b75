"""Networks as functions of one flat parameter vector, and the networks of the experiments."""

import copy
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from fnmatch import fnmatchcase
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from amaml.engine.calling import exclusive, own_copy, replacing, to_the_end
from amaml.engine.modules import given_back, unwrapped
from amaml.errors import InputError, unknown
from amaml.points import Points, call

Apply = Callable[[Tensor, Tensor], Tensor]  # (theta (P,), x (points, *input)) -> prediction (points, *output)
ACTIVATIONS = {"tanh": nn.Tanh, "relu": nn.ReLU, "softplus": nn.Softplus, "gelu": nn.GELU}
NORMS = ("none", "batch")


def flatten(module: nn.Module) -> tuple[Tensor, "Flattened"]:
    """Split a module into its parameters and a pure function of them.

    Returns theta (P,), a copy of the parameters that require a gradient, and apply(theta, x) -> prediction for the
    points of one task. The module itself is copied, never touched; its frozen parameters and buffers are constants of
    apply. Both can be pickled where the module can. Batch norm uses the statistics of the batch it sees, never running
    ones, since those would be state that leaks between tasks; for batch norm in eval mode, where that makes
    apply(theta, x) differ from module(x), flatten warns.

    Raises InputError for a module without trainable parameters, of mixed dtypes or devices, with parameters that have
    no shape yet, that is scripted, or with active dropout, which has no deterministic gradient.
    """
    check_module(module)
    kept = (value for part in module.modules() for value in vars(part).values())
    results = {id(value): value.detach() for value in kept if isinstance(value, Tensor) and value.grad_fn is not None}
    with exclusive:  # no other thread has it at other parameters
        apply = Flattened(copy.deepcopy(module, results))  # results of earlier calls would refuse to be copied
    return apply.theta().detach(), apply


class _Layout(NamedTuple):
    """The parameters of a module by name: where each of them stands, in several places if it is tied."""

    shapes: dict[str, torch.Size]  # of those that adapt, in the order of phi
    places: dict[str, list[tuple[dict[str, Tensor], str]]]  # of all

    @classmethod
    def of(cls, module: nn.Module, adapt: tuple[str, ...] | None) -> "_Layout":
        """Names as those of named_parameters(), in its order."""
        names, places = {}, {}
        for prefix, part in module.named_modules():
            for key, parameter in part._parameters.items():
                if parameter is not None:
                    name = names.setdefault(id(parameter), f"{prefix}.{key}" if prefix else key)
                    places.setdefault(name, []).append((part._parameters, key))
        own = {name: owner[key] for name, ((owner, key), *_) in places.items()}
        trainable = {name: parameter for name, parameter in own.items() if parameter.requires_grad}
        _check_parameters(own, trainable)
        chosen = _named(module, adapt) if adapt is not None else {id(parameter) for parameter in trainable.values()}
        return cls({name: p.shape for name, p in trainable.items() if id(p) in chosen}, places)

    def tensor(self, name: str) -> Tensor:
        """The one that stands there now."""
        owner, key = self.places[name][0]
        return owner[key]

    def pieces(self, phi: Tensor, of_one: bool = False) -> dict[str, Tensor]:
        """phi (..., P) as named tensors (..., *shape); of_one: (P,) alone."""
        sizes = [shape.numel() for shape in self.shapes.values()]
        if not isinstance(phi, Tensor) or phi.shape[-1:] != (sum(sizes),) or (of_one and phi.ndim != 1):
            found = f"shape {tuple(phi.shape)}" if isinstance(phi, Tensor) else f"type {type(phi).__name__}"
            own = f"{sum(sizes)} parameters"
            raise InputError(f"theta has {found}, the module has {own}; amaml.flatten(module) makes theta (P,)")
        pieces = zip(self.shapes.items(), phi.split(sizes, -1), strict=True)
        return {name: piece.unflatten(-1, shape) if shape else piece[..., 0] for (name, shape), piece in pieces}


class Flattened:
    """A module as a function of the parameters that adapt and of those that all tasks share.

    apply(phi (P,), x (points, *input), shared) -> prediction. shared: other parameters by name; those that are not
    given are the module's own. The module is held: what is replaced in it, added, frozen or thawed is seen at the next
    call. A call gives it back as it was, with the buffers and attributes that forward writes, whatever happens; calls
    of several threads wait for each other.

    adapt: names of parameters or of parts of the module; None for all parameters that require a gradient.
    batched: whether a module that torch cannot batch over the tasks is refused; it goes task by task otherwise.
    """

    def __init__(self, module: nn.Module, adapt: tuple[str, ...] | None = None, batched: bool = False) -> None:
        self.module, self.adapt, self.batched = module, adapt, batched
        self._standing: _Layout | None = None  # where the module stands at some phi, within at()
        self._layout()

    def __call__(self, phi: Tensor, x: Points, shared: Mapping[str, Tensor] | None = None) -> Any:
        with to_the_end(self.at(phi, shared)) as network:
            return network(x)

    @contextmanager
    def at(self, phi: Tensor, shared: Mapping[str, Tensor] | None = None) -> Iterator[Callable[[Points], Any]]:
        """Within this context the module has phi (P,) for its parameters; the context gives it as a function of x."""
        with exclusive:
            layout = self._layout()
            given = layout.pieces(phi) | (shared or {})
            with given_back(self.module), replacing(self, "_standing", layout):
                for name, tensor in given.items():
                    mine = own_copy(tensor)
                    for owner, key in layout.places[name]:
                        owner[key] = mine
                yield self._network

    @property
    def shapes(self) -> dict[str, torch.Size]:
        """Of the parameters that adapt, by name."""
        return self._layout().shapes

    def parameters(self) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """The module's own, by name: those that adapt, and all others."""
        with exclusive:
            layout = self._layout()
            adapted = {name: layout.tensor(name) for name in layout.shapes}
            return adapted, {name: layout.tensor(name) for name in layout.places if name not in adapted}

    def theta(self) -> Tensor:
        """The module's own parameters that adapt, (P,), with their graph."""
        return flat(self.parameters()[0])

    def pieces(self, phi: Tensor) -> dict[str, Tensor]:
        """phi (..., P) as named tensors (..., *shape)."""
        return self._layout().pieces(phi)

    def unflatten(self, theta: Tensor) -> dict[str, Tensor]:
        """The state_dict of the module with theta (P,) as its parameters, for module.load_state_dict.

        What is not in theta, frozen parameters and buffers, is the module's own. All are copies. Warns as load does.
        """
        layout, state = self._layout(), self.module.state_dict(keep_vars=True)
        pieces = {id(layout.tensor(name)): piece for name, piece in layout.pieces(theta, of_one=True).items()}
        _warn_of_statistics(self.module)
        chosen = {name: pieces.get(id(value), value) for name, value in state.items()}
        return {name: v.detach().clone() if isinstance(v, Tensor) else copy.deepcopy(v) for name, v in chosen.items()}

    def _network(self, x: Points) -> Any:
        return call(unwrapped(self.module), x)

    def _layout(self) -> _Layout:
        with exclusive:
            return self._standing or _Layout.of(unwrapped(self.module), self.adapt)


def _named(module: nn.Module, prefixes: tuple[str, ...]) -> set[int]:
    """The identities of the parameters that adapt names; raises InputError where a name means none."""
    # under each of their names, of which a tied one has several
    named = {name: p for name, p in module.named_parameters(remove_duplicate=False) if p.requires_grad}
    if isinstance(prefixes, str):
        raise InputError(f"adapt must be a tuple of names, got {prefixes!r}; write adapt=({prefixes!r},)")
    if not isinstance(prefixes, tuple | list | set) or not all(isinstance(prefix, str) for prefix in prefixes):
        raise InputError("adapt must be a tuple of names, as named_parameters() and named_modules() give them")
    wanted = set()
    for prefix in prefixes:
        meant = {name for name in named if name == prefix or name.startswith(f"{prefix}.") or fnmatchcase(name, prefix)}
        if not meant:
            known = {part for name in named for part in (name, name.rsplit(".", 1)[0])}
            raise unknown("name in adapt, or one without trainable parameters:", prefix, known)
        wanted |= {id(named[name]) for name in meant}
    if not wanted:
        raise InputError("adapt is empty; name a parameter or a part of the module, or leave adapt out for all")
    return wanted


def flat(parameters: dict[str, Tensor]) -> Tensor:
    """One vector (P,) of all."""
    return torch.cat([parameter.reshape(-1) for parameter in parameters.values()]).as_subclass(Tensor)


def load(module: nn.Module, theta: Tensor) -> None:
    """Put theta (P,) into the trainable parameters of a module, in place: the reverse of flatten.

    The module must be built as the flattened one was. Raises InputError where theta has another size. Warns of batch
    norm with running statistics, which module(x) uses in eval mode: they are not those of the points theta was adapted
    to.
    """
    layout = _Layout.of(unwrapped(module), None)
    with torch.no_grad():
        for name, piece in layout.pieces(theta, of_one=True).items():
            layout.tensor(name).copy_(piece)
    _warn_of_statistics(module)


def _warn_of_statistics(module: nn.Module) -> None:
    for name, part in module.named_modules():
        if isinstance(part, nn.modules.batchnorm._NormBase) and part.running_mean is not None:
            warnings.warn(
                f"{type(part).__name__} {name!r} keeps running statistics, which are not those of theta's tasks: in "
                "eval mode module(x) differs from apply(theta, x); call it in train mode, or build the layer with "
                "track_running_stats=False",
                UserWarning,
                stacklevel=3,
            )


def check_module(module: nn.Module) -> None:
    """Raise InputError for what Flattened cannot take; warn of what it changes."""
    if not isinstance(module, nn.Module):
        raise InputError(
            f"module must be an nn.Module, got {type(module).__name__}; a function becomes one as its forward"
        )
    for name, part in module.named_modules():
        if isinstance(part, torch.jit.ScriptModule):
            raise InputError(
                f"the module {name!r} is scripted, and its parameters cannot be exchanged; give the module that was "
                "scripted, and use amaml.compiled() for speed"
            )
        if part.training and _dropout(part) > 0:
            raise InputError(f"dropout {name!r} is active and has no deterministic gradient; call .eval() or drop it")
        if part.training and any(
            buffer.endswith("_u") and f"{buffer[:-1]}v" in part._buffers for buffer in part._buffers
        ):
            warnings.warn(
                f"spectral norm {name!r} iterates in every call in train mode, and calls through amaml leave it as it "
                "was; before eval mode call module(x) in train mode until it has converged",
                UserWarning,
                stacklevel=3,
            )
        if isinstance(part, nn.modules.batchnorm._NormBase) and not part.training and part.running_mean is not None:
            warnings.warn(
                f"batch norm {name!r} is in eval mode; apply uses the statistics of each batch, not the running ones, "
                "so apply(theta, x) differs from module(x)",
                UserWarning,
                stacklevel=3,
            )


def _check_parameters(own: Mapping[str, Tensor], trainable: Mapping[str, Tensor]) -> None:
    """Raise InputError for what cannot be exchanged."""
    for name, p in own.items():
        if nn.parameter.is_lazy(p):
            raise InputError(f"parameter {name!r} has no shape yet (a lazy layer); call module(x) once before")
    if not any(p.numel() for p in trainable.values()):
        raise InputError("no parameter of the module requires a gradient; thaw what adapts: .requires_grad_(True)")
    for name, p in trainable.items():
        if p.is_inference():
            raise InputError(f"parameter {name!r} was made in torch.inference_mode(); make the module outside of it")
        if p.is_complex():
            raise InputError(
                f"parameter {name!r} is complex; keep real numbers (..., 2), and use torch.view_as_complex(it)"
            )
    kinds = {(p.dtype, p.device) for p in trainable.values()}
    if len(kinds) != 1:
        found = ", ".join(sorted(f"{dtype} on {device}" for dtype, device in kinds))
        raise InputError(f"a module needs trainable parameters of one dtype on one device, found: {found}")


def _dropout(part: nn.Module) -> float:
    """The probability with which a layer drops values in train mode."""
    if isinstance(part, nn.modules.dropout._DropoutNd):
        return part.p
    return part.dropout if isinstance(part, nn.MultiheadAttention | nn.RNNBase) else 0.0


def mlp(inputs: int, outputs: int, width: int = 32, activation: str = "tanh", norm: str = "none") -> nn.Sequential:
    """A fully connected network with two hidden layers, the regression network of the paper (32 wide, tanh)."""
    for kind, name, known in (("activation", activation, ACTIVATIONS), ("norm", norm, NORMS)):
        if name not in known:
            raise unknown(kind, name, known)
    layers: list[nn.Module] = []
    for size in (inputs, width):
        layers.append(nn.Linear(size, width))
        if norm == "batch":
            layers.append(nn.BatchNorm1d(width, track_running_stats=False))
        layers.append(ACTIVATIONS[activation]())
    return nn.Sequential(*layers, nn.Linear(width, outputs))
