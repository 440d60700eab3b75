"""--learn-rates: the inner rates are learned with theta, by the same optimiser and from the same meta-gradient.

The parameters of a run are theta (P,) and behind it the logarithms of factors, by which inner_lr is multiplied: one
factor for all parameters (scalar: a learned horizon), or one for each (parameter: Meta-SGD, Li et al. 2017). They begin
at zero. So an optimiser, a checkpoint and a meta-test see one vector, as they do without learned rates.
"""

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from amaml.amaml import AMAML
from amaml.chunked import Chunked, Each, in_turn
from amaml.flow.accuracy import Memory
from amaml.learner import MetaGradient, MetaLearner
from amaml.models import Apply
from amaml.tasks import Tasks


@dataclass(frozen=True)
class Leading:
    """apply for the first P of more parameters."""

    apply: Apply
    size: int

    def __call__(self, theta: Tensor, x: Tensor) -> Tensor:
        return self.apply(theta[: self.size], x)


@dataclass(frozen=True)
class LearnedRates:
    """A-MAML of size parameters with the logarithms of its rates' factors behind them; phi holds these unchanged."""

    learner: AMAML
    size: int
    inner_steps: int
    task_chunk: int | None = None
    each: Each = in_turn  # how its chunks are gone through

    @property
    def control(self) -> Memory:
        """What A-MAML remembers of its error."""
        return self.learner.control

    def adapt(self, theta: Tensor, tasks: Tasks) -> Tensor:
        """As A-MAML with the rates as they are in theta, (tasks, size + rates)."""
        start, logarithms = theta.detach().split([self.size, len(theta) - self.size])
        phi = self._at(self._rates(logarithms)).adapt(start, tasks)
        return torch.cat([phi, logarithms.expand(len(phi), -1)], 1)

    def meta_gradient(self, theta: Tensor, tasks: Tasks) -> MetaGradient:
        """As A-MAML; value holds the gradient in the logarithms too."""
        start, logarithms = theta.detach().split([self.size, len(theta) - self.size])
        rates = self._rates(logarithms.requires_grad_())
        gradient = self._at(rates).meta_gradient(start, tasks)
        (to_logarithms,) = torch.autograd.grad(rates, logarithms, gradient.gradients["inner_lr"])
        return replace(gradient, value=torch.cat([gradient.value, to_logarithms]), gradients={})

    def _rates(self, logarithms: Tensor) -> Tensor:
        factors = logarithms.exp()
        scalar = len(factors) == 1 and not isinstance(self.learner.inner_lr, Tensor)
        return self.learner.inner_lr * (factors[0] if scalar else factors)

    def _at(self, rates: Tensor) -> MetaLearner:
        learner = replace(self.learner, inner_lr=rates, inner_steps=self.inner_steps)
        return learner if self.task_chunk is None else Chunked(learner, self.task_chunk, self.each)


def learn_rates(
    kind: str, theta: Tensor, apply: Apply, learner: AMAML, task_chunk: int | None, each: Each = in_turn
) -> tuple[Tensor, Apply, LearnedRates]:
    """The parameters, the network and the learner with learned rates; kind: "scalar" or "parameter"."""
    logarithms = theta.new_zeros(1 if kind == "scalar" else len(theta))
    learned = LearnedRates(learner, len(theta), learner.inner_steps, task_chunk, each)
    return torch.cat([theta, logarithms]), Leading(apply, len(theta)), learned
