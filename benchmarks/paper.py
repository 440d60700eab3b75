"""The paper's figure and tables cell by cell: our numbers in results/paper beside those that the paper shows.

    python -m benchmarks.paper

reads the CSVs of the targets below, as far as they are there, and the paper's numbers (paper.toml), and writes into
results/paper: figure.md, tables.md, horizons.md and the pictures.
"""

import tomllib
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import pandas as pd

from benchmarks import paper_pictures
from data.files import write_atomically
from experiment import results
from experiment.grid import read_grid, target_path
from experiment.tables import as_markdown, shown

OUT = Path("results/paper")
PAPER = tomllib.loads(Path(__file__).with_name("paper.toml").read_text())
TARGETS = {
    "figure": ("paper-figure",),
    "tables": ("paper-tables", "paper-tables-movielens1m"),
    "horizons": ("horizons", "horizons-work"),
    "trials": ("horizons-trials", "horizons-ideas", "horizons-1000-trials"),
}
PRODUCT = 2  # gradients that a Hessian-vector product takes the time of (results/efficiency/peers.csv: 1.5 to 2.7)
NEAR = 0.05  # of the paper's number, read off a plot to about 0.03, counts as reproduced
MADE = "Made by `python -m benchmarks.paper` from the targets' CSV."
INTERVALS = f"mean ± 95% interval over the seeds. {MADE}"
WORK = f"Work: thousand gradients of a task's loss in all updates, a Hessian-vector product as {PRODUCT}."


def read(targets: tuple[str, ...]) -> pd.DataFrame:
    """A line a record (experiment.results) of every finished cell of some targets, by every protocol of its test.

    The places on an axis are strings, in the grids' order; final: of the run's last meta-test; end: the last record.
    """
    grids = [grid for grid in (read_grid(target_path(target)) for target in targets) if grid.csv.exists()]
    frame = pd.concat([results.read(grid.csv) for grid in grids], ignore_index=True) if grids else pd.DataFrame()
    for axis in (name for name in (grids[0].cells[0].labels if grids else ()) if name != "seed"):
        places = dict.fromkeys(cell.labels[axis] for grid in grids for cell in grid.cells)
        frame[axis] = pd.Categorical(frame[axis].astype(str), list(places), ordered=True)
    return results.marked(frame) if grids else frame


def figure(frame: pd.DataFrame) -> str:
    """A table a panel: the paper's curve ends beside ours."""
    tuned, sections = frame[(frame["unit"] == "epoch") & frame["final"]], []
    for panel, theirs in PAPER["panels"].items():
        found = tuned[tuned["panel"] == panel]
        if found.empty:
            continue
        ours = (f"{setting}, {points}" for setting in ("released", "ours") for points in results.POINTS)
        rows = [["method", "paper", *ours, "released: verdict at epoch 0; at 1000"]]
        for method, own in found.groupby("method", observed=True):
            # the paper's start and end, ours at both settings on both kinds of points, a verdict on each of the two
            published, released = PAPER["figure"][theirs].get(method), own[own["setting"] == "released"]
            row = [method, "{:.2f} → {:.2f}".format(*published) if published else ""]
            for setting in ("released", "ours"):
                at = [own[(own["setting"] == setting) & (own["epoch"] == epoch)] for epoch in (0, 1000)]
                row += [" → ".join(shown(f[points]) for f in at if len(f)) for points in results.POINTS]
            verdicts = (_verdict(v, released, e) for v, e in zip(published or (), (0, 1000), strict=False))
            rows.append([*row, "; ".join(verdicts)])
        sections.append(f"## {panel} ({_seeds(found)}; the paper's {theirs})\n\n{as_markdown(rows)}")
    verdict = f"Reproduced: our mean, at the paper's two digits, lies within {NEAR} of the paper's number."
    return "\n\n".join(["nRMSE at fine-tuning epoch 0 → 1000; " + INTERVALS, verdict, *sections]) + "\n"


def _verdict(published: float, found: pd.DataFrame, epoch: int) -> str:
    """On one number of the figure, by our means on the support set and on test points."""
    if found.empty:
        return "not run"
    distances = found.loc[found["epoch"] == epoch, list(results.POINTS)].mean().round(2) - published
    support, test = distances.abs() <= NEAR + 1e-9
    if support or test:
        return "reproduced" if support and test else "support set only" if support else "test points only"
    if distances.min() < 0 < distances.max():
        return "not: between our two"
    return "not: ours lower" if distances.max() < 0 else "not: ours higher"


def tables(frame: pd.DataFrame) -> str:
    """A table a panel and number of steps: the paper's number beside ours on unseen and on seen items."""
    sections = []
    for steps, panels in PAPER["tables"].items():
        for panel, theirs in panels.items():
            found = frame[(frame["panel"] == panel) & (frame["steps"] == steps) & frame["final"]]
            own = dict(iter(found.groupby("run", observed=True))) or dict.fromkeys(theirs, found)
            rows = [["method", "paper", *_TABLE_COLUMNS]]
            rows += [_table_row(run, theirs.get(run.removesuffix("-equal")), part) for run, part in own.items()]
            inner = found[found["unit"] != "epoch"].drop_duplicates("seed")
            simple = inner.filter(regex="^predictor_.*(?<!_ci95)$") if len(inner) else ()
            blank = [""] * (len(_TABLE_COLUMNS) - 1)
            rows += [[f"*{name.removeprefix('predictor_')}*", "", shown(inner[name]), *blank] for name in simple]
            sections.append(f"## {panel}, {steps} inner steps ({_seeds(found)})\n\n{as_markdown(rows)}")
    verdict = (
        "Reproduced: our mean on unseen ratings lies within two of the paper's standard deviations of its number, or"
        " below. Seen only: that on the ratings that the model was fitted to gets below the paper's number, by the"
        " method's own inner loop or by so many epochs of Adam."
    )
    return "\n\n".join(["nRMSE; " + INTERVALS, verdict, *sections]) + "\n"


def _table_row(run: str, published: tuple[float, float] | None, found: pd.DataFrame) -> list[str]:
    """The paper's number, ours by the own inner loop and by 100 epochs of Adam, and a verdict."""
    tuned, inner = found[found["unit"] == "epoch"], found[(found["unit"] != "epoch") & found["end"]]
    numbers = [shown(f[p]) for f in (inner, tuned[tuned["epoch"] == 100]) for p in ("test", "support")]
    if not published:
        return [run, "", *numbers, "", ""]
    below = tuned["epoch"].where(tuned["support"] <= published[0], np.inf)
    passed = below.groupby(tuned["seed"]).min().sort_values()  # the first epoch at which it is, of each seed
    ends = (*passed.head(1), *passed.tail(1))
    epochs = dict.fromkeys("never" if np.isinf(epoch) else f"{epoch:.0f}" for epoch in ends)
    verdict = _table_verdict(published, inner, passed)
    return [run, "{:.3f} ± {:.3f}".format(*published), *numbers, " to ".join(epochs), verdict]


def _table_verdict(published: tuple[float, float], inner: pd.DataFrame, passed: pd.Series) -> str:
    """On one number of the tables."""
    if inner.empty:
        return "not run: no data"
    if inner["test"].mean() <= published[0] + 2 * published[1]:
        return "reproduced"
    if inner["support"].mean() <= published[0]:
        return "seen only, inner loop"
    return "seen only, Adam" if np.isfinite(passed).all() else "not"


def horizons(frame: pd.DataFrame) -> str:
    """A table a domain: every method over every horizon, its work, its error along training, and Reptile's minus it."""
    sections = []
    for domain, found in along(frame).groupby("domain", observed=True):
        ends = "after a third of them", "two thirds", "all", "Reptile minus it"
        rows = [["method", "inner steps", "seeds", "updates", "work", *ends]]
        for (run, steps), own in found.groupby(["run", "inner_steps"], observed=True):
            reptile = found[(found["run"] == "reptile") & (found["inner_steps"] == steps)]
            last, theirs = (f[f["final"]].set_index("seed") for f in (own, reptile))
            ahead = (theirs["test"] - last["test"]).dropna() if run != "reptile" else []  # of seeds that both have
            tests = [shown(own.loc[own["update"] == n, "test"]) for n in sorted({*own["update"]})[-3:]]
            counts = (f"{mean:.0f}" for mean in last[["update", "work"]].mean())
            rows.append([run, steps, _listed(last.index), *counts, *tests, shown(ahead)])
        sections.append(f"## {domain}\n\n{as_markdown(rows)}")
    head = f"nRMSE on test points of new tasks, after as many steps as in training; {INTERVALS} {WORK}"
    return "\n\n".join([head, *sections]) + "\n"


def along(frame: pd.DataFrame) -> pd.DataFrame:
    """The meta-tests after the own inner loop, with the work of training so far, in thousand gradients of a task."""
    ends = frame[(frame["unit"] != "epoch") & frame["end"]]
    return ends.assign(work=ends["update"] * (ends["gradients"] + PRODUCT * ends["hvps"]) / 1000)


def trials(frame: pd.DataFrame) -> str:
    """A table a domain: the error after the own inner loop along training, of every trial of every method."""
    sections = []
    for domain, found in along(frame).groupby("domain", observed=True):
        updates = sorted({*found["update"]})
        rows = [["method", "trial", *(f"{n} updates" for n in updates), "gradients + products an update"]]
        for (method, trial), own in found.groupby(["method", "trial"], observed=True):
            tests = [shown(own.loc[own["update"] == n, "test"]) for n in updates]
            rows.append([method, trial, *tests, f"{own['gradients'].mean():.0f} + {own['hvps'].mean():.0f}"])
        sections.append(f"## {domain} ({_seeds(found)})\n\n{as_markdown(rows)}")
    return "\n\n".join(["nRMSE on test points after the method's own inner loop. " + MADE, *sections]) + "\n"


_TABLE_COLUMNS = [f"{how}, {items}" for how in ("inner loop", "100 epochs of Adam") for items in ("unseen", "seen")]
_TABLE_COLUMNS += ["epoch at which the seen error passes the paper's", "verdict"]


def _seeds(found: pd.DataFrame) -> str:
    count = found["seed"].nunique()
    return f"seed{'s' * (count > 1)} {_listed(found['seed'])}" if count else "not run"


def _listed(seeds: Iterable[int]) -> str:
    return ", ".join(map(str, sorted({*seeds})))


def main() -> None:
    """Write everything that the results found allow."""
    found = {part: read(targets) for part, targets in TARGETS.items()}
    for part, make in zip(TARGETS, (figure, tables, horizons, trials), strict=True):
        if len(found[part]):
            write_atomically(OUT / f"{part}.md", make(found[part]).encode())
    paper_pictures.draw(found["figure"], along(found["horizons"]) if len(found["horizons"]) else None, PAPER, OUT)


if __name__ == "__main__":
    main()
