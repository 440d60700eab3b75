"""How far A-MAML's default meta-gradient is from the converged flow's, and what its own estimate says of that.

    python -m benchmarks.accuracy --trained results/.../checkpoint.pt       writes results/efficiency/accuracy.md

Every row is a family of tasks, a scale of its inputs (10 makes it stiff and the landscape rough), a horizon, and
several seeds of tasks and initial weights; with a checkpoint of Alpine2D, also rows at its theta. The reference is rk4
(from 5000 steps on: auto) at rtol 1e-5, or finer where its own estimate asks for that.
"""

import argparse
import statistics
import warnings
from pathlib import Path
from typing import NamedTuple

import torch

import data
from amaml import AMAML, Diverged, Tasks, half_mse, mlp
from amaml.experiment.networks import initialise
from amaml.files import write_atomically
from amaml.flow.error import relative_distance

INNER_LR = 0.01


class Problem(NamedTuple):
    """A family, points a task, width of the network, factor of the inputs, inner steps and how many seeds."""

    domain: str
    points: int
    width: int
    scale: float
    steps: int
    seeds: int
    trained: str | None = None  # checkpoint whose theta is taken


ALPINE, COSINES, SINUSOID = ("Alpine2D", 100, 32), ("CosMixture2D", 50, 32), ("Sinusoid", 10, 40)
PROBLEMS = [
    *(Problem(*family, 1.0, steps, 8) for family in (ALPINE, COSINES, SINUSOID) for steps in (50, 200, 1000)),
    *(Problem(*family, 1.0, 5000, 4) for family in (ALPINE, COSINES)),
    *(Problem(*ALPINE, 10.0, steps, 16) for steps in (50, 200, 500, 1000)),
    Problem(*ALPINE, 10.0, 5000, 4),
    *(Problem(*COSINES, 10.0, steps, 8) for steps in (50, 200, 1000)),
]


class Found(NamedTuple):
    """Of one gradient: its relative error, its own estimate, gradients spent, whether it was refined."""

    error: float
    estimate: float
    gradients: int
    refined: bool


def look(p: Problem, seed: int) -> Found | str:
    """At the default's meta-gradient; or which one raised an error, that or the reference."""
    tasks = data.make(p.domain, data.Sampling(p.points, p.points, 5, seed)).episode(0)
    tasks = Tasks(p.scale * tasks.support_x, tasks.support_y, p.scale * tasks.query_x, tasks.query_y)
    inputs = tasks.support_x.shape[-1]
    theta, apply = initialise(lambda: mlp(inputs, 1, p.width), seed, torch.float64, "cpu")
    if p.trained:
        theta = torch.load(p.trained, weights_only=True)["theta"].to(theta)
    try:
        with warnings.catch_warnings(record=True) as refinements:
            warnings.simplefilter("always")
            gradient = AMAML(apply, half_mse, INNER_LR, p.steps).meta_gradient(theta, tasks)
    except Diverged:
        return "raised"
    solver = "rk4" if p.steps < 5000 else "auto"
    try:
        reference = AMAML(apply, half_mse, INNER_LR, p.steps, solver, rtol=1e-5).meta_gradient(theta, tasks)
    except Diverged:
        return "no reference"
    error = relative_distance(gradient.value, reference.value)
    return Found(error, gradient.error, gradient.evaluations.gradients, bool(refinements))


def row(p: Problem) -> str:
    looks = [look(p, seed) for seed in range(p.seeds)]
    found = [one for one in looks if not isinstance(one, str)]
    errors = [one.error for one in found]
    ratios = [one.estimate / one.error for one in found]
    spent = [one.gradients for one in found]
    family = p.domain + (", trained theta" if p.trained else "")
    cells = [family, f"{p.scale:g}", p.steps, p.seeds, f"{statistics.median(errors):.1e}", f"{max(errors):.1e}"]
    cells += [sum(error > 1e-2 for error in errors), f"{min(ratios):.2g} to {max(ratios):.2g}"]
    cells += [f"{min(spent)} to {max(spent)}", sum(one.refined for one in found)]
    cells += [looks.count("raised"), looks.count("no reference")]
    return "| " + " | ".join(map(str, cells)) + " |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", default="results/efficiency", help="folder of the table")
    parser.add_argument("--trained", help="checkpoint.pt of a run on Alpine2D")
    a = parser.parse_args()
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")  # those of the references
    lines = [
        f"`python -m benchmarks.accuracy{f' --trained {a.trained}' if a.trained else ''}`",
        "",
        "A-MAML's defaults (auto, rtol 1e-3), 5 tasks, float64, tanh networks, untrained unless it says otherwise, "
        "inner_lr 0.01: relative error of one meta-gradient against the converged flow's, how many were above 10 rtol, "
        "its own estimate over that error, gradients spent, and how many were refined, or raised an error instead, or "
        "had no reference: that one raised it.",
        "",
        "| family | inputs times | steps | seeds | median error | worst | above 1e-2 | estimate / error | gradients "
        "| refined | raised | no reference |",
        "|" + "---|" * 12,
    ]
    trained = [Problem(*ALPINE, 1.0, steps, 8, a.trained) for steps in (50, 200, 1000, 5000)] if a.trained else []
    for p in [*PROBLEMS, *trained]:
        lines.append(row(p))
        print(lines[-1], flush=True)
    out = Path(a.out)
    out.mkdir(parents=True, exist_ok=True)
    write_atomically(out / "accuracy.md", ("\n".join(lines) + "\n").encode())


if __name__ == "__main__":
    main()
