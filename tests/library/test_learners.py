"""One contract for every method, and each method against an independent answer."""

import pytest
import torch
from helpers.problems import Quadratic, classification, convnet, mlp, regression, relative_error
from torch.nn.functional import cross_entropy

from amaml import AMAML, MetaGradient, half_mse
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


def make(name, apply):
    method, options = LEARNERS[name]
    return method(apply, half_mse, **SETTINGS | options)


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


OF_IMAGES = convnet, classification, cross_entropy


@pytest.mark.parametrize(("network", "tasks", "loss"), [(mlp, regression, half_mse), OF_IMAGES])
def test_the_unroll_is_the_adjoint_of_the_steps(network, tasks, loss):
    (theta, apply), tasks = network(), tasks()
    unrolled, ours = MAML(apply, loss, 0.02, 12), AMAML(apply, loss, 0.02, 12, solver="euler")
    one, two = (learner.meta_gradient(theta, tasks) for learner in (unrolled, ours))
    assert relative_error(two.value, one.value) < 1e-12
    torch.testing.assert_close(two.query_loss, one.query_loss, rtol=1e-12, atol=0)
    torch.testing.assert_close(ours.adapt(theta, tasks), unrolled.adapt(theta, tasks), rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("damping", [0.0, 1.0])
def test_imaml_is_the_dense_solution_of_its_linear_system_at_the_regularised_minimum(damping):
    q, prox, eye = Quadratic(), 0.8, torch.eye(4, dtype=torch.float64)
    found = IMAML(q.apply, half_mse, 0.2, 400, prox=prox, cg_steps=8, damping=damping).meta_gradient(q.theta, q.tasks)
    phi = torch.linalg.solve(q.hessian + prox * eye, (q.hessian @ q.minimum[..., None])[..., 0] + prox * q.theta)
    g = (q.query_hessian @ (phi - q.query_minimum)[..., None])[..., 0]
    expected = torch.linalg.solve((1 + damping) * eye + q.hessian / (prox + damping), g).mean(0)
    assert relative_error(found.value, expected) < 1e-10


def test_conjugate_gradient_keeps_the_x_of_a_row_that_meets_negative_curvature():
    """Positive definite, not along the second direction, not at all; b = 0. The first step goes b'b / b'Ab along b."""
    diagonal = torch.tensor([[1, 2, 3], [-1, 1, 5], [-1, -2, -3], [1, 2, 3]], dtype=torch.float64)
    b = torch.tensor([[1.0], [1.0], [1.0], [0.0]], dtype=torch.float64).expand(4, 3)
    expected = torch.stack([b[0] / diagonal[0], b[1] * 3 / 5, 0 * b[2], b[3]])
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
