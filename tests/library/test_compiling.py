"""Simplified and compiled graphs compute what traced ones do; where torch.compile fails or errs these go on."""

import functools
import itertools
from contextlib import nullcontext
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import torch._inductor
from helpers.problems import generator, regression, seeded
from torch import nn
from torch.fx.experimental.proxy_tensor import make_fx
from torch.utils._pytree import tree_map

import amaml
from amaml.engine import compiling, derivatives
from amaml.engine.simplifying import simplify
from baselines import MAML

BASE, X = torch.ones(6, 5, dtype=torch.float64), torch.rand(7, generator=generator(), dtype=torch.float64)
FROM, TO, ONCE, ALL = map(torch.tensor, ([0, 1, 1, 2, 3, 5], [1, 0, 2, 1, 4, 3], [4, 0, 2], range(7)))
WRITES = [  # into a tensor that all tasks share and that batching expands
    lambda h: BASE.index_add(0, TO, h[FROM], alpha=2),
    lambda h: h.index_select(0, FROM),  # its gradient is index_add
    lambda h: h.index_copy(0, ONCE, h[:3].sin()),  # its gradient's gradient is index_copy
    lambda h: BASE.index_put((ONCE,), h[:3]) * BASE.index_put((TO,), h[FROM], accumulate=True),
    lambda h: BASE.scatter_add(0, TO[:, None].expand(6, 5), h[FROM]) * h.index_fill(0, ONCE, 0.2),
]


class Layer(nn.Sequential):
    def __init__(self, between) -> None:
        super().__init__(nn.Linear(2, 5), nn.Tanh(), nn.Linear(5, 1))
        self.between = between

    def forward(self, x):
        return self[2](self.between(self[1](self[0](x))))


def hvps(between, on: bool):
    """Hessian-vector products of three tasks."""
    (theta, apply), t = seeded(lambda: Layer(between)), regression()
    phi = theta + torch.randn(3, len(theta), generator=generator(), dtype=theta.dtype) / 10
    with amaml.compiled(on):
        return derivatives.hvps(apply, amaml.half_mse, phi, phi.sin(), t.support_x, t.support_y)


@pytest.fixture
def compiler(monkeypatch):
    """A compiler that changes arguments or result of a graph by the functions put there, and notes the calls."""

    class Stub:
        calls, before, after = 0, staticmethod(torch.clone), staticmethod(torch.clone)

        def __call__(self, graph, examples, options=None):
            self.operations = {node.target for node in graph.graph.nodes}

            def compiled(*arguments):
                self.calls += 1
                result = tree_map(self.after, graph(*map(self.before, arguments)))
                return list(result) if isinstance(result, tuple) else result  # as inductor does

            return compiled

    for name in ("_without_compiler", "_wrongly_compiled"):
        monkeypatch.setattr(compiling, name, set())
    monkeypatch.setattr(torch._inductor, "compile", stub := Stub())
    return stub


@pytest.mark.skipif(not compiling.compiler_found(), reason="needs a C++ compiler")
def test_what_writes_into_a_batched_tensor_is_compiled_right():  # or would be warned of
    compiled, traced = (hvps(lambda h: sum(write(h) for write in WRITES), on) for on in (True, False))
    torch.testing.assert_close(compiled, traced, rtol=1e-11, atol=1e-13)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_lowered_tanh_is_exact_relative_to_itself(dtype):
    x = torch.cat([torch.linspace(-30, 30, 20_001), torch.linspace(-0.5, 0.5, 20_001), torch.logspace(-30, 0, 301)])
    x = x.double().to(dtype)
    exact = torch.from_numpy(np.tanh(x.numpy().astype(np.longdouble)).astype(float))
    assert ((compiling.tanh(x) - exact).abs() <= 3 * torch.finfo(dtype).eps * exact.abs()).all()
    inf, zero = torch.tensor([torch.inf, -torch.inf, torch.nan], dtype=dtype), torch.tensor([0.0, -0.0], dtype=dtype)
    torch.testing.assert_close(compiling.tanh(inf), inf.clamp(-1, 1), rtol=0, atol=0, equal_nan=True)
    assert torch.equal(1 / compiling.tanh(zero), 1 / zero)


@pytest.mark.parametrize("capability", ["AVX512", "AVX2"])
@pytest.mark.parametrize("k", [2, 5, 100])
@pytest.mark.parametrize(("m", "n"), [(40, 20), (35, 3), (3, 40), (40, 1), (1, 40), (31, 17)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_small_products_are_loops(dtype, m, n, k, capability, monkeypatch):
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: capability)
    a, b = (torch.randn(3, *shape, generator=generator()).to(dtype) for shape in ((m, k), (k, n)))
    for x, y in itertools.product((a, a.mT.contiguous().mT), (b, b.mT.contiguous().mT)):
        found = compiling.bmm(x, y)
        if capability == "AVX512" or n == 1:
            torch.testing.assert_close(found, x @ y, rtol=0, atol=300 * torch.finfo(dtype).eps)
            assert found.is_contiguous()  # as what is traced after it expects
        else:
            assert found is NotImplemented


def test_large_products_and_those_of_integers_are_not_loops():
    a = torch.ones(1, 64, 64, dtype=torch.float64)
    for one, other in ((a, a), (a.long(), a.long()), (a[:, :, :1], a[:, :1])):
        assert compiling.bmm(one, other) is NotImplemented


def test_the_compiler_gets_no_complex_numbers_and_the_lowered_tanh(compiler):
    hvps(lambda h: torch.fft.irfft(torch.fft.rfft(h) ** 2, n=5), True)
    assert compiler.calls == 0
    hvps(torch.sin, True)
    assert torch.ops.aten.exp.default in compiler.operations
    assert torch.ops.aten.tanh.default not in compiler.operations


def no_compiler(a):
    raise OSError("\nno compiler here\nand much more")


NO_COMPILER = r"torch.compile fails on this cpu device \(no compiler here\); going on with the traced"
WRONG = "torch.compile makes wrong numbers of Layer, off by 1.0e-06 of the largest; going on with the traced"


@pytest.mark.parametrize(("fault", "message"), [(no_compiler, NO_COMPILER), (lambda a: a * (1 + 1e-6), WRONG)])
def test_one_warning_and_the_traced_graphs(fault, message, compiler):
    (theta, apply), tasks = seeded(lambda: Layer(torch.sin)), regression()
    learner, compiler.after = MAML(apply, amaml.half_mse, 0.05, 3), fault
    expected = learner.meta_gradient(theta, tasks).value
    with amaml.compiled():
        with pytest.warns(RuntimeWarning, match=message) as seen:
            found = learner.meta_gradient(theta, tasks).value
        calls = compiler.calls
        assert torch.equal(learner.meta_gradient(theta, tasks).value, found)
    assert (len(seen), compiler.calls) == (1, calls)  # none called but to compare
    assert torch.equal(found, expected)


def rounded(a):
    return a * (1 + 2e-16 * torch.rand(7, generator=generator(1)).double()) if a.is_floating_point() else a


@pytest.mark.parametrize(
    ("function", "x", "before", "after", "right"),
    [
        (lambda x: functools.reduce(lambda x, _: 3.99 * x * (1 - x), range(60), x), X, rounded, None, True),  # chaotic
        (lambda x: torch.log(x - 0.5), X, rounded, None, True),  # some are NaN
        (lambda x: torch.log(x - 0.5), X, None, torch.nan_to_num, False),
        (lambda x: x.sin(), X.float(), None, lambda a: a + 1e-6, True),
        (lambda x: x.half().sin().double(), X, None, lambda a: a * 1.001, True),
        (lambda x: (x, x.sin() * 1e-3), X, None, lambda a: a.clamp(min=5e-4), False),  # each by its own largest
        (lambda x: 3 * x, torch.zeros(7), None, lambda a: a * 1.001, False),  # zeros are compared at ones
        (lambda x: 0 * x, X, None, lambda a: a + 1e-3, False),
    ],
)
def test_a_difference_that_rounding_does_not_explain_is_an_error(function, x, before, after, right, compiler):
    compiler.before, compiler.after = before or compiler.before, after or compiler.after
    traced = make_fx(lambda x, indices: function(x[indices]))(x, ALL)
    with nullcontext() if right else pytest.warns(RuntimeWarning, match="wrong numbers"):
        found = compiling.compile_graph(traced, [x, ALL], function)
    assert (found is not traced) == right
    assert compiler.calls == 1
    assert type(found(x, ALL)) is type(traced(x, ALL))


def test_compiled_code_meets_no_number_of_which_torch_only_notes_the_sign(compiler):
    def plain(a):
        assert not a.is_neg()
        return a.clone()

    compiler.before, used = plain, SimpleNamespace(scale=torch.ones(1).double())
    apply, (x, y) = lambda theta, x: theta[0] * x * used.scale, torch.rand(2, 3, 4, 1, generator=generator()).double()

    def losses(x):
        with amaml.compiled():
            return derivatives.losses(apply, amaml.mse, torch.ones(3, 1).double(), x, y)

    expected = losses(x)
    used.scale = torch._neg_view(-used.scale)
    torch.testing.assert_close(losses(torch._neg_view(-x)), expected, rtol=0, atol=0)
    assert compiler.calls > 1


X = torch.rand(4, 3, generator=generator(), dtype=torch.float64)


def simplified(function, *examples):
    """The graphs of a function before and after."""
    before, after = (make_fx(function)(*examples) for _ in range(2))
    simplify(after)
    return before, after


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
