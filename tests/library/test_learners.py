"""One contract for every method, and each method against an independent answer."""

import pytest
import torch
from helpers.problems import Quadratic, classification, convnet, generator, mlp, regression, relative_error
from torch.nn.functional import cross_entropy

from amaml import AMAML, InputError, MetaGradient, half_mse
from amaml.flow.mesh import SOLVERS
from amaml.imaml import conjugate_gradient
from baselines import FOMAML, IMAML, MAML, Pretrained, Reptile, Scratch

SETTINGS = {"inner_lr": 0.05, "inner_steps": 10}
LEARNERS = {
    **{f"AMAML-{solver}": (AMAML, {"solver": solver}) for solver in SOLVERS},
    "AMAML-continuous": (AMAML, {"adjoint": "continuous"}),
    "AMAML-prox": (AMAML, {"prox": 0.5}),
    **{kind.__name__: (kind, {}) for kind in (MAML, FOMAML, IMAML, Reptile, Scratch, Pretrained)},
}


def make(name, apply, **changes):
    method, options = LEARNERS[name]
    return method(apply, half_mse, **SETTINGS | options | changes)


@pytest.mark.parametrize("name", LEARNERS)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_contract(name, dtype):
    (theta, apply), tasks = mlp(), regression()
    theta, tasks = theta.to(dtype), tasks.to(dtype)
    before, learner = theta.clone(), make(name, apply)
    phi, gradient = learner.adapt(theta, tasks), learner.meta_gradient(theta, tasks)
    assert isinstance(gradient, MetaGradient)
    assert phi.shape == (len(tasks), len(theta))
    assert gradient.value.shape == theta.shape
    assert gradient.query_loss.shape == (len(tasks),)
    for tensor in (phi, gradient.value, gradient.query_loss):
        assert tensor.dtype == dtype
        assert tensor.isfinite().all()
        assert not tensor.requires_grad
    assert torch.equal(theta, before)
    assert theta.grad is None
    with torch.no_grad():
        assert torch.equal(make(name, apply).meta_gradient(theta, tasks).value, gradient.value)
    assert (gradient.evaluations.gradients > 0) == (name != "Scratch")


@pytest.mark.parametrize(
    ("network", "tasks", "loss"), [(mlp, regression, half_mse), (convnet, classification, cross_entropy)]
)
def test_the_unroll_is_the_adjoint_of_the_steps(network, tasks, loss):
    (theta, apply), tasks = network(), tasks()
    unrolled, ours = MAML(apply, loss, 0.02, 12), AMAML(apply, loss, 0.02, 12, solver="euler")
    one, two = (learner.meta_gradient(theta, tasks) for learner in (unrolled, ours))
    assert relative_error(two.value, one.value) < 1e-12
    torch.testing.assert_close(two.query_loss, one.query_loss, rtol=1e-12, atol=0)
    torch.testing.assert_close(ours.adapt(theta, tasks), unrolled.adapt(theta, tasks), rtol=1e-12, atol=1e-14)


def test_fomaml_is_maml_where_the_support_hessian_vanishes():
    """A loss linear in the prediction of a linear model has no Hessian."""
    tasks, theta = regression(point=(4,)), torch.linspace(-1, 1, 4, dtype=torch.float64)

    def linear(prediction, target):
        return (prediction * target).mean()

    a = FOMAML(Quadratic.apply, linear, **SETTINGS).meta_gradient(theta, tasks)
    b = MAML(Quadratic.apply, linear, **SETTINGS).meta_gradient(theta, tasks)
    assert relative_error(a.value, b.value) < 1e-13


def _implicit(q: Quadratic, prox: float, damping: float) -> torch.Tensor:
    """The dense solution of iMAML's linear system at the regularised minimum."""
    eye = torch.eye(4, dtype=torch.float64)
    phi = torch.linalg.solve(q.hessian + prox * eye, (q.hessian @ q.minimum[..., None])[..., 0] + prox * q.theta)
    g = (q.query_hessian @ (phi - q.query_minimum)[..., None])[..., 0]
    return torch.linalg.solve((1 + damping) * eye + q.hessian / (prox + damping), g).mean(0)


@pytest.mark.parametrize("damping", [0.0, 1.0])
def test_imaml_against_a_dense_solve(damping):
    q = Quadratic()
    learner = IMAML(q.apply, half_mse, 0.2, 400, prox=0.8, cg_steps=8, damping=damping)
    assert relative_error(learner.meta_gradient(q.theta, q.tasks).value, _implicit(q, 0.8, damping)) < 1e-10


def test_conjugate_gradient_solves_to_rounding_in_as_many_iterations_as_unknowns():
    a, b = (torch.randn(3, 6, n, generator=generator(5), dtype=torch.float64) for n in (6, 1))
    a, b[2] = a @ a.mT + torch.eye(6, dtype=torch.float64), 0.0
    x = conjugate_gradient(lambda v: (a @ v[..., None])[..., 0], b[..., 0], iterations=9)
    torch.testing.assert_close(x, torch.linalg.solve(a, b)[..., 0], rtol=1e-9, atol=1e-11)


def test_conjugate_gradient_keeps_the_x_of_a_row_that_meets_negative_curvature():
    """Positive definite, not along the second direction, not at all; the first step goes b'b / b'Ab along b."""
    diagonal = torch.tensor([[1.0, 2.0, 3.0], [-1.0, 1.0, 5.0], [-1.0, -2.0, -3.0]], dtype=torch.float64)
    b = torch.ones(3, 3, dtype=torch.float64)
    expected = torch.stack([b[0] / diagonal[0], b[1] * 3 / 5, 0 * b[2]])
    for iterations in (3, 4, 7):
        x = conjugate_gradient(lambda v: diagonal * v, b, iterations)
        torch.testing.assert_close(x, expected, rtol=1e-12, atol=0)


def test_reptile_moves_towards_the_mean_of_the_adapted_parameters():
    (theta, apply), tasks = mlp(), regression()
    learner = Reptile(apply, half_mse, **SETTINGS)
    expected = (theta - learner.adapt(theta, tasks)).mean(0)
    assert relative_error(learner.meta_gradient(theta, tasks).value, expected) < 1e-13


def test_pretrained_is_the_gradient_of_the_loss_on_all_points_of_all_tasks_and_scratch_is_zero():
    (theta, apply), t = mlp(), regression()
    free = theta.clone().requires_grad_()
    x, y = (torch.cat([s, q], 1).flatten(0, 1) for s, q in zip(t.support, t.query, strict=True))
    (expected,) = torch.autograd.grad(half_mse(apply(free, x), y), free)
    at_theta = torch.stack([half_mse(apply(theta, t.query_x[i]), t.query_y[i]) for i in range(len(t))])
    for kind, value in ((Pretrained, expected), (Scratch, 0 * theta)):
        gradient = kind(apply, half_mse, **SETTINGS).meta_gradient(theta, t)
        torch.testing.assert_close(gradient.value, value, rtol=1e-12, atol=1e-15)
        torch.testing.assert_close(gradient.query_loss, at_theta)


@pytest.mark.parametrize("name", LEARNERS)
@pytest.mark.parametrize("change", [{"inner_lr": 0.0}, {"inner_lr": -1.0}, {"inner_steps": 0}, {"inner_steps": 2.5}])
def test_bad_inner_loops_are_refused(name, change):
    _, apply = mlp()
    with pytest.raises(InputError, match=f"{next(iter(change))}.*got"):
        make(name, apply, **change)
