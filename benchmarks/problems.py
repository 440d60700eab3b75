"""What is benchmarked: networks, tasks and the methods, by name."""

import functools
import importlib.util
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

import data
from amaml import AMAML, Tasks, flatten, half_mse, mlp
from amaml.models import Apply
from baselines import FOMAML, IMAML, MAML, Reptile
from benchmarks.packages import Higher, TorchMAML
from benchmarks.released import Released
from experiment.networks import conv4, resnet12


@dataclass(frozen=True)
class Problem:
    """Batches of tasks, the first of which is benchmarked, a network and where its inner loop starts."""

    module: nn.Module
    apply: Apply
    theta: Tensor
    loss: Callable[[Tensor, Tensor], Tensor]
    episode: Callable[[int], Tasks]
    inner_lr: float

    @functools.cached_property
    def tasks(self) -> Tasks:
        return self.episode(0)


def problem(
    name: str, dtype: torch.dtype, device: str, trained: str | None, tasks: int | None = None, width: int = 32
) -> Problem:
    """ "alpine": Alpine2D 100/100, 5 tasks, 2-32-32-1 tanh, inner step 0.01. "conv", "resnet": Glyphs 5-way 1-shot 5
    queries, 4 tasks, inner step 0.001; a strided Conv-4 with GELU (112,261 parameters), a narrow ResNet-12. trained: a
    checkpoint whose theta is taken instead of the initial one. tasks, width: others than these, width of "alpine"."""
    torch.manual_seed(0)
    if name == "alpine":
        domain = data.make("Alpine2D", data.Sampling(100, 100, tasks or 5, 0, dtype, device))
        module, loss, inner_lr = mlp(2, 1, width), half_mse, 0.01
    else:
        domain = data.make("Glyphs", data.Sampling(1, 5, tasks or 4, 0, dtype, device))
        shape, loss, inner_lr = domain.input_shape, cross_entropy, 0.001
        conv = name == "conv"
        module = conv4(shape, 5, strided=True, activation="gelu") if conv else resnet12(shape, 5, (16, 32, 64, 128))
    module = module.to(device=device, dtype=dtype)
    theta, apply = flatten(module)
    if trained is not None:
        theta = torch.load(trained, weights_only=True)["theta"].to(theta)
    return Problem(module, apply, theta, loss, domain.episode, inner_lr)


def methods(p: Problem) -> dict[str, Callable[[int], Any]]:
    """Every method as a function of the number of inner steps."""

    def ours(**options: Any) -> Callable[[int], AMAML]:
        return lambda steps: AMAML(p.apply, p.loss, p.inner_lr, steps, **options)

    table: dict[str, Callable[[int], Any]] = {
        "A-MAML auto": ours(),
        "A-MAML auto 1e-2": ours(rtol=1e-2),
        "A-MAML rk4": ours(solver="rk4"),
        "A-MAML dopri5": ours(solver="dopri5"),
        "A-MAML rkc": ours(solver="rkc"),
        "A-MAML euler": ours(solver="euler"),
        "A-MAML continuous": ours(adjoint="continuous"),
        "MAML": lambda steps: MAML(p.apply, p.loss, p.inner_lr, steps),
        "MAML checkpointed": lambda steps: ours(solver="euler", checkpoints=max(1, round(steps**0.5)))(steps),
        "FOMAML": lambda steps: FOMAML(p.apply, p.loss, p.inner_lr, steps),
        "iMAML": lambda steps: IMAML(p.apply, p.loss, p.inner_lr, steps),
        "Reptile": lambda steps: Reptile(p.apply, p.loss, p.inner_lr, steps),
        "released A-MAML": lambda steps: Released(p.apply, p.loss, p.inner_lr, steps),
    }
    if importlib.util.find_spec("higher"):
        table["higher"] = lambda steps: Higher(p.module, p.loss, p.inner_lr, steps)
    if importlib.util.find_spec("torch_maml"):
        table["torch-maml"] = lambda steps: TorchMAML(p.module, p.loss, p.inner_lr, steps, None)
        table["torch-maml checkpointed"] = lambda steps: TorchMAML(
            p.module, p.loss, p.inner_lr, steps, max(1, round(steps**0.5))
        )
    return table


LIMITS = {  # inner steps that a method is asked for at most: beyond them it takes minutes or the memory
    "MAML": 500,
    "MAML checkpointed": 2000,
    "higher": 200,
    "torch-maml": 200,
    "torch-maml checkpointed": 200,
    "released A-MAML": 200,
}
