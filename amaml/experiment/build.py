"""What the settings of an experiment build, and what is done with it at meta-test."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from amaml.chunked import Chunked
from amaml.errors import Diverged
from amaml.experiment import report
from amaml.experiment.evaluation import Curves, Model, in_chunks
from amaml.experiment.machine import check_memory
from amaml.experiment.networks import build_network, initialise
from amaml.experiment.registry import METHODS, PROTOCOLS
from amaml.experiment.stop import StopRequest
from amaml.learner import MetaLearner
from amaml.models import Apply
from amaml.tasks import Tasks

IMAGES_AT_ONCE = 50  # meta-test tasks of images that go through a network together, unless --task-chunk says


@dataclass(frozen=True)
class Experiment:
    """The settings, the domain (a data.Domain), the network as a function, its first parameters (P,), the learner."""

    settings: Any
    domain: Any
    apply: Apply
    theta: Tensor
    learner: MetaLearner

    def at_steps(self, steps: int | None) -> MetaLearner:
        """The learner with another number of inner steps (and --method maml1 as MAML, which adapts alike)."""
        whole = getattr(self.learner, "learner", self.learner)  # without its chunks
        return replace(whole, inner_steps=steps or self.settings.inner_steps)

    @property
    def protocol(self) -> dict[str, Any]:
        """The settings of a meta-test."""
        chosen = PROTOCOLS[self.settings.protocol]
        return {name: getattr(self.settings, name) for name in ("protocol", "test_tasks", *sorted(chosen.uses))}

    def adapt(
        self, theta: Tensor, tasks: Tasks, on_record: Callable[[int], None] = lambda record: None
    ) -> tuple[Curves, Tensor]:
        """Adapt theta (P,) to tasks by the protocol of the settings: the curves, and phi (tasks, P)."""
        objective = self.domain.objective
        model = Model(self.apply, objective.loss, objective.metric, self.at_steps)
        return PROTOCOLS[self.settings.protocol].call(self.settings, model, theta, tasks, on_record=on_record)

    def meta_test(self, theta: Tensor, update: int, stop: StopRequest) -> dict[str, Any]:
        """Adapt theta (P,) to every meta-test task, some at a time; the entry for test.json."""
        count, chunk = self.settings.test_tasks, _test_chunk(self.settings, self.domain)

        def adapt(tasks: Tasks) -> Curves:
            return self.adapt(theta, tasks, lambda record: stop.check(update))[0]

        try:
            curves = in_chunks(adapt, self.domain.meta_test, count, chunk)
        except Diverged as fault:
            raise Diverged(f"meta-test after update {update}: {fault}") from fault
        predictors = getattr(self.domain, "predictors", lambda count: {})(count)
        entry = report.test_entry(update, curves, predictors, self.domain.objective.metric_name)
        return entry | {"protocol": self.protocol}

    def picture(self, theta: Tensor) -> bytes | None:
        """The first --draw meta-test tasks before and after adaptation, None for --draw 0 and what cannot be drawn."""
        if not self.settings.draw or not report.can_draw(self.domain.input_shape):
            return None
        tasks = self.domain.meta_test(self.settings.draw)
        return report.draw_fits(self.apply, theta, self.adapt(theta, tasks)[1], tasks)


def build(settings: Any, domain: Any) -> Experiment:
    """The network and the learner of an experiment on a data.Domain.

    Raises InputError where they do not go together, and where the machine cannot hold them.
    """
    dtype = getattr(torch, settings.dtype)
    _check_memory(settings, domain, dtype)
    theta, apply = initialise(lambda: build_network(settings, domain), settings.seed, dtype, settings.device)
    inner_loop = {"inner_lr": settings.inner_lr, "inner_steps": settings.inner_steps}
    learner = METHODS[settings.method].call(settings, apply=apply, loss=domain.objective.loss, **inner_loop)
    if settings.task_chunk is not None:
        learner = Chunked(learner, settings.task_chunk)
    return Experiment(settings, domain, apply, theta, learner)


def _test_chunk(settings: Any, domain: Any) -> int:
    """How many meta-test tasks go through the network together."""
    return min(settings.test_tasks, settings.task_chunk or (IMAGES_AT_ONCE if domain.images else settings.test_tasks))


def _check_memory(settings: Any, domain: Any, dtype: torch.dtype) -> None:
    """Raise InputError for a network of which the machine cannot hold theta, the tasks' phi and a gradient for each."""
    with torch.device("meta"):  # where tensors have shapes and no memory
        parameters = sum(p.numel() for p in build_network(settings, domain).parameters())
    tasks = max(min(settings.meta_batch, settings.task_chunk or settings.meta_batch), _test_chunk(settings, domain))
    what = (
        f"--width {settings.width} makes {parameters:,} parameters, choose a smaller one, or a smaller --task-chunk; "
        f"{tasks} tasks at once take"
    )
    check_memory((2 + 2 * tasks) * parameters * dtype.itemsize, settings.device, what)
