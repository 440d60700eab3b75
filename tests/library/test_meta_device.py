"""A meta-update on torch's meta device, where tensors have shapes and no numbers.

It finds on any machine what would go wrong on a GPU: a tensor left on the CPU meets none of another device, and numbers
that the host asks of the device are counted. Two a meta-update are meant to be, whatever its steps: whether what was
traced still computes the loss, and whether the result is finite; for A-MAML also the norm of its gradient.
"""

from collections.abc import Iterator
from contextlib import contextmanager

import pytest
import torch
from helpers.problems import METHODS, mlp, regression
from torch.utils._python_dispatch import TorchDispatchMode

import baselines
from amaml import AMAML, half_mse

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
