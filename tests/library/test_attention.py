"""Attention in every method, against unrolled autograd with attention written out or by torch's own math kernel."""

import pytest
import torch
from helpers.problems import generator, relative_error, seeded
from torch import nn
from torch.nn import functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel

import amaml
from amaml import AMAML, Tasks, half_mse
from baselines import FOMAML, IMAML, MAML, Reptile

LR, STEPS, PROX = 0.05, 6, 20.0  # prox above the negative curvature: the system of iMAML is positive definite


class Pooled(nn.Module):
    """The mean over the sequence of a layer's output, then one number."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer, self.head = layer, nn.Linear(4, 1)

    def forward(self, x):
        return self.head(self.layer(x).mean(-2))


class SelfAttention(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.attention = nn.MultiheadAttention(4, 2, batch_first=True)

    def forward(self, x):
        return self.attention(x, x, x, need_weights=False)[0]


class Functional(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.project = nn.Linear(4, 12)

    def forward(self, x):
        heads = (part.unflatten(-1, (2, 2)).transpose(-3, -2) for part in self.project(x).chunk(3, -1))
        return self.attend(*heads).transpose(-3, -2).flatten(-2)

    def attend(self, q, k, v):
        return F.scaled_dot_product_attention(q, k, v)


class WrittenOut(Functional):
    def attend(self, q, k, v):
        return (q @ k.mT / 2**0.5).softmax(-1) @ v


def encoder_layer(**options):
    return nn.TransformerEncoderLayer(4, 2, 6, activation="gelu", batch_first=True, **options)


MODULES = {
    "layer, train": (lambda: Pooled(encoder_layer(dropout=0.0)), None),
    "layer, eval": (lambda: Pooled(encoder_layer()).eval(), None),
    "attention, train": (lambda: Pooled(SelfAttention()), None),
    "attention, eval": (lambda: Pooled(SelfAttention()).eval(), None),
    "function": (lambda: Pooled(Functional()), lambda: Pooled(WrittenOut())),
}


@pytest.fixture(params=MODULES)
def problem(request):
    """A function under test, an independent one of the same numbers, theta and tasks."""
    build, written_out = MODULES[request.param]
    theta, apply = seeded(build)
    _, reference = seeded(written_out or build)
    g = generator(2)
    shapes = [(2, 5, 3, 4), (2, 5, 1), (2, 4, 3, 4), (2, 4, 1)]
    return apply, reference, theta, Tasks(*(torch.randn(s, generator=g, dtype=torch.float64) for s in shapes))


def unrolled(apply, theta, x, y, prox=0.0):
    """phi of one task with its graph to theta."""
    phi = theta
    for _ in range(STEPS):
        loss = half_mse(apply(phi, x), y) + prox / 2 * (phi - theta).square().sum()
        (gradient,) = torch.autograd.grad(loss, phi, create_graph=True)
        phi = phi - LR * gradient
    return phi


def references(apply, theta, tasks, prox=0.0):
    """By unrolled autograd: the mean meta-gradient, query gradient at phi and theta - phi, and iMAML's solution."""
    rows = []
    for i in range(len(tasks)):
        start = theta.clone().requires_grad_()
        phi = unrolled(apply, start, tasks.support_x[i], tasks.support_y[i], prox)
        query = half_mse(apply(phi, tasks.query_x[i]), tasks.query_y[i])
        exact, first_order = torch.autograd.grad(query, [start, phi])

        def support(p, i=i):
            return half_mse(apply(p, tasks.support_x[i]), tasks.support_y[i])

        hessian = torch.autograd.functional.hessian(support, phi.detach())
        implicit = torch.linalg.solve(torch.eye(len(theta)).to(theta) + hessian / PROX, first_order)
        rows.append(torch.stack([exact, first_order, (start - phi).detach(), implicit]))
    return torch.stack(rows).mean(0)


def test_every_method_takes_attention(problem):
    apply, reference, theta, tasks = problem
    fast = torch.backends.mha.get_fastpath_enabled()
    learners = {
        0: [MAML(apply, half_mse, LR, STEPS), AMAML(apply, half_mse, LR, STEPS, solver="euler")],
        1: [FOMAML(apply, half_mse, LR, STEPS)],
        2: [Reptile(apply, half_mse, LR, STEPS)],
    }
    with sdpa_kernel(SDPBackend.MATH):
        torch.backends.mha.set_fastpath_enabled(False)
        expected, proximal = references(reference, theta, tasks), references(reference, theta, tasks, PROX)
        torch.backends.mha.set_fastpath_enabled(fast)
    for which, methods in learners.items():
        for learner in methods:
            assert relative_error(learner.meta_gradient(theta, tasks).value, expected[which]) < 1e-12
    implicit = IMAML(apply, half_mse, LR, STEPS, prox=PROX, cg_steps=60).meta_gradient(theta, tasks)
    assert relative_error(implicit.value, proximal[3]) < 1e-9
    assert torch.backends.mha.get_fastpath_enabled() == fast


@pytest.mark.parametrize("problem", ["layer, eval"], indirect=True)
def test_the_flow_takes_attention(problem):
    apply, _, theta, tasks = problem
    flow = AMAML(apply, half_mse, LR, 20).meta_gradient(theta, tasks)
    fine = AMAML(apply, half_mse, LR, 20, solver="rk4", rtol=1e-6).meta_gradient(theta, tasks)
    assert relative_error(flow.value, fine.value) < 5e-3


def test_predictions_are_those_of_the_module(problem):
    apply, reference, theta, tasks = problem
    phi = torch.stack([theta, 1.1 * theta])
    expected = torch.stack([reference(row, x) for row, x in zip(phi, tasks.query_x, strict=True)])
    torch.testing.assert_close(amaml.predict(apply, phi, tasks.query_x), expected, rtol=1e-12, atol=1e-14)
