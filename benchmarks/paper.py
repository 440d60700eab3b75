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
from benchmarks.paper_pictures import CHOSEN, chosen
from data.files import write_atomically
from experiment import results
from experiment.grid import read_grid, target_path
from experiment.tables import as_markdown, shown

OUT = Path("results/paper")
PAPER = tomllib.loads(Path(__file__).with_name("paper.toml").read_text())
TARGETS = {
    "figure": ("paper-figure",),
    "tables": ("paper-tables", "paper-tables-movielens1m"),
    "horizons": ("horizons", "horizons-maml"),
    "trained on": ("horizons-on",),
    "trials": ("horizons-trials", "horizons-ideas", "lead", "lead-rates", "lead-after"),
}
EQUAL_UPDATES = (450, 900)  # at which horizons are compared: at the first all, at the second those of up to 200 steps
HALF = 225  # updates of Reptile (target horizons-half) before the first one of a trial after Reptile
NEAR = 0.05  # of the paper's number, read off a plot to about 0.03, counts as reproduced
INTERVALS = "mean ± 95% interval over the seeds. Made by `python -m benchmarks.paper` from the targets' CSV."


def read(targets: tuple[str, ...]) -> pd.DataFrame:
    """A line a record (experiment.results) of every finished cell of some targets, by every protocol of its test.

    The places on an axis are strings, in the grids' order; final: of the run's last meta-test; end: the last record.
    update: with those of Reptile that a trial after Reptile goes on from.
    """
    grids = [grid for grid in (read_grid(target_path(target)) for target in targets) if grid.csv.exists()]
    frame = pd.concat([results.read(grid.csv) for grid in grids], ignore_index=True) if grids else pd.DataFrame()
    for axis in (name for name in (grids[0].cells[0].labels if grids else ()) if name != "seed"):
        places = dict.fromkeys(cell.labels[axis] for grid in grids for cell in grid.cells)
        frame[axis] = pd.Categorical(frame[axis].astype(str), list(places), ordered=True)
    if "trial" in frame:
        frame["update"] += HALF * frame["trial"].astype(str).str.contains("after")
    return results.marked(frame) if grids else frame


def over_seeds(values: pd.Series) -> str:
    """Mean with half its 95% interval over the seeds (Student's t); of two seeds, both values."""
    return shown(values.to_numpy()) if len(values) else ""


def figure(frame: pd.DataFrame) -> str:
    """A table a panel: the paper's curve ends beside ours."""
    tuned, sections = frame[(frame["unit"] == "epoch") & frame["final"]], []
    for panel, theirs in PAPER["panels"].items():
        found = tuned[tuned["panel"] == panel]
        if found.empty:
            continue
        rows = [_FIGURE_HEAD]
        for method, own in found.groupby("method", observed=True):
            rows.append(_figure_row(method, PAPER["figure"][theirs].get(method), own))
        sections.append(f"## {panel} ({_seeds(found)}; the paper's {theirs})\n\n{as_markdown(rows)}")
    verdict = f"Reproduced: our mean, at the paper's two digits, lies within {NEAR} of the paper's number."
    return "\n\n".join(["nRMSE at fine-tuning epoch 0 → 1000; " + INTERVALS, verdict, *sections]) + "\n"


def _figure_row(method: str, published: tuple[float, float] | None, found: pd.DataFrame) -> list[str]:
    """The paper's start and end, ours at both settings on both kinds of points, and a verdict on each of the two."""
    row = [method, "{:.2f} → {:.2f}".format(*published) if published else ""]
    for setting in ("released", "ours"):
        at = {epoch: found[(found["setting"] == setting) & (found["epoch"] == epoch)] for epoch in (0, 1000)}
        row += [" → ".join(over_seeds(f[points]) for f in at.values() if len(f)) for points in results.POINTS]
    released = found[found["setting"] == "released"]
    return [*row, "; ".join(_verdict(v, released, e) for v, e in zip(published or (), (0, 1000), strict=False))]


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
            rows += _predictors(found[found["unit"] != "epoch"])
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
    numbers = [over_seeds(f[p]) for f in (inner, tuned[tuned["epoch"] == 100]) for p in ("test", "support")]
    if not published:
        return [run, "", *numbers, "", ""]
    below = tuned["epoch"].where(tuned["support"] <= published[0], np.inf)
    passed = below.groupby(tuned["seed"]).min()  # the first epoch at which it is, of each seed
    return [
        run,
        "{:.3f} ± {:.3f}".format(*published),
        *numbers,
        _epochs(passed),
        _table_verdict(published, inner, passed),
    ]


def _table_verdict(published: tuple[float, float], inner: pd.DataFrame, passed: pd.Series) -> str:
    """On one number of the tables."""
    if inner.empty:
        return "not run: no data"
    if inner["test"].mean() <= published[0] + 2 * published[1]:
        return "reproduced"
    if inner["support"].mean() <= published[0]:
        return "seen only, inner loop"
    return "seen only, Adam" if np.isfinite(passed).all() else "not"


def _predictors(inner: pd.DataFrame) -> list[list[str]]:
    """The predictors that learn nothing of a user but his ratings, on the same unseen items."""
    by_seed = inner.drop_duplicates("seed").filter(regex="^predictor_.*(?<!_ci95)$")
    blank = [""] * (len(_TABLE_COLUMNS) - 1)
    return [[f"*{n.removeprefix('predictor_')}*", "", over_seeds(by_seed[n]), *blank] for n in by_seed if len(by_seed)]


def horizons(frame: pd.DataFrame) -> str:
    """A table a domain: the error by the own inner loop at the trained horizon, and under fine-tuning."""
    sections = []
    for domain, found in frame.groupby("domain", observed=True):
        rows = [["method", "inner steps", "updates", "seeds", "seconds an update (median)", *_HORIZON_COLUMNS]]
        for (method, steps), own in found.groupby(["method", "inner_steps"], observed=True):
            lasts = {*own.loc[own["final"], "update"]}
            for updates in sorted({min(equal, last) for equal in EQUAL_UPDATES for last in lasts} | lasts):
                rows.append([method, steps, str(updates), *_after(results.until(own, updates))])
        sections.append(f"## {domain}, 128 wide ({_seeds(found)})\n\n{as_markdown(rows)}")
    return "\n\n".join(["nRMSE; " + INTERVALS, *sections]) + "\n"


def _after(found: pd.DataFrame) -> list[str]:
    """A row of the horizons' table, from seeds on."""
    tuned, inner = found[found["unit"] == "epoch"], found[found["unit"] != "epoch"]
    before, after = inner[inner["epoch"] == 0], inner[inner["end"]]
    numbers = map(over_seeds, (before["test"], after["test"], after["support"], tuned.groupby("seed")["test"].min()))
    return [str(len(after)), f"{after['seconds'].median():.3g}", *numbers]


def trials(frame: pd.DataFrame) -> str:
    """A table a domain: the error after the own inner loop along training, of every trial of every method."""
    ends, sections = frame[(frame["unit"] != "epoch") & frame["end"]], []
    for domain, found in ends.groupby("domain", observed=True):
        updates = sorted({*found["update"]})
        rows = [["method", "trial", "seeds", *(f"{n} updates" for n in updates), "gradients + products an update"]]
        for (method, trial), own in found.groupby(["method", "trial"], observed=True):
            tests = [over_seeds(own.loc[own["update"] == n, "test"]) for n in updates]
            work = f"{own['gradients'].mean():.0f} + {own['hvps'].mean():.0f}"
            rows.append([method, trial, _listed(own["seed"]), *tests, work])
        rows += _differences(chosen(found), updates)
        sections.append(f"## {domain}\n\n{as_markdown(rows)}")
    return "\n\n".join(["nRMSE on test points after the method's own inner loop. " + INTERVALS, *sections]) + "\n"


def _differences(found: pd.DataFrame, updates: list[int]) -> list[list[str]]:
    """A row of the test errors of Reptile minus those of every other line on the same seeds."""
    tests = found.pivot_table(index=["update", "seed"], columns=["method", "trial"], values="test", observed=True)
    rows = []
    for method, trial in (name for name in tests if ("reptile", CHOSEN) in tests and name[0] != "reptile"):
        more = (tests["reptile", CHOSEN] - tests[method, trial]).dropna()
        seeds = _listed(more.index.get_level_values("seed"))
        by_update = [over_seeds(more[more.index.get_level_values("update") == n]) for n in updates]
        rows.append([f"reptile - {method}", trial, seeds, *by_update, ""])
    return rows


def trained_on(frame: pd.DataFrame, horizons: pd.DataFrame) -> str:
    """A row a domain and seed: Reptile's theta, and what each method makes of it in how many seconds."""
    ends, before = (f[(f["unit"] != "epoch") & f["final"] & f["end"]] for f in (frame, horizons))
    before = before[(before["method"] == "reptile") & (before["inner_steps"] == "200")]
    methods = [method for method, _ in ends.groupby("method", observed=True)]
    rows = [["domain", "seed", "Reptile", *(cell for m in methods for cell in (f"then {m}", "updates", "seconds"))]]
    for (domain, seed), own in ends.groupby(["domain", "seed"], observed=True):
        row = [
            domain,
            str(seed),
            over_seeds(before.loc[(before["domain"] == domain) & (before["seed"] == seed), "test"]),
        ]
        for method in methods:
            of = own[own["method"] == method]
            row += [
                over_seeds(of["test"]),
                *map(str, of["update"]),
                *(f"{s:.0f}" for s in of["update"] * of["seconds"]),
            ]
            row += [""] * 2 * of.empty
        rows.append(row)
    return f"## Trained on from the theta that Reptile reaches over 200 steps\n\n{as_markdown(rows)}\n"


_PAIRS = [f"{setting}, {points}" for setting in ("released", "ours") for points in ("support", "test")]
_FIGURE_HEAD = ["method", "paper", *_PAIRS, "released: verdict at epoch 0; at 1000"]
_TABLE_COLUMNS = [f"{how}, {items}" for how in ("inner loop", "100 epochs of Adam") for items in ("unseen", "seen")]
_TABLE_COLUMNS += ["epoch at which the seen error passes the paper's", "verdict"]
_HORIZON_COLUMNS = ["test before", "test after the inner loop", "support after the inner loop"]
_HORIZON_COLUMNS += ["least test error in 200 epochs of Adam"]


def _seeds(found: pd.DataFrame) -> str:
    count = found["seed"].nunique()
    return f"seed{'s' * (count > 1)} {_listed(found['seed'])}" if count else "not run"


def _listed(seeds: Iterable[int]) -> str:
    return ", ".join(map(str, sorted({*seeds})))


def _epochs(passed: pd.Series) -> str:
    """First epochs over the seeds."""
    words = ["never" if np.isinf(p) else f"{p:.0f}" for p in sorted(passed)]
    return "" if not words else words[0] if words[0] == words[-1] else f"{words[0]} to {words[-1]}"


def main() -> None:
    """Write everything that the results found allow."""
    found = {part: read(targets) for part, targets in TARGETS.items()}
    makers = {"figure": figure, "tables": tables, "horizons": horizons, "trials": trials}
    contents = {f"{part}.md": make(found[part]) for part, make in makers.items() if len(found[part])}
    if len(found["horizons"]) and len(found["trained on"]):
        contents["horizons.md"] += "\n" + trained_on(found["trained on"], found["horizons"])
    for name, content in contents.items():
        write_atomically(OUT / name, content.encode())
    frames = (found[part] for part in ("figure", "horizons", "trained on", "trials"))
    paper_pictures.draw(*frames, PAPER, EQUAL_UPDATES[0], OUT)


if __name__ == "__main__":
    main()
