"""The problems on which libraries are set side by side, and the file that tells another library all of one."""

import functools
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

import data
from amaml import Tasks, flatten, half_mse, mlp
from amaml.models import Apply
from experiment.networks import conv4, resnet12

NETWORKS = {"small": 5, "wide": 5, "conv": 4, "resnet": 4}  # and how many tasks a batch has
PARTS = ("support_x", "support_y", "query_x", "query_y")
MOST = 100  # tasks of an episode of Alpine2D


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
    network: str, dtype: str, tasks: int | None = None, device: str = "cpu", trained: str | None = None
) -> Problem:
    """ "small", "wide": Alpine2D 100/100, 5 tasks, 2-32-32-1 or 2-256-256-1 tanh, inner step 0.01. "conv", "resnet":
    Glyphs 5-way 1-shot 5 queries, 4 tasks, inner step 0.001; a strided Conv-4 with GELU (112,261 parameters), a narrow
    ResNet-12. tasks: others than these. trained: a checkpoint whose theta is taken instead of the initial one."""
    torch.manual_seed(0)
    tasks, drawn = tasks or NETWORKS[network], {"seed": 0, "dtype": getattr(torch, dtype), "device": device}
    if network in ("small", "wide"):
        domain = data.make("Alpine2D", data.Sampling(100, 100, min(tasks, MOST), **drawn))
        loss, inner_lr = half_mse, 0.01
        module = mlp(2, 1, 32 if network == "small" else 256)
    else:
        domain = data.make("Glyphs", data.Sampling(1, 5, tasks, **drawn))
        shape, loss, inner_lr = domain.input_shape, cross_entropy, 0.001
        conv = network == "conv"
        module = conv4(shape, 5, strided=True, activation="gelu") if conv else resnet12(shape, 5, 16)
    module = module.to(device=device, dtype=getattr(torch, dtype))
    if trained is not None:
        saved, part = torch.load(trained, weights_only=True)["model"], "meta.module."
        module.load_state_dict({name.removeprefix(part): saved[name] for name in saved if name.startswith(part)})
    theta, apply = flatten(module)
    return Problem(module, apply, theta, loss, functools.partial(_batch, domain, tasks), inner_lr)


def _batch(domain: data.Domain, tasks: int, number: int) -> Tasks:
    """So many tasks, of as many episodes as they take."""
    count = -(-tasks // domain.sampling.meta_batch)
    episodes = [domain.episode(number * count + i) for i in range(count)]
    return Tasks(*(torch.cat([getattr(episode, part) for episode in episodes])[:tasks] for part in PARTS))


def direction(theta: Tensor) -> Tensor:
    """The v of the products, (P,)."""
    return torch.sin(torch.arange(len(theta), dtype=torch.float64)).to(theta)


def write(p: Problem, file: str) -> None:
    """All that a library needs to know of a problem."""
    shapes = [tuple(part.shape) for part in p.module.parameters()]
    padded = [shape + (0,) * (4 - len(shape)) for shape in shapes]
    parts = {name: getattr(p.tasks, name).numpy() for name in PARTS}
    v = direction(p.theta)
    np.savez(file, shapes=padded, theta=p.theta.numpy(), v=v.numpy(), inner_lr=p.inner_lr, **parts)
