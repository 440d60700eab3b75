"""This library: the same quantities, other methods, and A-MAML's gradient of the flow.

    python -m benchmarks.peers.ours ARGUMENTS-AS-JSON        (those of quantities, of problem, and the way)

A-MAML's seconds are those of a long run: a call is one for each of several batches, by a learner that has settled on
as many others; measuring its error is counted in.
"""

import copy
import functools
import importlib.util
import itertools
import json
import os
import sys
import time
import warnings
from typing import Any

import numpy as np
import torch
from torch import Tensor

from amaml import AMAML, Adaptation, Tasks, compiled
from amaml.engine import derivatives
from baselines import FOMAML, IMAML, MAML, Reptile
from benchmarks.peers.problems import PARTS, Problem, direction, problem
from benchmarks.peers.released import released
from benchmarks.peers.turns import Processor, Quantity, serve

MOST_UNROLLED = 500  # steps, beyond which what keeps all of them takes minutes or the memory
MOST_RELEASED = 200
WAYS = ("compiled", "traced", "graphs")  # how graphs run: by torch.compile, as they are, replayed as CUDA's own


class Cuda(Processor):
    """A CUDA device: seconds by the clock, to the end of its work; memory of its allocator."""

    clock = staticmethod(time.perf_counter)

    def forget_peak(self) -> int:
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
        return torch.cuda.memory_allocated()

    def peak(self) -> int:
        return torch.cuda.max_memory_allocated()

    def array(self, result: Tensor) -> np.ndarray:
        return super().array(result.cpu())

    def waits(self, quantity: Quantity) -> int:
        with warnings.catch_warnings(record=True) as seen:
            warnings.simplefilter("always")
            torch.cuda.set_sync_debug_mode("warn")
            try:
                quantity()
            finally:
                torch.cuda.set_sync_debug_mode("default")
        return len(seen)


def quantities(p: Problem, steps: int, batches: int) -> dict[str, Quantity]:
    """By name; batches: of A-MAML's long run."""
    phi = p.theta.expand(len(p.tasks), -1).contiguous()
    given, v = (p.apply, p.loss, phi), direction(p.theta).expand_as(phi).contiguous()
    points, bound = p.tasks.support, {}  # the same for all evaluations of a solve
    inner = (p.apply, p.loss, p.inner_lr, steps)
    learners: dict[str, Any] = {
        "FOMAML": FOMAML(*inner),
        "Reptile": Reptile(*inner),
        "iMAML": IMAML(*inner),
        "MAML, checkpointed": AMAML(*inner, solver="euler", checkpoints=max(1, round(steps**0.5))),
        "MAML, unrolled": AMAML(*inner, solver="euler"),
    }
    if steps <= MOST_UNROLLED:
        learners["MAML, by autograd"] = MAML(*inner)
    found: dict[str, Quantity] = {
        "gradient": lambda: derivatives.gradients(*given, *points, bound),
        "product": lambda: derivatives.hvps(*given, v, *points, bound),
    }
    found |= {name: functools.partial(once, learner, p) for name, learner in learners.items()}
    found |= {f"A-MAML, {rtol}": settled(AMAML(*inner, rtol=float(rtol)), p, batches) for rtol in ("1e-2", "1e-3")}
    if steps <= MOST_RELEASED and importlib.util.find_spec("torchdiffeq"):
        found["A-MAML as released"] = functools.partial(released, p, steps)
    return found | asking(p, steps)


def once(learner: Any, p: Problem) -> Tensor:
    return learner.meta_gradient(p.theta, p.tasks).value


def settled(learner: AMAML, p: Problem, batches: int) -> Quantity:
    drawn = functools.cache(lambda first: [p.episode(n) for n in range(first, first + batches)])
    first = itertools.count(1, batches)

    def call() -> Tensor:
        return [learner.meta_gradient(p.theta, tasks).value for tasks in drawn(min(next(first), batches + 1))][-1]

    return call


def asking(p: Problem, steps: int) -> dict[str, Quantity]:
    """Meta-updates, by the exact steps, of a module that is asked for more gradients than its initialisation's.

    A head: the last layer adapts, behind a frozen body or a shared one.
    """
    names = [name for name, _ in p.module.named_parameters()]
    head = names[-1].rpartition(".")[0]
    frozen = copy.deepcopy(p.module).requires_grad_(False)
    frozen.get_submodule(head).requires_grad_()
    rate, prox = (p.theta.new_tensor(value).requires_grad_() for value in (p.inner_lr, 0.1))
    copies = [getattr(p.tasks, part).clone() for part in PARTS]
    points = Tasks(*(part.requires_grad_(part.is_floating_point()) for part in copies))

    def update(inner_lr=p.inner_lr, module=p.module, tasks=p.tasks, solver="euler", **options: Any) -> Quantity:
        meta = Adaptation(module, p.loss, inner_lr, steps, solver=solver, **options)

        def call() -> Tensor:
            meta(tasks).backward()
            return meta.latest.value

        return call

    return {
        "asking for theta": update(),
        "asking for inner_lr as well": update(rate),
        "asking for a rate a parameter as well": update(dict.fromkeys(names, rate)),
        "asking for points as well": update(tasks=points),
        "asking for a head": update(module=frozen, adapt=(head,)),
        "asking for a head and its body": update(adapt=(head,)),
        "asking for everything, auto": update(rate, tasks=points, solver="auto", prox=prox),
    }


def main() -> None:
    told = json.loads(sys.argv[1])
    steps, batches, way = (told.pop(name) for name in ("steps", "batches", "way"))
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    os.environ["TORCHINDUCTOR_CUDAGRAPHS"] = str(int(way == "graphs"))
    cuda = told["device"].startswith("cuda")
    if cuda:
        torch.cuda.set_device(told["device"])
    with compiled(way != "traced"):
        share = {f"A-MAML, {rtol}": batches for rtol in ("1e-2", "1e-3")}
        serve(quantities(problem(**told), steps, batches), lambda name: share.get(name, 1), Cuda() if cuda else None)


if __name__ == "__main__":
    main()
