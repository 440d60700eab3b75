"""The engine: step control, Chebyshev schemes, checkpoints, compiled graphs, chunks."""

import gc
import math

import pytest
import torch
from problems import Quadratic, classification, convnet, mlp, most_saved, regression, relative_error
from torch import nn
from torch.func import jacrev, vmap

import amaml
import data
from amaml import AMAML, Diverged, half_mse
from amaml.experiment.networks import initialise
from amaml.flow import derivatives
from amaml.flow.adjoint import discrete
from amaml.flow.chebyshev import Chebyshev, fewest_stages
from amaml.flow.field import Evaluations, GradientFlow
from amaml.flow.schemes import RK4, Move
from amaml.flow.steps import SOLVERS, Curvature, Law, solve
from amaml.flow.trajectory import Trajectory, _split
from amaml.learner import Chunked, query_gradient
from baselines import FOMAML


def stability_value(scheme, z: float) -> float:
    """R(-z): one step of size 1 on du/dt = -z u from u = 1."""
    x = torch.full((1, 1, 1), math.sqrt(z), dtype=torch.float64)
    flow = GradientFlow(Quadratic.apply, half_mse, amaml.Tasks(x, 0 * x, x, 0 * x), torch.ones(1, dtype=torch.float64))
    return scheme.march(flow, [Move(scheme, 0.0, 1.0, 1.0)], flow.start, lambda move, stages: None).item()


@pytest.mark.parametrize("stages", [2, 3, 5, 9, 20, 64])
def test_chebyshev_steps_are_damped_over_their_whole_interval_and_not_beyond(stages):
    scheme = Chebyshev(stages)
    assert scheme.stability > 0.62 * (stages**2 - 1)
    for share in torch.linspace(0.02, 1.0, 40).tolist():
        assert abs(stability_value(scheme, share * scheme.stability)) <= 1 + 1e-12
    assert abs(stability_value(scheme, 1.4 * scheme.stability)) > 1


@pytest.mark.parametrize("stages", [2, 3, 5, 9])
def test_chebyshev_steps_are_of_second_order(stages):
    errors = [abs(stability_value(Chebyshev(stages), z) - math.exp(-z)) for z in (0.02, 0.01)]
    assert abs(math.log2(errors[0] / errors[1]) - 3) < 0.1


def test_fewest_stages_is_the_cheapest_stable_step():
    for z in (0.1, 1.9, 2.1, 5.0, 40.0, 1000.0):
        scheme = fewest_stages(z)
        assert scheme.stability >= z
        assert scheme.stages == 2 or Chebyshev(scheme.stages - 1).stability < z


@pytest.mark.parametrize("name", [name for name in SOLVERS if name in ("auto", "rk4", "midpoint", "rkc")])
@pytest.mark.parametrize("horizon", [0.03, 1.0, 300.0])
def test_plans_cover_the_horizon_inside_the_stability_interval(name, horizon):
    law = Law(SOLVERS[name], horizon, rtol=1e-3, start=4.0)
    moves = law.plan(0.0, 4.0)
    assert moves[0].start == 0.0
    if sum(move.scheme.cost for move in moves) < 20 * 28:  # longer ones are planned piece by piece
        assert moves[-1].end == horizon
    for move, following in zip(moves, [*moves[1:], None], strict=True):
        assert move.h > 0
        assert move.h * 4.0 < move.scheme.stability
        assert following is None or move.end == following.start


@pytest.mark.parametrize("name", ["auto", "rk4", "rkc"])
def test_an_absurd_horizon_is_an_error_at_once(name):
    with pytest.raises(Diverged, match="takes more than 50000 steps"):
        Law(SOLVERS[name], 1e31, rtol=1e-3, start=4.0).plan(0.0, 4.0)


def test_auto_spends_far_fewer_gradients_than_gradient_descent_on_a_long_horizon():
    q = Quadratic()
    learner = AMAML(q.apply, half_mse, inner_lr=0.01, inner_steps=5000)
    spent = learner.meta_gradient(q.theta, q.tasks).evaluations
    assert spent.gradients < 600
    assert spent.hvps < 600


@pytest.mark.parametrize("steps", [20, 200, 2000])
def test_auto_keeps_its_tolerance(steps):
    (theta, apply), tasks = mlp(), regression(shots=20)
    gradient = AMAML(apply, half_mse, 0.01, steps).meta_gradient(theta, tasks)
    reference = AMAML(apply, half_mse, 0.01, steps, solver="rk4", rtol=1e-7).meta_gradient(theta, tasks)
    assert relative_error(gradient.value, reference.value) < 5e-3
    assert gradient.error < 1e-2


@pytest.mark.parametrize("steps", [20, 200, 1000])
@pytest.mark.filterwarnings("ignore:meta-gradients with an estimated error")
def test_a_stiff_problem_gives_a_right_gradient_or_a_clear_error(steps):
    """Alpine2D with its inputs scaled by 10, on which plain dopri5 explodes."""
    tasks = data.make("Alpine2D", data.Sampling(50, 50, 2, seed=0)).episode(0)
    tasks = amaml.Tasks(10 * tasks.support_x, tasks.support_y, 10 * tasks.query_x, tasks.query_y)
    theta, apply = initialise(lambda: amaml.mlp(2, 1, 8), 0, torch.float64, "cpu")
    try:
        gradient = AMAML(apply, half_mse, 0.01, steps).meta_gradient(theta, tasks)
    except Diverged as error:
        assert "try a smaller" in str(error)  # noqa: PT017
        return
    reference = AMAML(apply, half_mse, 0.01, steps, solver="rk4", rtol=1e-6).meta_gradient(theta, tasks)
    assert relative_error(gradient.value, reference.value) < 1e-2


def test_steps_keep_up_with_a_flow_that_sharpens_suddenly():
    """lambda_max grows from 5 to 40: an estimate that lagged behind gave a gradient 30 times too large."""
    tasks = data.make("Sinusoid", data.Sampling(10, 10, 4, seed=1)).episode(1)
    theta, apply = initialise(lambda: amaml.mlp(1, 1, 40), 1, torch.float64, "cpu")
    flow = GradientFlow(apply, half_mse, tasks, theta)
    trajectory = solve(flow, "auto", 0.01, 200, 1e-3)
    curvature = Curvature(flow)
    for move, stages in trajectory.backwards():
        assert move.h * max(curvature.at(stages[0])) < move.scheme.stability
    gradient = AMAML(apply, half_mse, 0.01, 200).meta_gradient(theta, tasks)
    reference = AMAML(apply, half_mse, 0.01, 200, solver="rk4", rtol=1e-6).meta_gradient(theta, tasks)
    assert relative_error(gradient.value, reference.value) < 1e-2


def test_lambda_max_is_settled_before_it_is_believed():
    (theta, apply), tasks = mlp(), regression(shots=20)
    flow = GradientFlow(apply, half_mse, tasks, theta)
    exact = vmap(jacrev(jacrev(lambda u, x, y: half_mse(apply(u, x), y))), (None, 0, 0))
    largest = torch.linalg.eigvalsh(exact(theta, tasks.support_x, tasks.support_y))[:, -1]
    found = torch.tensor(Curvature(flow).at(flow.start), dtype=torch.float64)
    assert (found <= largest * (1 + 1e-9)).all()
    assert (found > 0.9 * largest).all()


@pytest.mark.parametrize("checkpoints", [None, 4])
def test_a_rewound_trajectory_goes_on_as_if_nothing_had_been(checkpoints):
    (theta, apply), tasks = mlp(), regression()
    flow = GradientFlow(apply, half_mse, tasks, theta)
    moves = [Move(RK4, 0.1 * i, 0.1 * (i + 1), 0.1) for i in range(12)]
    straight, wound = Trajectory(flow, checkpoints), Trajectory(flow, checkpoints)
    straight.extend(moves)
    wound.extend(moves[:5])
    u = wound.final
    wound.extend([Move(RK4, 0.5 + i, 1.5 + i, 1.0) for i in range(6)])
    wound.rewind(5, u)
    wound.extend(moves[5:])
    lam = torch.ones_like(u)
    assert wound.moves == straight.moves
    assert torch.equal(wound.final, straight.final)
    assert torch.equal(discrete(flow, wound, lam)[0], discrete(flow, straight, lam)[0])


def _kept_and_gradient(solver, checkpoints, steps=60):
    (theta, apply), tasks = mlp(), regression()
    flow = GradientFlow(apply, half_mse, tasks, theta)
    trajectory = solve(flow, solver, 0.05, steps, 1e-4, checkpoints)
    lam, _ = query_gradient(apply, half_mse, trajectory.final, tasks)
    return flow.evaluations, discrete(flow, trajectory, lam)[0]


@pytest.mark.parametrize("solver", SOLVERS)
@pytest.mark.parametrize("checkpoints", [1, 2, 3, 7, 20])
def test_recomputed_trajectories_give_the_same_bits(solver, checkpoints):
    whole, expected = _kept_and_gradient(solver, None)
    again, value = _kept_and_gradient(solver, checkpoints)
    assert torch.equal(value, expected)
    assert whole.recomputations == 0
    assert again.recomputations > 0
    assert (again.gradients, again.hvps) == (whole.gradients, whole.hvps)


@pytest.mark.parametrize("checkpoints", [4, 9])
def test_no_more_states_are_alive_than_asked_for(checkpoints):
    (theta, apply), tasks = mlp(), regression()
    flow = GradientFlow(apply, half_mse, tasks, theta)
    trajectory = solve(flow, "euler", 0.05, 40, 1e-3, checkpoints)

    def alive() -> int:
        gc.collect()
        states = [t for t in gc.get_objects() if type(t) is torch.Tensor and t.shape == trajectory.final.shape]
        return len({t.data_ptr() for t in states})

    base = 4  # the start, the field there, the final state and its gradient
    assert alive() <= checkpoints + base
    lam, _ = query_gradient(apply, half_mse, trajectory.final, tasks)
    for i, (_, stages) in enumerate(trajectory.backwards()):
        if i % 8 == 0:
            assert alive() <= checkpoints + len(stages) + base + 1


def test_large_trajectories_thin_out_by_themselves(monkeypatch):
    monkeypatch.setattr("amaml.flow.trajectory.SMALL", 7000)
    whole, _ = _kept_and_gradient("euler", None, steps=5)
    thinned, value = _kept_and_gradient("euler", None, steps=200)
    assert whole.recomputations == 0
    assert 0 < thinned.recomputations < 3 * 200
    monkeypatch.undo()
    assert torch.equal(value, _kept_and_gradient("euler", None, steps=200)[1])


def test_splits_leave_two_parts():
    for states in (2, 3, 8):
        for steps in range(2, 200):
            assert 1 <= _split(steps, states) < steps


def test_recomputation_stays_close_to_the_binomial_bound():
    """With 9 states 100 steps are reversed with at most about 3 computations of each."""
    evaluations, _ = _kept_and_gradient("euler", 20, steps=100)
    assert evaluations.recomputations <= 3 * 100


def test_no_graph_is_kept_across_steps():
    from baselines import MAML

    (theta, apply), tasks = mlp(), regression()
    for solver in ("euler", "auto"):
        assert most_saved(AMAML(apply, half_mse, 0.05, 40, solver=solver), theta, tasks) == 0
    few, many = (most_saved(MAML(apply, half_mse, 0.05, steps), theta, tasks) for steps in (10, 40))
    assert many > 3 * few > 0


@pytest.mark.parametrize("size", [1, 2, 5])
def test_chunks_leave_the_mean_unchanged(size):
    (theta, apply), tasks = mlp(), regression(tasks=5)
    for learner in (FOMAML(apply, half_mse, 0.05, 10), AMAML(apply, half_mse, 0.05, 10, solver="euler")):
        whole, parts = learner.meta_gradient(theta, tasks), Chunked(learner, size).meta_gradient(theta, tasks)
        assert relative_error(parts.value, whole.value) < 1e-12
        torch.testing.assert_close(parts.query_loss, whole.query_loss, rtol=1e-12, atol=0)
        torch.testing.assert_close(
            Chunked(learner, size).adapt(theta, tasks), learner.adapt(theta, tasks), rtol=1e-12, atol=1e-14
        )
        assert parts.evaluations.gradients == math.ceil(5 / size) * whole.evaluations.gradients
    assert isinstance(parts.evaluations, Evaluations)


@pytest.mark.skipif(not derivatives.compiler_found(), reason="torch.compile needs a C++ compiler")
@pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning")
def test_compiled_graphs_compute_the_same():
    (theta, apply), tasks = mlp(), regression()
    phi = theta.expand(len(tasks), -1)  # not contiguous: the strides of what is compiled are fixed
    v = torch.ones(len(tasks), len(theta), dtype=torch.float64)
    plain = derivatives.hvps(apply, half_mse, phi, v, tasks.support_x, tasks.support_y)
    with derivatives.compiled():
        fast = derivatives.hvps(apply, half_mse, phi, v, tasks.support_x, tasks.support_y)
    torch.testing.assert_close(fast, plain, rtol=1e-10, atol=1e-12)


@pytest.mark.skipif(not derivatives.compiler_found(), reason="torch.compile needs a C++ compiler")
@pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning")
def test_compiled_graphs_are_not_tied_to_the_tensors_of_their_first_call():
    """The same tensor for two arguments, then two tensors."""
    (theta, apply), tasks = mlp(width=4), regression(tasks=2)
    phi = theta.expand(len(tasks), -1).contiguous()
    v = torch.ones_like(phi)
    with derivatives.compiled():
        derivatives.hvps(apply, half_mse, phi, phi, tasks.support_x, tasks.support_y)
        fast = derivatives.hvps(apply, half_mse, phi, v, tasks.support_x, tasks.support_y)
    plain = derivatives.hvps(apply, half_mse, phi, v, tasks.support_x, tasks.support_y)
    torch.testing.assert_close(fast, plain, rtol=1e-10, atol=1e-12)


def test_large_modules_of_any_kind():
    """A residual block with running statistics, which flatten replaces by the batch's own."""

    class Residual(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.norm = nn.Conv2d(1, 4, 3, padding=1), nn.BatchNorm2d(4)
            self.second, self.head = nn.Conv2d(4, 1, 3, padding=1), nn.Linear(64, 3)

        def forward(self, x):
            return self.head((x + self.second(torch.tanh(self.norm(self.first(x))))).flatten(1))

    torch.manual_seed(0)
    module = Residual().double()
    running = module.norm.running_mean.clone()
    theta, apply = amaml.flatten(module)
    loss, tasks = torch.nn.functional.cross_entropy, classification()
    gradient = AMAML(apply, loss, 0.01, 50).meta_gradient(theta, tasks)
    reference = AMAML(apply, loss, 0.01, 50, solver="rk4", rtol=1e-6).meta_gradient(theta, tasks)
    assert relative_error(gradient.value, reference.value) < 5e-3
    assert torch.equal(module.norm.running_mean, running)


def test_dropout_and_missing_parameters_are_refused():
    with pytest.raises(amaml.InputError, match="dropout '1' is active"):
        amaml.flatten(nn.Sequential(nn.Linear(2, 2), nn.Dropout(0.5)))
    with pytest.raises(amaml.InputError, match="found: none"):
        amaml.flatten(nn.Sequential(nn.Tanh()))
    with pytest.raises(amaml.InputError, match=r"float32 on cpu, torch.float64 on cpu"):
        amaml.flatten(nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2).double()))
    theta, apply = convnet()
    assert theta.ndim == 1


def test_rk4_is_torchdiffeqs():
    """The tableau that is transposed is the one torchdiffeq steps with."""
    (theta, apply), tasks = mlp(), regression()
    flow = GradientFlow(apply, half_mse, tasks, theta)
    trajectory = Trajectory(flow)
    trajectory.extend([Move(RK4, 0.0, 0.5, 0.5)])
    slopes = []
    for row in RK4.a:
        slopes.append(flow(0.0, flow.start + 0.5 * sum(a * k for a, k in zip(row, slopes, strict=True))))
    expected = flow.start + 0.5 * sum(b * k for b, k in zip(RK4.b, slopes, strict=True))
    torch.testing.assert_close(trajectory.final, expected, rtol=1e-13, atol=1e-15)
