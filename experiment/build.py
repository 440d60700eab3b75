"""What the settings of an experiment build, and what is done with it at meta-test."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from amaml.chunked import Chunked, Each, in_turn
from amaml.engine import derivatives
from amaml.errors import Diverged
from amaml.learner import MetaLearner
from amaml.models import Apply
from amaml.tasks import Tasks
from experiment import report
from experiment.evaluation import Curves, Model, in_chunks
from experiment.machine import check_memory, steady_memory
from experiment.networks import build_network, initialise
from experiment.pictures import Fits, can_draw, draw_fits
from experiment.rates import learn_rates
from experiment.registry import METHODS, PROTOCOLS, protocols
from experiment.stop import Stopped, StopRequest

IMAGES_AT_ONCE = 50  # meta-test tasks of images that go through a network together, unless --task-chunk says


@dataclass(frozen=True)
class Experiment:
    """The settings, the domain (a data.Domain), the network as a function, theta (P,), the learner.

    theta: trained in place. start: the random initialisation, as which it begins unless --start-from says otherwise.
    each: how the chunks of a batch of tasks are gone through, see amaml.chunked.
    """

    settings: Any
    domain: Any
    apply: Apply
    theta: Tensor
    start: Tensor
    learner: MetaLearner
    each: Each = in_turn

    def at_steps(self, steps: int | None) -> MetaLearner:
        """The learner with another number of inner steps (and --method maml1 as MAML, which adapts alike)."""
        whole = self.learner.learner if isinstance(self.learner, Chunked) else self.learner
        return replace(whole, inner_steps=steps or self.settings.inner_steps)

    @property
    def protocol(self) -> dict[str, Any]:
        """The settings of a meta-test."""
        used = [name for chosen in protocols(self.settings.protocol) for name in sorted(PROTOCOLS[chosen].uses)]
        return {name: getattr(self.settings, name) for name in ("protocol", "test_tasks", *used)}

    def adapt(
        self, theta: Tensor, tasks: Tasks, protocol: str, on_record: Callable[[int], None] = lambda record: None
    ) -> tuple[Curves, Tensor]:
        """Adapt theta (P,) to tasks by a protocol: the curves, and phi (tasks, P)."""
        objective = self.domain.objective
        model = Model(self.apply, objective.loss, objective.metric, self.at_steps)
        return PROTOCOLS[protocol].call(self.settings, model, theta, tasks, on_record=on_record)

    def training_work(self) -> Callable[[], Tensor]:
        """What training repeats: the support gradients (tasks, P) of the first update's tasks at theta."""
        tasks, objective = self.domain.episode(0), self.domain.objective
        phi = self.theta.detach().expand(len(tasks), -1)
        return lambda: derivatives.gradients(self.apply, objective.loss, phi, tasks.support_x, tasks.support_y)

    def meta_test(self, theta: Tensor, update: int, stop: StopRequest) -> dict[str, Any]:
        """Adapt theta (P,) to every meta-test task; the entry for test.json.

        For --protocol both it is that of fine-tuning, and the inner loop's stands in it under "also".
        """
        try:
            curves, *others = (self._curves(name, theta, update, stop) for name in protocols(self.settings.protocol))
        except Diverged as fault:
            raise Diverged(f"meta-test after update {update}: {fault}") from fault
        predictors = getattr(self.domain, "predictors", lambda count: {})(self.settings.test_tasks)
        metric = self.domain.objective.metric_name
        entry = report.test_entry(update, curves, predictors, metric) | {"protocol": self.protocol}
        return entry | {"also": [report.test_entry(update, other, {}, metric) for other in others]}

    def scratch_tests(self, update: int, stop: StopRequest) -> list[dict[str, Any] | None]:
        """The random initialisation by every protocol, to compare with; None where it cannot be adapted.

        update: how many are on disk, which a stop names.
        """

        def test(protocol: str) -> dict[str, Any] | None:
            try:
                curves = self._curves(protocol, self.start, update, stop)
            except Diverged:
                return None
            return report.test_entry(0, curves, {}, self.domain.objective.metric_name)

        return [test(protocol) for protocol in protocols(self.settings.protocol)]

    def _curves(self, protocol: str, theta: Tensor, update: int, stop: StopRequest) -> Curves:
        """Adapt theta (P,) to every meta-test task by one protocol, some tasks at a time."""
        count, chunk = self.settings.test_tasks, _test_chunk(self.settings, self.domain)

        def on_record(record: int) -> None:
            stop.check(update)
            trim()

        try:
            with steady_memory() as trim:
                return in_chunks(
                    lambda tasks: self.adapt(theta, tasks, protocol, on_record)[0],
                    self.domain.meta_test,
                    count,
                    chunk,
                    self.each,
                )
        except Stopped:
            stop.check(update)  # names the update
            raise

    @property
    def title(self) -> str:
        """What this is, in a line."""
        s = self.settings
        sizes = f"{s.shots} shots, {s.queries} queries, {s.inner_steps} inner steps"
        return f"{s.domain}, {sizes}: {s.method}, seed {s.seed}"

    def picture(self, theta: Tensor) -> bytes | None:
        """The first --draw meta-test tasks before and after adaptation, None for --draw 0 and what cannot be drawn."""
        if not self.settings.draw or not can_draw(self.domain.input_shape):
            return None
        tasks, objective = self.domain.meta_test(self.settings.draw), self.domain.objective
        phi = self.adapt(theta, tasks, protocols(self.settings.protocol)[0])[1]
        to_units = getattr(self.domain, "in_units", lambda x, y: (x, y))
        x, both = tasks.test_x, (theta.detach().expand_as(phi), phi)
        predictions = [torch.func.vmap(self.apply)(p, x) for p in both]
        errors = [derivatives.losses(self.apply, objective.metric, p, x, tasks.test_y) for p in both]
        points = [to_units(*pair) for pair in ((tasks.support_x, tasks.support_y), (x, tasks.test_y))]
        fits = [*points[0], *points[1], *(to_units(x, p)[1] for p in predictions), *errors]
        return draw_fits(self.title, Fits(*(t.double().cpu().numpy() for t in fits), objective.metric_name))


def build(settings: Any, domain: Any, each: Each = in_turn) -> Experiment:
    """The network and the learner of an experiment on a data.Domain; each: how its chunks are gone through.

    Raises InputError where they do not go together, and where the machine cannot hold them.
    """
    dtype = getattr(torch, settings.dtype)
    _check_memory(settings, domain, dtype)
    theta, apply = initialise(lambda: build_network(settings, domain), settings.seed, dtype, settings.device)
    inner_loop = {"inner_lr": settings.inner_lr, "inner_steps": settings.inner_steps}
    learner = METHODS[settings.method].call(settings, apply=apply, loss=domain.objective.loss, **inner_loop)
    if settings.learn_rates is not None:
        theta, apply, learner = learn_rates(settings.learn_rates, theta, apply, learner, settings.task_chunk, each)
    elif settings.task_chunk is not None:
        learner = Chunked(learner, settings.task_chunk, each)
    return Experiment(settings, domain, apply, theta, theta.detach().clone(), learner, each)


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
