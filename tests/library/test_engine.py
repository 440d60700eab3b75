"""Graphs under torch.compile, and modules of any kind."""

import pytest
import torch
from helpers.problems import classification, convnet, mlp, regression, relative_error
from torch import nn

import amaml
from amaml import AMAML, half_mse
from amaml.engine import derivatives


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
