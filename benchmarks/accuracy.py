"""How far A-MAML's default meta-gradient is from the converged flow's, and what its own estimate says of that.

    python -m benchmarks.accuracy            writes results/efficiency/accuracy.md

Every row is a family of tasks, a scale of its inputs (10 makes it stiff and the landscape rough), a horizon, and
several seeds of tasks and initial weights. The reference is rk4 (from 5000 steps on: auto) at rtol 1e-6.
"""

import argparse
import warnings
from pathlib import Path
from typing import NamedTuple

import torch

import data
from amaml import AMAML, Diverged, MetaGradient, Tasks, half_mse, mlp
from amaml.models import initialise
from amaml.runs import write_atomically

INNER_LR = 0.01


class Problem(NamedTuple):
    """A family, points a task, width of the network, factor of the inputs, inner steps and how many seeds."""

    domain: str
    points: int
    width: int
    scale: float
    steps: int
    seeds: int


PROBLEMS = [
    *(Problem("Alpine2D", 100, 32, 1.0, steps, 4) for steps in (50, 200, 1000)),
    *(Problem("CosMixture2D", 50, 32, 1.0, steps, 4) for steps in (50, 200, 1000)),
    *(Problem("Sinusoid", 10, 40, 1.0, steps, 4) for steps in (50, 200, 1000)),
    *(Problem("Alpine2D", 100, 32, 1.0, 5000, 2), Problem("CosMixture2D", 50, 32, 1.0, 5000, 2)),
    *(Problem("Alpine2D", 100, 32, 10.0, steps, 8) for steps in (50, 200, 500, 1000)),
    *(Problem("CosMixture2D", 50, 32, 10.0, steps, 4) for steps in (50, 200, 1000)),
]


def gradients(p: Problem, seed: int) -> tuple[MetaGradient | None, torch.Tensor]:
    """The default's meta-gradient (None where it raised) and the reference's value."""
    tasks = data.make(p.domain, data.Sampling(p.points, p.points, 5, seed)).episode(0)
    tasks = Tasks(p.scale * tasks.support_x, tasks.support_y, p.scale * tasks.query_x, tasks.query_y)
    inputs = tasks.support_x.shape[-1]
    theta, apply = initialise(lambda: mlp(inputs, 1, p.width), seed, torch.float64, "cpu")
    solver = "rk4" if p.steps < 5000 else "auto"
    reference = AMAML(apply, half_mse, INNER_LR, p.steps, solver, rtol=1e-6).meta_gradient(theta, tasks).value
    try:
        return AMAML(apply, half_mse, INNER_LR, p.steps).meta_gradient(theta, tasks), reference
    except Diverged:
        return None, reference


def row(p: Problem) -> str:
    errors, ratios, spent, raised = [], [], [], 0
    for seed in range(p.seeds):
        gradient, reference = gradients(p, seed)
        if gradient is None:
            raised += 1
            continue
        errors.append(((gradient.value - reference).norm() / reference.norm()).item())
        ratios.append(gradient.error / errors[-1])
        spent.append(gradient.evaluations.gradients)
    middle = sorted(errors)[len(errors) // 2]
    cells = [p.domain, f"{p.scale:g}", p.steps, p.seeds, f"{middle:.1e}", f"{max(errors):.1e}"]
    cells += [f"{min(ratios):.2g} to {max(ratios):.2g}", f"{min(spent)} to {max(spent)}", raised]
    return "| " + " | ".join(map(str, cells)) + " |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", default="results/efficiency", help="folder of the table")
    out = Path(parser.parse_args().out)
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")  # that a gradient was refined shows in what it spent
    lines = [
        "`python -m benchmarks.accuracy`",
        "",
        "A-MAML's defaults (auto, rtol 1e-3), 5 tasks, float64, untrained tanh networks, inner_lr 0.01: relative error "
        "of one meta-gradient against the converged flow's, its own estimate over that error, gradients spent, and how "
        "many seeds raised an error instead.",
        "",
        "| family | inputs times | steps | seeds | median error | worst | estimate / error | gradients | raised |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for p in PROBLEMS:
        lines.append(row(p))
        print(lines[-1], flush=True)
    out.mkdir(parents=True, exist_ok=True)
    write_atomically(out / "accuracy.md", ("\n".join(lines) + "\n").encode())


if __name__ == "__main__":
    main()
