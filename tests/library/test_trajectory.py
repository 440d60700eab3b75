"""What is kept of a forward pass: fewer states, the same bits; rewinding; memory."""

import gc

import pytest
import torch
from helpers.problems import mlp, mlp_flow, regression, saved
from torch.nn.functional import pad

from amaml import AMAML, half_mse
from amaml.flow.adjoint import discrete
from amaml.flow.curvature import Curvature
from amaml.flow.descent import FixedMesh
from amaml.flow.field import GradientFlow
from amaml.flow.mesh import SOLVERS, GradedMesh
from amaml.flow.optimizers import Optimizer
from amaml.flow.schemes import RK4, Move
from amaml.flow.trajectory import Trajectory
from amaml.learner import query_gradient


def _kept_and_gradient(solver, checkpoints, steps=40):
    flow = mlp_flow()
    trajectory = Trajectory(flow, checkpoints)
    mesh = GradedMesh(SOLVERS[solver], 1e-4) if SOLVERS[solver] else FixedMesh(steps)
    mesh.follow(trajectory, [0.05 * steps], Curvature(flow))
    lam, *_ = query_gradient(flow.apply, flow.loss, trajectory.final, flow.tasks)
    return flow.evaluations, discrete(flow, trajectory, lam)[0]


@pytest.mark.parametrize("solver", ["euler", "rk4", "auto"])
def test_recomputed_trajectories_give_the_same_bits(solver):
    whole, expected = _kept_and_gradient(solver, None)
    assert whole.recomputations == 0
    for checkpoints in (1, 3, 10):
        again, value = _kept_and_gradient(solver, checkpoints)
        assert torch.equal(value, expected), checkpoints
        assert again.recomputations > 0, checkpoints
        assert (again.gradients, again.hvps) == (whole.gradients, whole.hvps), checkpoints
    assert again.recomputations <= 3 * whole.gradients  # close to the binomial bound


@pytest.mark.parametrize("checkpoints", [4, 9])
def test_no_more_states_are_alive_than_asked_for(checkpoints):
    flow = mlp_flow()
    trajectory = Trajectory(flow, checkpoints)
    FixedMesh(40).follow(trajectory, [2.0])

    def alive() -> int:
        gc.collect()
        states = [t for t in gc.get_objects() if type(t) is torch.Tensor and t.shape == trajectory.final.shape]
        return len({t.data_ptr() for t in states})

    base = 4  # the start, the field there, the final state and its gradient
    assert alive() <= checkpoints + base
    lam, *_ = query_gradient(flow.apply, flow.loss, trajectory.final, flow.tasks)
    for i, _, stages in trajectory.backwards():
        if i % 16 == 0:
            assert alive() <= checkpoints + len(stages) + base + 1


@pytest.mark.parametrize("optimizer", ["sgd", "adam"])
def test_large_trajectories_thin_out_by_themselves(monkeypatch, optimizer):
    def kept(steps):
        flow = GradientFlow(apply, half_mse, tasks, theta)
        trajectory = FixedMesh(steps, Optimizer(optimizer)).follow(Trajectory(flow), [0.05 * steps])
        states = len(trajectory._states) * trajectory.final.numel() * 8
        lam = query_gradient(apply, half_mse, trajectory.final[..., : len(theta)], tasks)[0]
        value = discrete(flow, trajectory, pad(lam, (0, trajectory.final.shape[-1] - len(theta)))).lam
        return flow.evaluations.recomputations, states, value[..., : len(theta)]

    (theta, apply), tasks = mlp(), regression()
    one = len(tasks) * len(theta) * 8 * (3 if optimizer == "adam" else 1)
    monkeypatch.setattr("amaml.flow.trajectory.SMALL", 30 * one)
    assert kept(30)[:2] == (0, 0)
    recomputations, states, value = kept(200)
    assert 0 < recomputations < 3 * 200
    assert states <= 30 * one
    monkeypatch.undo()
    assert torch.equal(value, kept(200)[-1])


def test_no_graph_is_kept_across_steps():
    from baselines import MAML

    (theta, apply), tasks = mlp(), regression()
    for solver in ("euler", "rk4"):  # what is kept for a moment is the check of one task's loss
        few, many = (saved(AMAML(apply, half_mse, 0.05, n, solver=solver), theta, tasks) for n in (10, 40))
        assert few == many
    few, many = (saved(MAML(apply, half_mse, 0.05, steps), theta, tasks) for steps in (10, 40))
    assert many > 3 * few > 0


@pytest.mark.parametrize("checkpoints", [None, 3])
def test_a_trajectory_that_is_rewound_goes_on_as_if_nothing_had_been(checkpoints):
    """On the way forward, and in the middle of the way back."""
    flow = mlp_flow()
    moves = [Move(RK4, 0.1 * i, 0.1 * (i + 1), 0.1) for i in range(12)]
    whole, turned = Trajectory(flow, checkpoints), Trajectory(flow, checkpoints)
    whole.extend(moves)
    turned.extend(moves[:5])
    u = turned.final
    turned.extend([Move(RK4, 0.5 + i, 1.5 + i, 1.0) for i in range(6)])
    turned.rewind(5, u)
    turned.extend(moves[5:])
    stages = next(stages for index, _, stages in turned.backwards() if index == 7)
    turned.rewind(7, stages[0])
    turned.extend(moves[7:])
    lam = torch.ones_like(whole.final)
    assert turned.moves == whole.moves
    assert torch.equal(turned.final, whole.final)
    assert torch.equal(discrete(flow, turned, lam).lam, discrete(flow, whole, lam).lam)
