"""Networks as functions of one flat parameter vector, and the networks of the experiments."""

import copy
import warnings
from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.func import vmap

from amaml.engine.graphs import differentiable_twice
from amaml.errors import InputError, unknown
from amaml.points import Points, first

Apply = Callable[[Tensor, Tensor], Tensor]  # (theta (P,), x (points, *input)) -> prediction (points, *output)
ACTIVATIONS = {"tanh": nn.Tanh, "relu": nn.ReLU, "softplus": nn.Softplus, "gelu": nn.GELU}
NORMS = ("none", "batch")


def flatten(module: nn.Module) -> tuple[Tensor, "Flattened"]:
    """Split a module into its parameters and a pure function of them.

    Returns theta (P,), a copy of the parameters that require a gradient, and apply(theta, x) -> prediction for the
    points of one task. The module itself is never touched; its frozen parameters and buffers are constants of apply.
    Both can be pickled where the module can. Batch norm uses the statistics of the batch it sees, never running ones,
    since those would be state that leaks between tasks; for batch norm in eval mode, where that makes apply(theta, x)
    differ from module(x), flatten warns.

    Raises InputError for a module without trainable parameters, of mixed dtypes or devices, with parameters that have
    no shape yet, or with active dropout, which has no deterministic gradient.
    """
    check_module(module)
    apply = Flattened(module)
    theta = torch.cat([p.detach().reshape(-1) for p in _trainable(module).values()]).clone()
    return theta, apply


class Flattened:
    """A module as a function of its parameters: apply(theta (P,), x (points, *input)) -> prediction; see flatten."""

    def __init__(self, module: nn.Module) -> None:
        self.shapes = {name: p.shape for name, p in _trainable(module).items()}
        self.sizes = [shape.numel() for shape in self.shapes.values()]
        self.module = torch.func.replace_all_batch_norm_modules_(copy.deepcopy(module)).requires_grad_(False)
        kept = self.module.state_dict()
        self.unused = {name: value.clone() for name, value in module.state_dict().items() if name not in kept}

    def __call__(self, theta: Tensor, x: Tensor) -> Tensor:
        return torch.func.functional_call(self.module, self._pieces(theta), *arguments_of(x))

    def unflatten(self, theta: Tensor) -> dict[str, Tensor]:
        """The state_dict of the module with theta (P,) as its parameters, for module.load_state_dict.

        What is not in theta, frozen parameters and buffers, is as it was when the module was flattened. All are copies.
        """
        parameters = dict(self.module.named_parameters(remove_duplicate=False))
        pieces = {id(parameters[name]): piece for name, piece in self._pieces(theta.detach()).items()}
        tied = {
            name: pieces[id(p)] for name, p in parameters.items() if id(p) in pieces
        }  # one piece may have two names
        return {name: value.clone() for name, value in (self.module.state_dict() | tied | self.unused).items()}

    def _pieces(self, theta: Tensor) -> dict[str, Tensor]:
        if theta.shape != (sum(self.sizes),):
            raise _wrong_size(theta, sum(self.sizes))
        pieces = zip(self.shapes.items(), theta.split(self.sizes), strict=True)
        return {name: piece.view(shape) for (name, shape), piece in pieces}


def arguments_of(x: Points) -> tuple[tuple, dict]:
    """How a module is called with x: a tuple gives its positional arguments, a dict its keywords."""
    if isinstance(x, dict):
        return (), x
    return (x if isinstance(x, tuple) else (x,)), {}


@torch.no_grad()
def load(module: nn.Module, theta: Tensor) -> None:
    """Put theta (P,) into the trainable parameters of a module, in place: the reverse of flatten.

    The module must be built as the flattened one was. Raises InputError where theta has another size.
    """
    parameters = list(_trainable(module).values())
    sizes = [p.numel() for p in parameters]
    if theta.shape != (sum(sizes),):
        raise _wrong_size(theta, sum(sizes))
    for parameter, piece in zip(parameters, theta.split(sizes), strict=True):
        parameter.copy_(piece.view(parameter.shape))


def predict(apply: Apply, phi: Tensor, x: Tensor) -> Tensor:
    """The predictions of adapted parameters phi (tasks, P) at x (tasks, points, *input), (tasks, points, *output).

    Raises InputError where phi and x are not of equally many tasks.
    """
    if phi.ndim != 2 or len(phi) != len(first(x)):
        raise InputError(
            f"phi must be (tasks, P) and x (tasks, points, *input), got {tuple(phi.shape)} and "
            f"{tuple(first(x).shape)}; of one task: predict(apply, phi[None], x[None])[0]"
        )
    with differentiable_twice():
        return vmap(apply)(phi, x)


def _trainable(module: nn.Module) -> dict[str, nn.Parameter]:
    return {name: p for name, p in module.named_parameters() if p.requires_grad}


def _wrong_size(theta: Tensor, size: int) -> InputError:
    found = f"{theta.numel()} numbers" if theta.ndim == 1 else f"shape {tuple(theta.shape)}"
    return InputError(f"theta has {found}, the module has {size} parameters; amaml.flatten(module) makes theta (P,)")


def check_module(module: nn.Module) -> None:
    """Raise InputError for what flatten cannot take; warn of what it changes."""
    parameters = _trainable(module)
    lazy = [name for name, p in parameters.items() if nn.parameter.is_lazy(p)]
    if lazy:
        raise InputError(f"parameter {lazy[0]!r} has no shape yet (a lazy layer); call module(x) once before flatten")
    kinds = {(p.dtype, p.device) for p in parameters.values()}
    if len(kinds) != 1:
        found = ", ".join(sorted(f"{dtype} on {device}" for dtype, device in kinds)) or "none"
        raise InputError(f"a module needs trainable parameters of one dtype on one device, found: {found}")
    for name, part in module.named_modules():
        if part.training and _dropout(part) > 0:
            raise InputError(f"dropout {name!r} is active and has no deterministic gradient; call .eval() or drop it")
        if isinstance(part, nn.modules.batchnorm._BatchNorm) and not part.training and part.running_mean is not None:
            warnings.warn(
                f"batch norm {name!r} is in eval mode; apply uses the statistics of each batch, not the running ones, "
                "so apply(theta, x) differs from module(x)",
                UserWarning,
                stacklevel=3,
            )


def _dropout(part: nn.Module) -> float:
    """The probability with which a layer drops values in train mode."""
    if isinstance(part, nn.modules.dropout._DropoutNd):
        return part.p
    return part.dropout if isinstance(part, nn.MultiheadAttention | nn.RNNBase) else 0.0


def mlp(inputs: int, outputs: int, width: int = 32, activation: str = "tanh", norm: str = "none") -> nn.Sequential:
    """A fully connected network with two hidden layers, the regression network of the paper (32 wide, tanh)."""
    if activation not in ACTIVATIONS:
        raise unknown("activation", activation, ACTIVATIONS)
    if norm not in NORMS:
        raise unknown("norm", norm, NORMS)
    layers: list[nn.Module] = []
    for size in (inputs, width):
        layers.append(nn.Linear(size, width))
        if norm == "batch":
            layers.append(nn.BatchNorm1d(width, track_running_stats=False))
        layers.append(ACTIVATIONS[activation]())
    return nn.Sequential(*layers, nn.Linear(width, outputs))
