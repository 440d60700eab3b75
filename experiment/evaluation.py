"""Meta-test: adapt every test task from theta, and measure on the way."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import scipy.stats
import torch
from torch import Tensor

from amaml.chunked import Each, in_turn
from amaml.engine import derivatives
from amaml.engine.derivatives import Loss
from amaml.errors import Diverged
from amaml.learner import MetaLearner
from amaml.models import Apply
from amaml.tasks import Tasks

RECORDED_EPOCHS = 10  # of fine-tuning: every so many, and the last
RECORDED_STEPS = (0, 1, 5, 10)  # of the inner loop, and the last


class Model(NamedTuple):
    """What is adapted and measured: apply, the loss, the metric, and the learner with a given number of inner steps."""

    apply: Apply
    loss: Loss
    metric: Loss
    at_steps: Callable[[int | None], MetaLearner]  # None: as many as the run has


@dataclass(frozen=True)
class Curves:
    """A metric of every task on its support set and its test points, (records, tasks), over epochs or inner steps.

    unit: what epochs counts, "epoch" or "inner step".
    """

    epochs: list[int]
    support: np.ndarray
    test: np.ndarray
    unit: str = "epoch"


def fine_tune(
    model: Model,
    theta: Tensor,
    tasks: Tasks,
    epochs: int,
    on_record: Callable[[int], None] = lambda epoch: None,
) -> tuple[Curves, Tensor]:
    """Adapt theta (P,) to each task by full-batch Adam (lr 1e-3, weight decay 1e-6) on its support set.

    The same for every method, as in the A-MAML experiments. Adam works element by element, so one optimiser over
    phi (tasks, P) is one optimiser a task. The metric is recorded at epoch 0, every tenth epoch and at the end.
    Returns the curves and the final phi; raises Diverged where the metric is not finite.
    """
    phi = theta.detach().expand(len(tasks), -1).clone()
    optimizer = torch.optim.Adam([phi], lr=1e-3, weight_decay=1e-6, fused=True)
    recorded, records = [], []
    for epoch in range(epochs + 1):
        if epoch % RECORDED_EPOCHS == 0 or epoch == epochs:
            recorded.append(epoch)
            records.append(_measure(model, phi, tasks))
            on_record(epoch)
        if epoch < epochs:
            phi.grad = derivatives.gradients(model.apply, model.loss, phi, tasks.support_x, tasks.support_y)
            optimizer.step()
    return _curves(recorded, records, "epoch"), phi


def inner_loop(
    model: Model,
    theta: Tensor,
    tasks: Tasks,
    steps: int | None = None,
    on_record: Callable[[int], None] = lambda step: None,
) -> tuple[Curves, Tensor]:
    """Adapt theta (P,) to each task by the method's own inner loop of so many steps (None: as many as the run has).

    The few-shot protocol: the metric after 0, 1, 5, 10 and all steps. Returns the curves and the final phi; raises
    Diverged where the metric is not finite.
    """
    last = model.at_steps(steps).inner_steps
    recorded, records = sorted({n for n in RECORDED_STEPS if n < last} | {last}), []
    for n in recorded:
        phi = model.at_steps(n).adapt(theta, tasks) if n else theta.detach().expand(len(tasks), -1)
        records.append(_measure(model, phi, tasks))
        on_record(n)
    return _curves(recorded, records, "inner step"), phi


def in_chunks(
    adapt: Callable[[Tasks], Curves],
    draw: Callable[[int, int], Tasks],
    count: int,
    chunk: int,
    each: Each = in_turn,
) -> Curves:
    """The curves of adapt over count tasks, chunk at a time: draw(n, first) makes the tasks first to first + n - 1.

    each: how the chunks are gone through, see amaml.chunked.
    """
    parts = each(lambda first: adapt(draw(min(chunk, count - first), first)), list(range(0, count, chunk)))
    support, test = (np.concatenate([getattr(part, name) for part in parts], axis=1) for name in ("support", "test"))
    return Curves(parts[0].epochs, support, test, parts[0].unit)


def _measure(model: Model, phi: Tensor, tasks: Tasks) -> tuple[Tensor, Tensor]:
    """The metric on the support set and on the test points, (tasks,) each."""
    return (
        derivatives.losses(model.apply, model.metric, phi, tasks.support_x, tasks.support_y),
        derivatives.losses(model.apply, model.metric, phi, tasks.test_x, tasks.test_y),
    )


def _curves(recorded: list[int], records: list[tuple[Tensor, Tensor]], unit: str) -> Curves:
    rows = (torch.stack(part).double().cpu().numpy() for part in zip(*records, strict=True))
    curves = Curves(recorded, *rows, unit)
    if not (np.isfinite(curves.support).all() and np.isfinite(curves.test).all()):
        raise Diverged("the meta-test error is not finite; theta is unusable, try a smaller --inner-lr or --meta-lr")
    return curves


def mean_and_interval(values: np.ndarray) -> tuple[float, float]:
    """Mean over the tasks and half the width of its 95% confidence interval (Student's t)."""
    count = len(values)
    if count < 2:
        return float(values.mean()), math.nan
    spread = float(values.std(ddof=1)) / math.sqrt(count)
    return float(values.mean()), float(scipy.stats.t.ppf(0.975, count - 1)) * spread
