"""What a user writes, for a type checker: mypy --strict accepts all of it, and knows what comes out."""

from typing import assert_type

import torch
from torch import Tensor, nn

import amaml


def loss(prediction: Tensor, target: Tensor) -> Tensor:
    return (prediction - target).square().mean()


def train(module: nn.Module, tasks: amaml.Tasks) -> Tensor:
    meta = amaml.Adaptation(module, loss, inner_lr=0.1, inner_steps=5, adapt=("0",), solver="euler")
    optimizer = torch.optim.Adam(meta.parameters(), lr=1e-3)
    with amaml.compiled(False):
        value = meta(tasks, at=(1, 5), weights=(0.5, 0.5))
    value.backward()
    optimizer.step()
    if meta.latest is not None:
        assert_type(meta.latest.query_loss, Tensor | None)
        assert_type(meta.latest.error, float | None)
    phi = meta.adapt(tasks.to(torch.float32), inner_lr=torch.tensor(0.1))
    assert_type(phi, Tensor)
    assert_type(meta.unflatten(phi), dict[str, Tensor])
    return meta.predict(phi, tasks.query_x)


def learner(x: Tensor, y: Tensor) -> amaml.MetaGradient:
    theta, apply = amaml.flatten(nn.Linear(2, 1))
    chosen: amaml.MetaLearner = amaml.AMAML(apply, amaml.half_mse, inner_lr=0.1, inner_steps=5)
    try:
        return chosen.meta_gradient(theta, amaml.Tasks(x, y, query_x=x, query_y=y)[:2])
    except (amaml.InputError, amaml.Diverged, amaml.OverBudget):
        raise
