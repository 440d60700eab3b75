"""The gradient of the converged flow, that errors are measured against."""

import math
from typing import NamedTuple

from torch import Tensor

from amaml import AMAML, Tasks
from amaml.flow.accuracy import relative_distance
from amaml.flow.curvature import Curvature
from amaml.flow.mesh import SOLVERS, GivenMesh, GradedMesh, bisected

STANDS_STILL = 3e-5  # relative distance of the last two resolutions
MOST = 8  # bisections


class Reference(NamedTuple):
    """The mean gradient (P,), and the distance to the one before the last bisection of all steps."""

    value: Tensor
    distance: float


def converged(learner: AMAML, theta: Tensor, tasks: Tasks, still: float = STANDS_STILL) -> Reference:
    """A-MAML's gradient with the steps planned at 1e-4 and bisected, all of them, until it stands still.

    still: the relative distance of two resolutions that counts as standing still.
    """
    flow, mesh = learner.flow(theta.detach(), tasks, math.inf), GradedMesh(SOLVERS["auto"], 1e-4)
    solution, distance = learner.solve(flow, tasks, mesh, Curvature(flow), "discrete"), math.inf
    for _ in range(MOST):
        halves = GivenMesh(bisected(solution.trajectory.moves), mesh)
        finer = learner.solve(flow, tasks, halves, Curvature(flow), "discrete")
        distance, solution = relative_distance(solution.value, finer.value), finer
        if distance < still:
            break
    return Reference(solution.value, distance)
