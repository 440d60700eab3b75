"""How far first-order directions are from the gradient: their cosine at each method's own trained theta.

    python -m benchmarks.directions

reads the checkpoints of the target horizons, and writes results/paper/directions.md: for FOMAML and Reptile the cosine
between what the method takes for the meta-gradient and the meta-gradient (A-MAML's, float64, rtol 1e-4), of batches
that training did not see.
"""

from dataclasses import replace
from pathlib import Path

import numpy as np
from torch.nn.functional import cosine_similarity

import data
from amaml.experiment.build import build
from amaml.experiment.compare_tables import as_markdown
from amaml.experiment.folder import load_checkpoint
from amaml.files import write_atomically
from amaml.flow.control import Control
from benchmarks.paper import OUT, over_seeds
from configs.grid import read_grid, target_path
from configs.settings import checked

METHODS = ("fomaml", "reptile")
BATCHES, FIRST = 4, 10**6  # episodes FIRST, FIRST + 1, ...
RTOL = 1e-4


def cosine(checkpoint_path: Path) -> float:
    """The mean over the batches."""
    checkpoint = load_checkpoint(checkpoint_path)
    s = replace(checked(checkpoint.settings), dtype="float64")
    domain = data.of_settings(s)
    theta = checkpoint.theta.double()
    own, exact = (build(replace(s, **other), domain).learner for other in ({}, {"method": "amaml", "rtol": RTOL}))
    values = []
    for step in range(FIRST, FIRST + BATCHES):
        tasks = domain.episode(step)
        learners = own, replace(exact, control=Control())  # a fresh one measures its error in full
        values.append(cosine_similarity(*(learner.meta_gradient(theta, tasks).value for learner in learners), dim=0))
    return float(np.mean([float(value) for value in values]))


def main() -> None:
    """One table: a row a domain and method, a column a number of inner steps."""
    found: dict[tuple[str, str], dict[int, list[float]]] = {}
    for cell in read_grid(target_path("horizons")).cells:
        path = cell.folder / "checkpoint.pt"
        if cell.labels["method"] in METHODS and path.exists() and (cell.folder / "summary.json").exists():
            row = found.setdefault((cell.labels["domain"], cell.labels["method"]), {})
            row.setdefault(int(cell.labels["inner_steps"]), []).append(cosine(path))
    steps = sorted({n for row in found.values() for n in row})
    rows = [["domain", "method", *(f"{n} steps" for n in steps)]]
    rows += [[*place, *(over_seeds(row.get(n, [])) for n in steps)] for place, row in found.items()]
    text = f"{__doc__.splitlines()[0]} `python -m benchmarks.directions`, {BATCHES} batches of 5 tasks.\n\n"
    write_atomically(OUT / "directions.md", (text + as_markdown(rows) + "\n").encode())


if __name__ == "__main__":
    main()
