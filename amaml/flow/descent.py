"""The steps of the inner loop themselves, and where they take the place of a solution of the flow."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from amaml.arguments import is_count
from amaml.errors import InputError
from amaml.flow.accuracy import Memory
from amaml.flow.curvature import Curvature
from amaml.flow.field import GradientFlow
from amaml.flow.mesh import GradedMesh
from amaml.flow.optimizers import PLAIN, Optimizer, OptimizerStep
from amaml.flow.schemes import DESCENT, EULER, Move, Scheme
from amaml.flow.trajectory import Trajectory
from amaml.tasks import Tasks

FEWEST = 20  # steps of gradient descent: fewer take less than 10 times what it takes to find out, 5 evaluations
KINK = 0.2  # of the change of the field along a step: what its Jacobian may miss


@dataclass(frozen=True)
class FixedMesh:
    """So many steps of gradient descent, or of another optimiser: not a solution of the flow.

    sizes: of every step, over that of an inner step; None: 1. batch: the numbers of the support points that each step
    sees (steps, n), or how many it sees, drawn by its number; None: all. single: whether the way back is to tell the
    steps apart.
    """

    steps: int
    optimizer: Optimizer = PLAIN
    sizes: Sequence[float] | None = None
    batch: int | Tensor | None = None
    single: bool = False

    def follow(self, trajectory: Trajectory, times: Sequence[float], curvature: Curvature | None = None) -> Trajectory:
        """Without a limit of the flow's evaluations: these steps are what is asked for."""
        trajectory.flow = trajectory.flow.limited(math.inf)
        check_batch(self.batch, self.steps, trajectory.flow.tasks)
        trajectory.begin(self, times)
        ends = [times[-1] * i / max(self.steps, 1) for i in range(self.steps + 1)]
        for time in times if self.steps else ():
            ends[round(self.steps * time / times[-1])] = time  # to the last bit
        sizes, tasks, moves = self.sizes or [1.0] * self.steps, trajectory.flow.tasks, []
        for k in range(len(trajectory.moves), self.steps):
            scheme, (start, end) = self._scheme(k, tasks), ends[k : k + 2]
            moves.append(Move(scheme, start, end, (end - start) * sizes[k]))
        trajectory.extend(moves)
        return trajectory

    def _scheme(self, k: int, tasks: Tasks) -> Scheme:
        if self.optimizer.plain and self.batch is None and not self.single:
            return DESCENT
        return OptimizerStep(self.optimizer, k, self._points(k, tasks))

    def _points(self, k: int, tasks: Tasks) -> Tensor | None:
        """Those of step k. Drawn ones go through the support set in a random order, then in another, and so on; the
        orders are the same for every call."""
        n, shot = self.batch, tasks.shot
        if n is None:
            return None
        if isinstance(n, Tensor):
            return n[k].to(tasks.device)
        rounds, place = divmod(k, shot // int(n))
        order = torch.randperm(shot, generator=torch.Generator().manual_seed(rounds), device="cpu")
        return order[place * n : (place + 1) * n].to(tasks.device, non_blocking=True)


def check_batch(batch: int | Tensor | None, steps: int, tasks: Tasks) -> None:
    """Raise InputError unless so many steps can see such batches of a task's support points."""
    given, shot = batch, tasks.shot
    if isinstance(batch, Tensor):
        given = f"{batch.dtype} of shape {tuple(batch.shape)}"
        good = batch.dtype is torch.int64 and batch.ndim == 2 and len(batch) >= steps and batch.numel()
        good = good and batch.min() >= 0 and batch.max() < shot
    else:
        good = batch is None or (is_count(batch) and batch <= shot)
    if not good:
        raise InputError(
            f"inner_batch must be 1 to {shot} support points, or an int64 tensor ({steps} steps, n) of their numbers "
            f"from 0 to {shot - 1}, got {given}"
        )
    for name, tensor in tasks.support_leaves().items() if batch is not None else ():
        if tensor.ndim > 1 and tensor.shape[1] != shot and not name.startswith("shared."):
            raise InputError(
                f"inner_batch takes some of the {shot} points of every tensor, and {name} {tuple(tensor.shape)} has "
                "another number; leave inner_batch out, or choose the points in an objective"
            )


def descends(
    flow: GradientFlow, mesh: GradedMesh, curvature: Curvature, rate: float, steps: int, memory: Memory
) -> bool:
    """Whether the steps of gradient descent are to be made in place of a mesh's, which would cost as much.

    They are where there are so few that finding out is as dear; where they are unstable themselves, inner_lr lambda_max
    >= 2, which nobody should miss; where the mesh would take as many gradients, in a first call with measuring its
    error; and where the loss has kinks.
    """
    if steps < FEWEST or (memory.descended and not memory.in_turn):
        return True
    sharp, horizon = max(curvature.at(flow.start)), rate * steps
    solves = 1 if memory.calls else 3  # the steps and their halves
    if sharp * rate >= EULER.stability or mesh.forecast(horizon, sharp, steps / solves) >= steps / solves:
        return True
    return (memory.descended or not memory.errors) and _kinked(flow, mesh.block(0.0, horizon, sharp, sharp)[0].h)


def _kinked(flow: GradientFlow, h: float) -> bool:
    """Whether the field changes along its first step as its Jacobian in the middle of the step does not tell."""
    step = h * flow.at_start
    change = flow(flow.start + step) - flow.at_start
    missed = change + flow.scaled(flow.hvp(flow.start + step / 2, step))
    return bool(missed.norm() > KINK * change.norm())
