"""The gradient of the converged flow, that errors are measured against."""

import math
from dataclasses import replace
from typing import NamedTuple

from torch import Tensor

from amaml import AMAML, Tasks
from amaml.flow.accuracy import relative_distance
from amaml.flow.curvature import Curvature
from amaml.flow.mesh import SOLVERS, GradedMesh

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
    mesh, passes = GradedMesh(SOLVERS["auto"], 1e-4), replace(learner, adjoint="discrete").passes(theta, tasks)
    solution, distance = passes.solve(mesh, Curvature(passes.flow)), math.inf
    for _ in range(MOST):
        finer = passes.solve(mesh.halved(solution.trajectory), Curvature(passes.flow))
        distance, solution = relative_distance(solution.value, finer.value), finer
        if distance < still:
            break
    return Reference(solution.value, distance)
