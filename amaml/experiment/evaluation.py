"""Meta-test: adapt every test task from theta, and measure on the way."""

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import scipy.stats
import torch
from torch import Tensor

from amaml.errors import Diverged
from amaml.flow import derivatives
from amaml.flow.derivatives import Loss
from amaml.learner import MetaLearner
from amaml.models import Apply
from amaml.tasks import Tasks


@dataclass(frozen=True)
class Curves:
    """A metric of every task on its support set and its test points, (records, tasks), over epochs or inner steps."""

    epochs: list[int]
    support: np.ndarray
    test: np.ndarray


def fine_tune(
    apply: Apply,
    loss: Loss,
    metric: Loss,
    theta: Tensor,
    tasks: Tasks,
    epochs: int,
    every: int = 10,
    on_record: Callable[[int], None] = lambda epoch: None,
) -> tuple[Curves, Tensor]:
    """Adapt theta (P,) to each task by full-batch Adam (lr 1e-3, weight decay 1e-6) on its support set.

    The same for every method, as in the A-MAML experiments. Adam works element by element, so one optimiser over
    phi (tasks, P) is one optimiser a task. The metric is recorded at epoch 0, every so many epochs and at the end.
    Returns the curves and the final phi; raises Diverged where the metric is not finite.
    """
    phi = theta.detach().expand(len(tasks), -1).clone()
    optimizer = torch.optim.Adam([phi], lr=1e-3, weight_decay=1e-6, fused=True)
    recorded, support, test = [], [], []
    for epoch in range(epochs + 1):
        if epoch % every == 0 or epoch == epochs:
            recorded.append(epoch)
            support.append(derivatives.losses(apply, metric, phi, tasks.support_x, tasks.support_y))
            test.append(derivatives.losses(apply, metric, phi, tasks.test_x, tasks.test_y))
            on_record(epoch)
        if epoch < epochs:
            phi.grad = derivatives.gradients(apply, loss, phi, tasks.support_x, tasks.support_y)
            optimizer.step()
    return _curves(recorded, support, test), phi


def inner_loop(
    at_steps: Callable[[int], MetaLearner],
    apply: Apply,
    metric: Loss,
    theta: Tensor,
    tasks: Tasks,
    steps: list[int],
    chunk: int,
    on_record: Callable[[int], None] = lambda step: None,
) -> tuple[Curves, Tensor]:
    """Adapt theta (P,) to each task by the method's own inner loop, at_steps(n) being the learner with n inner steps.

    The few-shot protocol: the metric after each of the given numbers of steps, 0 among them, chunk tasks at a time.
    Returns the curves and the final phi; raises Diverged where the metric is not finite.
    """
    support, test, finals = [], [], []
    for i in range(0, len(tasks), chunk):
        part = tasks[i : i + chunk]
        for n in steps:
            phi = at_steps(n).adapt(theta, part) if n else theta.detach().expand(len(part), -1)
            support.append(derivatives.losses(apply, metric, phi, part.support_x, part.support_y))
            test.append(derivatives.losses(apply, metric, phi, part.test_x, part.test_y))
            on_record(n)
        finals.append(phi)
    by_step = ([torch.cat(rows[j :: len(steps)]) for j in range(len(steps))] for rows in (support, test))
    return _curves(steps, *by_step), torch.cat(finals)


def _curves(recorded: list[int], support: list[Tensor], test: list[Tensor]) -> Curves:
    curves = Curves(recorded, *(torch.stack(rows).double().cpu().numpy() for rows in (support, test)))
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
