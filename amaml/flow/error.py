"""Whether a meta-gradient may be trusted: what its own two sweeps reveal, and what a few tasks solved again tell.

The steps are chosen for the errors that positive curvature lets decay (amaml.flow.steps). Negative curvature makes the
errors of earlier steps grow instead, in directions that need not show in any number at hand. It does betray itself:
lam grows on the way back, or the speed on the way there. Only then, the tasks where it is worst are solved once more.
"""

import math
from typing import NamedTuple

import torch
from torch import Tensor

from amaml.flow.adjoint import Adjoint
from amaml.flow.field import GradientFlow

GROWTH, ACCELERATION = 4.0, 1.05  # of lam and of the speed, above which a gradient is suspect
SAMPLE = 5  # one task in so many is solved again
CAUTION = 3.0  # a task that was not may be so many times worse


class Doubts(NamedTuple):
    """defect: what a conserved quantity lacks; growth: of errors on both sweeps, of the worst task, so far as it shows;
    suspect: whether more may not show."""

    defect: float
    growth: float
    suspect: bool


def doubts_of(flow: GradientFlow, final: Tensor, terminal: Tensor, adjoint: Adjoint) -> Doubts:
    """What the two sweeps reveal. One gradient; waits for the device.

    Along a gradient flow the field f(u(t)) solves d f/dt = -H f, the equation that small changes of the state obey, and
    lam solves dlam/dt = H lam; so lam . f is constant in time. The difference between the computed lam(0) . f(u(0)) and
    lam(T) . f(u(T)) is made by the scheme's errors alone, in the direction f, in which stiff components weigh most;
    relative to the mean size of the tasks' gradients. It shows an instability, and nothing of errors orthogonal to f.
    """
    at_start, at_end, lam = flow.initial, flow(0.0, final), adjoint.lam
    lacking = ((lam * at_start).sum(-1) - (terminal * at_end).sum(-1)).abs() / at_start.norm(dim=-1)
    growth, acceleration = adjoint.growth, adjoint.acceleration
    size = lam.norm(dim=-1).mean().expand_as(lacking)
    signs = [lacking.nan_to_num(0.0), size, growth, acceleration, growth * acceleration]
    lacking, size, growth, acceleration, both = torch.stack(signs).amax(-1).tolist()
    defect = lacking / size if size else 0.0
    suspect = growth > GROWTH or acceleration > ACCELERATION
    return Doubts(defect if math.isfinite(defect) else math.inf, both, suspect)


def most_suspect(adjoint: Adjoint) -> Tensor:
    """Indices of the tasks whose errors may weigh most in the mean."""
    weight = adjoint.lam.norm(dim=-1) * adjoint.growth * adjoint.acceleration
    return weight.topk(max(1, len(weight) // SAMPLE)).indices


def error_of_sample(gradients: Tensor, which: Tensor, finer: Tensor) -> float:
    """The relative error of the mean of gradients (tasks, P), if the tasks err like those of a sample, independently.

    which: indices of the sample, and finer its gradients by finer steps.
    """
    error = (gradients[which] - finer).norm() / math.sqrt(len(which) * len(gradients))
    return _ratio(CAUTION * error, gradients.mean(0).norm())


def relative_distance(a: Tensor, b: Tensor) -> float:
    """|a - b| / |b|."""
    return _ratio((a - b).norm(), b.norm())


def _ratio(part: Tensor, whole: Tensor) -> float:
    part, whole = torch.stack([part, whole]).tolist()
    if part == 0:
        return 0.0
    return part / whole if whole and math.isfinite(part + whole) else math.inf
