"""A-MAML as a user meets it: a true error, nothing right refused, nothing absurd, and the cheaper way by auto."""

from dataclasses import replace

import pytest
import torch
from helpers.problems import Quadratic, diagonal, generator, mlp, regression, relative_error, remembered, seeded
from torch import nn

import amaml
from amaml import AMAML, OverBudget, Tasks, half_mse
from amaml.flow.accuracy import Controller, Memory, Observation
from amaml.flow.curvature import Curvature
from amaml.flow.mesh import GradedMesh
from amaml.flow.schemes import RK4
from amaml.flow.trajectory import Trajectory


def converged(learner: AMAML, theta, tasks) -> torch.Tensor:
    """Of the same flow, by fine steps of another scheme."""
    return replace(learner, solver="dopri5", adjoint="discrete", rtol=1e-5).meta_gradient(theta, tasks).value


def rough(seed: int):
    """Inputs of about 10 and a function with ripples: a stiff landscape with strong negative curvature."""
    x = 20 * torch.rand(3, 60, 2, generator=generator(seed), dtype=torch.float64) - 10
    y = (x * x.sin() + 0.1 * x).abs().sum(-1, keepdim=True)
    y, x = (y - y.mean()) / y.std(), 3**0.5 * x
    tasks = Tasks(x[:, :30], y[:, :30], x[:, 30:], y[:, 30:])
    return *seeded(lambda: amaml.mlp(2, 1, 12), seed), tasks


def smooth(seed: int):
    return *seeded(lambda: nn.Sequential(nn.Linear(2, 8), nn.Softplus(), nn.Linear(8, 1)), seed), regression(seed=seed)


@pytest.mark.parametrize(("make", "steps"), [(rough, 1200), (rough, 3000), (smooth, 1200)])
def test_a_fresh_learner_tells_its_error(make, steps):
    theta, apply, tasks = make(3)
    expected = converged(AMAML(apply, half_mse, 0.0005, steps), theta, tasks)
    for options in ({}, {"solver": "rk4"}, {"solver": "dopri5"}, {"adjoint": "continuous"}):
        gradient = AMAML(apply, half_mse, 0.0005, steps, **options).meta_gradient(theta, tasks)
        error = relative_error(gradient.value, expected)
        assert gradient.measured, options
        assert error < 3 * gradient.error, options
        assert error < 3e-3, options
        assert gradient.error < 50 * error + 1e-6, options


def exact(theta, hessian) -> torch.Tensor:
    """Its meta-gradient at T = 2 for targets of 1."""
    decay = torch.exp(-2 * hessian)
    return decay * (decay * (theta - 1) - 1)


@pytest.mark.parametrize("values", [[4.0, 0.5], [50.0, 5.0], [30.0, 1.0, 1.0, 1.0, 0.2]])
@pytest.mark.parametrize("offset", [0.0, 1.0])
def test_a_stiff_direction_in_which_theta_is_optimal_does_not_spoil_the_gradient(values, offset):
    """offset 0: theta is optimal in all directions, the field vanishes; 1: in the stiff one alone."""
    theta, tasks, hessian = diagonal(values, [1.0, *[1.0 + offset] * (len(values) - 1)], [1.0] * len(values))
    gradient = AMAML(Quadratic.apply, half_mse, 0.0005, 4000).meta_gradient(theta, tasks)
    assert relative_error(gradient.value, exact(theta, hessian)) < 3e-3


@pytest.mark.parametrize("solver", ["rk4", "auto", "dopri5"])
@pytest.mark.parametrize("adjoint", ["discrete", "continuous"])
def test_a_step_that_lambda_max_outran_in_one_of_two_tasks_is_found_on_the_way_back(monkeypatch, solver, adjoint):
    """Power iteration that begins without the stiff direction, and sees nothing above 4."""
    theta, tasks, hessian = diagonal([[4.0, 4.0], [60.0, 4.0]], [1.0, 2.0], [1.0, 1.0])
    rewinds, rewind = [], Trajectory.rewind
    monkeypatch.setattr(Curvature, "_first_start", lambda self: torch.tensor(2 * [[0.0, 1.0]], dtype=torch.float64))
    monkeypatch.setattr(Trajectory, "rewind", lambda self, count, u: (rewinds.append(count), rewind(self, count, u)))
    gradient = AMAML(Quadratic.apply, half_mse, 0.0005, 4000, solver, adjoint).meta_gradient(theta, tasks)
    assert 0 < len(rewinds) < 10
    assert relative_error(gradient.value, exact(theta, hessian).mean(0)) < 3e-3


def test_a_converged_loop_is_a_success():
    """A proximal term and a long horizon: the flow stands still, and |du/dt| is rounding noise."""
    (theta, apply), tasks = mlp(), regression()
    expected = AMAML(apply, half_mse, 0.01, 2000, solver="rk4", prox=1.0, rtol=1e-6).meta_gradient(theta, tasks).value
    for solver, dtype in (("auto", torch.float32), ("dopri5", torch.float64), ("rk4", torch.float32)):
        learner = AMAML(apply, half_mse, 0.01, 2000, solver=solver, prox=1.0)
        gradient = learner.meta_gradient(theta.to(dtype), tasks.to(dtype))
        assert relative_error(gradient.value.double(), expected) < 3e-3, (solver, dtype)


def test_euler_with_the_continuous_adjoint_is_compared_with_the_gradient_of_its_steps():
    (theta, apply), tasks = mlp(), regression()
    exact = AMAML(apply, half_mse, 0.1, 30, solver="euler").meta_gradient(theta, tasks)
    learner = AMAML(apply, half_mse, 0.1, 30, solver="euler", adjoint="continuous")
    gradient, *_, later = [learner.meta_gradient(theta, tasks) for _ in range(4)]
    assert (exact.error, gradient.measured) == (None, True)
    assert gradient.error == pytest.approx(relative_error(gradient.value, exact.value)) == pytest.approx(later.error)
    assert gradient.error > 1e-4
    assert torch.equal(later.value, gradient.value)


@pytest.mark.parametrize("solver", ["rk4", "rkc", "dopri5", "bosh3", "midpoint"])
def test_an_absurd_inner_lr_ends_at_once_with_a_clear_line(solver):
    (theta, apply), tasks = mlp(), regression()
    learner = AMAML(apply, half_mse, 1000.0, 200, solver=solver)
    for call in (learner.adapt, learner.meta_gradient):
        with pytest.raises(OverBudget, match="more than the 8000 evaluations .* try a smaller inner_lr") as refused:
            call(theta, tasks)
    assert refused.value.observation.cost < 20


def test_a_solve_that_the_way_back_would_take_over_its_budget_ends_before_it():
    (theta, apply), tasks = mlp(), regression(shots=20)
    learner, mesh = AMAML(apply, half_mse, 0.01, 200, solver="rk4"), GradedMesh((RK4,), 1e-3)
    whole = learner.passes(theta, tasks)
    whole.solve(mesh, Curvature(whole.flow))
    bounded = learner.passes(theta, tasks, limit=whole.flow.evaluations.total - 2)
    with pytest.raises(OverBudget):
        bounded.solve(mesh, Curvature(bounded.flow))
    found, of_all = bounded.flow.evaluations, whole.flow.evaluations
    assert (found.gradients, found.hvps) == (of_all.gradients, of_all.hvps - of_all.gradients)


def test_a_batch_that_costs_four_times_the_median_is_left_out_and_is_not_the_next_time():
    """Unlike auto, which then descends."""
    theta, apply, tasks = rough(0)
    stiff = Tasks(30 * tasks.support_x, tasks.support_y, tasks.query_x, tasks.query_y)
    learner = AMAML(apply, half_mse, 0.01, 60, solver="rkc")
    memory, refused = remembered(learner, theta, 6 * [tasks]), 0
    while refused < 12:
        try:
            assert learner.gradient(theta, stiff, memory).measured
            break
        except OverBudget as fault:
            memory, refused = learner.update(memory, fault), refused + 1
    assert 0 < refused < 12
    auto = AMAML(apply, half_mse, 0.01, 60)
    descended = auto.gradient(theta, stiff, remembered(auto, theta, 6 * [tasks]))
    assert descended.solver == "euler"
    exact = AMAML(apply, half_mse, 0.01, 60, solver="euler").meta_gradient(theta, stiff)
    assert torch.equal(descended.value, exact.value)


def pseudo_huber(prediction, target):
    return (torch.sqrt(1 + ((prediction - target) / 0.03).square()) - 1).mean()


@pytest.mark.parametrize(("loss", "solver"), [(half_mse, "auto"), (half_mse, "rkc"), (pseudo_huber, "auto")])
def test_adapting_is_as_exact_as_asked_for(loss, solver):
    (theta, apply), tasks = mlp(), regression(shots=20)
    learner = AMAML(apply, loss, 0.002, 400, solver=solver, rtol=1e-2)
    exact = AMAML(apply, loss, 0.002, 400, solver="euler").adapt(theta, tasks)
    try:
        found = learner.adapt(theta, tasks)
    except OverBudget:
        return
    flow = AMAML(apply, loss, 0.002, 400, solver="rk4", rtol=1e-6).adapt(theta, tasks)
    assert min(relative_error(found - theta, one - theta) for one in (flow, exact)) < 1e-2


@pytest.mark.parametrize("scale", [1e-6, 1e6])
def test_units_of_the_loss_do_not_matter(scale):
    """A loss a million times smaller with steps a million times longer is the same inner loop."""
    (theta, apply), tasks = mlp(), regression(shots=20)
    learner = AMAML(apply, half_mse, 0.01, 500)
    other = AMAML(apply, lambda p, t: scale * half_mse(p, t), 0.01 / scale, 500, query_loss=half_mse)
    one, two = (each.meta_gradient(theta, tasks) for each in (learner, other))
    assert one.evaluations == two.evaluations
    assert relative_error(two.value, one.value) < 1e-9


def test_the_error_is_relative_to_the_mean_over_the_tasks():
    """Two tasks whose gradients nearly cancel: the mean is held to rtol of its own size."""
    theta, apply, tasks = rough(2)
    one, learner = tasks[:1], AMAML(apply, half_mse, 0.0005, 1200)
    single, final = learner.meta_gradient(theta, one), apply(learner.adapt(theta, one)[0], one.query_x[0])
    mirrored = 2 * final - one.query_y + 0.02
    other = (*one.support, one.query_x, mirrored)
    pair = Tasks(*(torch.cat(two) for two in zip((*one.support, *one.query), other, strict=True)))
    learner = AMAML(apply, half_mse, 0.0005, 1200)  # without a memory
    gradient = learner.meta_gradient(theta, pair)
    assert gradient.value.norm() < 0.1 * single.value.norm()
    error = relative_error(gradient.value, converged(learner, theta, pair))
    assert error < 3e-3
    assert error < 3 * gradient.error


def test_steps_that_leave_the_finite_numbers_are_taken_again_where_the_flow_does_not():
    """A predicted variance that falls as the mean fits: lambda_max grows a hundredfold within a few steps."""

    def negative_log_likelihood(prediction, target):
        mean, log_variance = prediction.chunk(2, -1)
        return (log_variance + (mean - target) ** 2 * torch.exp(-log_variance)).mean() / 2

    theta, apply = seeded(lambda: nn.Sequential(nn.Linear(2, 16), nn.Tanh(), nn.Linear(16, 2)), 2)
    rough, fine = (AMAML(apply, negative_log_likelihood, 0.001, 2500, "rkc", rtol=rtol) for rtol in (3e-2, 1e-3))
    gradient, reference = (learner.meta_gradient(theta, regression(tasks=1)) for learner in (rough, fine))
    assert relative_error(gradient.value, reference.value) < 3e-2


def test_an_error_that_cannot_be_brought_below_rtol_is_refused_and_auto_descends(monkeypatch):
    (theta, apply), tasks = mlp(), regression()
    monkeypatch.setattr("amaml.flow.accuracy.relative_distance", lambda a, b: 0.5)
    with pytest.raises(OverBudget, match=r"measured relative error is inf, above 0.001, .* try a smaller inner_lr"):
        AMAML(apply, half_mse, 0.05, 40, solver="rk4", controller=Controller(first=300)).meta_gradient(theta, tasks)
    gradient = AMAML(apply, half_mse, 0.05, 100).meta_gradient(theta, tasks)
    assert (gradient.solver, gradient.error) == ("euler", None)


def relu():
    return seeded(lambda: nn.Sequential(nn.Linear(2, 24), nn.ReLU(), nn.Linear(24, 24), nn.ReLU(), nn.Linear(24, 1)))


@pytest.mark.parametrize(
    ("network", "inner_lr", "steps"),
    [(mlp, 0.1, 5), (relu, 0.01, 10), (relu, 0.01, 20), (relu, 0.01, 200), (mlp, 0.8, 100)],
    ids=["few steps", "few steps with kinks", "kinks", "many kinks", "long steps"],
)
def test_auto_is_gradient_descent_at_its_price_where_the_flow_is_as_dear(network, inner_lr, steps):
    (theta, apply), tasks = network(), regression(shots=20)
    exact = AMAML(apply, half_mse, inner_lr, steps, solver="euler")
    learner = AMAML(apply, half_mse, inner_lr, steps)
    first = learner.gradient(theta, tasks, learner.init())
    assert (first.solver, first.error, first.measured) == ("euler", None, False)
    assert first.evaluations.total <= 2 * steps + 3 + 0.1 * steps
    assert torch.equal(first.value, exact.meta_gradient(theta, tasks).value)
    memory = learner.update(learner.init(), first)
    second = learner.gradient(theta, tasks, memory)
    assert second.solver == "euler"
    assert torch.equal(learner.adapt(theta, tasks, memory), exact.adapt(theta, tasks))
    assert torch.equal(learner.adapt(theta, tasks), exact.adapt(theta, tasks))


def test_auto_follows_a_smooth_flow_of_many_steps_and_remembers_the_gain_for_adapting_too():
    (theta, apply), tasks = mlp(), regression(shots=20)
    learner = AMAML(apply, half_mse, 0.01, 500)
    memory = remembered(learner, theta, 6 * [tasks])
    later = learner.gradient(theta, tasks, memory)
    assert (memory.descended, later.solver) == (False, "auto")
    assert later.evaluations.total < 0.5 * 500
    kept = [learner.follow(theta, tasks, one, [500]).kept[0] for one in (memory, learner.init())]
    assert kept[0].flow.evaluations.gradients < kept[1].flow.evaluations.gradients / 2


def test_auto_follows_the_flow_of_long_steps_where_that_is_the_cheaper():
    """Steps of inner_lr lambda_max = 1.3, and a slow direction that the gradient comes from."""
    (theta, apply), given = seeded(lambda: nn.Linear(2, 1, bias=False), 1), regression(shots=20)
    narrow = torch.tensor([1.0, 0.1], dtype=torch.float64)
    tasks = replace(given, support_x=given.support_x * narrow, query_x=given.query_x * narrow)
    learner = AMAML(apply, half_mse, 1.3 / 1.398, 200, rtol=1e-2)
    memory = remembered(learner, theta, 5 * [tasks])
    assert memory.leading.value * learner.inner_lr > 1.2
    later = learner.gradient(theta, tasks, memory)
    assert (later.solver, later.evaluations.total < 0.5 * 400) == ("auto", True)


def test_auto_looks_again_where_the_gradient_jumps():
    """From a network with kinks to one without: looks are rarer and rarer until the gradient is another one."""
    (theta, apply), tasks = mlp(), regression(shots=20)
    learner = AMAML(apply, half_mse, 0.01, 500)
    memory = Memory(learner.problem(theta), descended=True, interval=50.0)
    for norm, solver in (*(4 * [(1.0, "euler")]), (9.0, "auto")):
        seen = Observation(1000, norm=norm, descended=True)
        memory = learner.controller.update(memory, 1e-3, seen)
        assert learner.gradient(theta, tasks, memory).solver == solver
