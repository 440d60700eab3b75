"""How far first-order directions are from the gradient: their cosine at each method's own trained theta.

    python -m benchmarks.directions

gives every finished cell of the target horizons that has its checkpoint a direction.json: for FOMAML and Reptile the
cosine between what the method takes for the meta-gradient and the meta-gradient (A-MAML's, float64, rtol 1e-4), of
batches that training did not see. From these files it writes results/paper/directions.md.
"""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
from amaml.flow.control import Control
from torch.nn.functional import cosine_similarity

import data
from benchmarks.paper import OUT, over_seeds
from data.files import write_atomically
from experiment.build import build
from experiment.cells import Cell
from experiment.compare_tables import as_markdown
from experiment.folder import load_checkpoint
from experiment.grid import read_grid, target_path
from experiment.settings import checked

METHODS = ("fomaml", "reptile")
BATCHES, FIRST = 4, 10**6  # episodes FIRST, FIRST + 1, ...
RTOL = 1e-4


def cosines(checkpoint_path: Path) -> list[float]:
    """One a batch."""
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
    return [float(value) for value in values]


def measure(folder: Path) -> None:
    """Write a cell's direction.json, unless it is there or the cell is not finished here."""
    made, checkpoint = folder / "direction.json", folder / "checkpoint.pt"
    if checkpoint.exists() and (folder / "summary.json").exists() and not made.exists():
        content = {"cosine": cosines(checkpoint), "batches": [FIRST, BATCHES], "rtol": RTOL}
        write_atomically(made, json.dumps(content, indent=1).encode())


def table(cells: list[Cell]) -> str:
    """A row a domain and method, a column a number of inner steps: the mean over batches, then over seeds."""
    found: dict[tuple[str, str], dict[int, list[float]]] = {}
    for cell in cells:
        made = cell.folder / "direction.json"
        if made.exists():
            row = found.setdefault((cell.labels["domain"], cell.labels["method"]), {})
            value = float(np.mean(json.loads(made.read_text())["cosine"]))
            row.setdefault(int(cell.labels["inner_steps"]), []).append(value)
    steps = sorted({n for row in found.values() for n in row})
    rows = [["domain", "method", *(f"{n} step" + "s" * (n > 1) for n in steps)]]
    rows += [[*place, *(over_seeds(row.get(n, [])) for n in steps)] for place, row in found.items()]
    text = f"{__doc__.splitlines()[0]} `python -m benchmarks.directions`, {BATCHES} batches of 5 tasks.\n\n"
    return text + as_markdown(rows) + "\n"


def main() -> None:
    """Measure what is not measured yet, and write the table of all."""
    cells = [cell for cell in read_grid(target_path("horizons")).cells if cell.labels["method"] in METHODS]
    for cell in cells:
        measure(cell.folder)
    write_atomically(OUT / "directions.md", table(cells).encode())


if __name__ == "__main__":
    main()
