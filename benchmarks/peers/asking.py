"""Meta-updates of a module that is asked for more gradients than its initialisation's, by the exact steps."""

import copy
from typing import Any

from torch import Tensor

from amaml import Adaptation, Tasks
from benchmarks.peers.problems import PARTS, Problem
from benchmarks.peers.turns import Quantity


def asking(p: Problem, steps: int) -> dict[str, Quantity]:
    """By what is asked for. A head: the last layer adapts, behind a frozen body or a shared one."""
    names = [name for name, _ in p.module.named_parameters()]
    head = names[-1].rpartition(".")[0]
    frozen = copy.deepcopy(p.module).requires_grad_(False)
    frozen.get_submodule(head).requires_grad_()
    rate, prox = (p.theta.new_tensor(value).requires_grad_() for value in (p.inner_lr, 0.1))
    points = Tasks(*(_requiring(getattr(p.tasks, part)) for part in PARTS))
    exact = {"solver": "euler"}
    return {
        "asking for theta": _update(p, steps, **exact),
        "asking for inner_lr as well": _update(p, steps, rate, **exact),
        "asking for a rate a parameter as well": _update(p, steps, dict.fromkeys(names, rate), **exact),
        "asking for points as well": _update(p, steps, tasks=points, **exact),
        "asking for a head": _update(p, steps, module=frozen, adapt=(head,), **exact),
        "asking for a head and its body": _update(p, steps, adapt=(head,), **exact),
        "asking for everything, auto": _update(p, steps, rate, tasks=points, prox=prox),
    }


def _update(p: Problem, steps: int, inner_lr: Any = None, module=None, tasks: Tasks | None = None, **options: Any):
    meta = Adaptation(module or p.module, p.loss, p.inner_lr if inner_lr is None else inner_lr, steps, **options)

    def call() -> Tensor:
        meta(tasks or p.tasks).backward()
        return meta.latest.value

    return call


def _requiring(t: Tensor) -> Tensor:
    """The same numbers; real ones require a gradient."""
    return t.clone().requires_grad_() if t.is_floating_point() else t
