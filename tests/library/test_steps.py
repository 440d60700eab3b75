"""Which steps are taken: horizon, stability, blocks taken again, Heun's limit, budget."""

import itertools
import math

import pytest
import torch
from helpers.problems import mlp, regression, relative_error

import amaml
import data
from amaml import AMAML, Tasks, half_mse
from amaml.errors import OverBudget
from amaml.flow.chebyshev import Chebyshev
from amaml.flow.curvature import Curvature, Sharp
from amaml.flow.field import GradientFlow
from amaml.flow.schemes import MIDPOINT, RK3, RK4
from amaml.flow.steps import SOLVERS, Plan, StepLaw, bisected
from amaml.flow.trajectory import Trajectory
from experiment.networks import initialise

GRADED = [name for name, choice in SOLVERS.items() if isinstance(choice, tuple)]


@pytest.mark.parametrize("name", GRADED)
@pytest.mark.parametrize("horizon", [0.03, 1.0, 300.0])
def test_plans_cover_the_horizon_inside_the_stability_interval(name, horizon):
    law = StepLaw(SOLVERS[name], horizon, tolerance=1e-3, start=4.0)
    moves = law.plan(0.0, 4.0)
    assert moves[0].start == 0.0
    if sum(move.scheme.cost for move in moves) < 20 * 28:  # longer ones are planned piece by piece
        assert moves[-1].end == horizon
    for move, following in zip(moves, [*moves[1:], None], strict=True):
        assert move.h > 0
        assert move.h * 4.0 < move.scheme.stability
        assert following is None or move.end == following.start


@pytest.mark.parametrize("name", ["auto", "rk4", "rkc", "dopri5", "bosh3"])
def test_an_absurd_horizon_is_an_error_at_once(name):
    (theta, apply), tasks = mlp(), regression()
    flow = GradientFlow(apply, half_mse, tasks, theta, limit=5000)
    with pytest.raises(OverBudget, match="more than the 5000 evaluations of its budget; try a smaller inner_lr"):
        Plan(name, 1e29, 100).follow(Trajectory(flow))
    assert flow.evaluations.total < 20


def clock(monkeypatch, lambda_max) -> Trajectory:
    """A flow whose state is the time, u(t) = t, where lambda_max is a given function of time."""

    class Scripted:
        def __init__(self, flow, start=None, known=None):
            pass

        def at(self, u):
            self.sharpest = Sharp(lambda_max(u.item()), u)
            return [self.sharpest.value]

    monkeypatch.setattr("amaml.flow.steps.Curvature", Scripted)
    x = torch.ones(1, 1, 1, dtype=torch.float64)
    flow = GradientFlow(
        lambda theta, x: x * theta,
        lambda prediction, target: -prediction.mean(),
        Tasks(x, x, x, x),
        torch.zeros(1, dtype=torch.float64),
    )
    return Trajectory(flow)


def test_steps_are_longer_towards_the_end_of_a_long_horizon_and_as_long_there_of_a_short_one():
    def late_over_early(horizon, distance):
        moves = StepLaw(SOLVERS["rkc"], horizon, tolerance=1e-3, start=4.0).plan(0.0, 4.0)
        early, late = (
            next(move.h for move in moves if move.end >= t) for t in (distance * horizon, (1 - distance) * horizon)
        )
        return late / early

    assert late_over_early(1.5, 0.1) == pytest.approx(1.0, abs=0.3)
    assert 3.5 < late_over_early(50.0, 0.05) < 5.5


def test_no_step_of_second_order_takes_more_than_a_part_of_the_horizon_that_shrinks_with_the_tolerance():
    def longest(tolerance):
        return max(move.h for move in StepLaw(SOLVERS["rkc"], 50.0, tolerance, start=4.0).plan(0.0, 4.0)) / 50.0

    assert longest(1e-3) == pytest.approx(2 * 1e-3**0.5, rel=0.1)
    assert longest(1e-4) == pytest.approx(2 * 1e-4**0.5, rel=0.1)


def test_the_first_steps_of_higher_order_are_longer_where_the_horizon_is_not_very_long():
    def longer(candidate):
        first = [StepLaw((candidate,), horizon, 1e-3, start=4.0).plan(0.0, 4.0)[0].h for horizon in (15.0, 100.0)]
        return first[0] / first[1]

    rk4, rk3, rkc = SOLVERS["auto"]
    assert longer(rk4) == pytest.approx(1.4, abs=0.1)
    assert longer(rk3) == pytest.approx(1.5, abs=0.1)
    assert longer(rkc) == pytest.approx(1.0, abs=0.1)


@pytest.mark.parametrize("solver", ["auto", "rkc", "rk4", "dopri5"])
def test_a_block_that_lambda_max_outran_is_taken_again(monkeypatch, solver):
    """lambda_max jumps from 2 to 60 at t = 3: no step from there on may be too long for it."""

    def jumping(t):
        return 2.0 if t < 3 else 60.0

    trajectory = clock(monkeypatch, jumping)
    Plan(solver, 0.01, 3000).follow(trajectory)
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
            Plan("rkc", 0.01, 200).follow(clock(patch, lambda t: 20 * math.exp(1.5 * t)))
        return next(count)

    assert taken_again() == 0
    plan = StepLaw.plan
    monkeypatch.setattr(StepLaw, "plan", lambda self, t, now, rate=0.0: plan(self, t, now))
    assert taken_again() > 0


@pytest.mark.parametrize("solver", ["auto", "rk4", "rkc", "dopri5", "bosh3"])
def test_steps_for_the_continuous_adjoint_stay_within_heuns_limit(monkeypatch, solver):
    for heun, limit in ((True, MIDPOINT.stability), (False, math.inf)):
        trajectory = clock(monkeypatch, lambda t: 30.0)
        Plan(solver, 0.01, 1000, 0.1, heun_backward=heun).follow(trajectory)
        assert max(30 * move.h for move in trajectory.moves) < limit
    tested = max(30 * move.h for move in trajectory.moves) > MIDPOINT.stability
    assert tested == (solver != "rk4")  # whose own limit is below


def test_auto_takes_every_scheme_where_it_is_the_cheapest(monkeypatch):
    """Third order near the ends and Chebyshev steps between them; with a smaller tolerance fourth order as well."""
    for tolerance, expected in ((1e-2, {RK3}), (1e-4, {RK3, RK4})):
        trajectory = clock(monkeypatch, lambda t: 30.0)
        Plan("auto", 0.01, 1000, tolerance).follow(trajectory)
        schemes = [move.scheme for move in trajectory.moves]
        assert {scheme for scheme in schemes if not isinstance(scheme, Chebyshev)} == expected
        assert any(isinstance(scheme, Chebyshev) for scheme in schemes)
        assert not isinstance(schemes[0], Chebyshev)


def test_bisected_steps_cover_the_same_time_by_the_same_schemes():
    (theta, apply), tasks = mlp(), regression()
    trajectory = Trajectory(GradientFlow(apply, half_mse, tasks, theta))
    Plan("auto", 0.1, 500).follow(trajectory)
    halves = bisected(trajectory.moves)
    assert {type(move.scheme) for move in trajectory.moves} == {type(RK4), type(SOLVERS["rkc"][0].scheme(9.0))}
    assert len(halves) == 2 * len(trajectory.moves)
    for i, move in enumerate(trajectory.moves):
        first, second = halves[2 * i : 2 * i + 2]
        assert (first.start, first.end, second.end) == (move.start, second.start, move.end)
        assert first.h == second.h == move.h / 2
        assert first.scheme == second.scheme == move.scheme


def test_steps_keep_up_with_a_flow_that_sharpens_suddenly():
    """lambda_max grows from 5 to 40: an estimate that lagged behind gave a gradient 30 times too large."""
    tasks = data.make("Sinusoid", data.Sampling(10, 10, 4, seed=1)).episode(1)
    theta, apply = initialise(lambda: amaml.mlp(1, 1, 40), 1, torch.float64, "cpu")
    flow = GradientFlow(apply, half_mse, tasks, theta)
    trajectory = Trajectory(flow)
    Plan("auto", 0.01, 200).follow(trajectory)
    curvature = Curvature(flow)
    for move, stages in trajectory.backwards():
        assert move.h * max(curvature.at(stages[0])) < move.scheme.stability
    gradient = AMAML(apply, half_mse, 0.01, 200).meta_gradient(theta, tasks)
    reference = AMAML(apply, half_mse, 0.01, 200, solver="rk4", rtol=1e-6).meta_gradient(theta, tasks)
    assert relative_error(gradient.value, reference.value) < 1e-3
