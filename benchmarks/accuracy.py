"""The true and the reported error of A-MAML's meta-gradients on families of tasks that steered nothing.

    python -m benchmarks.accuracy                writes results/efficiency/accuracy.md, line by line

Fresh: the first call of a learner, several seeds of tasks and initial weights. Later: calls after 50 others on other
batches at the same theta, but for those that measure. Varied: the same on families whose batches differ from each
other. The reference is the converged flow: steps planned at 1e-4 and bisected until the gradient stands still.
"""

import argparse
import math
from collections.abc import Iterable, Iterator
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import pandas as pd
import torch

from amaml import AMAML, Diverged, Tasks, compiled
from amaml.flow.accuracy import relative_distance
from amaml.flow.curvature import Curvature
from amaml.flow.mesh import SOLVERS, GradedMesh
from benchmarks.families import Family, families, varied
from data.files import write_atomically
from experiment.tables import as_markdown

OUT = Path("results/efficiency")
INNER_LR = 0.01
STEPS = (50, 200, 1000, 5000)  # horizons 0.5 to 50
LATER_STEPS = 200
SEEDS = (100, 101)
BEFORE, LATER, VARIED = 50, 10, 60  # calls
STANDS_STILL = 3e-5  # relative distance of two resolutions at which the reference is taken
MOST = 8  # bisections
STANDING = 1e-4  # references that stand still less than this are no references
COLUMNS = ["family", "call", "T", "calls", "descended", "median error / rtol", "worst", "above 3"]
COLUMNS += ["reported / true: worst, below 1/3", "no error told", "measured", "evaluations / FOMAML: median, mean"]
COLUMNS += ["raised", "no reference"]


class Found(NamedTuple):
    """One gradient: evaluations over those of FOMAML with as many inner steps; true and reported relative error, None
    where it is exact or not told; and what became of it where it is not a carried or fresh error."""

    cost: float = 0.0
    error: float | None = None
    reported: float | None = None
    fate: str | None = None


def calls(family: Family, seed: int, steps: int, rtol: float, before: int = 0, count: int = 1) -> list[Found]:
    """So many calls of a learner that has made others before, which are not looked at."""
    theta, apply, episode = family.problem(seed)
    learner = AMAML(apply, family.loss, INNER_LR, steps, rtol=rtol, prox=family.prox)
    for number in range(before):
        with suppress(Diverged):
            learner.meta_gradient(theta, episode(number))
    return [found(learner, theta, episode(number), before > 0) for number in range(before, before + count)]


def found(learner: AMAML, theta: torch.Tensor, tasks: Tasks, carried: bool) -> Found:
    """Of one call; carried: those that measure their error are left out."""
    try:
        gradient = learner.meta_gradient(theta, tasks)
    except Diverged:
        return Found(fate="raised")
    cost = gradient.evaluations.total / learner.inner_steps
    if gradient.solver == "euler" or (carried and gradient.measured):
        return Found(cost, fate="descended" if gradient.solver == "euler" else "measured")
    reference, moved = converged(learner, theta, tasks)
    if moved > STANDING:
        return Found(cost, fate="no reference")
    return Found(cost, relative_distance(gradient.value, reference), gradient.error)


def converged(learner: AMAML, theta: torch.Tensor, tasks: Tasks) -> tuple[torch.Tensor, float]:
    """The mean gradient (P,) of the converged flow, and the distance to that before the last bisection of all steps."""
    mesh, passes = GradedMesh(SOLVERS["auto"], 1e-4), replace(learner, adjoint="discrete").passes(theta, tasks)
    solution, distance = passes.solve(mesh, Curvature(passes.flow)), math.inf
    for _ in range(MOST):
        finer = passes.solve(mesh.finer(solution.trajectory, 2), Curvature(passes.flow))
        distance, solution = relative_distance(solution.value, finer.value), finer
        if distance < STANDS_STILL:
            break
    return solution.value, distance


def row(name: str, when: str, steps: int, rtol: float, looked: list[Found]) -> list[str]:
    frame = pd.DataFrame(looked).astype({"error": float, "reported": float})
    fates, costs = frame["fate"].value_counts(), frame.loc[frame["cost"] > 0, "cost"]
    errors, told = frame["error"].dropna() / rtol, (frame["reported"] / frame["error"]).dropna()
    cells = [name, when, f"{steps * INNER_LR:g}", len(frame), fates.get("descended", 0)]
    cells += [*(f"{errors.quantile(q):.2g}" if len(errors) else "" for q in (0.5, 1)), (errors > 3).sum()]
    below = f"{told.min():.2g}, {(told < 1 / 3).sum()}" if len(told) else ""
    cells += [below, len(errors) - len(told), fates.get("measured", 0)]
    cells += [f"{costs.median():.2g}, {costs.mean():.2g}", fates.get("raised", 0), fates.get("no reference", 0)]
    return list(map(str, cells))


def rows(steps: Iterable[int], rtol: float) -> Iterator[list[str]]:
    for family in families():
        for count in steps:
            looked = [one for seed in SEEDS for one in calls(family, seed, count, rtol)]
            yield row(family.name, "fresh", count, rtol, looked)
        looked = calls(family, SEEDS[0], LATER_STEPS, rtol, BEFORE, LATER)
        yield row(family.name, "later", LATER_STEPS, rtol, looked)
    for family in varied():
        looked = calls(family, SEEDS[0], LATER_STEPS, rtol, BEFORE, VARIED)
        yield row(family.name, "varied", LATER_STEPS, rtol, looked)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rtol", type=float, default=1e-3)
    parser.add_argument("--steps", type=int, nargs="+", default=STEPS, help="inner steps of the first calls")
    a = parser.parse_args()
    torch.set_num_threads(1)
    head = (
        f"`python -m benchmarks.accuracy --rtol {a.rtol:g} --steps {' '.join(map(str, a.steps))}`\n\n"
        f"A-MAML auto, rtol {a.rtol:g}, 5 tasks, float64, inner_lr {INNER_LR:g}, untrained networks. Fresh: first "
        f"calls, which measure; later, varied: calls after {BEFORE} others. Descended: the exact steps of gradient "
        "descent. Errors of what followed the flow and, of later calls, did not measure, in units of rtol, against the "
        "converged flow; evaluations (gradients and Hessian-vector products, measuring included) over FOMAML's "
        "gradients; calls that raised an error instead; references that did not stand still."
    )
    table = [COLUMNS]
    with compiled():
        for cells in rows(a.steps, a.rtol):
            table.append(cells)
            print(*cells, sep=" | ", flush=True)
            write_atomically(OUT / f"accuracy-{a.rtol:g}.md", f"{head}\n\n{as_markdown(table)}\n".encode())


if __name__ == "__main__":
    main()
