"""What every meta-learner has to beat: a random initialisation, and one network for all tasks together."""

from dataclasses import dataclass, replace

import torch
from torch import Tensor
from torch.utils._pytree import tree_map

from amaml.checks import validated
from amaml.descending import Descending
from amaml.engine import derivatives
from amaml.flow.field import Evaluations
from amaml.learner import MetaGradient
from amaml.points import Given
from amaml.robust import Lengths
from amaml.tasks import Tasks


@dataclass(frozen=True, eq=False)
class Scratch(Descending):
    """A random initialisation that stays as it is: value = 0, so one meta-update is as good as many.

    It is adapted like the others, by K gradient steps from theta on L_support. query_loss is the one at theta itself.
    Costs no gradient.
    """

    @validated
    def gradient(self, theta: Tensor, tasks: Tasks, memory: Lengths) -> MetaGradient:
        """Zero."""
        start = theta.detach().expand(len(tasks), -1)
        query_loss = derivatives.losses(self.apply, self.loss, start, *tasks.query)
        return MetaGradient(torch.zeros_like(start), query_loss, Evaluations())


@dataclass(frozen=True, eq=False)
class Pretrained(Descending):
    """Joint training on all tasks (the "pretrained" baseline of Finn et al. 2017, section 5.1).

    value = mean over tasks of grad L(theta),   L the loss on the support and query points together:
    no inner loop in training. Adapted at meta-test like the others, by K gradient steps from theta on L_support.
    query_loss is the one at theta itself. Costs one gradient.
    """

    @validated
    def gradient(self, theta: Tensor, tasks: Tasks, memory: Lengths) -> MetaGradient:
        """The gradient at theta of the loss on all points of each task."""
        start, own = theta.detach().expand(len(tasks), -1), replace(tasks, shared=None)  # start (tasks, P)
        x, y = tree_map(lambda a, b: torch.cat([a, b], 1), own.support, own.query)  # (tasks, shot + query, ...)
        x = x if tasks.shared is None else Given(x, dict(tasks.shared))
        gradient = derivatives.gradients(self.apply, self.loss, start, x, y)
        query_loss = derivatives.losses(self.apply, self.loss, start, *tasks.query)
        return self.averaged(memory, gradient, query_loss, Evaluations(gradients=1))
