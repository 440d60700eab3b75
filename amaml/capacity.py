"""How many tasks go through a network at once, by the memory that is free."""

import math
import os
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from amaml.engine import task
from amaml.engine.calling import differentiable_twice
from amaml.engine.task import Definition, row_of, vjp_by_autograd
from amaml.errors import InputError
from amaml.learner import MetaLearner
from amaml.tasks import Tasks

SHARE = 0.5  # of the free memory that is planned for, since the allocator keeps more than is in use
PRODUCT = 8  # times what autograd keeps of the loss, for a Hessian-vector product: 3.6 (ResNet-12) to 7.5 (small MLP)
STATES = 10  # (tasks, P) beside those of a trajectory: phi, its gradient, lam, the stages of a step


@dataclass
class Fitting:
    """How many tasks fit into the free memory, as the first call of tasks of their shapes finds it."""

    found: dict[tuple, int] = field(default_factory=dict)

    def of(self, learner: MetaLearner, theta: Tensor, tasks: Tasks) -> int:
        """Those of a learner at once."""
        shapes = learner.inner_steps, *(tuple(t.shape[1:]) for t in tasks.leaves().values())
        if shapes not in self.found:
            self.found[shapes] = tasks_at_once(learner.apply, learner.loss, theta, tasks, learner.inner_steps)
        return self.found[shapes]


def tasks_at_once(apply: Any, loss: Any, theta: Tensor, tasks: Tasks, steps: int) -> int:
    """So many tasks at once that a meta-gradient through so many inner steps stays within a SHARE of the free memory.

    By what autograd keeps of the loss of the first task, and the states that a trajectory keeps at least.
    """
    kept: dict[int, int] = {}

    def keep(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    row = row_of((theta.expand(len(tasks), -1), *tasks.support), 0)
    with torch.enable_grad(), differentiable_twice(), torch.autograd.graph.saved_tensors_hooks(keep, lambda kept: kept):
        Definition(task.loss).of_one(apply, loss, vjp_by_autograd)(*row)
    states = (2 * math.isqrt(steps) + STATES) * theta.numel() * theta.element_size()
    return max(1, int(SHARE * free_memory(theta.device) / (PRODUCT * sum(kept.values()) + states)))


def free_memory(device: torch.device) -> int:
    """Bytes; raises InputError where the system does not tell."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    if "SC_AVPHYS_PAGES" not in getattr(os, "sysconf_names", {}):
        raise InputError(
            "task_chunk='auto' needs to know the free memory, which this system does not tell; give a number"
        )
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_AVPHYS_PAGES")
