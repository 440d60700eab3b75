"""A meta-gradient and its error: none for the steps themselves; for the flow measured or carried, and brought down."""

import math
from dataclasses import dataclass, replace

import torch

from amaml.errors import Diverged
from amaml.flow.accuracy import Controller, Memory, Observation, refined, relative_distance
from amaml.flow.curvature import Curvature
from amaml.flow.descent import FixedMesh
from amaml.flow.mesh import GradedMesh, Mesh
from amaml.flow.passes import Passes, Solution
from amaml.flow.schemes import HEUN
from amaml.flow.trajectory import Trajectory
from amaml.learner import MetaGradient, compact
from amaml.robust import weighted


@dataclass(frozen=True)
class Measuring:
    """What a meta-gradient and its error need, but the mesh.

    graded: the mesh that refines those of the flow; memory: of earlier calls on this problem, by which the controller
    decides what is measured; solver: its name.
    """

    passes: Passes
    graded: GradedMesh
    controller: Controller
    rtol: float
    memory: Memory
    solver: str

    def gradient(
        self, mesh: Mesh, curvature: Curvature, trajectory: Trajectory | None = None, refused: bool = False
    ) -> MetaGradient:
        """That of a mesh.

        trajectory: the way forward where it has been made. refused: whether another mesh was given up.
        """
        passes, memory = self.passes, self.memory
        spent, descended = passes.flow.evaluations, isinstance(mesh, FixedMesh)
        exact = descended and (self.solver == "auto" or passes.adjoint == "discrete")
        before = spent.total if descended else 0  # to find out that the flow is as dear
        passes = replace(passes, adjoint="discrete") if exact else passes
        first = passes.solve(mesh, curvature) if trajectory is None else passes.backward(trajectory)
        best, error, cost, path = first, None, spent.total - before, first.trajectory
        norm, estimate = self._finite(first)
        seen = Observation(cost, path.sharpest, estimate, norm, None, before, refused, descended, saved=path.saved)
        seen = seen._replace(leading=path.at_start or curvature.leading, problem=memory.problem)
        robust = first.weighing.weights is not None
        measured = not exact and self.controller.due(memory, self.rtol, seen, robust)
        if measured and descended:
            right = replace(passes, adjoint="discrete").solve(mesh, curvature)
            error = of_first = relative_distance(first.value, right.value)
        elif measured:
            best, error, of_first = self._refined(first)
        elif not exact:
            error = self.controller.carried(memory, seen)
        spent.measuring = spent.total - cost
        if measured:
            seen = seen._replace(error=of_first, measuring=spent.measuring)
        name = "euler" if descended else self.solver
        return MetaGradient(
            **compact(best.of_tasks, best.weighing),
            query_loss=best.terminal.query_loss,
            evaluations=spent,
            error=error,
            measured=measured,
            observation=seen,
            gradients=best.gradients,
            solver=name,
        )

    def _refined(self, first: Solution) -> tuple[Solution, float, float]:
        """The gradient with finer steps, once or until its error is tolerated; its error, and the first one's.

        The controller's ceiling is tolerated where errors were measured before, as for calls between two measurements;
        of a robust mean, of which a rough task is a small part, an error of 1, at which a gradient tells nothing.
        """
        passes, flow, known = self.passes, self.passes.flow, bool(self.memory.errors)
        spent, times = flow.evaluations, self.controller.finer if known else 2
        least, before = 2 * spent.total, []  # what finer steps than the first ones take; evaluations before each solve

        def finer(coarse: Solution) -> Solution:
            limit = spent.total + max(least if coarse is first else 0, (1 if self.solver == "auto" else 2) * flow.limit)
            mesh, bounded = self.graded.finer(coarse.trajectory, times), flow.limited(limit)
            bounded.check_budget(0 if coarse is first else times * (spent.total - before[-1]))
            before.append(spent.total)
            return replace(passes, flow=bounded).solve(mesh, Curvature(flow))

        heun = [HEUN.order] if passes.adjoint == "continuous" else []
        order = min([first.trajectory.order, *heun])
        ceiling = max(self.controller.ceiling * self.rtol, 0.0 if first.weighing.weights is None else 1.0)
        enough = ceiling if known else self.rtol
        return refined(
            first, finer, lambda one: (one.value, len(one.trajectory.moves)), order, enough, ceiling, known, self._noise
        )

    def _finite(self, found: Solution) -> tuple[float, float]:
        """The length of a gradient and the estimate of its relative error; waits for the device."""
        ends = found.trajectory.flow.theta, found.trajectory.final
        sizes = (end.abs().amax() for end in ends)
        norm, estimate, start, end = torch.stack([found.value.norm(), found.estimate, *sizes]).tolist()
        if self.solver == "auto" and end * torch.finfo(ends[0].dtype).eps > max(start, 1.0):
            raise Diverged(
                f"the inner loop grows without bound, from parameters of up to {start:.1g} to {end:.1g}; try a smaller "
                "inner_lr, fewer inner steps, or a solver of the flow such as rkc"
            )
        if not (math.isfinite(norm) or found.terminal.lam.isfinite().all()):  # no finer solve would change that
            raise Diverged(
                "the gradient of the query loss at the adapted parameters is not finite; look at the loss, or try a "
                "smaller inner_lr or fewer inner steps"
            )
        return norm, estimate / norm if norm else 0.0

    def _noise(self, found: Solution) -> float:
        """What rounding leaves of the gradient's relative accuracy: in units of |lam(T)| of the largest task."""
        lengths = weighted(found.terminal.lam.norm(dim=-1).amax(0), found.weighing.weights)
        largest, whole = torch.stack([lengths.amax(), found.value.norm()]).tolist()
        return self.controller.noise(found.value) * largest / whole if whole else math.inf
