"""Simplified graphs compute the same to the bit with fewer operations, and give results of their own."""

import pytest
import torch
from helpers.problems import generator, seeded
from torch.func import grad, vjp
from torch.fx.experimental.proxy_tensor import make_fx

from amaml import half_mse, mlp
from amaml.engine.simplifying import simplify

X = torch.rand(4, 3, generator=generator(), dtype=torch.float64)


def simplified(function, *examples):
    """The graphs of a function before and after."""
    before, after = (make_fx(function)(*examples) for _ in range(2))
    simplify(after)
    return before, after


def test_a_hessian_vector_product_takes_half_of_the_operations_and_is_the_same():
    theta, apply = seeded(lambda: mlp(3, 3, 8))

    def product(theta, v, x):
        return vjp(grad(lambda theta: half_mse(apply(theta, x), x.sin())), theta)[1](v)[0]

    theta, x = theta.expand(2, -1).contiguous(), X.expand(2, 4, 3).contiguous()
    before, after = simplified(torch.vmap(product), theta, theta.sin(), x)
    assert len(after.graph.nodes) < 0.55 * len(before.graph.nodes)
    assert torch.equal(after(theta, theta.cos(), x + 1), before(theta, theta.cos(), x + 1))


OPERATIONS = [  # how many of a function are left
    (lambda x: torch.ones_like(x.exp().sum(1)) * x.sum(1), 3),
    (lambda x: (x.sin() * 1) ** 1, 1),
    (lambda x: x.sin().transpose(0, 1).transpose(1, 0), 1),
    (lambda x: x.sin() + x.sin(), 2),
    (lambda x: x.sin().expand(4, 3).cos(), 2),
    (lambda x: x.sin().expand(2, 4, 3), 2),  # does something
    (lambda x: x.float() * 1, 1),
    (lambda x: (x > 0.5) * 1, 2),  # makes integers
    (lambda x: x.sin().transpose(0, 1).view(3, 2, 2).transpose(0, 2), 4),
    (lambda x: x.clone().add_(x.sin()).mul(1), 4),  # writes: left alone
]


@pytest.mark.parametrize(("function", "operations"), OPERATIONS)
def test_what_does_nothing_goes_and_nothing_else(function, operations):
    before, after = simplified(function, X)
    assert sum(node.op == "call_function" for node in after.graph.nodes) == operations
    assert (after(X).dtype, after(X).stride()) == (before(X).dtype, before(X).stride())
    assert torch.equal(after(X), before(X))


@pytest.mark.parametrize("function", [lambda x: (x * 1, x.sin()), lambda x: (x.split(2)[0] * 1, x.sin(), x.sin())])
def test_results_lie_in_no_argument_and_in_no_other_result(function):
    _, after = simplified(function, X)
    x, expected = X.clone(), function(X)
    for i, result in enumerate(results := after(x)):
        assert torch.equal(result, expected[i])
        result.zero_()
        assert torch.equal(x, X)
        assert all(map(torch.equal, results[i + 1 :], expected[i + 1 :]))
