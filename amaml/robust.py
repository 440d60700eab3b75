"""A mean over tasks that no single task can spoil.

The lengths of the tasks' gradients differ by factors of hundreds: their mean is then the gradient of one of them, and
an optimiser with a memory, as Adam, keeps it for hundreds of updates. Here the gradient g_i of task i has a weight,

    value = mean over tasks of w_i g_i,     "length": w_i = 1 / |g_i|,     a number c: w_i = min(1, c m / |g_i|),

with m the median of the lengths of the gradients in the calls before. A weight depends on its own task and on earlier
calls alone, so that a batch may be cut into chunks anyhow. The length is 1 and not m, which changes a hundredfold
during training: Adam takes its steps from the lengths of a thousand updates (results/paper, trials).
"""

from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor
from torch.linalg import vector_norm

from amaml.arguments import is_number
from amaml.errors import InputError

Robust = str | float | None  # "length", the longest length as a multiple of the median one, or None: the plain mean


def check_robust(robust: Robust) -> None:
    """Raise InputError unless robust is None, "length" or a positive number."""
    if not (robust in (None, "length") or (is_number(robust) and robust > 0)):
        raise InputError(
            f'robust must be None, "length" or a positive number, the multiple of the median length at which a task\'s '
            f"gradient is cut, got {robust!r}"
        )


class Weighing(NamedTuple):
    """How often each task counts in a mean, and how long its gradient is, (tasks,); None for the plain mean."""

    weights: Tensor | None = None
    lengths: Tensor | None = None


@dataclass(frozen=True)
class Lengths:
    """The lengths of the last gradients of tasks, (at most WINDOW,); None before the first."""

    last: Tensor | None = None
    WINDOW: ClassVar[int] = 100  # tasks: 20 batches of five. Not varied

    def weighing(self, robust: Robust, of_tasks: Tensor) -> Weighing:
        """Of gradients (tasks, P); before the first call nothing is cut."""
        if robust is None:
            return Weighing()
        lengths = vector_norm(of_tasks, dim=-1)
        if robust == "length":
            return Weighing(torch.where(lengths > 0, 1 / lengths, 0.0), lengths)
        longest = torch.inf if self.last is None else robust * self.last.median()
        return Weighing((longest / lengths).clamp(max=1.0), lengths)

    def after(self, lengths: Tensor | None) -> "Lengths":
        """With those of a call, (tasks,); None: the call had none."""
        if lengths is None:
            return self
        known = lengths if self.last is None else torch.cat([self.last, lengths])
        return Lengths(known[-self.WINDOW :])

    def state_dict(self) -> dict[str, Any]:
        """For a checkpoint."""
        return {"last": self.last}

    @staticmethod
    def of(state: dict[str, Any]) -> "Lengths":
        """From a state_dict."""
        return Lengths(state["last"])


def weighted_mean(of_tasks: Tensor, weights: Tensor | None) -> Tensor:
    """The mean over the rows of (tasks, ...), of which each counts weights (tasks,) times."""
    return weighted(of_tasks, weights).mean(0)


def weighted(rows: Tensor, weights: Tensor | None) -> Tensor:
    """The rows of (tasks, ...), each times its weight (tasks,)."""
    return rows if weights is None else weights.view(-1, *[1] * (rows.ndim - 1)) * rows
