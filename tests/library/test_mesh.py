"""Which steps are taken: horizon, accuracy, blocks taken again, budget; lambda_max, which they are planned by."""

import itertools
import math
from dataclasses import replace

import pytest
import torch
from helpers.problems import Quadratic, diagonal, mlp, mlp_flow, regression, relative_error
from torch.func import jacrev, vmap

from amaml import Tasks, half_mse
from amaml.flow.curvature import Curvature, Leading
from amaml.flow.field import GradientFlow
from amaml.flow.mesh import SOLVERS, GradedMesh, divided
from amaml.flow.schemes import HEUN, MIDPOINT, RK4, RungeKutta
from amaml.flow.trajectory import Trajectory

GRADED = [name for name in SOLVERS if name != "euler"]
SSP3 = RungeKutta("ssp3", ((), (1.0,), (0.25, 0.25)), (1 / 6, 1 / 6, 2 / 3))  # Shu and Osher 1988


def planned(mesh: GradedMesh, horizon: float, sharp: float) -> list:
    """All moves to the horizon, where lambda_max stays as it is."""
    moves = mesh.block(0.0, horizon, sharp, sharp)
    while moves[-1].end < horizon:
        moves += mesh.block(moves[-1].end, horizon, sharp, sharp)
    return moves


def cost(moves: list) -> int:
    return sum(move.scheme.cost for move in moves)


@pytest.mark.parametrize("name", GRADED)
@pytest.mark.parametrize("horizon", [0.03, 1.0, 300.0])
def test_moves_cover_the_horizon_inside_the_stability_interval(name, horizon):
    mesh = GradedMesh(SOLVERS[name], 1e-3)
    moves = planned(mesh, horizon, 4.0)
    assert cost(moves) == mesh.forecast(horizon, 4.0)
    assert [move.start for move in moves] == [0.0, *(move.end for move in moves[:-1])]
    assert moves[-1].end == horizon
    assert all(0 < move.h * 4.0 < move.scheme.stability for move in moves)


def test_steps_are_longer_where_there_are_evaluations_for_no_more():
    mesh = GradedMesh(SOLVERS["auto"], 1e-4)
    own, least = mesh.forecast(50.0, 4.0), mesh._least_cost(50.0 * 4.0)
    for share in (1.0, 0.7, 0.5):
        trajectory = clock(lambda t: 4.0)[0]
        replace(mesh, most=2 * share * own).follow(trajectory, (50.0,), clock(lambda t: 4.0)[1])
        assert cost(trajectory.moves) + trajectory.saved / 2 == pytest.approx(own, rel=0.1)
        assert least <= cost(trajectory.moves) <= share * own


def test_states_on_the_way_are_read_at_few_further_steps():
    """Steps are shorter or end on them where a state within would be less accurate."""
    (theta, apply), tasks = mlp(), regression()

    def follow(solver: str, tolerance: float, *times: float) -> Trajectory:
        trajectory = Trajectory(GradientFlow(apply, half_mse, tasks, theta))
        return GradedMesh(SOLVERS[solver], tolerance).follow(trajectory, times, Curvature(trajectory.flow))

    times = (0.01, 0.7, 0.8, 5.0)
    trajectory = follow("auto", 1e-4, *times)
    assert cost(trajectory.moves) <= 1.15 * cost(follow("auto", 1e-4, 5.0).moves)
    assert not {*times} <= {move.end for move in trajectory.moves}
    for time, state in zip(times, trajectory.path(len(theta)), strict=True):
        assert relative_error(state - theta, follow("rk4", 1e-7, time).final - theta) < 1e-4


@pytest.mark.parametrize("scheme", [SSP3, RK4, MIDPOINT], ids=lambda scheme: scheme.name)
def test_errors_of_the_slowest_and_the_stiffest_modes_stay_within_the_tolerance(scheme):
    """On du/dt = -mu u, at any mu, and steps grow at the order: the law's promise, for a bare tableau too."""
    first = []
    for tolerance in (1e-4, 1e-2):
        moves = planned(GradedMesh((scheme,), tolerance), 20.0, 4.0)
        first.append(moves[0].h)
        for mu in (4.0, 1.0, 0.2, 0.05):
            product = math.prod(float(sum(c * (-mu * m.h) ** k for k, c in enumerate(scheme._linear()))) for m in moves)
            assert abs(product - math.exp(-mu * 20.0)) < 3 * tolerance
    assert math.log(first[1] / first[0]) / math.log(100) == pytest.approx(1 / scheme.order, rel=0.01)


def clock(lambda_max) -> tuple[Trajectory, Curvature]:
    """A flow whose state is the time, u(t) = t, where lambda_max is a given function of time."""

    class Scripted:
        def at(self, u):
            self.leading = Leading(lambda_max(u.item()), u)
            return [self.leading.value]

    x, theta = torch.ones(1, 1, 1, dtype=torch.float64), torch.zeros(1, dtype=torch.float64)
    flow = GradientFlow(lambda theta, x: x * theta, lambda prediction, y: -prediction.mean(), Tasks(x, x, x, x), theta)
    return Trajectory(flow), Scripted()


@pytest.mark.parametrize("solver", ["auto", "rkc", "rk4", "dopri5"])
def test_a_block_that_lambda_max_outran_is_taken_again(solver):
    """lambda_max jumps from 2 to 60 at t = 3: no step from there on may be too long for it."""
    trajectory, curvature = clock(lambda t: 2.0 if t < 3 else 60.0)
    GradedMesh(SOLVERS[solver], 1e-3).follow(trajectory, (30.0,), curvature)
    assert trajectory.time == 30
    inside = [move for move in trajectory.moves if move.start >= 3]
    assert inside
    assert all(60 * move.h <= move.scheme.stability for move in inside)


def test_the_rate_at_which_lambda_max_grows_is_foreseen(monkeypatch):
    """Where it grows like exp(1.5 t), blocks planned without its rate are outrun and taken again."""
    rewinds, rewind, block = [], Trajectory.rewind, GradedMesh.block
    monkeypatch.setattr(Trajectory, "rewind", lambda *given: (rewinds.append(foreseen), rewind(*given)))
    for foreseen in (True, False):
        monkeypatch.setattr(GradedMesh, "block", block if foreseen else lambda self, *a: block(self, *a[:4]))
        trajectory, curvature = clock(lambda t: 20 * math.exp(1.5 * t))
        GradedMesh(SOLVERS["rkc"], 1e-3).follow(trajectory, (2.0,), curvature)
    assert rewinds.count(True) < rewinds.count(False)


@pytest.mark.parametrize("solver", ["auto", "rkc", "dopri5"])
def test_steps_for_the_continuous_adjoint_stay_within_heuns_limit(solver):
    for backward in (HEUN, None):
        trajectory, curvature = clock(lambda t: 30.0)
        GradedMesh(SOLVERS[solver], 0.1, backward).follow(trajectory, (10.0,), curvature)
        assert (max(30 * move.h for move in trajectory.moves) < HEUN.stability) == (backward is HEUN)


def test_auto_takes_every_scheme_where_it_is_the_cheapest():
    """Of lower and lower order towards the middle of the horizon; the last one is cheaper, since little is left."""
    names = [getattr(m.scheme, "name", "rkc") for m in planned(GradedMesh(SOLVERS["auto"], 1e-3), 10.0, 30.0)]
    assert [name for name, _ in itertools.groupby(names)] == ["rk4", "rk3", "rkc", "rk3", "rk4", "rk3"]


@pytest.mark.parametrize("times", [1.5, 2])
def test_finer_steps_are_as_much_shorter(times):
    """By the scheme of the longest step that one has a part of, which is stable for it."""
    trajectory = Trajectory(clock(lambda t: 4.0)[0].flow)
    GradedMesh(SOLVERS["auto"], 1e-3).follow(trajectory, [50.0], clock(lambda t: 4.0)[1])
    moves, finer = trajectory.moves, divided(trajectory, times)
    assert (len(finer), finer[0].start, finer[-1].end) == (math.ceil(times * len(moves)), 0.0, 50.0)
    for before, move in itertools.pairwise(finer):
        assert before.end == move.start
    for move in finer:
        parts = [one for one in moves if one.start < move.end and move.start < one.end]
        longest = max(parts, key=lambda one: one.h)
        assert (move.scheme, move.h <= longest.h / times * 1.01) == (longest.scheme, True)
        assert move.h >= min(one.h for one in parts) / times * 0.99


def test_lambda_max_is_settled_before_it_is_believed():
    flow = mlp_flow(shots=20)
    exact = vmap(jacrev(jacrev(lambda u, x, y: flow.loss(flow.apply(u, x), y))), (None, 0, 0))
    largest = torch.linalg.eigvalsh(exact(flow.theta, *flow.tasks.support))[:, -1]
    found = torch.tensor(Curvature(flow).at(flow.start), dtype=torch.float64)
    assert (found <= largest * (1 + 1e-9)).all()
    assert (found > 0.9 * largest).all()


def products(flow: GradientFlow, curvature: Curvature, u) -> int:
    before = flow.evaluations.hvps
    curvature.at(u)
    return flow.evaluations.hvps - before


def test_a_look_that_finds_nothing_changed_takes_one_product():
    flow = mlp_flow(shots=20)
    curvature = Curvature(flow)
    assert products(flow, curvature, flow.start) >= 3
    assert products(flow, curvature, flow.start) == 0
    curvature.at(flow.start + 0.0)
    assert products(flow, curvature, flow.start + 1e-3) == 1
    for other in (3.0, 0.0):  # lambda_max larger, and smaller
        assert products(flow, curvature, other * flow.start) > 1


@pytest.mark.parametrize("factor", [1.0, 3.0, 0.3])
def test_what_another_batch_had_is_a_direction_to_begin_from_and_no_value(factor):
    flow = mlp_flow(shots=20)
    look = Curvature(flow)
    look.at(flow.start)
    assert look.leading.value == max(look.found)
    known = Curvature(flow, known=look.leading._replace(value=factor * look.leading.value))
    assert products(flow, known, flow.start) == 2
    assert known.leading.value == pytest.approx(look.leading.value, rel=0.1)
    direction = known.leading.direction
    assert direction.untyped_storage().nbytes() == direction.nbytes  # a checkpoint holds it, and not the whole batch


def test_a_stiff_direction_that_the_field_does_not_hold_is_seen_and_found_from_another_one_within_three_calls():
    """Each begins where the last one ended."""
    theta, tasks, _ = diagonal([50.0, *39 * [1.0]], [1.0, *39 * [0.0]], 40 * [1.0])
    flow, known = GradientFlow(Quadratic.apply, half_mse, tasks, theta), Leading(1.0, torch.eye(40).double()[1])
    assert flow.at_start[0, 0] == 0
    assert Curvature(flow).at(flow.start)[0] > 40
    for _ in range(3):
        curvature = Curvature(flow, known=known)
        curvature.at(flow.start)
        known = curvature.leading
    assert known.value > 40
