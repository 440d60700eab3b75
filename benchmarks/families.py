"""Families of tasks for measuring accuracy: none of them was looked at while the step control was made."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

import data
from amaml import Tasks, half_mse
from amaml.models import Apply
from experiment.networks import initialise

TASKS = 5


class Sine(nn.Module):
    """The activation of SIREN networks."""

    def forward(self, x: Tensor) -> Tensor:
        return torch.sin(x)


class Attention(nn.Module):
    """One transformer encoder layer over a sequence of scalars (points, length), averaged to one output."""

    def __init__(self, width: int = 8) -> None:
        super().__init__()
        self.embed, self.head = nn.Linear(1, width), nn.Linear(width, 1)
        self.layer = nn.TransformerEncoderLayer(width, 2, 2 * width, 0.0, "gelu", batch_first=True)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.layer(self.embed(x[..., None])).mean(1))


@dataclass(frozen=True)
class Family:
    """A kind of inner loop: problem(seed) gives theta (P,), apply and the batches of tasks by number."""

    name: str
    problem: Callable[[int], tuple[Tensor, Apply, Callable[[int], Tasks]]]
    loss: Callable[[Tensor, Tensor], Tensor] = half_mse
    prox: float = 0.0


def _network(build: Callable[[], nn.Module], seed: int) -> tuple[Tensor, Apply]:
    return initialise(build, seed, torch.float64, "cpu")


def _mlp(inputs: int, outputs: int, width: int, activation: Callable[[], nn.Module], hidden: int = 2) -> nn.Module:
    sizes = [inputs, *[width] * hidden]
    layers = [part for a, b in zip(sizes[:-1], sizes[1:], strict=True) for part in (nn.Linear(a, b), activation())]
    return nn.Sequential(*layers, nn.Linear(width, outputs))


def _regression(domain: str, shots: int, width: int, activation, scale: float = 1.0, hidden: int = 2):
    def problem(seed: int):
        family = data.make(domain, data.Sampling(shots, shots, TASKS, seed))
        theta, apply = _network(lambda: _mlp(family.input_shape[0], 1, width, activation, hidden), seed)

        def episode(number: int) -> Tasks:
            t = family.episode(number)
            return Tasks(scale * t.support_x, t.support_y, scale * t.query_x, t.query_y)

        return theta, apply, episode

    return problem


def _drawn(inputs: int, shots: int, target: Callable[[Tensor, torch.Generator], Tensor], build, scale: float = 1.0):
    """Normal inputs; target(x, generator) of all support and query points of a batch together."""

    def problem(seed: int):
        theta, apply = _network(build, seed)

        def episode(number: int) -> Tasks:
            g = torch.Generator().manual_seed(10_000 * seed + number)
            x = torch.randn(TASKS, 2 * shots, inputs, generator=g, dtype=torch.float64)
            y = target(x, g)
            return Tasks(scale * x[:, :shots], y[:, :shots], scale * x[:, shots:], y[:, shots:])

        return theta, apply, episode

    return problem


def _classes(count: int):
    def target(x: Tensor, g: torch.Generator) -> Tensor:
        directions = torch.randn(TASKS, x.shape[-1], count, generator=g, dtype=x.dtype)
        return (x @ directions + torch.randn(*x.shape[:2], count, generator=g, dtype=x.dtype)).argmax(-1)

    return target


def _stiff(x: Tensor, g: torch.Generator) -> Tensor:
    """Linear, and the same for all tasks along the two input directions of largest variance."""
    slopes = torch.randn(TASKS, x.shape[-1], 1, generator=g, dtype=x.dtype)
    slopes[:, :2] = 0
    return x @ slopes


def _stiff_problem(seed: int):
    """Inputs of variances from 50 to 0.02, theta optimal for all tasks in the two stiffest directions."""
    variances = torch.tensor([50.0, 20.0, 1.0, 0.5, 0.1, 0.02], dtype=torch.float64)
    theta, apply, episode = _drawn(6, 30, _stiff, lambda: nn.Linear(6, 1, bias=False))(seed)
    theta[:2] = 0

    def scaled(number: int) -> Tasks:
        t = episode(number)
        return Tasks(t.support_x * variances.sqrt(), t.support_y, t.query_x * variances.sqrt(), t.query_y)

    return theta, apply, scaled


def _sequences(x: Tensor, g: torch.Generator) -> Tensor:
    weight = torch.randn(TASKS, 1, x.shape[-1], generator=g, dtype=x.dtype)
    return torch.sin(weight * x).mean(-1, keepdim=True)


def families() -> Iterator[Family]:
    """In the order of the table."""
    yield Family("tanh, Alpine2D-released", _regression("Alpine2D-released", 60, 20, nn.Tanh))
    yield Family("tanh, CosMixture, inputs x10", _regression("CosMixture", 40, 24, nn.Tanh, 10.0))
    yield Family(
        "tanh, four hidden layers, CosMixture2D-slides", _regression("CosMixture2D-slides", 50, 12, nn.Tanh, 1, 4)
    )
    yield Family("sine, CosMixture2D-slides", _regression("CosMixture2D-slides", 40, 20, Sine))
    yield Family("sine, Sinusoid", _regression("Sinusoid", 15, 16, Sine))
    yield Family("softplus, Sinusoid", _regression("Sinusoid", 15, 24, nn.Softplus))
    yield Family("softplus, Alpine2D-released, inputs x10", _regression("Alpine2D-released", 60, 16, nn.Softplus, 10.0))
    yield Family("GELU, CosMixture", _regression("CosMixture", 40, 24, nn.GELU))
    yield Family("GELU, 3 classes", _drawn(4, 30, _classes(3), lambda: _mlp(4, 3, 16, nn.GELU)), cross_entropy)
    yield Family(
        "tanh, 4 classes, inputs x10", _drawn(5, 40, _classes(4), lambda: _mlp(5, 4, 16, nn.Tanh), 10.0), cross_entropy
    )
    yield Family("linear, 2 classes", _drawn(10, 25, _classes(2), lambda: nn.Linear(10, 2)), cross_entropy)
    yield Family("attention, sequences of 6", _drawn(6, 20, _sequences, Attention))
    yield Family(
        "converged: tanh, Alpine2D-released, prox 1", _regression("Alpine2D-released", 60, 20, nn.Tanh), prox=1.0
    )
    yield Family("linear, theta optimal in stiff directions", _stiff_problem)
