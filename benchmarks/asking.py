"""What it costs to ask for more meta-gradients than the initialisation's, and that memory stays flat.

    python -m benchmarks.asking                 time: Alpine2D 100/100, 5 tasks, 2-32-32-1 tanh, solver euler
    python -m benchmarks.asking --memory 500    memory: the conv network of benchmarks.problems, all tensors at once

Seconds are of computing (time.process_time), medians over rounds that take every question in turn; each is divided by
that of the same module when only the adapted parameters require a gradient.
"""

import argparse
import statistics
import time

import torch

from amaml import Adaptation, Tasks, compiled
from benchmarks.meta_update import memory
from benchmarks.problems import Problem, problem

STEPS = 50
ROUNDS = 30


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--memory", type=int, metavar="STEPS", help="print the peak memory of so many inner steps")
    parser.add_argument("--compile", default="on", choices=("on", "off"))
    a = parser.parse_args()
    torch.set_num_threads(1)
    if a.memory:
        print(f"{peak(a.memory) / 2**20:.0f} MiB over {a.memory} inner steps")
        return
    with compiled(a.compile == "on"):
        p = problem("alpine", torch.float64, "cpu", None)
        for adapt, table in (("all parameters", whole(p)), ("the head", head(p))):
            nothing, *others = timed(table)
            print(f"adapting {adapt}: {1e3 * nothing:.1f} ms a meta-update; times that when asked for")
            for name, seconds in zip(list(table)[1:], others, strict=True):
                print(f"    {name:24} {seconds / nothing:.2f}")


def whole(p: Problem) -> dict[str, tuple[Adaptation, Tasks]]:
    """By what is asked for: a module all of which adapts, and tasks."""
    options = {"inner_steps": STEPS, "solver": "euler"}
    learned = torch.tensor(p.inner_lr, requires_grad=True)
    rates = {name: learned for name, _ in p.module.named_parameters()}
    plain = Adaptation(p.module, p.loss, p.inner_lr, **options)
    return {
        "nothing more": (plain, p.tasks),
        "inner_lr": (Adaptation(p.module, p.loss, learned, **options), p.tasks),
        "a rate a parameter": (Adaptation(p.module, p.loss, rates, **options), p.tasks),
        "support and query": (plain, requiring(p.tasks)),
    }


def head(p: Problem) -> dict[str, tuple[Adaptation, Tasks]]:
    """Likewise for the last layer: with a frozen body, and with a shared one."""
    name = [name for name, _ in p.module.named_parameters()][-1].rpartition(".")[0]
    shared = problem("alpine", torch.float64, "cpu", None).module
    for parameter in p.module.parameters():
        parameter.requires_grad_(False)
    p.module.get_submodule(name).requires_grad_()
    options = {"inner_steps": STEPS, "solver": "euler", "adapt": (name,)}
    modules = {"nothing more": p.module, "shared parameters": shared}
    return {what: (Adaptation(module, p.loss, p.inner_lr, **options), p.tasks) for what, module in modules.items()}


def requiring(tasks: Tasks) -> Tasks:
    """The same tasks, whose tensors of floating-point numbers require a gradient."""
    sets = tasks.support_x, tasks.support_y, tasks.query_x, tasks.query_y
    return Tasks(*(t.clone().requires_grad_() if t.is_floating_point() else t for t in sets))


def timed(table: dict[str, tuple[Adaptation, Tasks]]) -> list[float]:
    seconds: list[list[float]] = [[] for _ in table]
    for _ in range(ROUNDS + 2):  # the first two trace and compile
        for (meta, tasks), found in zip(table.values(), seconds, strict=True):
            start = time.process_time()
            meta(tasks).backward()
            found.append(time.process_time() - start)
    return [statistics.median(found[2:]) for found in seconds]


def peak(steps: int) -> int:
    """Bytes that a meta-update with every kind of gradient adds to the peak of the process."""
    p = problem("conv", torch.float32, "cpu", None)
    rate, prox = (torch.tensor(value, requires_grad=True) for value in (p.inner_lr, 0.1))
    meta, tasks = Adaptation(p.module, p.loss, rate, steps, prox=prox), requiring(p.tasks)
    before = memory("cpu")
    meta(tasks).backward()
    return memory("cpu") - before


if __name__ == "__main__":
    main()
