"""Networks as functions of one flat parameter vector, and the networks of the experiments."""

import copy
from collections.abc import Callable

import torch
from torch import Tensor, nn

from amaml.errors import InputError, unknown

Apply = Callable[[Tensor, Tensor], Tensor]  # (theta (P,), x (points, *input)) -> prediction (points, *output)
ACTIVATIONS = {"tanh": nn.Tanh, "relu": nn.ReLU, "softplus": nn.Softplus, "gelu": nn.GELU}
NORMS = ("none", "batch")


def flatten(module: nn.Module) -> tuple[Tensor, Apply]:
    """Split a module into its parameters and a pure function of them.

    Returns theta (P,), a copy of the parameters that require a gradient, and apply(theta, x) -> prediction for
    the points of one task. The module itself is never touched; its frozen parameters and buffers are constants
    of apply. Batch norm uses the statistics of the batch it sees, never running ones, since those would be
    state that leaks between tasks.

    Raises InputError for a module without trainable parameters, of mixed dtypes or devices, or with active
    dropout, which has no deterministic gradient.
    """
    module = torch.func.replace_all_batch_norm_modules_(copy.deepcopy(module))
    parameters = {name: p for name, p in module.named_parameters() if p.requires_grad}
    _check(module, parameters)
    theta = torch.cat([p.detach().reshape(-1) for p in parameters.values()]).clone()
    names, shapes = list(parameters), [p.shape for p in parameters.values()]
    sizes = [p.numel() for p in parameters.values()]
    module.requires_grad_(False)

    def apply(theta: Tensor, x: Tensor) -> Tensor:
        pieces = theta.split(sizes)
        named = {n: piece.view(shape) for n, piece, shape in zip(names, pieces, shapes, strict=True)}
        return torch.func.functional_call(module, named, (x,))

    return theta, apply


def _check(module: nn.Module, parameters: dict[str, Tensor]) -> None:
    kinds = {(p.dtype, p.device) for p in parameters.values()}
    if len(kinds) != 1:
        found = ", ".join(sorted(f"{dtype} on {device}" for dtype, device in kinds)) or "none"
        raise InputError(f"a module needs trainable parameters of one dtype on one device, found: {found}")
    for name, part in module.named_modules():
        if isinstance(part, nn.modules.dropout._DropoutNd) and part.training and part.p > 0:
            raise InputError(f"dropout {name!r} is active and has no deterministic gradient; call .eval() or drop it")


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
