"""The meta-training loop: draw an episode, take its meta-gradient, let the optimiser step; and what goes on disk."""

import math
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from dataclasses import asdict, dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor

from amaml.errors import Diverged, InputError, OverBudget
from amaml.learner import MetaGradient, MetaLearner
from amaml.tasks import Tasks
from experiment.build import Experiment
from experiment.clock import Clock
from experiment.events import Events
from experiment.folder import Checkpoint, Mirror, RunFolder
from experiment.progress import Progress
from experiment.registry import META_OPTIMIZERS
from experiment.report import in_words
from experiment.stop import Stopped, StopRequest

SKIP_SHARE, SKIP_WINDOW = 0.01, 500  # of the last updates, that may leave their batch out
READ_EVERY, READ_SECONDS = 20, 1.0  # at most, between two looks at the numbers on the device
SAVE_SECONDS = 30.0


@dataclass(frozen=True)
class Update:
    """What one meta-update leaves behind; the tensors stay on the device until they are read."""

    number: int
    gradient: MetaGradient | None  # None: its batch was left out
    query_loss: Tensor | None = None
    norm: Tensor | None = None


def meta_train(
    learner: MetaLearner,
    theta: Tensor,
    optimizer: torch.optim.Optimizer,
    episode: Callable[[int], Tasks],
    first: int,
    last: int,
    clip: float | None = None,
    meta_lr: Callable[[int], float] | None = None,
    stop: StopRequest | None = None,
) -> Iterator[Update]:
    """Updates first + 1 to last of theta (P,), in place and by the optimiser alone; yields after each.

    clip: a meta-gradient of a larger norm is scaled to this one; the norm that is reported is the one it had.
    meta_lr: the optimiser's step size in update n is meta_lr(n - 1) (None: its own throughout).

    Update number n uses episode(n - 1), so that a run may stop after any update and go on later. A batch whose
    gradient cannot be made accurate within its budget (OverBudget) changes neither theta nor the optimiser; the first
    one of all must succeed. Raises Diverged with the update's number where the learner does, Stopped where a stop is
    asked for in the middle of a meta-gradient.
    """
    for step in range(first, last):
        tasks = episode(step)
        try:
            gradient = _undisturbed(learner, theta, tasks, stop)
        except OverBudget as fault:
            if step == 0:
                raise Diverged(f"update 1: {fault}") from fault
            yield Update(step + 1, None)
            continue
        except (Diverged, InputError) as fault:
            raise type(fault)(f"update {step + 1}: {fault}") from fault
        theta.grad, norm = gradient.value, gradient.value.norm()
        if clip is not None:
            torch.nn.utils.clip_grads_with_norm_([theta], clip, norm)
        if meta_lr is not None:
            for group in optimizer.param_groups:
                group["lr"] = meta_lr(step)
        optimizer.step()
        yield Update(step + 1, gradient, gradient.query_loss.mean(), norm)


def cosine(meta_lr: float, updates: int, step: int) -> float:
    """A step size that falls from meta_lr at step 0 to zero at step updates, along half a cosine."""
    return meta_lr * (1 + math.cos(math.pi * step / updates)) / 2


def _undisturbed(learner: MetaLearner, theta: Tensor, tasks: Tasks, stop: StopRequest | None) -> MetaGradient:
    """The meta-gradient; a stop in the middle of it leaves no trace in the learner's memory."""
    control = getattr(learner, "control", None)
    before = dict(vars(control)) if control else {}
    try:
        with stop.at_once() if stop else nullcontext():
            return learner.meta_gradient(theta, tasks)
    except Stopped:
        if control:
            vars(control).update(before)
        raise


def read(updates: list[Update]) -> list[dict[str, Any]]:
    """The updates as plain numbers; waits for the device once. Raises Diverged at the first that is not finite."""
    made = [u for u in updates if u.gradient is not None]
    numbers = torch.stack([torch.stack([u.query_loss, u.norm]) for u in made]).tolist() if made else []
    found = {u.number: pair for u, pair in zip(made, numbers, strict=True)}
    records = []
    for update in updates:
        if update.gradient is None:
            records.append({"update": update.number, "skipped": True})
            continue
        loss, norm = found[update.number]
        if not abs(loss) + norm < float("inf"):
            raise Diverged(
                f"update {update.number}: query loss {loss:g}, gradient norm {norm:g}; try a smaller --inner-lr or "
                "--meta-lr, or more solver steps (a smaller --rtol)"
            )
        record = {"update": update.number, "query_loss": loss, "gradient_norm": norm}
        record |= vars(update.gradient.evaluations)
        if update.gradient.error is not None:
            record |= {"error": update.gradient.error, "measured": update.gradient.measured}
        records.append(record)
    return records


@dataclass
class Skips:
    """Which of the last updates left their batch out; more than a share of them ends a run."""

    numbers: list[int] = field(default_factory=list)
    warned: bool = False

    def add(self, number: int) -> None:
        """One more; raises Diverged where it is one too many."""
        self.numbers = [n for n in [*self.numbers, number] if n > number - SKIP_WINDOW]
        if len(self.numbers) > SKIP_SHARE * SKIP_WINDOW:
            raise Diverged(
                f"update {number}: {len(self.numbers)} of the last {SKIP_WINDOW} batches were left out, since their "
                "meta-gradients could not be made accurate within the budget; try a smaller --inner-lr, fewer "
                "--inner-steps, a larger --rtol or --solver euler"
            )
        if not self.warned:
            self.warned = True
            warnings.warn(
                f"update {number}: the meta-gradient of this batch could not be made accurate within its budget; the "
                'batch was left out, as others will be ("skipped" in metrics.jsonl)',
                RuntimeWarning,
                stacklevel=2,
            )


@dataclass
class Session:
    """Meta-training with its checkpoints and meta-tests, from wherever the folder's checkpoint stands.

    Everything that is recorded depends on the settings alone, so a run that was killed and resumed writes the same
    lines as one that was not. compiled: whether the graphs are, to be noted in the checkpoints. shown: whether the
    progress is printed. events: where points go for TensorBoard.
    """

    folder: RunFolder | Mirror
    experiment: Experiment
    stop: StopRequest
    compiled: bool = False
    shown: bool = True
    events: Events | None = None
    update: int = 0
    clock: Clock = field(default_factory=Clock)
    last_saved: int | None = None  # the update of the checkpoint on disk
    _pending: list[Update] = field(default_factory=list, init=False)  # made, but not looked at yet
    _saved_at: float = field(default=0.0, init=False)
    _skips: Skips = field(default_factory=Skips, init=False)

    def __post_init__(self) -> None:
        self.settings, self.theta = self.experiment.settings, self.experiment.theta
        self.optimizer = META_OPTIMIZERS[self.settings.meta_optimizer].call(self.settings, [self.theta])

    def restore(self, checkpoint: Checkpoint) -> None:
        """Take over theta, the optimiser's state and the counters."""
        self._copy(checkpoint.theta, f"the checkpoint in {self.folder.path}", "start anew with --overwrite")
        self.optimizer.load_state_dict(checkpoint.optimizer)
        self.update = self.last_saved = checkpoint.update
        self.clock = Clock(checkpoint.timed_updates, checkpoint.timed_seconds)
        if checkpoint.control is not None:
            self.experiment.learner.control.load_state_dict(checkpoint.control)
        skipped = [m["update"] for m in self.folder.metrics() if m.get("skipped") and m["update"] <= self.update]
        self._skips = Skips(skipped[-SKIP_WINDOW:], warned=bool(skipped))

    def begin_at(self, theta: Tensor) -> None:
        """Take over the theta (P,) of another run."""
        self._copy(theta, f"--start-from {self.settings.start_from}", "give a run of the same network and data")

    def _copy(self, theta: Tensor, place: str, remedy: str) -> None:
        if theta.shape != self.theta.shape:
            sizes = f"{theta.numel()} parameters, the network has {self.theta.numel()}"
            raise InputError(f"{place} holds {sizes}; {remedy}")
        with torch.no_grad():
            self.theta.copy_(theta)

    def run(self) -> None:
        """Train to the last update and test where due; raises Diverged or Stopped with a good checkpoint on disk."""
        try:
            with Progress(self.settings.meta_updates, self.update, self.shown) as self.progress:
                if self._test_due() and not self._tested():
                    self._test()  # the kill came between the checkpoint and its test, or other tests are asked for
                self._train()
        except (Diverged, InputError) as fault:
            there = self.last_saved is not None
            kept = f"the checkpoint of update {self.last_saved} is kept" if there else "there is no checkpoint yet"
            raise type(fault)(f"{self._first_fault(fault)}; {kept}") from fault

    def _train(self) -> None:
        e, s = self.experiment, self.settings
        meta_lr = partial(cosine, s.meta_lr, s.meta_updates) if s.meta_schedule else None
        span = self.update, s.meta_updates, s.clip, meta_lr, self.stop
        self._saved_at = time.monotonic()
        self.clock.start()
        try:
            for done in meta_train(e.learner, self.theta, self.optimizer, e.domain.episode, *span):
                self._pending.append(done)
                self.update = done.number
                if done.gradient is None:
                    self._skips.add(done.number)
                save = self._save_due()
                if save or self._look_due():
                    self._record()
                if save:
                    self._save()
                    self.stop.check(self.update)
                    if self._test_due():
                        self._test()
                    self.clock.start()
        except Stopped:  # in the middle of a meta-gradient, or after a save
            if self._pending:
                self._record()
            if self.last_saved != self.update:
                self._save()
            self.stop.check(self.update)

    def _look_due(self) -> bool:
        """Whether to wait for the device and look at the numbers; the first update has a clock of its own."""
        return len(self._pending) >= READ_EVERY or self.clock.since() > READ_SECONDS or self.clock.warm_up is None

    def _save_due(self) -> bool:
        regular = self.update % self.settings.checkpoint_interval == 0
        return (
            regular
            or self._test_due()
            or self.stop.number is not None
            or time.monotonic() - self._saved_at > SAVE_SECONDS
        )

    def _test_due(self) -> bool:
        interval, last = self.settings.test_interval, self.settings.meta_updates
        return self.update == last or (interval > 0 and self.update > 0 and self.update % interval == 0)

    def _record(self) -> None:
        """Look at the pending updates, and write them down."""
        records = read(self._pending)
        self.clock.book(len(records))
        self.folder.append_metrics(records)
        if self.events:
            self.events.trained(records)
        losses = [record["query_loss"] for record in records if "query_loss" in record]
        self.progress.trained(self.update, losses[-1] if losses else None, self.clock.seconds_per_update())
        self._pending = []

    def _first_fault(self, fault: Diverged) -> Diverged:
        """The fault of an update that was not looked at yet, if one came before."""
        try:
            read(self._pending)
        except Diverged as earlier:
            return earlier
        return fault

    def _test(self) -> None:
        self.progress.testing()
        entry = self.experiment.meta_test(self.theta, self.update, self.stop)
        if self.update == self.settings.meta_updates and self.settings.method != "scratch":
            entry |= {"scratch": self.experiment.scratch_tests(self.update, self.stop)}
        self.folder.write("test.json", [*self.folder.read("test.json", []), entry])
        if self.events:
            self.events.tested(entry)
        self.progress.tested_with(in_words(entry))

    def _tested(self) -> bool:
        """Whether test.json holds the test that is due now."""
        how = self.experiment.protocol
        tests = self.folder.read("test.json", [])
        return any(t["update"] == self.update and t.get("protocol") == how for t in tests)

    def _save(self) -> None:
        if not self.theta.isfinite().all():
            raise Diverged(f"update {self.update}: theta is not finite; try a smaller --meta-lr")
        counters = self.update, self.clock.updates, self.clock.seconds
        control = getattr(self.experiment.learner, "control", None)
        memory = None if control is None else control.state_dict()
        state = self.theta.detach(), self.optimizer.state_dict()
        self.folder.save(
            Checkpoint(asdict(self.settings), *state, *counters, self.compiled, memory, torch.get_num_threads())
        )
        self.last_saved, self._saved_at = self.update, time.monotonic()
