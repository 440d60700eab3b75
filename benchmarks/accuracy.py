"""The true and the reported error of A-MAML's meta-gradients on families of tasks that steered nothing.

    python -m benchmarks.accuracy                writes results/efficiency/accuracy.md, line by line

Fresh: the first call of a learner, several seeds of tasks and initial weights. Later: calls after 50 others on other
batches at the same theta, but for those that measure. Varied: the same on families whose batches differ from each
other. The reference is the converged flow: steps planned at 1e-4 and bisected until the gradient stands still.
"""

import argparse
import math
import statistics
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import torch

from amaml import AMAML, Diverged, Tasks, compiled
from amaml.flow.accuracy import relative_distance
from amaml.flow.curvature import Curvature
from amaml.flow.mesh import SOLVERS, GradedMesh
from benchmarks.families import Family, families, varied
from data.files import write_atomically

INNER_LR = 0.01
STEPS = (50, 200, 1000, 5000)  # horizons 0.5 to 50
LATER_STEPS = 200
SEEDS = (100, 101)
BEFORE, LATER, VARIED = 50, 10, 60  # calls
STANDS_STILL = 3e-5  # relative distance of two resolutions at which the reference is taken
MOST = 8  # bisections
STANDING = 1e-4  # references that stand still less than this are no references
COLUMNS = (
    "family | call | T | calls | descended | median error / rtol | worst | above 3 | reported / true: worst, "
    "below 1/3 | no error told | measured | evaluations / FOMAML: median, mean | raised | no reference"
)


class Found(NamedTuple):
    """One gradient: evaluations over those of FOMAML with as many inner steps; true and reported relative error, None
    where it is exact or not told; and what became of it where it is not a carried or fresh error."""

    cost: float = 0.0
    error: float | None = None
    reported: float | None = None
    fate: str | None = None


def calls(family: Family, seed: int, steps: int, rtol: float, numbers: Iterable[int], skip: int = 0) -> list[Found]:
    """Of one learner, the first of them, skip, without a look at their errors."""
    theta, apply, episode = family.problem(seed)
    learner = AMAML(apply, family.loss, INNER_LR, steps, rtol=rtol, prox=family.prox)
    return [found(learner, theta, episode(n), n >= skip, skip > 0) for n in numbers]


def found(learner: AMAML, theta: torch.Tensor, tasks: Tasks, look: bool, carried: bool) -> Found:
    """Of one call."""
    try:
        gradient = learner.meta_gradient(theta, tasks)
    except Diverged:
        return Found(fate="raised")
    cost = gradient.evaluations.total / learner.inner_steps
    if gradient.solver == "euler" or (carried and gradient.measured) or not look:
        return Found(cost, fate="descended" if gradient.solver == "euler" else "measured")
    reference = converged(learner, theta, tasks)
    if reference.distance > STANDING:
        return Found(cost, fate="no reference")
    return Found(cost, relative_distance(gradient.value, reference.value), gradient.error)


class Reference(NamedTuple):
    """The mean gradient (P,) of the converged flow, and the distance to that before the last bisection of all steps."""

    value: torch.Tensor
    distance: float


def converged(learner: AMAML, theta: torch.Tensor, tasks: Tasks) -> Reference:
    """What a learner's gradient is measured against."""
    mesh, passes = GradedMesh(SOLVERS["auto"], 1e-4), replace(learner, adjoint="discrete").passes(theta, tasks)
    solution, distance = passes.solve(mesh, Curvature(passes.flow)), math.inf
    for _ in range(MOST):
        finer = passes.solve(mesh.halved(solution.trajectory), Curvature(passes.flow))
        distance, solution = relative_distance(solution.value, finer.value), finer
        if distance < STANDS_STILL:
            break
    return Reference(solution.value, distance)


def row(name: str, when: str, steps: int, rtol: float, found: list[Found]) -> str:
    fates = [one.fate for one in found]
    good = [one for one in found if one.error is not None]
    told = [one.reported / one.error for one in good if one.reported is not None and one.error]
    cells = [name, when, f"{steps * INNER_LR:g}", len(found), fates.count("descended")]
    errors = sorted(one.error / rtol for one in good) or [0.0]
    cells += [f"{statistics.median(errors):.2g}", f"{errors[-1]:.2g}", sum(error > 3 for error in errors)]
    cells += [f"{min(told, default=1):.2g}, {sum(ratio < 1 / 3 for ratio in told)}", len(good) - len(told)]
    costs = [one.cost for one in found if one.cost] or [0.0]
    cells += [fates.count("measured"), f"{statistics.median(costs):.2g}, {statistics.fmean(costs):.2g}"]
    return "| " + " | ".join(map(str, [*cells, fates.count("raised"), fates.count("no reference")])) + " |"


def rows(steps: Iterable[int], rtol: float, kinds: Iterable[str]) -> Iterable[str]:
    for family in families() if {"fresh", "later"} & set(kinds) else ():
        for count in steps if "fresh" in kinds else ():
            looked = [one for seed in SEEDS for one in calls(family, seed, count, rtol, [0])]
            yield row(family.name, "fresh", count, rtol, looked)
        if "later" in kinds:
            looked = calls(family, SEEDS[0], LATER_STEPS, rtol, range(BEFORE + LATER), BEFORE)[BEFORE:]
            yield row(family.name, "later", LATER_STEPS, rtol, looked)
    for family in varied() if "varied" in kinds else ():
        looked = calls(family, SEEDS[0], LATER_STEPS, rtol, range(BEFORE + VARIED), BEFORE)[BEFORE:]
        yield row(family.name, "varied", LATER_STEPS, rtol, looked)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", default="results/efficiency", help="folder of the table")
    parser.add_argument("--rtol", type=float, default=1e-3)
    parser.add_argument("--steps", type=int, nargs="+", default=STEPS, help="inner steps of the first calls")
    parser.add_argument("--calls", nargs="+", default=("fresh", "later", "varied"), help="which kinds of calls")
    parser.add_argument("--compile", default="on", choices=("on", "off"))
    a = parser.parse_args()
    torch.set_num_threads(1)
    out = Path(a.out)
    out.mkdir(parents=True, exist_ok=True)
    lines = [
        f"`python -m benchmarks.accuracy --rtol {a.rtol:g} --steps {' '.join(map(str, a.steps))}`",
        "",
        f"A-MAML auto, rtol {a.rtol:g}, 5 tasks, float64, inner_lr {INNER_LR:g}, untrained networks. Fresh: first "
        f"calls, which measure; later, varied: calls after {BEFORE} others. Descended: the exact steps of gradient "
        "descent. Errors of what followed the flow and, of later calls, did not measure, in units of rtol, against the "
        "converged flow; evaluations (gradients and Hessian-vector products, measuring included) over FOMAML's "
        "gradients; calls that raised an error instead; references that did not stand still.",
        "",
        f"| {COLUMNS} |",
        "|" + "---|" * (1 + COLUMNS.count("|")),
    ]
    with compiled(a.compile == "on"):
        for line in rows(a.steps, a.rtol, a.calls):
            lines.append(line)
            print(line, flush=True)
            write_atomically(out / f"accuracy-{a.rtol:g}.md", ("\n".join(lines) + "\n").encode())


if __name__ == "__main__":
    main()
