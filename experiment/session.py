"""The meta-training loop: draw an episode, take its meta-gradient, let the optimiser step; and what goes on disk."""

import math
import time
from dataclasses import asdict
from typing import Any

import torch
from torch.nn.utils import clip_grads_with_norm_, get_total_norm

from amaml.errors import Diverged, InputError
from experiment.build import Experiment
from experiment.distributed import Group, Stopped
from experiment.folder import Checkpoint, RunFolder, usable
from experiment.machine import peak_memory_mib
from experiment.methods import META_OPTIMIZERS
from experiment.opening import Opening
from experiment.summary import Progress

READ_EVERY, READ_SECONDS = 20, 1.0  # at most, between two looks at the numbers on the device
SAVE_SECONDS = 30.0


class Session:
    """Meta-training with its checkpoints and meta-tests, from wherever the folder's checkpoint stands.

    Everything that is recorded depends on the settings alone, so a run that was killed and resumed writes the same
    lines as one that was not. Of several processes the first alone reads and writes the folder.

    Timed is the wall time of the updates alone: tests and checkpoints are left out, and each process's first update,
    which traces.
    """

    def __init__(self, folder: RunFolder, experiment: Experiment, group: Group, opening: Opening) -> None:
        """Take over the checkpoint, or the theta to begin with, and make the folder ready."""
        self.folder, self.experiment, self.group, self.compiled = folder, experiment, group, opening.compiled
        e, s, start = experiment, experiment.settings, opening.start
        self.update, self.saved, self._saved_at = 0, None, 0.0  # saved: the update of the checkpoint on disk
        self._pending = []  # updates, whose query loss and norm stay on the device until read
        self.timed_updates, self.timed_seconds, self.first_seconds, self._mark = 0, 0.0, None, 0.0
        self.optimizer = META_OPTIMIZERS[s.meta_optimizer](e.model.parameters(), lr=s.meta_lr)
        if opening.origin:
            remedy = "give a run of the same network and data"
            e.restore(opening.origin, f"--start-from {s.start_from}", remedy, memory=False)
        if start:
            e.restore(start, f"the checkpoint in {folder.path}", "start anew with --overwrite")
            self.optimizer.load_state_dict(start.optimizer)
            self.update = self.saved = start.update
            self.timed_updates, self.timed_seconds = start.timed_updates, start.timed_seconds
        group.of_first(self._prepare)

    def _prepare(self) -> None:
        s = self.experiment.settings
        if s.overwrite:
            self.folder.clear()
        self.folder.create(asdict(s))
        self.folder.rewind(self.update)

    def run(self) -> None:
        """Train to the last update and test where due; raises Diverged or Stopped with a good checkpoint on disk."""
        last = self.experiment.settings.meta_updates
        try:
            with usable(self.folder.path), Progress(last, self.update, self.group.first) as self.progress:
                try:
                    if self._test_due() and not self.group.of_first(self._tested):
                        self._test()  # the kill came between the checkpoint and its test, or it is another test
                    self._saved_at, self._mark = time.monotonic(), time.perf_counter()
                    while self.update < last:
                        self._step()
                        self._look()
                except Stopped as stop:
                    self._record()
                    if self.saved != self.update:
                        self._save()
                    raise Stopped(stop.number, f"stopped after update {self.update}; go on with --resume") from None
        except (Diverged, InputError) as fault:
            there = self.saved is not None
            kept = f"the checkpoint of update {self.saved} is kept" if there else "there is no checkpoint yet"
            raise type(fault)(f"{fault}; {kept}") from fault

    def _step(self) -> None:
        """One meta-update of theta. Its tasks depend on its number alone, so that a run may stop after any."""
        e, s, number = self.experiment, self.experiment.settings, self.update + 1
        self.optimizer.zero_grad()
        meta, rates = (e.model["first"], {}) if self.update < (s.reptile_first or 0) else (e.meta, e.rates())
        try:
            value = meta(e.domain.episode(self.update), **rates)
        except (Diverged, InputError) as fault:
            self._record()  # raises the fault of an update that was not looked at yet, if one came before
            raise type(fault)(f"update {number}: {fault}") from fault
        value.backward()
        parameters = list(e.model.parameters())
        norm = get_total_norm([p.grad for p in parameters if p.grad is not None])
        if s.clip is not None:
            clip_grads_with_norm_(parameters, s.clip, norm)
        if s.meta_schedule:
            for group in self.optimizer.param_groups:
                group["lr"] = s.meta_lr * (1 + math.cos(math.pi * self.update / s.meta_updates)) / 2  # falls to zero
        self.optimizer.step()
        made = meta.latest
        numbers = dict(vars(made.evaluations))
        if made.error is not None:
            numbers |= {"error": made.error, "measured": made.measured}
        self._pending.append((number, torch.stack([value.detach(), norm]), numbers))
        self.update = number

    def _look(self) -> None:
        """Record, save and test where it is due; the first update is recorded, and timed, by itself."""
        stop = self.group.world == 1 and self.group.stop.number is not None  # of several the next exchange tells all
        regular = self.update % self.experiment.settings.checkpoint_interval == 0
        save = regular or self._test_due() or stop or time.monotonic() - self._saved_at > SAVE_SECONDS
        waited = time.perf_counter() - self._mark > READ_SECONDS
        if save or waited or len(self._pending) >= READ_EVERY or self.first_seconds is None:
            self._record()
        if save:
            self._save()
            if stop:
                self.group.stop.check()
            if self._test_due():
                self._test()
            self._mark = time.perf_counter()

    def _test_due(self) -> bool:
        s = self.experiment.settings
        interval, last = s.test_interval, s.meta_updates
        return self.update == last or (interval > 0 and self.update > 0 and self.update % interval == 0)

    def _record(self) -> None:
        """Look at the pending updates, for which the device is waited for once, and write them down.

        Raises Diverged at the first that is not finite.
        """
        pending, self._pending, records = self._pending, [], []
        if not pending:
            return
        found = torch.stack([on_device for _, on_device, _ in pending]).tolist()
        for (update, _, numbers), (loss, norm) in zip(pending, found, strict=True):
            if not (math.isfinite(loss) and math.isfinite(norm)):
                remedy = "try a smaller --inner-lr or --meta-lr, or more solver steps (a smaller --rtol)"
                raise Diverged(f"update {update}: query loss {loss:g}, gradient norm {norm:g}; {remedy}")
            records.append({"update": update, "query_loss": loss, "gradient_norm": norm} | numbers)
        passed, self._mark = time.perf_counter() - self._mark, time.perf_counter()
        if self.first_seconds is None:
            self.first_seconds = passed
        else:
            self.timed_updates, self.timed_seconds = self.timed_updates + len(records), self.timed_seconds + passed
        if self.group.first:
            self.folder.append_metrics(records)
        self.progress.trained(records, self.seconds_per_update)

    def _test(self) -> None:
        e = self.experiment
        entry, lines = e.meta_test(self.update)
        if self.update == e.settings.meta_updates and e.settings.method != "scratch":
            entry |= {"scratch": e.scratch_tests()}
        if self.group.first:
            self.folder.write_tasks(lines, since=self.update)
            self.folder.write("test.json", [*self.folder.read("test.json", []), entry])
        self.progress.tested(entry)

    def _tested(self) -> bool:
        """Whether test.json holds the test that is due now."""
        how, tests = self.experiment.protocol, self.folder.read("test.json", [])
        return any(t["update"] == self.update and t.get("protocol") == how for t in tests)

    def _save(self) -> None:
        e = self.experiment
        if not all(p.isfinite().all() for p in e.model.parameters()):
            raise Diverged(f"update {self.update}: theta is not finite; try a smaller --meta-lr")
        if self.group.first:
            state = e.model.state_dict(), self.optimizer.state_dict(), self.update
            how = self.compiled, self.timed_updates, self.timed_seconds
            self.folder.save(Checkpoint(asdict(e.settings), *state, *how))
        self.saved, self._saved_at = self.update, time.monotonic()

    @property
    def seconds_per_update(self) -> float | None:
        """The mean, None where none was timed."""
        return self.timed_seconds / self.timed_updates if self.timed_updates else None

    @property
    def costs(self) -> dict[str, Any]:
        """What the updates took, for the summary; None where it is not known."""
        last = self.experiment.meta.latest
        return {
            "updates": self.update,
            "solver": last and last.solver,  # what A-MAML's auto has chosen in the last update
            "seconds_per_update": self.seconds_per_update,
            "first_update_seconds": self.first_seconds,
            "compiled": self.compiled,
            "peak_memory_mib": peak_memory_mib(self.experiment.settings.device),
        }
