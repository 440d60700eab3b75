"""When the error is measured, what it steers, and what the state remembers."""

import io
import math
import random
import statistics
from dataclasses import replace

import pytest
import torch
from amaml.flow.control import BUDGET, FIRST_BUDGET, HELD, LONGEST, SHARE, TYPICAL, WORST, Control, Observation
from helpers.problems import mlp, regression, relative_error

from amaml import AMAML, half_mse
from amaml.flow import steps

PROBLEM = ("auto", 200)


def calls(control: Control, errors, cost=100.0, measuring=160.0, count=1000) -> list[float]:
    """A run of calls whose first solves cost the same; errors(gain) is what a measurement finds. The gains."""
    gains = []
    for _ in range(count):
        gains.append(control.gain)
        due = control.due(cost, 5.0, 1.0)
        seen = Observation(cost, 5.0, 1.0, errors(control.gain) if due else None, measuring if due else 0.0)
        control.learn(PROBLEM, 1e-3, seen)
    return gains


def test_the_first_call_is_measured_and_a_long_run_spends_a_tenth_at_most_on_it():
    control = Control()
    assert control.due(100, 5.0, 1.0)
    random.seed(0)
    calls(control, lambda gain: 4e-4 * gain * math.exp(random.gauss(0, 0.7)), count=3000)
    assert control.measuring < 0.1 * (control.spent + control.measuring)
    assert control.since <= LONGEST


@pytest.mark.parametrize("factor", [10, 0.1, 100])
def test_a_law_that_is_off_is_brought_to_rtol_within_five_calls(factor):
    gains = calls(Control(), lambda gain: 1e-3 * factor * gain, count=6)
    assert 0.2e-3 < 1e-3 * factor * gains[5] < 1e-3


def test_a_law_that_is_off_in_earnest_is_brought_to_rtol_within_five_calls(monkeypatch):
    """The same on a network, where single errors scatter around the typical one: the law's layers are ten times too
    long."""
    (theta, apply), tasks = mlp(), regression(shots=20)
    reference = AMAML(apply, half_mse, 0.01, 2000, solver="rk4", rtol=1e-7).meta_gradient(theta, tasks).value
    for name in ("LAYER", "SHORT", "GROWTH"):
        monkeypatch.setattr(steps, name, {order: 10 ** (1 / order) * c for order, c in getattr(steps, name).items()})
    learner = AMAML(apply, half_mse, 0.01, 2000)
    first = learner.meta_gradient(theta, tasks).observation.error
    assert first > 5e-3
    for _ in range(4):
        learner.meta_gradient(theta, tasks)
    monkeypatch.setattr(Control, "due", lambda *arguments: False)
    sixth = learner.meta_gradient(theta, tasks)
    assert not sixth.measured
    assert 0.3e-3 < relative_error(sixth.value, reference) < 1.5e-3


@pytest.mark.parametrize("name", ["cost", "sharpest", "norm"])
def test_a_jump_is_measured_at_once(name):
    control = Control()
    calls(control, lambda gain: 4e-4, count=1000)
    control.since, control.rough, usual = 0, 0.1, {"cost": 100.0, "sharpest": 5.0, "norm": 1.0}
    assert not control.due(**usual)
    assert control.due(**usual | {name: 6 * usual[name]})
    control.measuring = SHARE * control.spent * 1.2  # too much was measured of late
    assert not control.due(**usual | {name: 6 * usual[name]})
    assert control.due(100.0, 5.0, math.nan)


def test_a_large_error_is_looked_at_again_soon():
    control = Control()
    calls(control, lambda gain: 4e-4 * gain, count=200)
    interval, gain = control.interval, control.gain
    control.since = LONGEST  # its turn
    control.learn(PROBLEM, 1e-3, Observation(100, 5.0, 1.0, 1.7e-3, 160))  # below WORST rtol
    assert control.interval == LONGEST == interval
    gain, control.since = control.gain, LONGEST
    control.learn(PROBLEM, 1e-3, Observation(100, 5.0, 1.0, 4.5e-3, 160))
    assert control.interval == interval / 2
    assert control.since == 0
    assert control.gain == pytest.approx(gain * WORST / 4.5)  # the largest error is WORST rtol at the new gain
    control.since = LONGEST
    control.learn(PROBLEM, 1e-3, Observation(100, 5.0, 1.0, 5.0, 160))
    assert control.gain == pytest.approx(HELD * TYPICAL / statistics.median(control.errors))  # however large it is


def test_turns_come_later_only_once_the_gain_has_stopped_growing():
    """An error of a fifth of rtol lets the gain grow fourfold: steps that long have not been measured yet."""
    control = Control()
    calls(control, lambda gain: 2e-4 * gain, count=1)
    assert (control.gain, control.interval) == (4.0, 1.0)
    calls(control, lambda gain: 2e-4 * gain, count=1)
    assert (control.gain, control.interval) == (4.0, 2.5)


def test_rough_batches_leave_the_gain_alone_and_carry_an_error_of_their_own():
    control = Control()
    calls(control, lambda gain: 4e-4, count=200)
    control.since, control.interval = 3, 20.0
    before = control.state_dict()
    assert control.carried(1e-3, 1.0) == pytest.approx(4e-4, rel=0.1)
    assert control.carried(1e-3, 9.0) is None
    control.measuring = SHARE * control.spent * 1.2  # too much was measured of late, but none of these
    assert control.due(100.0, 5.0, 9.0)
    for since in (3, LONGEST):  # out of turn, and in turn
        control.since = since
        control.learn(PROBLEM, 1e-3, Observation(100, 5.0, 9.0, 5e-2, 160))
        assert (control.gain, control.errors, control.interval) == (before["gain"], before["errors"], 20.0)
    assert control.since == 0
    assert control.due(100.0, 5.0, 9.0)  # an error of 50 rtol is not to be returned
    assert control.carried(1e-3, 9.0) == pytest.approx(5e-2)
    assert control.carried(1e-3, 1.0) == pytest.approx(4e-4, rel=0.1)
    control.learn(PROBLEM, 1e-3, Observation(100, 5.0, 9.0, 2e-3, 160))  # out of turn
    assert control.interval == 20.0
    assert not control.due(100.0, 5.0, 9.0)


def test_a_change_of_the_whole_problem_is_followed():
    """After 25 calls a gradient that is ten times larger is the usual one, and then two turns tell."""
    control = Control()
    calls(control, lambda gain: 4e-4 * gain, count=200)
    for _ in range(25 + 2 * LONGEST):
        due = control.due(100.0, 5.0, 10.0)
        error = 5e-3 * control.gain if due else None
        control.learn(PROBLEM, 1e-3, Observation(100, 5.0, 10.0, error, 160 if due else 0))
    assert control.gain < 0.6
    assert control.carried(1e-3, 10.0) < 3e-3


@pytest.mark.parametrize(("spread", "typical"), [(0.1, TYPICAL), (1.0, None)])
def test_the_gain_is_as_large_as_the_median_and_the_worst_error_allow(spread, typical):
    """Of all calls, measured or not; the second case is as rough as 200 steps from a meta-trained theta."""
    random.seed(1)
    gains = calls(Control(), lambda gain: 1e-3 * gain * math.exp(random.gauss(0, spread)), count=20_000)
    errors = sorted(1e-3 * gain * math.exp(random.gauss(0, spread)) for gain in gains[200:])
    middle, high = errors[len(errors) // 2], errors[int(0.95 * len(errors))]
    assert high < 3e-3
    assert middle == pytest.approx(1e-3 * typical, rel=0.15) if typical else 0.25e-3 < middle < 0.5e-3


def test_the_error_is_carried_with_the_gain():
    control = Control()
    control.learn(PROBLEM, 1e-3, Observation(100, 5.0, 1.0, 1e-2, 160))
    assert control.carried(1e-3, 1.0) == pytest.approx(1e-2 * control.gain)


def test_the_budget_is_four_medians_once_they_mean_something():
    control = Control()
    assert control.budget(200) == FIRST_BUDGET[0]
    assert control.budget(5000) == 5000 * FIRST_BUDGET[1]
    for cost in (10, 100, 90, 110, 1000):
        control.learn(PROBLEM, 1e-3, Observation(cost, 5.0, 1.0, None, 0))
    assert control.budget(200) == BUDGET * 100


def test_another_problem_begins_anew():
    control = Control()
    calls(control, lambda gain: 1e-2 * gain, count=50)
    assert control.about(PROBLEM) is control
    other = control.about(("auto", 1000))
    assert other.gain == 1
    assert other.due(100, 5.0, 1.0)
    control.learn(("auto", 1000), 1e-3, Observation(100, 5.0, 1.0, None, 0))
    assert control.problem == ("auto", 1000)
    assert control.history["cost"] == [100]
    assert control.gain == 1


def test_lambda_max_at_theta_is_searched_for_once_and_then_looked_at():
    """1 product where the last call found the same, 3 at least where nothing is known."""
    (theta, apply), tasks = mlp(), regression(shots=20)
    learner = AMAML(apply, half_mse, 0.01, 20)
    for _ in range(3):
        learner.meta_gradient(theta, tasks)
    assert learner.control.known.value > 0
    learner.control.interval = math.inf  # no measurements
    without = replace(learner, control=replace(learner.control, known=None))
    spent = [one.meta_gradient(theta, tasks).evaluations for one in (learner, without)]
    assert spent[1].hvps - spent[0].hvps == 2


def test_a_restored_state_goes_on_to_the_bit():
    (theta, apply), tasks = mlp(), [regression(seed=seed) for seed in range(8)]
    whole, first = (AMAML(apply, half_mse, 0.05, 40) for _ in range(2))
    values = [whole.meta_gradient(theta, batch).value for batch in tasks]
    for batch in tasks[:4]:
        first.meta_gradient(theta, batch)
    second = AMAML(apply, half_mse, 0.05, 40)
    file = io.BytesIO()
    torch.save(first.control.state_dict(), file)
    second.control.load_state_dict(torch.load(io.BytesIO(file.getvalue()), weights_only=True))
    for batch, value in zip(tasks[4:], values[4:], strict=True):
        assert torch.equal(second.meta_gradient(theta, batch).value, value)
