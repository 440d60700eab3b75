"""A domain, a network and a method of one's own, for the command line. In this folder:

bash ../../experiment.sh lines:Lines 5 5 20 cpu --network lines:two_heads --method lines:SignFOMAML
"""

from dataclasses import dataclass, replace

import numpy as np
import torch

from amaml import MetaGradient, Tasks
from amaml.first_order import FOMAML
from data.domain import OTHER_UNITS, Endless


class Lines(Endless):
    """y = a x + b, a and b standard normal: new lines in every episode."""

    input_shape, outputs, objective = (1,), 1, OTHER_UNITS  # half the squared error; reported as MSE

    def tasks(self, rng: np.random.Generator, count: int, first: int = 0, test: bool = False) -> Tasks:
        shots, queries = self.sampling.shots, self.sampling.queries
        draws = rng.standard_normal((first + count, 2 + shots + queries, 1))[first:]  # a row of numbers a task
        a, b, x = draws[:, :1], draws[:, 1:2], draws[:, 2:]
        sets = [x[:, :shots], x[:, shots:]] + [np.tile(np.linspace(-2, 2, 100)[:, None], (count, 1, 1))] * test
        return Tasks(*(self.tensor(part) for x in sets for part in (x, a * x + b)))


class TwoHeads(torch.nn.Module):
    """A shared body under two heads, whose predictions are added."""

    def __init__(self, inputs: int, outputs: int, width: int) -> None:
        super().__init__()
        self.body = torch.nn.Sequential(torch.nn.Linear(inputs, width), torch.nn.Tanh())
        self.smooth, self.linear = torch.nn.Linear(width, outputs), torch.nn.Linear(inputs, outputs)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.smooth(self.body(x)) + self.linear(x)


def two_heads(input_shape: tuple[int, ...], outputs: int, width: int = 32) -> torch.nn.Module:
    """The network for points of a domain; --width is given since it is a parameter here."""
    return TwoHeads(input_shape[0], outputs, width)


@dataclass(frozen=True, eq=False)
class SignFOMAML(FOMAML):
    """FOMAML in which the tasks vote: every task gives the sign of its gradient, parameter by parameter."""

    def gradient(self, theta: torch.Tensor, tasks: Tasks, memory: object) -> MetaGradient:
        found = super().gradient(theta, tasks, memory)
        return replace(found, of_tasks=found.of_tasks.sign())
