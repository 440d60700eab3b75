"""Families of tasks for measuring accuracy: none of them was looked at while the step control was made."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

import data
from amaml import Tasks, flatten, half_mse
from amaml.models import Apply
from experiment.networks import seeded

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
    """A kind of inner loop: of a seed the batches of tasks by number, a network for them, the loss.

    change(tasks, number, theta, apply): what becomes of a batch.
    """

    name: str
    batches: Callable[[int], Callable[[int], Tasks]]
    network: Callable[[], nn.Module]
    loss: Callable[[Tensor, Tensor], Tensor] = half_mse
    prox: float = 0.0
    change: Callable[[Tasks, int, Tensor, Apply], Tasks] = lambda tasks, *_: tasks

    def problem(self, seed: int) -> tuple[Tensor, Apply, Callable[[int], Tasks]]:
        """theta (P,), apply and the batches of tasks by number."""
        theta, apply = flatten(seeded(self.network, seed).double())
        batch = self.batches(seed)
        return theta, apply, lambda number: self.change(batch(number), number, theta, apply)


def _mlp(inputs: int, outputs: int, width: int, activation: Callable[[], nn.Module], hidden: int = 2) -> nn.Module:
    sizes = [inputs, *[width] * hidden]
    layers = [part for a, b in zip(sizes[:-1], sizes[1:], strict=True) for part in (nn.Linear(a, b), activation())]
    return nn.Sequential(*layers, nn.Linear(width, outputs))


def _regression(domain: str, shots: int):
    return lambda seed: data.make(domain, data.Sampling(shots, shots, TASKS, seed)).episode


def _drawn(inputs: int, shots: int, target: Callable[[Tensor, torch.Generator], Tensor]):
    """Normal inputs; target(x, generator) of all support and query points of a batch together."""

    def batch(seed: int, number: int) -> Tasks:
        g = torch.Generator().manual_seed(10_000 * seed + number)
        x = torch.randn(TASKS, 2 * shots, inputs, generator=g, dtype=torch.float64)
        y = target(x, g)
        return Tasks(x[:, :shots], y[:, :shots], x[:, shots:], y[:, shots:])

    return lambda seed: partial(batch, seed)


def _scaled(by: Callable[[int], float | Tensor]):
    """Inputs so many times larger, by the number of the batch."""
    return lambda t, number, *_: replace(t, support_x=by(number) * t.support_x, query_x=by(number) * t.query_x)


def _classes(count: int, x: Tensor, g: torch.Generator) -> Tensor:
    directions = torch.randn(TASKS, x.shape[-1], count, generator=g, dtype=x.dtype)
    return (x @ directions + torch.randn(*x.shape[:2], count, generator=g, dtype=x.dtype)).argmax(-1)


def _stiff(x: Tensor, g: torch.Generator) -> Tensor:
    """Linear, and the same for all tasks along the two input directions of largest variance."""
    slopes = torch.randn(TASKS, x.shape[-1], 1, generator=g, dtype=x.dtype)
    slopes[:, :2] = 0
    return x @ slopes


def _half_solved() -> nn.Module:
    """Theta is optimal for all of these tasks along the first two inputs."""
    layer = nn.Linear(6, 1, bias=False)
    nn.init.zeros_(layer.weight[:, :2])
    return layer


def _sequences(x: Tensor, g: torch.Generator) -> Tensor:
    weight = torch.randn(TASKS, 1, x.shape[-1], generator=g, dtype=x.dtype)
    return torch.sin(weight * x).mean(-1, keepdim=True)


def families() -> Iterator[Family]:
    """In the order of the table."""
    alpine, cosines = _regression("Alpine2D-released", 60), _regression("CosMixture", 40)
    sines, tenfold = _regression("Sinusoid", 15), _scaled(lambda number: 10.0)
    deviations = torch.tensor([50.0, 20.0, 1.0, 0.5, 0.1, 0.02], dtype=torch.float64).sqrt()
    yield Family("tanh, Alpine2D-released", alpine, partial(_mlp, 2, 1, 20, nn.Tanh))
    yield Family("tanh, CosMixture, inputs x10", cosines, partial(_mlp, 1, 1, 24, nn.Tanh), change=tenfold)
    slides = "tanh, four hidden layers, CosMixture2D-slides"
    yield Family(slides, _regression("CosMixture2D-slides", 50), partial(_mlp, 2, 1, 12, nn.Tanh, 4))
    yield Family("sine, CosMixture2D-slides", _regression("CosMixture2D-slides", 40), partial(_mlp, 2, 1, 20, Sine))
    yield Family("sine, Sinusoid", sines, partial(_mlp, 1, 1, 16, Sine))
    yield Family("softplus, Sinusoid", sines, partial(_mlp, 1, 1, 24, nn.Softplus))
    yield Family(
        "softplus, Alpine2D-released, inputs x10", alpine, partial(_mlp, 2, 1, 16, nn.Softplus), change=tenfold
    )
    yield Family("GELU, CosMixture", cosines, partial(_mlp, 1, 1, 24, nn.GELU))
    two, three = _drawn(10, 25, partial(_classes, 2)), _drawn(4, 30, partial(_classes, 3))
    yield Family("GELU, 3 classes", three, partial(_mlp, 4, 3, 16, nn.GELU), cross_entropy)
    four = _drawn(5, 40, partial(_classes, 4))
    yield Family("tanh, 4 classes, inputs x10", four, partial(_mlp, 5, 4, 16, nn.Tanh), cross_entropy, change=tenfold)
    yield Family("linear, 2 classes", two, partial(nn.Linear, 10, 2), cross_entropy)
    yield Family("attention, sequences of 6", _drawn(6, 20, _sequences), Attention)
    yield Family("converged: tanh, Alpine2D-released, prox 1", alpine, partial(_mlp, 2, 1, 20, nn.Tanh), prox=1.0)
    stiff = "linear, theta optimal in stiff directions"
    yield Family(stiff, _drawn(6, 30, _stiff), _half_solved, change=_scaled(lambda number: deviations))


def _waves(x: Tensor, g: torch.Generator) -> Tensor:
    """A sine of each input with an amplitude and phase of each task's own."""
    a, b = (torch.rand(len(x), 1, 1, generator=g, dtype=x.dtype) for _ in range(2))
    return ((0.5 + 4 * a) * torch.sin(x + 3 * b)).sum(-1, keepdim=True)


def _heavy(x: Tensor, g: torch.Generator) -> Tensor:
    """The same with Cauchy noise."""
    noise = torch.rand(len(x), x.shape[1], 1, generator=g, dtype=x.dtype)
    return _waves(x, g) + 0.1 * torch.tan(torch.pi * (0.98 * noise - 0.49))


def _one_solved(t: Tasks, number: int, theta: Tensor, apply: Apply) -> Tasks:
    """Theta is optimal for the first task, in its query set too."""
    y, z = t.support_y.clone(), t.query_y.clone()
    y[0], z[0] = apply(theta, t.support_x[0]).detach(), apply(theta, t.query_x[0]).detach()
    return replace(t, support_y=y, query_y=z)


def _alternating(number: int) -> float | Tensor:
    """One batch in ten has inputs 12 times larger; in the others a task's are 1 to 4 times."""
    by = torch.tensor([1.0, 2.0, 1.0, 4.0, 1.0], dtype=torch.float64).roll(number)[:, None, None]
    return 12.0 if number % 10 == 7 else by


def _mixture(prediction: Tensor, target: Tensor) -> Tensor:
    """The negative log likelihood of two normal distributions, (mean, log of the scale, weight) of each."""
    mean, scale, weight = prediction.unflatten(-1, (3, 2)).unbind(-2)
    density = -scale - (target - mean).square() * torch.exp(-2 * scale) / 2 + torch.log_softmax(weight, -1)
    return -torch.logsumexp(density, -1).mean()


def _student(prediction: Tensor, target: Tensor) -> Tensor:
    return 2 * torch.log1p((prediction - target).square() / 0.3).mean()


def _rippled(prediction: Tensor, target: Tensor) -> Tensor:
    r = prediction - target
    return (r.square() / 2 + 0.1 * (1 - torch.cos(6 * r))).mean()


def _pseudo_huber(prediction: Tensor, target: Tensor) -> Tensor:
    return (torch.sqrt(1 + ((prediction - target) / 0.03).square()) - 1).mean()


def varied() -> Iterator[Family]:
    """Families whose batches differ from each other: what a measured error says of calls that carry it."""

    waves, heavy = _drawn(1, 12, _waves), _drawn(1, 12, _heavy)
    net, curriculum = partial(_mlp, 1, 1, 16, nn.Tanh), _scaled(lambda number: 1 + 3 * min(number / 100, 1))
    yield Family("one task in five solved", waves, net, change=_one_solved)
    yield Family("mixture of two normals", waves, partial(_mlp, 1, 6, 16, nn.Tanh), _mixture)
    yield Family("Student-t, Cauchy noise", heavy, net, _student)
    yield Family("alternating stiffness", waves, net, change=_scaled(_alternating))
    yield Family("rippled loss", waves, net, _rippled)
    yield Family("curriculum, inputs x1 to x4", waves, net, change=curriculum)
    yield Family("sharp pseudo-Huber", waves, net, _pseudo_huber)
