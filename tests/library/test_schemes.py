"""Steps and adjoints: order, stability, closed forms and differences; what is kept of a trajectory, the same bits."""

import gc
import math
from functools import partial

import pytest
import torch
from helpers.problems import Quadratic, classification, convnet, mlp, mlp_flow, regression, relative_error, slope_error
from torch.nn.functional import pad
from torchdiffeq import odeint

from amaml import AMAML, Tasks, half_mse
from amaml.engine import derivatives
from amaml.flow.adjoint import continuous, discrete
from amaml.flow.chebyshev import MOST, Chebyshev
from amaml.flow.curvature import Curvature
from amaml.flow.descent import FixedMesh
from amaml.flow.field import GradientFlow
from amaml.flow.mesh import SOLVERS, GradedMesh
from amaml.flow.optimizers import Optimizer
from amaml.flow.schemes import DOPRI5, EULER, MIDPOINT, RK3, RK4, Move
from amaml.flow.trajectory import Trajectory
from amaml.models import Apply
from baselines import MAML


def _one_step(scheme, apply: Apply, loss, x: float, h: float, share: float = 1.0) -> float:
    """From u = 1, of one task of one point, up to a share of a step."""
    x = torch.full((1, 1, 1), x, dtype=torch.float64)
    flow = GradientFlow(apply, loss, Tasks(x, 0 * x, x, 0 * x), torch.ones(1, dtype=torch.float64))
    trajectory = Trajectory(flow)
    trajectory.begin(None, [share * h])
    trajectory.extend([Move(scheme, 0.0, h, h)])
    return trajectory.path(1).item()


def stability_value(scheme, z: float, share: float = 1.0) -> float:
    """R(-z): one step of size 1 on du/dt = -z u from u = 1, or a share of it."""
    return _one_step(scheme, Quadratic.apply, half_mse, math.sqrt(z), 1.0, share)


def cubic_step(scheme, h: float, share: float = 1.0) -> float:
    """One step on the flow of u^3 / 3 from u = 1, which is 1 / (1 + t), or a share of it."""
    return _one_step(scheme, lambda u, x: u**3 / 3 + 0 * x, lambda value, target: value.sum(), 0.0, h, share)


@pytest.mark.parametrize("scheme", [EULER, MIDPOINT, RK4], ids=lambda scheme: scheme.name)
def test_fixed_steps_are_torchdiffeqs(scheme):
    flow, times = mlp_flow(), torch.tensor([0.0, 0.3, 0.4, 1.0], dtype=torch.float64)
    trajectory = Trajectory(flow)
    ends = times.tolist()
    trajectory.extend([Move(scheme, a, b, b - a) for a, b in zip(ends[:-1], ends[1:], strict=True)])
    expected = odeint(lambda t, u: flow(u), flow.start, times, method=scheme.name)[-1]
    torch.testing.assert_close(trajectory.final, expected, rtol=1e-13, atol=1e-15)


def test_order_stability_and_error_constant_follow_from_the_tableau():
    """Of Hairer and Wanner's tables; the constants of methods with as many stages as their order are 1 / (p + 1)!."""
    known = {EULER: (1, 2.0, 1 / 2), MIDPOINT: (2, 2.0, 1 / 6), RK3: (3, 2.513, 1 / 24), RK4: (4, 2.785, 1 / 120)}
    known[DOPRI5] = (5, 3.307, 1 / 3600)  # |1/720 - 1/600| on linear problems
    for scheme, (order, stability, constant) in known.items():
        assert scheme.order == order
        assert scheme.stability == pytest.approx(stability, abs=1e-3)
        assert scheme.error_constant == pytest.approx(constant)


@pytest.mark.parametrize("scheme", [EULER, MIDPOINT, RK3, RK4, DOPRI5, Chebyshev(3), Chebyshev(12)])
def test_a_step_and_the_states_within_it_are_of_the_orders_that_the_scheme_tells(scheme):
    """On a nonlinear flow. Errors of states within are then as small as the sum of those of all steps."""
    for share, order in ((1.0, scheme.order), (0.4, scheme.within.order)):
        errors = [abs(cubic_step(scheme, h, share) - 1 / (1 + share * h)) for h in (0.02, 0.01)]
        assert math.log2(errors[0] / errors[1]) > order + 0.7
    assert scheme.order - 1 <= scheme.within.order <= scheme.order
    assert scheme.within.weights(1.0) == pytest.approx([0.0] * scheme.cost + [1.0], abs=1e-12)


@pytest.mark.parametrize("stages", [3, 4, 5, 9, 20, 64])
def test_chebyshev_steps_are_damped_over_their_whole_interval_and_not_beyond(stages):
    """For which they are the cheapest."""
    scheme = Chebyshev(stages)
    assert scheme.stability == (stages**2 - 1) / 2
    found = [Chebyshev().covering(z * scheme.stability).stages for z in (1.0, 1.001)]
    assert found == [stages, min(stages + 1, MOST)]
    for share in torch.linspace(0.005, 1.0, 200).tolist():
        z = share * scheme.stability
        assert abs(stability_value(scheme, z)) <= (0.92 if z > 3 else 1.0)
        assert abs(stability_value(scheme, z, 0.37)) <= 1.15
    assert abs(stability_value(scheme, 1.4 * scheme.stability)) > 1


@pytest.mark.parametrize(("stages", "most"), [(3, 0.5), (5, 0.2), (9, 0.08), (30, 0.035)])
def test_chebyshev_steps_miss_the_third_order_by_little_and_on_what_is_not_linear_by_about_as_little(stages, most):
    """RKC's error is 0.4 of the Taylor series' third term."""
    h, scheme = 1e-3, Chebyshev(stages)
    linear = abs(stability_value(scheme, h) - math.exp(-h)) / (h**3 / 6)
    assert linear < most
    assert scheme.error_constant * 6 == pytest.approx(linear, rel=0.01)
    assert abs(cubic_step(scheme, h) - 1 / (1 + h)) / h**3 == pytest.approx(linear, rel=0.2)


FIXED = {scheme.name: scheme for scheme in (EULER, MIDPOINT, RK3, RK4, DOPRI5)}
FIXED |= {"rkc3": Chebyshev(3), "rkc5": Chebyshev(5)}
CASES = {  # network, tasks, loss, a horizon of stable steps
    "mlp": (mlp, regression, half_mse, 0.3),
    "conv": (convnet, classification, torch.nn.functional.cross_entropy, 0.03),
}


READ = (0.0, 0.17, 0.3, 0.5, 0.8, 1.0)  # of the horizon: of some steps no state, of others the end or two within


def total(adjoint, flow, trajectory):
    """The gradient of the query losses along the way: lam(0) and the pull of the proximal term, over the tasks."""
    path = trajectory.path(flow.theta.shape[-1])
    lam = torch.stack([derivatives.gradients(flow.apply, flow.loss, state, *flow.tasks.query) for state in path])
    swept = adjoint(flow, trajectory, torch.zeros_like(trajectory.final), jumps=trajectory.jumps(lam))
    return (swept.lam + flow.prox * swept.sweep.pulled).mean(0)


def fixed_steps(flow, scheme, horizon, count):
    trajectory = Trajectory(flow)
    trajectory.begin(None, [horizon * share for share in READ])
    times = [horizon * i / count for i in range(count + 1)]
    trajectory.extend([Move(scheme, a, b, b - a) for a, b in zip(times[:-1], times[1:], strict=True)])
    return trajectory


DERIVATIVES = [("mlp", name, 0.7) for name in FIXED]
DERIVATIVES += [("mlp", "rk4", 0.0), ("conv", "rk4", 0.7), ("conv", "rkc3", 0.0)]


@pytest.mark.parametrize(("case", "name", "prox"), DERIVATIVES)
def test_discrete_adjoint_is_the_derivative_of_the_forward_pass(case, name, prox):
    network, make_tasks, loss, horizon = CASES[case]
    (theta, apply), tasks = network(), make_tasks(tasks=2)

    def followed(theta):
        flow = GradientFlow(apply, loss, tasks, theta, prox)
        return flow, fixed_steps(flow, FIXED[name], horizon, count=4)

    def meta_loss(theta):
        path = followed(theta)[1].path(len(theta))
        return sum(derivatives.losses(apply, loss, state, tasks.query_x, tasks.query_y).mean() for state in path)

    assert slope_error(total(discrete, *followed(theta)), meta_loss, theta) < 1e-7


@pytest.mark.parametrize(("name", "prox"), [("rk4", 0.0), *((name, 0.5) for name in SOLVERS)])
def test_every_solver_converges_to_the_exact_flow_of_a_quadratic(name, prox):
    """u(T) = decay theta + (I - decay) (H + prox)^-1 (H u* + prox theta), with theta twice where prox > 0."""
    q, horizon = Quadratic(), 3.0
    eye = torch.eye(len(q.theta), dtype=torch.float64)
    regularised = q.hessian + prox * eye
    decay = torch.linalg.matrix_exp(-horizon * regularised)
    pull = torch.linalg.solve(regularised, eye - decay)
    expected = q.gradient(decay + prox * pull, (pull @ q.hessian @ q.minimum[..., None])[..., 0])
    steps, rtol = 1000 if name == "euler" else 10_000, 1e-4 if name in ("midpoint", "rkc") else 1e-6
    learner = AMAML(q.apply, half_mse, horizon / steps, steps, solver=name, rtol=rtol, prox=prox)
    tolerance = {"euler": 1e-2, "midpoint": 1e-3, "rkc": 1e-3, "bosh3": 1e-4, "dopri5": 1e-4}.get(name, 1e-5)
    assert relative_error(learner.meta_gradient(q.theta, q.tasks).value, expected) < tolerance


@pytest.mark.parametrize("prox", [0.0, 0.6])
def test_the_continuous_adjoint_converges_to_the_discrete_one_at_second_order(prox):
    def gradient(adjoint, count: int) -> torch.Tensor:
        flow = mlp_flow(prox=prox)
        return total(adjoint, flow, fixed_steps(flow, RK4, horizon=2.0, count=count))

    errors = [relative_error(gradient(continuous, n), gradient(discrete, n)) for n in (16, 32)]
    assert math.log2(errors[0] / errors[1]) == pytest.approx(2, abs=0.3)


def test_one_hvp_for_each_stage_of_each_step_and_two_for_a_step_of_heuns():
    for name, stages in (("euler", 1), ("midpoint", 2), ("rk4", 4), ("rkc3", 3), ("rkc5", 5)):
        for adjoint, products in ((discrete, stages), (continuous, 2)):
            flow = mlp_flow()
            trajectory = fixed_steps(flow, FIXED[name], 0.5, 5)
            adjoint(flow, trajectory, torch.ones_like(trajectory.final))
            assert (flow.evaluations.gradients, flow.evaluations.hvps) == (5 * stages, 5 * products)


def _kept_and_gradient(solver, checkpoints, steps=40):
    flow = mlp_flow()
    trajectory = Trajectory(flow, checkpoints)
    mesh = GradedMesh(SOLVERS[solver], 1e-4) if SOLVERS[solver] else FixedMesh(steps)
    mesh.follow(trajectory, [0.05 * steps], Curvature(flow))
    lam = derivatives.gradients(flow.apply, flow.loss, trajectory.final, *flow.tasks.query)
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

    base = 3  # the start, the field there and the final state
    assert alive() <= checkpoints + base
    for i, _, stages in trajectory.backwards():
        if i % 16 == 0:
            assert alive() <= checkpoints + len(stages) + base + 1


@pytest.mark.parametrize("optimizer", ["sgd", "adam"])
def test_large_trajectories_thin_out_by_themselves(monkeypatch, optimizer):
    def kept(steps):
        flow = GradientFlow(apply, half_mse, tasks, theta)
        trajectory = FixedMesh(steps, Optimizer(optimizer)).follow(Trajectory(flow), [0.05 * steps])
        states = len(trajectory._states) * trajectory.final.numel() * 8
        lam = derivatives.gradients(apply, half_mse, trajectory.final[..., : len(theta)], *tasks.query)
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


@pytest.mark.parametrize("make", [MAML, partial(AMAML, solver="euler"), partial(AMAML, solver="rk4")])
def test_no_graph_is_kept_across_steps_but_by_maml(make):
    """Of A-MAML autograd keeps tensors for a moment, for the check of one task's loss."""
    (theta, apply), tasks, kept = mlp(), regression(), {10: [], 40: []}
    for steps, found in kept.items():
        learner = make(apply, half_mse, 0.05, steps)
        learner.meta_gradient(theta, tasks)  # traces its graphs, which the hooks below would not let it
        with torch.autograd.graph.saved_tensors_hooks(lambda t, found=found: found.append(t.shape) or t, lambda t: t):
            learner.meta_gradient(theta, tasks)
    few, many = map(len, kept.values())
    assert many > 3 * few > 0 if make is MAML else few == many


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
