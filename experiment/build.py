"""What the settings of an experiment build, and what is done with it at meta-test."""

import contextlib
import copy
import functools
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from amaml import Adaptation, Diverged, InputError
from amaml.engine.derivatives import Loss
from baselines import Reptile
from data import Domain, of_settings
from experiment.distributed import Group
from experiment.evaluation import Curves, Record, measured, task_lines, test_entry
from experiment.folder import Checkpoint
from experiment.machine import check_device, memory_of
from experiment.methods import METHODS, NETWORKS, PROTOCOLS, UNITS, protocols
from experiment.networks import seeded
from experiment.settings import Settings

IMAGES_AT_ONCE = 50  # meta-test tasks of images that go through a network together, unless --task-chunk says


@dataclass(frozen=True)
class Experiment:
    """What is trained and tested.

    model: {"meta": an amaml.Adaptation of the network, "log_rates": the logarithms of factors of inner_lr, see rates,
    "first": for --reptile-first Reptile's Adaptation of the same network}; its parameters are trained, its state_dict
    makes a checkpoint. initial: that state before any training.
    whole: an Adaptation of all parameters of the network, for fine-tuning; meta itself where all of them adapt.
    group: the processes that the meta-test tasks are shared among.
    """

    settings: Settings
    domain: Domain
    model: nn.ModuleDict
    whole: Adaptation
    initial: dict[str, Any]
    group: Group

    @property
    def meta(self) -> Adaptation:
        """The network as it adapts to tasks."""
        return self.model["meta"]

    @property
    def title(self) -> str:
        """What this is, in a line."""
        s = self.settings
        counts = {"shot": s.shots, "query": s.queries, "inner step": s.inner_steps}
        return f"{s.domain}, {', '.join(counted(n, name) for name, n in counts.items())}: {s.method}, seed {s.seed}"

    @property
    def protocol(self) -> dict[str, Any]:
        """The settings of a meta-test."""
        used = [name for chosen in protocols(self.settings.protocol) for name in sorted(PROTOCOLS[chosen].uses)]
        return {name: getattr(self.settings, name) for name in ("protocol", "test_tasks", *used)}

    @functools.cached_property
    def metric(self) -> Loss:
        """The domain's, counts and flags as real numbers; one function for all tests, which its graphs belong to."""
        return functools.partial(_real, self.domain.objective.metric)

    def rates(self) -> dict[str, Any]:
        """The keyword inner_lr of the Adaptation where rates are learned (--learn-rates).

        "scalar": one factor for all parameters, a learned horizon; "parameter": a tensor of factors for each (Meta-SGD,
        Li et al. 2017). The factors begin at one.
        """
        s, factors = self.settings, [log.exp() for log in self.model["log_rates"]]
        if s.learn_rates is None:
            return {}
        if s.learn_rates == "scalar":
            return {"inner_lr": s.inner_lr * factors[0]}
        return {"inner_lr": {name: s.inner_lr * f for name, f in zip(self.meta.function.shapes, factors, strict=True)}}

    def restore(self, checkpoint: Checkpoint, place: str, remedy: str, memory: bool = True) -> None:
        """Take over a checkpoint's parameters and the learner's memory; InputError where these are of another size."""
        left_out = () if memory else ("first.",)  # the same network once more
        theirs, ours = (
            {name: v for name, v in state.items() if isinstance(v, Tensor) and not name.startswith(left_out)}
            for state in (checkpoint.model, self.model.state_dict())
        )
        if {name: value.shape for name, value in theirs.items()} != {name: v.shape for name, v in ours.items()}:
            there, here = (sum(value.numel() for value in found.values()) for found in (theirs, ours))
            raise InputError(f"{place} holds {there} parameters, the network has {here}; {remedy}")
        self.model.load_state_dict(checkpoint.model if memory else theirs, strict=memory)

    def adapt(self, tasks: Any, protocol: str) -> tuple[Curves, Record]:
        """Adapt to tasks by a protocol; its curves, and what it ends with. A stop is met between two records."""
        chosen = PROTOCOLS[protocol]

        def records() -> Iterator[Record]:
            for record in chosen.make(self, tasks, **chosen.options(self.settings)):
                yield record
                self.group.stop.check()

        return measured(records(), tasks, self.metric, UNITS[protocol])

    def meta_test(self, update: int) -> tuple[dict[str, Any], list[str]]:
        """Adapt to every meta-test task; its entry of test.json and lines of tasks.csv. update: how many are made.

        For --protocol both it is that of fine-tuning, and the inner loop's stands in it under "also".
        """
        try:
            curves = [self._curves(name) for name in protocols(self.settings.protocol)]
        except Diverged as fault:
            raise Diverged(f"meta-test after update {update}: {fault}") from fault
        simple = [self.domain.predictors(self.settings.test_tasks), *({} for _ in curves[1:])]
        metric = self.domain.objective.metric_name
        entry, *also = (test_entry(update, *part, metric) for part in zip(curves, simple, strict=True))
        lines = [line for part in curves for line in task_lines(update, part)]
        return entry | {"protocol": self.protocol, "also": also}, lines

    def scratch_tests(self) -> list[dict[str, Any] | None]:
        """The random initialisation by every protocol, to compare with; None where it cannot be adapted."""
        trained, metric = copy.deepcopy(self.model.state_dict()), self.domain.objective.metric_name
        tests = dict.fromkeys(protocols(self.settings.protocol))
        self.model.load_state_dict(self.initial)
        try:
            for protocol in tests:
                with contextlib.suppress(Diverged):
                    tests[protocol] = test_entry(0, self._curves(protocol), {}, metric)
        finally:
            self.model.load_state_dict(trained)
        return list(tests.values())

    def _curves(self, protocol: str) -> Curves:
        """Adapt to every meta-test task by one protocol, some tasks at a time."""
        count, chunk = self.settings.test_tasks, _test_chunk(self.settings, self.domain)

        def curves(first: int) -> Curves:
            tasks = self.domain.meta_test(min(chunk, count - first), first)
            return self.adapt(tasks, protocol)[0]

        return Curves.joined(self.group.map_chunks(curves, list(range(0, count, chunk))))

    def picture(self) -> bytes | None:
        """The first --draw meta-test tasks before and after adaptation, None for --draw 0 and what cannot be drawn."""
        from experiment import figures  # with matplotlib, which a mistake in a flag need not wait for

        if not self.settings.draw:
            return None
        if (shape := tuple(self.domain.input_shape)) not in ((1,), (2,)):
            message = f"--draw shows tasks of one or two inputs, these have {shape}: there will be no picture"
            warnings.warn(message, RuntimeWarning, stacklevel=2)
            return None
        count = min(self.settings.draw, self.settings.test_tasks)
        tasks, units = self.domain.meta_test(count), self.domain.in_units
        ended, (_, network, phi) = self.adapt(tasks, protocols(self.settings.protocol)[0])
        with torch.no_grad():
            start = self.whole.predict(self.whole.function.theta().expand(count, -1), tasks.test_x)
            fits = start, network.predict(phi, tasks.test_x)
        support, (x, truth) = units(tasks.support_x, tasks.support_y), units(tasks.test_x, tasks.test_y)
        curves = torch.stack([truth, *(units(tasks.test_x, fit)[1] for fit in fits)])
        *support, x, curves = (part.double().cpu().numpy() for part in (*support, x, curves))
        metric, steps = self.domain.objective.metric_name, counted(ended.epochs[-1], ended.unit)
        labels = [
            (f"before adaptation\n{metric} {one:.3g}", f"after {steps}\n{metric} {two:.3g}")
            for one, two in zip(ended.test[0], ended.test[-1], strict=True)
        ]
        return figures.draw_fits(self.title, support, x, curves, labels)


def _real(metric: Loss, prediction: Any, target: Any) -> Any:
    value = metric(prediction, target)
    return value.double() if isinstance(value, Tensor) else value


def counted(number: int, name: str) -> str:
    """1 shot, 2 shots, 2 queries."""
    return f"{number} {name if number == 1 else f'{name}s'.replace('ys', 'ies')}"


def build(s: Settings, group: Group) -> Experiment:
    """The domain, the network and the way it learns; the chunks of its tasks are shared among the group.

    Raises InputError where they do not go together, and where the machine cannot hold them.
    """
    check_device(s.device, group.world)
    dtype, method = getattr(torch, s.dtype), METHODS[s.method]
    domain = of_settings(s)
    _check_memory(s, domain, dtype)
    network = seeded(lambda: build_network(s, domain), s.seed).to(s.device, dtype)
    options = {"inner_lr": s.inner_lr, "inner_steps": s.inner_steps, "method": method.make, **method.options(s)}
    if s.checkpoint_every is not None:
        options["checkpoints"] = max(1, s.inner_steps // s.checkpoint_every)
    adapt, loss = method.adapt and method.adapt(network), domain.objective.loss
    meta = Adaptation(network, loss, adapt=adapt, task_chunk=s.task_chunk, each=group.map_chunks, **options)
    whole = Adaptation(network, loss, s.inner_lr, s.inner_steps, method="fomaml") if adapt else meta
    shapes = {None: [], "scalar": [()], "parameter": meta.function.shapes.values()}[s.learn_rates]
    log_rates = nn.ParameterList([torch.zeros(shape, dtype=dtype, device=s.device) for shape in shapes])
    parts = {"meta": meta, "log_rates": log_rates}
    if s.reptile_first:
        shared = {"task_chunk": s.task_chunk, "each": group.map_chunks, "robust": s.robust}
        parts["first"] = Adaptation(network, loss, s.inner_lr, s.inner_steps, method=Reptile, **shared)
    model = nn.ModuleDict(parts)
    return Experiment(s, domain, model, whole, copy.deepcopy(model.state_dict()), group)


def build_network(s: Settings, domain: Domain) -> nn.Module:
    """The network that --network names, for a domain's points; raises InputError where these are no images."""
    chosen = NETWORKS[s.network]
    if chosen.images and not domain.images:
        raise InputError(f"--network {s.network} takes images, {s.domain} has none; choose mlp or linear")
    network = chosen.make(domain.input_shape, domain.outputs, **chosen.options(s))
    if not isinstance(network, nn.Module):
        raise InputError(f"--network {s.network} must make a torch.nn.Module, got {type(network).__name__}")
    return network


def _test_chunk(s: Settings, domain: Domain) -> int:
    """How many meta-test tasks go through the network together."""
    return min(s.test_tasks, s.task_chunk or (IMAGES_AT_ONCE if domain.images else s.test_tasks))


def _check_memory(s: Settings, domain: Domain, dtype: torch.dtype) -> None:
    """Raise InputError for a network of which the machine cannot hold theta, the tasks' phi and a gradient for each."""
    with torch.device("meta"):  # where tensors have shapes and no memory
        parameters = sum(p.numel() for p in build_network(s, domain).parameters())
    tasks = max(min(s.meta_batch, s.task_chunk or s.meta_batch), _test_chunk(s, domain))
    needed, there = (2 + 2 * tasks) * parameters * dtype.itemsize / 2**30, memory_of(s.device)
    if there is not None and needed > there:
        remedy = f"--width {s.width} makes {parameters:,} parameters, choose a smaller one, or a smaller --task-chunk"
        taken = f"{tasks} tasks at once take at least {needed:,.0f} GiB of memory"
        raise InputError(f"{remedy}; {taken}, {s.device} has {there:,.0f}")
