"""Meta-test: adapt to every test task from theta, and measure on the way."""

import math
from collections.abc import Callable, Iterator
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
OnRecord = Callable[[int], None]


class Model(NamedTuple):
    """What is adapted and measured.

    meta: as it was trained, with the keywords rates of its calls; whole: of all parameters of the same network.
    """

    meta: Adaptation
    whole: Adaptation
    rates: dict[str, Any]
    loss: Loss
    metric: Loss
    inner_steps: int

    def start(self, count: int) -> Tensor:
        """theta, all parameters, for so many tasks (count, P)."""
        return self.whole.function.theta().detach().expand(count, -1)


@dataclass(frozen=True)
class Curves:
    """A metric of every task on its support set and its test points, (records, tasks), over epochs or inner steps.

    unit: what epochs counts, "epoch" or "inner step".
    """

    epochs: list[int]
    support: np.ndarray
    test: np.ndarray
    unit: str = "epoch"


class Adapted(NamedTuple):
    """The curves of some tasks, their adapted parameters phi (tasks, P), and predictions of x before and after."""

    curves: Curves
    phi: Tensor
    predict_before: Callable[[Tensor], Tensor]
    predict: Callable[[Tensor], Tensor]


def fine_tune(model: Model, tasks: Tasks, epochs: int, on_record: OnRecord = lambda epoch: None) -> Adapted:
    """Adapt all parameters to each task by full-batch Adam (lr 1e-3, weight decay 1e-6) on its support set.

    The same for every method, as in the A-MAML experiments. Adam works element by element, so one optimiser over
    phi (tasks, P) is one optimiser a task. The metric is recorded at epoch 0, every tenth epoch and at the end.
    Raises Diverged where the metric is not finite.
    """
    phi, whole = model.start(len(tasks)).clone(), model.whole
    optimizer = torch.optim.Adam([phi], lr=1e-3, weight_decay=1e-6, fused=True)
    recorded, records = [], []
    for epoch in range(epochs + 1):
        if epoch % RECORDED_EPOCHS == 0 or epoch == epochs:
            recorded.append(epoch)
            records.append(_measure(whole, model.metric, phi, tasks))
            on_record(epoch)
        if epoch < epochs:
            phi.grad = derivatives.gradients(whole.function, model.loss, phi, tasks.support_x, tasks.support_y)
            optimizer.step()
    return _adapted(model, whole, phi, recorded, records, "epoch")


def inner_loop(
    model: Model, tasks: Tasks, steps: int | None = None, on_record: OnRecord = lambda step: None
) -> Adapted:
    """Adapt to each task by the method's own inner loop of so many steps (None: as many as the run has).

    The few-shot protocol: the metric after 0, 1, 5, 10, 20, ... and all steps. Raises Diverged where it is not finite.
    """
    last, meta = steps or model.inner_steps, model.meta
    recorded = sorted({n for n in RECORDED_STEPS if n < last} | {last})
    with torch.no_grad():
        path = meta.adapt(tasks, at=recorded[1:], inner_steps=last, **model.rates)
    records = []
    for n, phi in zip(recorded, [model.start(len(tasks)), *path], strict=True):
        records.append(_measure(meta if n else model.whole, model.metric, phi, tasks))
        on_record(n)
    return _adapted(model, meta, phi, recorded, records, "inner step")


def in_chunks(
    adapt: Callable[[Tasks], Curves],
    draw: Callable[[int, int], Tasks],
    count: int,
    chunk: int,
    map_chunks: Callable[[Callable, list], list],
) -> Curves:
    """The curves of adapt over count tasks, chunk at a time: draw(n, first) makes the tasks first to first + n - 1."""
    parts = map_chunks(lambda first: adapt(draw(min(chunk, count - first), first)), list(range(0, count, chunk)))
    support, test = (np.concatenate([getattr(part, name) for part in parts], axis=1) for name in ("support", "test"))
    return Curves(parts[0].epochs, support, test, parts[0].unit)


def _measure(meta: Adaptation, metric: Loss, phi: Tensor, tasks: Tasks) -> tuple[Tensor, Tensor]:
    """The metric on the support set and on the test points, (tasks,) each."""
    sets = ((tasks.support_x, tasks.support_y), (tasks.test_x, tasks.test_y))
    with torch.no_grad():
        return tuple(torch.func.vmap(metric)(meta.predict(phi, x), y) for x, y in sets)


def _adapted(model: Model, after: Adaptation, phi: Tensor, recorded: list[int], records: list, unit: str) -> Adapted:
    rows = (torch.stack(part).double().cpu().numpy() for part in zip(*records, strict=True))
    curves, start = Curves(recorded, *rows, unit), model.start(len(phi))
    if not (np.isfinite(curves.support).all() and np.isfinite(curves.test).all()):
        raise Diverged("the meta-test error is not finite; theta is unusable, try a smaller --inner-lr or --meta-lr")
    return Adapted(curves, phi, lambda x: model.whole.predict(start, x), lambda x: after.predict(phi, x))


def mean_and_interval(values: np.ndarray) -> tuple[float, float]:
    """Mean over the values and half the width of its 95% confidence interval (Student's t); nan of a single one."""
    count = len(values)
    if count < 2:
        return float(values.mean()), math.nan
    spread = float(values.std(ddof=1)) / math.sqrt(count)
    return float(values.mean()), float(stdtrit(count - 1, 0.975)) * spread


def test_entry(update: int, curves: Curves, predictors: dict[str, np.ndarray], metric: str) -> dict[str, Any]:
    """A meta-test as it stands in test.json: mean and 95% half-interval over the tasks at every recorded epoch.

    predictors: the metric of simple predictors on the same test points, a value a task. A single task has no interval:
    null.
    """
    entry: dict[str, Any] = {
        "update": update,
        "tasks": int(curves.test.shape[1]),
        "metric": metric,
        "unit": curves.unit,
        "epochs": curves.epochs,
        "predictors": {name: _pair(values) for name, values in predictors.items()},
    }
    for name, values in (("support", curves.support), ("test", curves.test)):
        means, intervals = zip(*(_pair(row) for row in values), strict=True)
        entry[name] = {"mean": list(means), "ci95": list(intervals)}
    return entry


TASK_COLUMNS = "update,unit,epoch,task,support,test"


def task_lines(update: int, curves: Curves) -> Iterator[str]:
    """Lines of tasks.csv: the metric of every task of a meta-test at every recorded epoch, with a float32's digits."""
    for epoch, *rows in zip(curves.epochs, curves.support, curves.test, strict=True):
        for task, (support, test) in enumerate(zip(*rows, strict=True)):
            yield f"{update},{curves.unit},{epoch},{task},{support:.7g},{test:.7g}"


def _pair(values: np.ndarray) -> tuple[float, float | None]:
    mean, half = mean_and_interval(values)
    return mean, None if math.isnan(half) else half
