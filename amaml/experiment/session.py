"""The meta-training loop: draw an episode, take its meta-gradient, let the optimiser step; and what goes on disk."""

import signal
import time
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

from amaml.errors import Diverged, InputError
from amaml.experiment.folder import Checkpoint, RunFolder
from amaml.flow.error import relative_distance
from amaml.flow.field import Evaluations
from amaml.learner import MetaGradient, MetaLearner
from amaml.tasks import Tasks


@dataclass(frozen=True)
class Update:
    """What one meta-update leaves behind; the tensors stay on the device until they are read."""

    number: int
    query_loss: Tensor
    gradient_norm: Tensor
    evaluations: Evaluations
    error: float | None  # the learner's own estimate
    checked_error: float | None  # measured against finer steps


def meta_train(
    learner: MetaLearner,
    theta: Tensor,
    optimizer: torch.optim.Optimizer,
    episode: Callable[[int], Tasks],
    first: int,
    last: int,
    clip: float | None = None,
    check_every: int = 0,
) -> Iterator[Update]:
    """Updates first + 1 to last of theta (P,), in place and by the optimiser alone; yields after each.

    clip: a meta-gradient of a larger norm is scaled to this one; the norm that is reported is the one it had.

    Update number n uses episode(n - 1), so that a run may stop after any update and go on later. At the first update
    and every check_every later ones the error of learner's meta-gradient is measured (A-MAML). Raises Diverged with
    the update's number where the learner does.
    """
    for step in range(first, last):
        tasks, checked = episode(step), None
        try:
            gradient = learner.meta_gradient(theta, tasks)
            if check_every and step % check_every == 0:
                gradient, checked = _checked(learner, gradient, theta, tasks, step + 1)
        except (Diverged, InputError) as fault:
            raise type(fault)(f"update {step + 1}: {fault}") from fault
        theta.grad, norm = gradient.value, gradient.value.norm()
        if clip is not None:
            torch.nn.utils.clip_grads_with_norm_([theta], clip, norm)
        optimizer.step()
        yield Update(step + 1, gradient.query_loss.mean(), norm, gradient.evaluations, gradient.error, checked)


def _checked(
    learner: MetaLearner, gradient: MetaGradient, theta: Tensor, tasks: Tasks, number: int
) -> tuple[MetaGradient, float]:
    """The meta-gradient with its distance to the one at finer steps; the latter, with a warning, where it is large."""
    finer = learner.finer().meta_gradient(theta, tasks)
    error = relative_distance(gradient.value, finer.value)
    if not error > learner.tolerance:
        return gradient, error
    warnings.warn(
        f"update {number}: the meta-gradient's measured error is {error:.2g}, above {learner.tolerance:g}; this update "
        "takes finer steps, a smaller --rtol does so for all",
        RuntimeWarning,
        stacklevel=2,
    )
    return finer, error


def read(updates: list[Update]) -> list[dict[str, Any]]:
    """The updates as plain numbers; waits for the device once. Raises Diverged at the first that is not finite."""
    if not updates:
        return []
    numbers = torch.stack([torch.stack([u.query_loss, u.gradient_norm]) for u in updates]).tolist()
    records = []
    for update, (loss, norm) in zip(updates, numbers, strict=True):
        if not abs(loss) + norm < float("inf"):
            raise Diverged(
                f"update {update.number}: query loss {loss:g}, gradient norm {norm:g}; try a smaller --inner-lr or "
                "--meta-lr, or more solver steps (a smaller --rtol)"
            )
        record = {"update": update.number, "query_loss": loss, "gradient_norm": norm, **vars(update.evaluations)}
        if update.error is not None:
            record["estimated_error"] = update.error
        if update.checked_error is not None:
            record["checked_error"] = update.checked_error
        records.append(record)
    return records


READ_EVERY, READ_SECONDS = 20, 1.0  # at most, between two looks at the numbers on the device
SAVE_SECONDS = 30.0


class Stopped(Exception):
    """The run was asked to stop and has written its checkpoint; the signal's number is kept."""

    def __init__(self, number: int, message: str) -> None:
        super().__init__(message)
        self.number = number


class StopRequest:
    """Turns Ctrl-C and SIGTERM into a request that the loop meets between two updates; a second Ctrl-C is at once."""

    number: int | None = None

    def __enter__(self) -> "StopRequest":
        self.previous = {n: signal.signal(n, self._note) for n in (signal.SIGINT, signal.SIGTERM)}
        return self

    def __exit__(self, *exception: object) -> None:
        for number, handler in self.previous.items():
            signal.signal(number, handler)

    def _note(self, number: int, frame: object) -> None:
        if self.number is not None:
            raise KeyboardInterrupt
        self.number = number

    def check(self, update: int) -> None:
        """Raise Stopped if a stop was asked for; the checkpoint of this update must be on disk."""
        if self.number is not None:
            raise Stopped(self.number, f"stopped after update {update}; go on with --resume")


@dataclass
class Session:
    """Meta-training with its checkpoints and meta-tests, from wherever the folder's checkpoint stands.

    test(update) makes a meta-test of the current theta. Everything that is recorded depends on the settings alone,
    so a run that was killed and resumed writes the same lines as one that was not.
    """

    folder: RunFolder
    settings: dict[str, Any]
    learner: MetaLearner
    theta: Tensor
    optimizer: torch.optim.Optimizer
    episode: Callable[[int], Tasks]
    test: Callable[[int], dict[str, Any]]
    updates: int
    test_interval: int
    checkpoint_interval: int
    stop: StopRequest
    clip: float | None = None
    check_gradient: int = 0
    update: int = 0
    timed_updates: int = 0
    timed_seconds: float = 0.0
    last_saved: int | None = None  # the update of the checkpoint on disk
    warm_up_seconds: float | None = None  # of this process's first update, which traces and compiles
    _pending: list[Update] = field(default_factory=list, init=False)  # made, but not looked at yet
    _mark: float = field(default=0.0, init=False)  # when the clock of the updates was read last

    def restore(self, checkpoint: Checkpoint) -> None:
        """Take over theta, the optimiser's state and the counters."""
        if checkpoint.theta.shape != self.theta.shape:
            raise InputError(
                f"the checkpoint in {self.folder.path} holds {checkpoint.theta.numel()} parameters, the network has "
                f"{self.theta.numel()}; start anew with --overwrite"
            )
        with torch.no_grad():
            self.theta.copy_(checkpoint.theta)
        self.optimizer.load_state_dict(checkpoint.optimizer)
        self.update = self.last_saved = checkpoint.update
        self.timed_updates, self.timed_seconds = checkpoint.timed_updates, checkpoint.timed_seconds

    def run(self) -> None:
        """Train to the last update and test where due; raises Diverged or Stopped with a good checkpoint on disk."""
        bar = tqdm(total=self.updates, initial=self.update, unit="update", disable=None, dynamic_ncols=True)
        try:
            with bar:
                if self._test_due() and not any(t["update"] == self.update for t in self.folder.read("test.json", [])):
                    self._test()  # the kill came between the checkpoint and its test
                self._train(bar)
        except (Diverged, InputError) as fault:
            there = self.last_saved is not None
            kept = f"the checkpoint of update {self.last_saved} is kept" if there else "there is no checkpoint yet"
            raise type(fault)(f"{self._first_fault(fault)}; {kept}") from fault

    def _first_fault(self, fault: Diverged | InputError) -> Diverged | InputError:
        """The fault of an update that was not looked at yet, if one came before."""
        try:
            read(self._pending)
        except Diverged as earlier:
            return earlier
        return fault

    def _train(self, bar: tqdm) -> None:
        self._mark, saved_at, warm = time.perf_counter(), time.monotonic(), False
        span = self.update, self.updates, self.clip, self.check_gradient
        for done in meta_train(self.learner, self.theta, self.optimizer, self.episode, *span):
            self._pending.append(done)
            self.update = done.number
            save = (
                self._test_due()
                or self.stop.number is not None
                or self.update % self.checkpoint_interval == 0
                or time.monotonic() - saved_at > SAVE_SECONDS
            )
            look = len(self._pending) >= READ_EVERY or time.perf_counter() - self._mark > READ_SECONDS
            if not (save or look or not warm):
                continue
            self._record(bar, warm)
            warm = True
            if save:
                self._save()
                saved_at = time.monotonic()
                self.stop.check(self.update)
                if self._test_due():
                    self._test()
                self._mark = time.perf_counter()

    def _record(self, bar: tqdm, timed: bool) -> None:
        """Look at the pending updates, and write them down."""
        records = read(self._pending)
        self._book(len(self._pending) if timed else 0)
        self.folder.append_metrics(records)
        bar.update(len(records))
        bar.set_postfix(query_loss=f"{records[-1]['query_loss']:.4f}")
        self._pending = []

    def seconds_per_update(self) -> float | None:
        """Mean wall time of an update, tests, checkpoints and each process's first update left out."""
        return self.timed_seconds / self.timed_updates if self.timed_updates else None

    def _test_due(self) -> bool:
        regular = self.test_interval and self.update and self.update % self.test_interval == 0
        return bool(regular) or self.update == self.updates

    def _test(self) -> None:
        self.folder.write("test.json", [*self.folder.read("test.json", []), self.test(self.update)])

    def _book(self, updates: int) -> None:
        now = time.perf_counter()
        if not updates:
            self.warm_up_seconds = now - self._mark
        else:
            self.timed_updates, self.timed_seconds = (
                self.timed_updates + updates,
                self.timed_seconds + now - self._mark,
            )
        self._mark = now

    def _save(self) -> None:
        if not self.theta.isfinite().all():
            raise Diverged(f"update {self.update}: theta is not finite; try a smaller --meta-lr")
        state = self.optimizer.state_dict()
        counters = self.update, self.timed_updates, self.timed_seconds
        self.folder.save(Checkpoint(self.settings, self.theta.detach(), state, *counters))
        self.last_saved = self.update
