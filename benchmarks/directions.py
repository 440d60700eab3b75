"""How far first-order directions are from the gradient: their cosine at each method's own trained theta.

    python -m benchmarks.directions

measures every finished cell of the target horizons whose checkpoint is here: for FOMAML and Reptile the cosine between
what the method takes for the meta-gradient and the meta-gradient (A-MAML's, float64, rtol 1e-4), of batches that
training did not see. results/paper/directions.csv keeps them, a line a cell; directions.md is the table.
"""

from dataclasses import replace
from pathlib import Path

import pandas as pd
from torch.nn.functional import cosine_similarity

from benchmarks.paper import OUT, over_seeds
from data.files import write_atomically
from experiment.build import build
from experiment.cells import Cell
from experiment.distributed import Group
from experiment.folder import load_checkpoint
from experiment.grid import read_grid, target_path
from experiment.settings import checked
from experiment.tables import as_markdown

METHODS = ("fomaml", "reptile")
BATCHES, FIRST = 4, 10**6  # episodes FIRST, FIRST + 1, ...
RTOL = 1e-4
PLACE = ["domain", "run", "inner_steps", "seed"]
COSINES = [f"cosine_{i}" for i in range(BATCHES)]


def cosines(checkpoint_path: Path) -> list[float]:
    """One a batch."""
    checkpoint = load_checkpoint(checkpoint_path)
    s = replace(checked(checkpoint.settings), dtype="float64")
    own, exact = (build(replace(s, **other), Group()) for other in ({}, {"method": "amaml", "rtol": RTOL}))
    values = []
    for e in (own, exact):
        e.restore(checkpoint, str(checkpoint_path), "take it out of the folder", memory=False)
    for step in range(FIRST, FIRST + BATCHES):
        exact.meta.set_extra_state(None)  # a learner without a memory measures its error in full
        for e in (own, exact):
            e.meta(e.domain.episode(step))
        values.append(cosine_similarity(own.meta.latest.value, exact.meta.latest.value, dim=0))
    return [float(value) for value in values]


def measured(frame: pd.DataFrame, cells: list[Cell]) -> pd.DataFrame:
    """The frame with a line for every finished cell of which it has none, as far as their checkpoints are here."""
    known, lines = {tuple(map(str, place)) for place in frame[PLACE].itertuples(index=False)}, []
    for cell in cells:
        place = tuple(cell.labels[name] for name in PLACE)
        if place not in known and all((cell.folder / name).exists() for name in ("summary.json", "checkpoint.pt")):
            values = [*place[:2], *map(int, place[2:]), *cosines(cell.folder / "checkpoint.pt")]
            lines.append(dict(zip(PLACE + COSINES, values, strict=True)))
    return pd.concat([frame, pd.DataFrame(lines)], ignore_index=True).sort_values(PLACE, ignore_index=True)


def table(frame: pd.DataFrame) -> str:
    """A row a domain and method, a column a number of inner steps: the mean over batches, then over seeds."""
    means = frame[PLACE].assign(cosine=frame[COSINES].mean(axis="columns"))
    steps = sorted(means["inner_steps"].unique())
    rows = [["domain", "method", *(f"{n} step" + "s" * bool(n > 1) for n in steps)]]
    for place, own in means.groupby(PLACE[:2]):
        rows.append([*place, *(over_seeds(own.loc[own["inner_steps"] == n, "cosine"]) for n in steps)])
    text = f"{__doc__.splitlines()[0]} `python -m benchmarks.directions`, {BATCHES} batches of 5 tasks.\n\n"
    return text + as_markdown(rows) + "\n"


def main() -> None:
    """Measure what is not measured yet, and write the table of all."""
    path = OUT / "directions.csv"
    before = pd.read_csv(path) if path.exists() else pd.DataFrame(columns=PLACE + COSINES)
    frame = measured(before, [c for c in read_grid(target_path("horizons")).cells if c.labels["run"] in METHODS])
    write_atomically(path, frame.to_csv(index=False, float_format="%.7g", lineterminator="\n").encode())
    write_atomically(OUT / "directions.md", table(frame).encode())


if __name__ == "__main__":
    main()
