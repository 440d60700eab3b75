"""Meta-test: adapt to every test task from theta, and measure on the way."""

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from scipy.special import stdtrit
from torch import Tensor

from amaml import Adaptation, Diverged, Tasks
from amaml.engine import derivatives
from amaml.engine.derivatives import Loss

RECORDED_EPOCHS = 10  # of fine-tuning: every so many, and the last
RECORDED_STEPS = (0, 1, 5, 10, 20, 50, 100, 200, 500)  # of the inner loop, and the last
TASK_COLUMNS = "update,unit,epoch,task,support,test"


class Record(NamedTuple):
    """After so many epochs or inner steps: the network, and its adapted parameters phi (tasks, P)."""

    epoch: int
    network: Adaptation
    phi: Tensor


def fine_tune(e: Any, tasks: Tasks, epochs: int) -> Iterator[Record]:
    """Adapt all parameters of the Experiment e by full-batch Adam (lr 1e-3, weight decay 1e-6) on each support set.

    The same for every method, as in the A-MAML experiments. Adam works element by element, so one optimiser over
    phi (tasks, P) is one optimiser a task. Records epoch 0, every tenth epoch and the end.
    """
    whole, loss = e.whole, e.domain.objective.loss
    phi = whole.function.theta().detach().repeat(len(tasks), 1)
    optimizer = torch.optim.Adam([phi], lr=1e-3, weight_decay=1e-6, fused=True)
    for epoch in range(epochs + 1):
        if epoch % RECORDED_EPOCHS == 0 or epoch == epochs:
            yield Record(epoch, whole, phi)
        if epoch < epochs:
            phi.grad = derivatives.gradients(whole.function, loss, phi, tasks.support_x, tasks.support_y)
            optimizer.step()


def inner_loop(e: Any, tasks: Tasks, steps: int | None = None) -> Iterator[Record]:
    """Adapt to each task by the inner loop of the Experiment e, of so many steps (None: as many as the run has).

    The few-shot protocol: records 0, 1, 5, 10, 20, ... and all steps.
    """
    last = steps or e.settings.inner_steps
    recorded = sorted({n for n in RECORDED_STEPS if n < last} | {last})
    with torch.no_grad():
        path = e.meta.adapt(tasks, at=recorded, inner_steps=last, **e.rates())
    yield from (Record(n, e.meta, phi) for n, phi in zip(recorded, path, strict=True))


@dataclass(frozen=True)
class Curves:
    """A metric of every task on its support set and its test points, (records, tasks), over epochs or inner steps.

    unit: what epochs counts, "epoch" or "inner step".
    """

    unit: str
    epochs: list[int]
    support: np.ndarray
    test: np.ndarray

    @classmethod
    def joined(cls, parts: list["Curves"]) -> "Curves":
        """Those of all tasks of the parts, in their order."""
        support, test = (np.concatenate([getattr(part, name) for part in parts], 1) for name in ("support", "test"))
        return cls(parts[0].unit, parts[0].epochs, support, test)


def measured(records: Iterable[Record], tasks: Tasks, metric: Loss, unit: str) -> tuple[Curves, Record]:
    """The curves of a metric over the records, and the last of these; Diverged where it is not finite."""
    epochs, rows, sets = [], [], ((tasks.support_x, tasks.support_y), (tasks.test_x, tasks.test_y))
    for record in records:
        epochs.append(record.epoch)
        rows.append([derivatives.losses(record.network.function, metric, record.phi, x, y) for x, y in sets])
    support, test = (torch.stack(part).double().cpu().numpy() for part in zip(*rows, strict=True))
    if not (np.isfinite(support).all() and np.isfinite(test).all()):
        raise Diverged("the meta-test error is not finite; theta is unusable, try a smaller --inner-lr or --meta-lr")
    return Curves(unit, epochs, support, test), record


def mean_and_interval(values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Mean over the last axis and half the width of its 95% confidence interval (Student's t); nan of one value."""
    free = values.shape[-1] - 1  # degrees of freedom; of none, stdtrit is nan
    return values.mean(-1), stdtrit(free, 0.975) * (values.std(-1, ddof=min(free, 1)) / math.sqrt(free + 1))


def test_entry(update: int, curves: Curves, predictors: dict[str, np.ndarray], metric: str) -> dict[str, Any]:
    """A meta-test as it stands in test.json: mean and 95% half-interval over the tasks at every recorded epoch.

    predictors: the metric of simple predictors on the same test points, a value a task. A single task has no interval:
    null.
    """

    def listed(values: np.ndarray) -> tuple[Any, Any]:
        mean, half = mean_and_interval(values)
        return mean.tolist(), np.where(np.isnan(half), None, half).tolist()

    entry: dict[str, Any] = {
        "update": update,
        "tasks": int(curves.test.shape[1]),
        "metric": metric,
        "unit": curves.unit,
        "epochs": curves.epochs,
        "predictors": {name: listed(values) for name, values in predictors.items()},
    }
    for name in ("support", "test"):
        entry[name] = dict(zip(("mean", "ci95"), listed(getattr(curves, name)), strict=True))
    return entry


def task_lines(update: int, curves: Curves) -> Iterator[str]:
    """Lines of tasks.csv: the metric of every task of a meta-test at every recorded epoch, with a float32's digits."""
    for epoch, *rows in zip(curves.epochs, curves.support, curves.test, strict=True):
        for task, (support, test) in enumerate(zip(*rows, strict=True)):
            yield f"{update},{curves.unit},{epoch},{task},{support:.7g},{test:.7g}"
