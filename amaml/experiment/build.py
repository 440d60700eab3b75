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

    def adapt(
        self, theta: Tensor, tasks: Tasks, on_record: Callable[[int], None] = lambda record: None
    ) -> tuple[Curves, Tensor]:
        """Adapt theta (P,) to tasks by the protocol of the settings: the curves, and phi (tasks, P)."""
        objective = self.domain.objective
        model = Model(self.apply, objective.loss, objective.metric, self.at_steps)
        return PROTOCOLS[self.settings.protocol].call(self.settings, model, theta, tasks, on_record=on_record)

    def meta_test(self, theta: Tensor, update: int, stop: StopRequest) -> dict[str, Any]:
        """Adapt theta (P,) to every meta-test task, some at a time; the entry for test.json."""
        count, images = self.settings.test_tasks, self.domain.images
        chunk = self.settings.task_chunk or (IMAGES_AT_ONCE if images else count)

        def adapt(tasks: Tasks) -> Curves:
            return self.adapt(theta, tasks, lambda record: stop.check(update))[0]

        try:
            curves = in_chunks(adapt, self.domain.meta_test, count, chunk)
        except Diverged as fault:
            raise Diverged(f"meta-test after update {update}: {fault}") from fault
        predictors = getattr(self.domain, "predictors", lambda count: {})(count)
        return report.test_entry(update, curves, predictors)

    def picture(self, theta: Tensor) -> bytes:
        """fits.png, the first --draw meta-test tasks before and after adaptation."""
        tasks = self.domain.meta_test(self.settings.draw)
        return report.draw_fits(self.apply, theta, self.adapt(theta, tasks)[1], tasks)


def build(settings: Any, domain: Any) -> Experiment:
    """The network and the learner of an experiment on a data.Domain."""
    dtype = getattr(torch, settings.dtype)
    theta, apply = initialise(lambda: build_network(settings, domain), settings.seed, dtype, settings.device)
    inner_loop = {"inner_lr": settings.inner_lr, "inner_steps": settings.inner_steps}
    learner = METHODS[settings.method].call(settings, apply=apply, loss=domain.objective.loss, **inner_loop)
    if settings.task_chunk is not None:
        learner = Chunked(learner, settings.task_chunk)
    return Experiment(settings, domain, apply, theta, learner)
