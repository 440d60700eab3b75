"""Forward along a mesh and backward from an outer loss: one solution of A-MAML's two equations for a batch of tasks."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from amaml.flow.adjoint import ADJOINTS, Adjoint
from amaml.flow.curvature import Curvature
from amaml.flow.field import GradientFlow
from amaml.flow.mesh import Mesh
from amaml.flow.quadrature import Requested
from amaml.flow.schemes import cost
from amaml.flow.trajectory import Trajectory
from amaml.robust import Weighing, weighted_mean


class Terminal(NamedTuple):
    """Where a backward sweep begins: lam (times, tasks, P), the sensitivities to the states at the trajectory's times;
    and the query loss (tasks,) with its gradients in what was requested of the query set."""

    lam: Tensor
    query_loss: Tensor | None = None
    direct: Sequence[Tensor] = ()


class Solution(NamedTuple):
    """A trajectory that has been read, where the sweep began, and its result.

    of_tasks (tasks, P): lam(0) of every task, with the pull of the proximal term; weighing: how often each counts in
    the mean; gradients: of all that was requested, means over the tasks; estimate: the mean of those of
    amaml.flow.adjoint.Adjoint.
    """

    trajectory: Trajectory
    terminal: Terminal
    of_tasks: Tensor
    weighing: Weighing
    gradients: dict[str, Tensor]
    estimate: Tensor

    @property
    def value(self) -> Tensor:
        """The mean gradient (P,)."""
        return weighted_mean(self.of_tasks, self.weighing.weights)


@dataclass(frozen=True)
class Passes:
    """Everything that a solution needs but its steps.

    inner_steps: after which the outer loss looks, increasing; rate: the flow's time that one of them takes, of all of
    them. terminal: the outer loss, of a trajectory. request: of what the gradients are wanted. weigh: the tasks'
    gradients (tasks, P). adjoint: a name of ADJOINTS.
    """

    flow: GradientFlow
    inner_steps: Sequence[int]
    rate: float
    terminal: Callable[[Trajectory], Terminal]
    request: Requested
    weigh: Callable[[Tensor], Weighing]
    adjoint: str
    checkpoints: int | None = None

    def solve(self, mesh: Mesh, curvature: Curvature) -> Solution:
        """Along a mesh and back."""
        times = [self.rate * n for n in self.inner_steps]
        return self.backward(mesh.follow(Trajectory(self.flow, self.checkpoints), times, curvature))

    def backward(self, trajectory: Trajectory) -> Solution:
        """Back along a trajectory.

        A step that lambda_max outran is taken anew, and all after it; the terminal is then asked again. Raises
        OverBudget before a sweep that goes beyond the budget.
        """
        flow = trajectory.flow.limited(math.inf)
        while True:
            trajectory.flow.check_budget(cost(trajectory.moves))
            begin = self.terminal(trajectory)
            lam, jumps = torch.zeros_like(trajectory.final), trajectory.jumps(begin.lam)
            swept = ADJOINTS[self.adjoint](flow, trajectory, lam, self.request, jumps)
            if isinstance(swept, Adjoint):
                break
            trajectory.rewind(swept.index, swept.state)
            trajectory.mesh.follow(trajectory, trajectory.times, Curvature(flow, swept.stiff))
        of_tasks = swept.lam + flow.prox * swept.sweep.pulled if flow.prox else swept.lam
        weighing = self.weigh(of_tasks)
        gradients = swept.sweep.gradients(begin.direct, self.rate, weighing.weights)
        estimate = weighted_mean(swept.estimate, weighing.weights)
        return Solution(trajectory, begin, of_tasks, weighing, gradients, estimate)
