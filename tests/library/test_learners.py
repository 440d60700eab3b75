"""One contract for every method, and each against an independent answer; that they stay on their device."""

from collections.abc import Iterator
from contextlib import contextmanager

import pytest
import torch
from helpers.problems import METHODS, Quadratic, classification, convnet, mlp, regression, relative_error
from torch.nn.functional import cross_entropy
from torch.utils._python_dispatch import TorchDispatchMode

import baselines
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
    (theta, apply), tasks = network(), tasks().to(torch.float64)  # which leaves class numbers as they are
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


def test_reptile_moves_to_the_mean_phi_pretrained_is_the_gradient_on_all_points_of_all_tasks_and_scratch_is_zero():
    (theta, apply), t = mlp(), regression()
    learner = Reptile(apply, half_mse, **SETTINGS)
    towards = (theta - learner.adapt(theta, t)).mean(0)
    assert relative_error(learner.meta_gradient(theta, t).value, towards) < 1e-13
    free = theta.clone().requires_grad_()
    x, y = (torch.cat([s, q], 1).flatten(0, 1) for s, q in zip(t.support, t.query, strict=True))
    (expected,) = torch.autograd.grad(half_mse(apply(free, x), y), free)
    at_theta = torch.stack([half_mse(apply(theta, t.query_x[i]), t.query_y[i]) for i in range(len(t))])
    for kind, value in ((Pretrained, expected), (Scratch, 0 * theta)):
        gradient = kind(apply, half_mse, **SETTINGS).meta_gradient(theta, t)
        torch.testing.assert_close(gradient.value, value, rtol=1e-12, atol=1e-15)
        torch.testing.assert_close(gradient.query_loss, at_theta)


ASKING = torch.ops.aten._local_scalar_dense.default, torch.ops.aten.allclose.default


class Waits(TorchDispatchMode):
    """Counts the numbers that are asked of the device; on the meta device, which has none, the answer is one."""

    count = 0

    def __torch_dispatch__(self, function, types, arguments=(), options=None):
        if function in ASKING:
            self.count += 1
            if arguments[0].is_meta:
                return 1
        return function(*arguments, **(options or {}))


@contextmanager
def waits(monkeypatch) -> Iterator[Waits]:
    """Within this context waits are counted; a list of numbers is one."""
    to_list = torch.Tensor.tolist
    with Waits() as seen, monkeypatch.context() as patch:

        def counted(tensor):
            seen.count += 1
            return [1.0] * len(tensor) if tensor.is_meta else to_list(tensor)

        patch.setattr(torch.Tensor, "tolist", counted)
        yield seen


COUNTS = {"FOMAML": 2, "MAML": 2, "IMAML": 2, "Reptile": 2, "AMAML-euler": 3}


@pytest.mark.parametrize("steps", [1, 7])
@pytest.mark.parametrize("name", [*COUNTS, "Pretrained", "Scratch"])
def test_a_meta_update_stays_on_its_device_and_seldom_waits(name, steps, monkeypatch):
    """On the meta device, where tensors have shapes and no numbers: what would go wrong on a GPU is found anywhere. A
    tensor left on the CPU meets none of another device; numbers that the host asks for are counted. Two are meant to
    be, whatever the steps: whether what was traced still computes the loss, and whether the result is finite; for
    A-MAML also the norm of its gradient."""
    theta, tasks = mlp()[0].to("meta"), regression().to("meta")
    method = (METHODS | vars(baselines))[name](mlp()[1], half_mse, 0.05, steps)
    with waits(monkeypatch):
        method.meta_gradient(theta, tasks)  # traces
    with waits(monkeypatch) as seen:
        gradient = method.meta_gradient(theta, tasks)
    assert gradient.value.is_meta
    assert gradient.value.shape == theta.shape
    assert gradient.query_loss.is_meta
    assert seen.count == COUNTS.get(name, 2)


@pytest.mark.parametrize("solver", ["auto", "rk4", "rkc"])
def test_the_flow_s_solvers_wait_for_lambda_max_alone(solver, monkeypatch):
    """At every block of steps, and where they measure their error; counted on the CPU."""
    (theta, apply), tasks = mlp(), regression()
    method = AMAML(apply, half_mse, 0.05, 100, solver=solver)
    for _ in range(3):
        with waits(monkeypatch) as seen:
            spent = method.meta_gradient(theta, tasks).evaluations
        assert seen.count > 3 or solver == "auto"  # which may take the steps themselves
        assert seen.count - 3 < spent.total / 3
