"""Single derivatives, and conjugate gradients against dense algebra."""

import torch
from helpers.problems import generator, mlp, regression

import amaml
from amaml.engine import derivatives
from amaml.imaml import conjugate_gradient


def test_traced_graphs_hold_no_autograd_graph():
    (theta, apply), tasks = mlp(), regression()
    phi = theta.expand(3, -1).clone().requires_grad_()
    assert not derivatives.gradients(apply, amaml.half_mse, phi, *tasks.support).requires_grad


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


def test_data_is_detached():
    """(a b.data)^2 / 2 has the Hessian diag(b^2, 0) in (a, b); .data would hide b from one derivative alone."""
    theta, x = torch.tensor([[0.3, 0.7]], dtype=torch.float64), torch.ones(1, 1, 1, dtype=torch.float64)
    for v, expected in (([1.0, 0.0], [0.49, 0.0]), ([0.0, 1.0], [0.0, 0.0])):
        v, expected = (torch.tensor([row], dtype=torch.float64) for row in (v, expected))
        hvp = derivatives.hvps(lambda u, x: u[0] * u[1].data * x, amaml.half_mse, theta, v, x, 0 * x)
        torch.testing.assert_close(hvp, expected)
