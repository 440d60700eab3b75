"""The error of a meta-gradient: what distances tell, when it is measured, what is carried, and what it steers."""

import math
import random
from dataclasses import dataclass, replace

import pytest
import torch
from helpers.problems import mlp, regression

from amaml import AMAML, OverBudget, half_mse
from amaml.flow.accuracy import Controller, Memory, Observation, error_of_finest, refined, relative_distance

CONTROL, RTOL = Controller(), 1e-3


def test_the_relative_distance():
    a = torch.tensor([3.0, 4.0], dtype=torch.float64)
    assert (relative_distance(2 * a, a), relative_distance(0 * a, 0 * a)) == (1, 0)
    for pair in ((a, 0 * a), (a * math.nan, a), (a, a * math.inf)):
        assert relative_distance(*pair) == math.inf


@pytest.mark.parametrize("order", [1, 2, 4])
def test_the_error_of_the_finest_of_three_is_that_of_the_order_they_show(order):
    """Gradients 1 + c h^p at h = 1, 1/2, 1/4."""
    g = [1 + 0.01 * h**order for h in (1, 1 / 2, 1 / 4)]
    found, true = error_of_finest([abs(g[0] - g[1]) / g[1], abs(g[1] - g[2]) / g[2]], 2, 2.0), g[2] - 1
    assert found == pytest.approx(true, rel=0.1) if order <= 2 else true < found < 5.1 * true


def test_one_distance_is_read_with_the_order_and_those_that_do_not_shrink_tell_nothing():
    distances = ((0.03, 2, 2.0), (0.07, 3, 2.0), (0.0125, 2, 1.5))
    assert [error_of_finest([d], *finer) for d, *finer in distances] == pytest.approx([0.01] * 3)
    for distances in ([0.1, 0.1], [0.1, 0.3], [math.inf, 0.1], [math.inf], [0.1, math.inf]):
        assert error_of_finest(distances, 2, 2.0) == math.inf


def value(x: float) -> torch.Tensor:
    return torch.tensor([x], dtype=torch.float64)


def quadratic(size):
    return lambda h: value(1 + size * h**2)


def halved(quantity, order, enough, ceiling, finer=lambda h: h / 2, **options):
    """Refined from a step of 1, which is halved."""
    return refined(1.0, finer, lambda h: (quantity(h), round(1 / h)), order, enough, ceiling, **options)


def test_refining_goes_on_until_the_error_is_enough_and_adds_both_parts_of_the_first_one():
    """A first call believes no order before it has shown."""
    first, error, of_first = halved(quadratic(0.3), 2, 1e-2, 3e-2)
    assert (first, error, of_first) == (1 / 8, pytest.approx(0.3 / 64, rel=0.05), pytest.approx(0.3, rel=0.05))
    for known, finest in ((True, 1 / 2), (False, 1 / 4)):
        assert halved(quadratic(0.03), 2, 1e-2, 3e-2, known=known)[0] == finest
    assert halved(lambda h: value(1 + 0.3 * h), 2, 1e-9, 1e-9, noise=lambda h: 1.0)[0] == 1 / 2


def test_refining_that_takes_too_much_is_refused_unless_the_error_is_below_the_ceiling():
    def once(h: float) -> float:
        if h < 1:
            raise OverBudget("too much")
        return h / 2

    assert halved(quadratic(0.1), 2, 1e-2, 3e-2, once)[1] < 3e-2
    with pytest.raises(OverBudget, match=r"the measured relative error is 0.\d+, above 0.01, .*: too much"):
        halved(quadratic(0.5), 2, 1e-2, 3e-2, once)


USUAL = {"cost": 100.0, "sharpest": 5.0, "estimate": 1e-2}


@dataclass
class Calls:
    """A run of calls whose first solves are alike but for what is given; error(gain) is what a measurement finds."""

    memory: Memory = Memory()

    def make(self, error=lambda gain: 4e-4 * gain, count=1, robust=False, **seen) -> bool:
        """Whether the last one was measured."""
        due = False
        for _ in range(count):
            one = Observation(**USUAL | {"norm": 1.0} | seen)
            due = CONTROL.due(self.memory, RTOL, one, robust)
            if due:
                one = one._replace(error=error(self.memory.gain), measuring=CONTROL.finer * one.cost)
            self.memory = CONTROL.update(self.memory, RTOL, one)
        return due


def settled(**options) -> Calls:
    calls = Calls()
    calls.make(count=300, **options)
    while calls.memory.in_turn:
        calls.make(**options)
    return calls


def test_a_first_call_is_measured_and_of_a_long_run_a_tenth_of_what_it_takes():
    calls, random_ = Calls(), random.Random(0)
    assert calls.make()
    calls.make(lambda gain: 4e-4 * gain * math.exp(random_.gauss(0, 0.7)), count=3000)
    assert calls.memory.measuring < 0.1 * (calls.memory.spent + calls.memory.measuring)
    assert calls.memory.since <= CONTROL.every


@pytest.mark.parametrize("robust", [False, True])
def test_a_call_that_is_not_cheap_leaves_its_turn_to_the_next_for_another_interval(robust):
    calls = settled()
    while not calls.memory.in_turn:
        calls.make()
    made = [calls.make(cost=cost, robust=robust) for cost in (110.0, 110.0, 90.0, 90.0)]
    assert made == [False, False, True, False]
    assert sum(calls.make(cost=110.0 * 1.01**n, robust=robust) for n in range(3 * CONTROL.every)) >= 1


@pytest.mark.parametrize("factor", [10, 0.1, 100])
def test_a_law_that_is_off_is_brought_to_rtol_within_five_calls(factor):
    calls = Calls()
    calls.make(lambda gain: 1e-3 * factor * gain, count=5)
    assert 0.2e-3 < 1e-3 * factor * calls.memory.gain < 1e-3


@pytest.mark.parametrize("name", USUAL)
@pytest.mark.parametrize("factor", [15, 1 / 15])
def test_a_jump_either_way_is_measured_at_once_and_remembered(name, factor):
    calls, other = settled(), {name: factor * USUAL[name]}
    assert [calls.make(**seen) for seen in ({}, other, other, {})] == [False, True, False, False]


def test_measurements_out_of_turn_have_a_share_but_for_calls_far_from_everything():
    memory = settled().memory
    memory = replace(memory, measuring=memory.spent)
    near, far = (Observation(factor * 100.0, 5.0, 1e-2, 1.0) for factor in (1 / 5, 1 / 12))
    assert CONTROL.carried(memory, near) is None
    lost = near._replace(cost=100.0, norm=math.nan)
    assert [CONTROL.due(memory, RTOL, seen) for seen in (near, far, lost)] == [False, True, True]


@pytest.mark.parametrize("turns", [0, 1.5])
def test_a_robust_mean_is_measured_where_that_is_cheap_in_its_turn_too(turns):
    memory = settled().memory
    memory = replace(memory, since=round(turns * memory.interval))
    for factor, robust in ((1 / 5, True), (5, True), (5, False)):
        seen = Observation(factor * 100.0, 5.0, 1e-2, 1.0)
        assert CONTROL.due(memory, RTOL, seen, robust) == (factor < 1 or not robust)


def test_what_longer_steps_have_saved_counts_among_what_is_usual():
    """Else ever longer steps would follow from calls that grow dearer."""
    memory = settled().memory
    longer = [one._replace(cost=0.6 * one.cost, saved=0.4 * one.cost) for one in memory.calls]
    assert CONTROL.most(replace(memory, calls=longer)) == CONTROL.most(memory) == CONTROL.peak * USUAL["cost"]


def test_a_carried_error_goes_with_the_estimate_and_is_not_returned_above_the_ceiling():
    calls, seen = settled(), Observation(100.0, 5.0, 1e-2, 1.0)
    usual = CONTROL.carried(calls.memory, seen)
    assert usual == pytest.approx(4e-4 * calls.memory.gain, rel=0.01)
    assert CONTROL.carried(calls.memory, seen._replace(estimate=1.5e-2)) == pytest.approx(1.5 * usual)
    calls.make(lambda gain: 2.9e-3, estimate=0.1)
    assert [CONTROL.due(calls.memory, RTOL, seen._replace(estimate=e)) for e in (0.1, 0.13)] == [False, True]


def test_large_errors_in_turn_are_looked_at_again_soon_and_lower_the_gain():
    calls = settled()
    before = calls.memory
    assert calls.make(lambda gain: 5e-2, cost=900.0)  # out of turn, which leaves both alone
    assert (calls.memory.gain, calls.memory.interval) == (before.gain, before.interval)
    calls.memory = before
    for interval in (before.interval / 2, before.interval / 4):
        while not calls.memory.in_turn:
            calls.make()
        calls.make(lambda gain: 4.5e-3)
        assert calls.memory.interval == interval
    assert calls.memory.gain < before.gain


def test_the_budget_is_four_median_calls_and_a_refused_one_doubles_it():
    memory = Memory()
    assert CONTROL.limit(memory, 200) == CONTROL.first
    assert CONTROL.limit(memory, 5000) == CONTROL.budget * 2 * 5000
    calls = Calls()
    calls.make(count=5)
    assert CONTROL.limit(calls.memory, 200) == 4 * 100
    for limit in (400, 800, 1600):  # a problem that grew is caught up with
        assert CONTROL.limit(calls.memory, 200) == limit
        calls.memory = CONTROL.update(calls.memory, RTOL, Observation(limit, refused=True))
    assert calls.memory.gain == Memory(gain=calls.memory.gain).gain
    calls.make(count=CONTROL.window)
    assert CONTROL.limit(calls.memory, 200) == 4 * 100


def test_another_problem_begins_anew():
    (theta, apply), tasks = mlp(), regression(shots=20)
    learner, other = (AMAML(apply, half_mse, 0.01, steps) for steps in (200, 1000))
    memory = replace(learner.init().about(learner.problem(theta)), gain=1e-3)
    assert memory.about(learner.problem(theta)) is memory
    fresh = other.gradient(theta, tasks, other.init())
    after = other.update(memory, fresh)
    assert torch.equal(other.gradient(theta, tasks, memory).value, fresh.value)
    assert (fresh.measured, after.problem, len(after.calls)) == (True, other.problem(theta), 1)


def test_calls_of_a_checkpoint_made_before_savings_were_counted_are_read_as_they_were():
    old = (400.0, 5.0, 1e-2, 1.0, None, 0.0, True, True, None, ())
    seen = Memory.of(Memory().state_dict() | {"calls": [old]}).calls[0]
    assert seen == Observation(400.0, 5.0, 1e-2, 1.0, refused=True, descended=True)


def test_lambda_max_at_theta_is_searched_for_once_and_then_looked_at():
    (theta, apply), tasks = mlp(), regression(shots=20)
    learner = AMAML(apply, half_mse, 0.01, 200)
    memory = learner.update(learner.init(), learner.gradient(theta, tasks, learner.init()))
    memory = replace(memory, interval=math.inf)  # no turns
    looks = [learner.gradient(theta, tasks, one) for one in (memory, replace(memory, leading=None))]
    assert looks[0].evaluations.hvps < looks[1].evaluations.hvps


def test_one_wild_error_among_the_first_does_not_hold_the_gain_down():
    calls = Calls()
    for wild in (1e5, 1e-4, 1e-4):
        calls.memory = replace(calls.memory, since=99)
        calls.make(lambda gain, wild=wild: wild * gain)
    assert calls.memory.gain > 1


def test_a_call_that_is_refused_once_leaves_the_flow_to_the_next():
    calls, refused = Calls(), Observation(400.0, norm=1.0, refused=True, descended=True)
    assert CONTROL.update(calls.memory, RTOL, refused).descended
    calls.make(count=8)
    calls.memory = CONTROL.update(calls.memory, RTOL, refused)
    assert not calls.memory.descended
    for _ in range(4):
        calls.memory = CONTROL.update(calls.memory, RTOL, refused)
    assert calls.memory.descended
