"""Seconds and memory a task of one meta-gradient, over the number of tasks and the number of parameters.

    python -m benchmarks.scale                   writes results/efficiency/scale.md

A-MAML's exact steps, 20 of them, on regression tasks of 20 points through two hidden layers of tanh, float32, traced,
one thread, as many tasks at once as fit into the free memory (task_chunk="auto"). Seconds are of computing, of a second
call.
"""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch

from amaml import Adaptation, Tasks, half_mse, mlp
from benchmarks.peers.turns import Processor
from data.files import write_atomically
from experiment.tables import as_markdown

OUT = Path("results/efficiency/scale.md")
TASKS, WIDTHS = (10, 100, 1000, 10_000), (32, 100, 320, 1000, 3200)  # 1e3, 1e4, 1e5, 1e6, 1e7 parameters
FEW, NARROW = 10, 32  # where the other one is varied
STEPS, POINTS = 20, 20


def measured(tasks: int, width: int) -> tuple[int, float, float]:
    """Parameters; milliseconds and MiB a task."""
    torch.manual_seed(0)
    module, processor = mlp(2, 1, width), Processor()
    given = Tasks(*(torch.randn(tasks, POINTS, size) for size in (2, 1, 2, 1)))
    meta = Adaptation(module, half_mse, 0.01, STEPS, solver="euler", task_chunk="auto")
    meta(given).backward()
    before, start = processor.forget_peak(), processor.clock()
    meta(given).backward()
    seconds, memory = processor.clock() - start, processor.peak() - before
    return sum(p.numel() for p in module.parameters()), 1e3 * seconds / tasks, memory / 2**20 / tasks


def table(places: Sequence[tuple[int, int]], over: int) -> list[list[str]]:
    """A row a place (tasks, width); below, slopes of the logarithms over those of the tasks (0) or parameters (1)."""
    found = []
    for tasks, width in places:
        found.append((tasks, *measured(tasks, width)))
        print(*found[-1], flush=True)
    rows = [["tasks", "parameters", "ms a task", "MiB a task"]]
    rows += [[f"{n:,}", f"{p:,}", f"{time:.{2 * (time < 100)}f}", f"{memory:.2f}"] for n, p, time, memory in found]
    logs = np.log(found)
    slopes = np.polyfit(logs[:, over], logs[:, 2:], 1)[0]
    return [*rows, ["slope", "", *(f"{slope:.2f}" for slope in slopes)]]


def main() -> None:
    torch.set_num_threads(1)
    tables = [table([(n, NARROW) for n in TASKS], 0), table([(FEW, width) for width in WIDTHS], 1)]
    head = " ".join(__doc__.split("\n\n")[-1].split())
    text = f"Seconds and memory a task. Made by `python -m benchmarks.scale`. {head}"
    write_atomically(OUT, "\n\n".join([text, *map(as_markdown, tables), ""]).encode())


if __name__ == "__main__":
    main()
