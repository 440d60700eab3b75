"""Which steps are taken: horizon, landings, accuracy, stability, blocks taken again, Heun's limit, budget."""

import itertools
import math

import pytest
import torch
from helpers.problems import generator, mlp, regression, relative_error, seeded

import amaml
from amaml import AMAML, Tasks, half_mse
from amaml.flow.curvature import Curvature, Leading
from amaml.flow.field import GradientFlow
from amaml.flow.mesh import SOLVERS, GradedMesh, bisected
from amaml.flow.schemes import HEUN, MIDPOINT, RK3, RK4, RungeKutta
from amaml.flow.trajectory import Trajectory

GRADED = [name for name in SOLVERS if name != "euler"]
SSP3 = RungeKutta("ssp3", ((), (1.0,), (0.25, 0.25)), (1 / 6, 1 / 6, 2 / 3))  # Shu and Osher 1988


def planned(mesh: GradedMesh, horizon: float, sharp: float, way: tuple[float, ...] = ()) -> list:
    """All moves to the horizon, landing on the way, where lambda_max stays as it is."""
    moves = mesh.block(0.0, [*way, horizon], sharp, sharp)
    while moves[-1].end < horizon:
        moves += mesh.block(moves[-1].end, [*way, horizon], sharp, sharp)
    return moves


@pytest.mark.parametrize("tolerance", [1e-2, 1e-3])
@pytest.mark.parametrize("way", [(0.1, 0.5, 1.0, 1.5), (0.4, 0.8, 1.2, 1.6)])
def test_landing_on_four_more_times_costs_little(tolerance, way):
    """The steps are planned to the horizon; what lies on the way only cuts them."""
    mesh = GradedMesh(SOLVERS["auto"], tolerance)
    single, several = planned(mesh, 2.0, 7.5), planned(mesh, 2.0, 7.5, way)
    assert {move.end for move in several} > set(way)
    assert sum(move.scheme.cost for move in several) <= 1.35 * sum(move.scheme.cost for move in single)


@pytest.mark.parametrize("name", GRADED)
@pytest.mark.parametrize("horizon", [0.03, 1.0, 300.0])
def test_moves_cover_the_horizon_inside_the_stability_interval(name, horizon):
    mesh = GradedMesh(SOLVERS[name], 1e-3)
    moves = planned(mesh, horizon, 4.0)
    assert (moves[0].start, moves[-1].end) == (0.0, horizon)
    assert sum(move.scheme.cost for move in moves) == mesh.forecast(horizon, 4.0)
    for move, following in zip(moves, [*moves[1:], None], strict=True):
        assert move.h > 0
        assert move.h * 4.0 < move.scheme.stability
        assert following is None or move.end == following.start


def test_a_graded_mesh_lands_on_every_end():
    (theta, apply), tasks = mlp(), regression()
    trajectory = Trajectory(GradientFlow(apply, half_mse, tasks, theta))
    GradedMesh(SOLVERS["auto"], 1e-4).follow(trajectory, (0.7, 5.0), Curvature(trajectory.flow))
    times = [trajectory.moves[count - 1].end for count in trajectory.landings]
    assert times == [0.7, 5.0]
    whole = Trajectory(GradientFlow(apply, half_mse, tasks, theta))
    GradedMesh(SOLVERS["rk4"], 1e-7).follow(whole, (0.7,), Curvature(whole.flow))
    assert relative_error(next(iter(trajectory.landings.values())) - theta, whole.final - theta) < 1e-4


@pytest.mark.parametrize("scheme", [SSP3, RK4, MIDPOINT], ids=lambda scheme: scheme.name)
def test_errors_of_the_slowest_and_the_stiffest_modes_stay_within_the_tolerance(scheme):
    """On du/dt = -mu u, at any mu: the law's promise, for a scheme that is nothing but its tableau too."""
    for tolerance in (1e-2, 1e-4):
        moves = planned(GradedMesh((scheme,), tolerance), 20.0, 4.0)
        for mu in (4.0, 1.0, 0.2, 0.05):
            product = math.prod(float(sum(c * (-mu * m.h) ** k for k, c in enumerate(scheme._linear()))) for m in moves)
            assert abs(product - math.exp(-mu * 20.0)) < 3 * tolerance


def test_a_new_scheme_needs_its_tableau_and_nothing_else():
    (theta, apply), tasks = mlp(), regression(shots=20)
    reference = AMAML(apply, half_mse, 0.01, 200, solver="rk4", rtol=1e-7).meta_gradient(theta, tasks).value
    gradient = AMAML(apply, half_mse, 0.01, 200, solver=SSP3).meta_gradient(theta, tasks)
    assert relative_error(gradient.value, reference) < 1e-3
    assert gradient.observation.cost < 100
    assert 1 / 50 < relative_error(gradient.value, reference) / gradient.error < 3


def test_steps_are_four_times_longer_towards_the_end():
    moves = planned(GradedMesh(SOLVERS["rkc"], 1e-3), 50.0, 4.0)
    early, late = (next(move.h for move in moves if move.end >= t) for t in (2.5, 47.5))
    assert 3.0 < late / early < 7.0


def test_steps_grow_with_the_tolerance_at_the_order_of_the_scheme():
    for scheme in (RK3, RK4, MIDPOINT):
        first = [planned(GradedMesh((scheme,), tolerance), 50.0, 4.0)[0].h for tolerance in (1e-5, 1e-3)]
        assert math.log(first[1] / first[0]) / math.log(100) == pytest.approx(1 / scheme.order, rel=0.01)


def clock(monkeypatch, lambda_max) -> tuple[Trajectory, Curvature]:
    """A flow whose state is the time, u(t) = t, where lambda_max is a given function of time."""

    class Scripted:
        def at(self, u):
            self.leading = Leading(lambda_max(u.item()), u)
            return [self.leading.value]

    x = torch.ones(1, 1, 1, dtype=torch.float64)
    flow = GradientFlow(
        lambda theta, x: x * theta,
        lambda prediction, target: -prediction.mean(),
        Tasks(x, x, x, x),
        torch.zeros(1, dtype=torch.float64),
    )
    return Trajectory(flow), Scripted()


@pytest.mark.parametrize("solver", ["auto", "rkc", "rk4", "dopri5"])
def test_a_block_that_lambda_max_outran_is_taken_again(monkeypatch, solver):
    """lambda_max jumps from 2 to 60 at t = 3: no step from there on may be too long for it."""
    trajectory, curvature = clock(monkeypatch, lambda t: 2.0 if t < 3 else 60.0)
    GradedMesh(SOLVERS[solver], 1e-3).follow(trajectory, (30.0,), curvature)
    assert trajectory.time == 30
    inside = [move for move in trajectory.moves if move.start >= 3]
    assert inside
    assert all(60 * move.h <= move.scheme.stability for move in inside)


def test_the_rate_at_which_lambda_max_grows_is_foreseen(monkeypatch):
    """Where it grows like exp(1.5 t), blocks planned without its rate are outrun and taken again."""

    def taken_again() -> int:
        count = itertools.count()
        rewind = Trajectory.rewind
        with monkeypatch.context() as patch:
            patch.setattr(Trajectory, "rewind", lambda *arguments: (next(count), rewind(*arguments)))
            trajectory, curvature = clock(patch, lambda t: 20 * math.exp(1.5 * t))
            GradedMesh(SOLVERS["rkc"], 1e-3).follow(trajectory, (2.0,), curvature)
        return next(count)

    foreseen, block = taken_again(), GradedMesh.block
    monkeypatch.setattr(GradedMesh, "block", lambda self, *a: block(self, *a[:4]))
    assert taken_again() > foreseen


@pytest.mark.parametrize("solver", ["auto", "rk4", "rkc", "dopri5"])
def test_steps_for_the_continuous_adjoint_stay_within_heuns_limit(monkeypatch, solver):
    for backward, limit in ((HEUN, HEUN.stability), (None, math.inf)):
        trajectory, curvature = clock(monkeypatch, lambda t: 30.0)
        GradedMesh(SOLVERS[solver], 0.1, backward).follow(trajectory, (10.0,), curvature)
        assert max(30 * move.h for move in trajectory.moves) < limit
    tested = max(30 * move.h for move in trajectory.moves) > HEUN.stability
    assert tested == (solver != "rk4")  # whose own limit is below


def test_auto_takes_every_scheme_where_it_is_the_cheapest():
    """From the ends to the middle of the horizon of lower and lower order, Chebyshev steps between them; and the last
    one cheaper, since little is left for it."""
    names = [getattr(m.scheme, "name", "rkc") for m in planned(GradedMesh(SOLVERS["auto"], 1e-3), 10.0, 30.0)]
    assert [name for name, _ in itertools.groupby(names)] == ["rk4", "rk3", "rkc", "rk3", "rk4", "rk3"]


def test_bisected_steps_cover_the_same_time_by_the_same_schemes():
    moves = planned(GradedMesh(SOLVERS["auto"], 1e-3), 50.0, 4.0)
    halves = bisected(moves)
    assert len(halves) == 2 * len(moves)
    for i, move in enumerate(moves):
        first, second = halves[2 * i : 2 * i + 2]
        assert (first.start, first.end, second.end) == (move.start, second.start, move.end)
        assert first.h == second.h == move.h / 2
        assert first.scheme == second.scheme == move.scheme


def test_steps_keep_up_with_a_flow_that_sharpens_suddenly():
    """MAML's sinusoids, on which lambda_max grows eightfold: an estimate that lagged behind gave a gradient 30 times
    too large."""
    x, more = (torch.rand(4, 10, 1, generator=generator(seed), dtype=torch.float64) for seed in (1, 2))
    y = (0.1 + 4.9 * more[:, :1]) * (10 * x - 5 - 3.1 * more[:, 1:2]).sin()
    theta, apply = seeded(lambda: amaml.mlp(1, 1, 40), 1)
    flow = GradientFlow(apply, half_mse, Tasks(10 * x - 5, y, 10 * x - 5, y), theta)
    trajectory = Trajectory(flow)
    GradedMesh(SOLVERS["auto"], 1e-3).follow(trajectory, (2.0,), Curvature(flow))
    curvature, found = Curvature(flow), []
    for _, move, stages in trajectory.backwards():
        found.append(max(curvature.at(stages[0])))
        assert move.h * found[-1] < move.scheme.stability
    assert max(found) > 3 * found[-1]
