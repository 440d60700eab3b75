"""The true and the reported error of A-MAML's meta-gradients on families of tasks that steered nothing.

    python -m benchmarks.accuracy                writes results/efficiency/accuracy.md, line by line

Fresh: the first call of a learner, several seeds of tasks and initial weights. Later: calls that do not measure, after
50 others on other batches at the same theta. The reference is the converged flow (benchmarks.reference).
"""

import argparse
import math
import statistics
from pathlib import Path
from typing import NamedTuple

import torch

from amaml import AMAML, Diverged
from amaml.engine import derivatives
from amaml.flow.control import TOLERATED
from benchmarks.families import Family, families
from benchmarks.reference import converged
from data.files import write_atomically

INNER_LR = 0.01
STEPS = (50, 200, 1000, 5000)  # horizons 0.5 to 50
LATER_STEPS = (200,)
SEEDS = (100, 101)
BEFORE, LOOKED_AT = 50, 10  # calls
STANDING = 1e-4  # references that stand still less than this are no references


class Found(NamedTuple):
    """One gradient: true and reported relative error, evaluations over those of FOMAML with as many inner steps."""

    error: float
    reported: float
    cost: float


def found(learner: AMAML, theta: torch.Tensor, tasks, count: bool = True) -> Found | str | None:
    """Of one call; "raised" where it raises; None where count is off or the reference is none."""
    try:
        gradient = learner.meta_gradient(theta, tasks)
    except Diverged:
        return "raised"
    if not count:
        return None
    reference = converged(learner, theta, tasks)
    if reference.distance > STANDING:
        return "no reference"
    error = ((gradient.value - reference.value).norm() / reference.value.norm()).item()
    return Found(error, gradient.error, gradient.evaluations.total / learner.inner_steps)


def fresh(family: Family, steps: int, rtol: float) -> list[Found | str]:
    """The first call of a learner, for every seed."""
    looks = []
    for seed in SEEDS:
        theta, apply, episode = family.problem(seed)
        learner = AMAML(apply, family.loss, INNER_LR, steps, rtol=rtol, prox=family.prox)
        looks.append(found(learner, theta, episode(0)))
    return looks


def later(family: Family, steps: int, rtol: float) -> list[Found | str]:
    """Calls after others; those that measure return a finer gradient and are left out."""
    theta, apply, episode = family.problem(SEEDS[0])
    learner = AMAML(apply, family.loss, INNER_LR, steps, rtol=rtol, prox=family.prox)
    for number in range(BEFORE):
        found(learner, theta, episode(number), count=False)
    learner.control.since, learner.control.interval = 0, math.inf
    learner.control.measuring = math.inf
    return [found(learner, theta, episode(BEFORE + number)) for number in range(LOOKED_AT)]


def row(name: str, when: str, steps: int, rtol: float, looks: list[Found | str]) -> str:
    good = [one for one in looks if isinstance(one, Found)]
    cells = [name, when, f"{steps * INNER_LR:g}", len(looks)]
    if good:
        errors = sorted(one.error / rtol for one in good)
        ratios = [one.reported / one.error for one in good]
        cells += [f"{statistics.median(errors):.2g}", f"{errors[-1]:.2g}", sum(error > TOLERATED for error in errors)]
        cells += [f"{min(ratios):.2g} to {max(ratios):.2g}"]
        cells += [f"{statistics.median(one.cost for one in good):.2g}"]
    else:
        cells += ["", "", "", "", ""]
    cells += [looks.count("raised"), looks.count("no reference")]
    return "| " + " | ".join(map(str, cells)) + " |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", default="results/efficiency", help="folder of the table")
    parser.add_argument("--rtol", type=float, default=1e-3)
    parser.add_argument("--steps", type=int, nargs="+", default=STEPS, help="inner steps of the first calls")
    a = parser.parse_args()
    torch.set_num_threads(1)
    out = Path(a.out)
    out.mkdir(parents=True, exist_ok=True)
    lines = [
        f"`python -m benchmarks.accuracy --rtol {a.rtol:g} --steps {' '.join(map(str, a.steps))}`",
        "",
        f"A-MAML auto, rtol {a.rtol:g}, 5 tasks, float64, inner_lr {INNER_LR:g}, untrained networks. Fresh: first "
        f"calls, which measure; later: calls that do not measure, after {BEFORE} others. Errors in units of rtol, "
        "against the converged flow; reported over true error; evaluations (gradients and Hessian-vector products, "
        "measuring included) over FOMAML's gradients; calls that raised an error instead; references that did not "
        "stand still.",
        "",
        "| family | call | T | calls | median error / rtol | worst | above 3 | reported / true | evaluations / FOMAML "
        "| raised | no reference |",
        "|" + "---|" * 11,
    ]
    with derivatives.compiled():
        for family in families():
            for when, look, horizons in (("fresh", fresh, a.steps), ("later", later, LATER_STEPS)):
                for steps in horizons:
                    lines.append(row(family.name, when, steps, a.rtol, look(family, steps, a.rtol)))
                    print(lines[-1], flush=True)
                    write_atomically(out / f"accuracy-{a.rtol:g}.md", ("\n".join(lines) + "\n").encode())


if __name__ == "__main__":
    main()
