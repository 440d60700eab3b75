"""A meta-update on torch's meta device, where tensors have shapes and no numbers.

It finds, on any machine, what would go wrong on a GPU: a tensor left on the CPU does not meet one of another device,
and every number that the host asks of the device is seen. Two waits a meta-update are meant to be: one look at whether
what was traced still computes the loss, one at whether the result is finite. A-MAML waits once more, for the norm of
its gradient. No method whose steps are given waits in its inner loop, however long: the flow's solvers wait for
lambda_max at every block of steps, and where they measure their error, as the test at the end states.
"""

from collections.abc import Iterator
from contextlib import contextmanager

import pytest
import torch
from helpers.problems import mlp, regression
from torch.utils._python_dispatch import TorchDispatchMode

import baselines
from amaml import AMAML, half_mse

ASKING = torch.ops.aten._local_scalar_dense.default, torch.ops.aten.allclose.default


class Waits(TorchDispatchMode):
    """Counts the numbers that are asked of the device; on the meta device, which has none, the answer is one."""

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

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


def learner(name: str, steps: int):
    apply = mlp()[1]
    if name == "AMAML":
        return AMAML(apply, half_mse, 0.05, steps, solver="euler")
    return getattr(baselines, name)(apply, half_mse, 0.05, steps)


COUNTS = {"FOMAML": 2, "MAML": 2, "IMAML": 2, "Reptile": 2, "Pretrained": 2, "Scratch": 2, "AMAML": 3}


@pytest.mark.parametrize("steps", [1, 7])
@pytest.mark.parametrize("name", COUNTS)
def test_a_meta_update_stays_on_its_device_and_seldom_waits(name, steps, monkeypatch):
    theta, tasks = mlp()[0].to("meta"), regression().to("meta")
    method = learner(name, steps)
    with waits(monkeypatch):
        method.meta_gradient(theta, tasks)  # traces
    with waits(monkeypatch) as seen:
        gradient = method.meta_gradient(theta, tasks)
    assert gradient.value.is_meta
    assert gradient.value.shape == theta.shape
    assert gradient.query_loss.is_meta
    assert seen.count == COUNTS[name]


@pytest.mark.parametrize("solver", ["auto", "rk4", "rkc"])
def test_the_flow_s_solvers_wait_for_lambda_max_alone(solver, monkeypatch):
    """Counted on the CPU."""
    theta, tasks = mlp()[0], regression()
    method = AMAML(mlp()[1], half_mse, 0.05, 100, solver=solver)
    for _ in range(3):
        with waits(monkeypatch) as seen:
            spent = method.meta_gradient(theta, tasks).evaluations
        assert seen.count > 3 or solver == "auto"  # which may take the steps themselves
        assert seen.count - 3 < spent.total / 3
