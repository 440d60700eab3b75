"""The paper's figure and tables cell by cell: our runs below results/paper beside the numbers that the paper shows.

    python -m benchmarks.paper

reads the runs of the targets below, as far as they are there, and the paper's numbers (paper.toml), and writes into
results/paper: cells.csv, figure.md, tables.md, horizons.md and the pictures.
"""

import json
import shlex
import tomllib
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks import paper_pictures
from data.files import write_atomically
from experiment.compare_tables import as_csv, as_markdown, shown
from experiment.evaluation import mean_and_interval
from experiment.grid import read_grid, target_path

OUT = Path("results/paper")
PAPER = tomllib.loads(Path(__file__).with_name("paper.toml").read_text())
TARGETS = {
    "figure": ("paper-figure",),
    "tables": ("paper-tables", "paper-tables-movielens1m"),
    "horizons": ("horizons", "horizons-maml"),
    "trained on": ("horizons-on",),
}
EPOCHS = (0, 10, 100, 500, 1000)  # of fine-tuning, in cells.csv, and the last; of the inner loop every step recorded
EQUAL_UPDATES = (450, 900)  # at which horizons are compared: at the first all, at the second those of up to 200 steps
NEAR = 0.05  # of the paper's number, read off a plot to about 0.03, counts as reproduced
HEAD = ["panel", "method", "setting", "seed", "protocol", "epoch", "support", "test", "command"]


@dataclass(frozen=True)
class Result:
    """What one protocol of one cell gave: its place on the grid's axes, its meta-tests, the last one last."""

    labels: dict[str, str]
    tests: list[dict[str, Any]]
    seconds: float | None  # of training, an update
    command: str
    folder: Path

    @property
    def seed(self) -> int:
        return int(self.labels["seed"])

    @property
    def protocol(self) -> str:
        return "finetune" if self.last["unit"] == "epoch" else "inner"

    @cached_property
    def last(self) -> dict[str, Any]:
        """The last meta-test."""
        return self.tests[-1]

    def until(self, update: int) -> "Result":
        """What it had given after so many updates."""
        return replace(self, tests=[test for test in self.tests if test["update"] <= update])

    def at(self, points: str, epoch: int) -> float:
        """The metric on "support" or "test" points at an epoch or inner step; -1: the last."""
        i = -1 if epoch == -1 else self.last["epochs"].index(epoch)
        return self.last[points]["mean"][i]

    def passes(self, points: str, level: float) -> float:
        """The first recorded epoch at which the metric is at most this level; infinite where it never is."""
        below = np.flatnonzero(np.array(self.last[points]["mean"]) <= level)
        return float(self.last["epochs"][below[0]]) if len(below) else np.inf


def read(target: str) -> list[Result]:
    """Every finished cell of a target, by each protocol that it was tested with."""
    return [result for cell in read_grid(target_path(target)).cells for result in _of_cell(cell)]


def _of_cell(cell: Any) -> Iterator[Result]:
    seconds = None
    for step in cell.steps:
        for file in sorted(step.makes.parent.glob(step.makes.name)):
            content = json.loads(file.read_text())
            trained = file.name == "summary.json"
            tests = json.loads((file.parent / "test.json").read_text()) if trained else [content]
            seconds = content["seconds_per_update"] if trained else seconds
            flags = [flag for flag in step.command[2:] if flag != "--resume"]
            command = shlex.join(["python", "run.py", *flags])
            for parts in zip(*([test, *test["also"]] for test in tests), strict=True):
                yield Result(cell.labels, list(parts), seconds, command, file.parent)


def select(results: list[Result], protocol: str, **labels: str) -> list[Result]:
    """Those of a protocol at a place."""
    return [r for r in results if r.protocol == protocol and labels.items() <= r.labels.items()]


def over_seeds(values: list[float]) -> str:
    """Mean with its 95% interval over the seeds (Student's t)."""
    if not values:
        return ""
    return shown(*mean_and_interval(np.array(values)))


def cells_csv(results: list[tuple[str, Result]]) -> str:
    """A line for each of EPOCHS, or inner step, of every cell, with the command that makes it."""
    lines = [HEAD]
    for part, r in results:
        panel, method, setting = _names(part, r.labels)
        kept = {*EPOCHS, r.last["epochs"][-1]} if r.protocol == "finetune" else r.last["epochs"]
        for epoch in (e for e in r.last["epochs"] if e in kept):
            numbers = (f"{r.at(points, epoch):.6g}" for points in ("support", "test"))
            lines.append([panel, method, setting, r.seed, r.protocol, epoch, *numbers, r.command])
    return as_csv(lines)


def _names(part: str, labels: dict[str, str]) -> tuple[str, str, str]:
    """Panel, method and setting of a cell."""
    if part == "figure":
        return labels["panel"], labels["method"], labels["setting"]
    if part == "tables":
        return labels["panel"], labels["run"], f"{labels['steps']} steps"
    setting = f"{labels['inner_steps']} steps" if part == "horizons" else "200 steps, from Reptile's theta"
    return f"{labels['domain']}, 128 wide", labels["method"], setting


def figure(results: list[Result]) -> str:
    """A table a panel: the paper's curve ends beside ours."""
    sections = []
    for panel, theirs in PAPER["panels"].items():
        if not select(results, "finetune", panel=panel):
            continue
        rows = [_FIGURE_HEAD]
        for method in _order(results, "method", panel=panel):
            found = select(results, "finetune", panel=panel, method=method)
            rows.append(_figure_row(method, PAPER["figure"][theirs].get(method), found))
        sections.append(f"## {panel} ({_seeds(results, panel=panel)}; the paper's {theirs})\n\n{as_markdown(rows)}")
    verdict = f"Reproduced: our mean, at the paper's two digits, lies within {NEAR} of the paper's number."
    return "\n\n".join(["nRMSE at fine-tuning epoch 0 → 1000; " + _INTERVALS, verdict, *sections]) + "\n"


def _figure_row(method: str, published: tuple[float, float] | None, found: list[Result]) -> list[str]:
    """The paper's start and end, ours at both settings on both kinds of points, and a verdict on each of the two."""
    row = [method, "{:.2f} → {:.2f}".format(*published) if published else ""]
    released, ours = (select(found, "finetune", setting=setting) for setting in ("released", "ours"))
    for mine in (released, ours):
        for points in ("support", "test"):
            ends = [over_seeds([r.at(points, epoch) for r in mine]) for epoch in (0, 1000)]
            row.append(" → ".join(ends) if mine else "")
    verdicts = [_verdict(value, released, epoch) for value, epoch in zip(published or (), (0, 1000), strict=False)]
    return [*row, "; ".join(verdicts)]


def _verdict(published: float, found: list[Result], epoch: int) -> str:
    """On one number of the figure, by our means on the support set and on test points."""
    if not found:
        return "not run"
    distances = [round(float(np.mean([r.at(p, epoch) for r in found])), 2) - published for p in ("support", "test")]
    support, test = (abs(distance) <= NEAR + 1e-9 for distance in distances)
    if support or test:
        return "reproduced" if support and test else "support set only" if support else "test points only"
    if min(distances) < 0 < max(distances):
        return "not: between our two"
    return "not: ours lower" if max(distances) < 0 else "not: ours higher"


def tables(results: list[Result]) -> str:
    """A table a panel and number of steps: the paper's number beside ours on unseen and on seen items."""
    sections = []
    for steps, panels in PAPER["tables"].items():
        for panel, theirs in panels.items():
            place = {"panel": panel, "steps": steps}
            rows = [["method", "paper", *_TABLE_COLUMNS]]
            for run in _order(results, "run", **place) or theirs:
                inner, tuned = (select(results, p, run=run, **place) for p in ("inner", "finetune"))
                published = theirs.get(run.removesuffix("-equal"))
                row = [run, "{:.3f} ± {:.3f}".format(*published) if published else ""]
                row += [over_seeds([r.at(points, -1) for r in inner]) for points in ("test", "support")]
                row += [over_seeds([r.at(points, 100) for r in tuned]) for points in ("test", "support")]
                passed = [r.passes("support", published[0]) for r in tuned] if published else []
                rows.append([*row, _epochs(passed), _table_verdict(published, inner, passed) if published else ""])
            rows += _predictors(select(results, "inner", **place))
            sections.append(f"## {panel}, {steps} inner steps ({_seeds(results, **place)})\n\n{as_markdown(rows)}")
    verdict = (
        "Reproduced: our mean on unseen ratings lies within two of the paper's standard deviations of its number, or"
        " below. Seen only: that on the ratings that the model was fitted to gets below the paper's number, by the"
        " method's own inner loop or by so many epochs of Adam."
    )
    return "\n\n".join(["nRMSE; " + _INTERVALS, verdict, *sections]) + "\n"


def _table_verdict(published: tuple[float, float], inner: list[Result], passed: list[float]) -> str:
    """On one number of the tables."""
    if not inner:
        return "not run: no data"
    unseen, seen = (float(np.mean([r.at(points, -1) for r in inner])) for points in ("test", "support"))
    if unseen <= published[0] + 2 * published[1]:
        return "reproduced"
    if seen <= published[0]:
        return "seen only, inner loop"
    return "seen only, Adam" if np.all(np.isfinite(passed)) else "not"


def _predictors(results: list[Result]) -> list[list[str]]:
    """The predictors that learn nothing of a user but his ratings, on the same unseen items."""
    by_seed = {r.seed: r.last["predictors"] for r in results if r.last["predictors"]}
    names = next(iter(by_seed.values()), {})
    blank = [""] * (len(_TABLE_COLUMNS) - 1)
    return [[f"*{name}*", "", over_seeds([p[name][0] for p in by_seed.values()]), *blank] for name in names]


def horizons(results: list[Result]) -> str:
    """A table a domain: the error by the own inner loop at the trained horizon, and under fine-tuning."""
    sections = []
    for domain in _order(results, "domain"):
        rows = [["method", "inner steps", "updates", "seeds", "seconds an update (median)", *_HORIZON_COLUMNS]]
        for method in _order(results, "method", domain=domain):
            for steps in _order(results, "inner_steps", domain=domain, method=method):
                place = {"domain": domain, "method": method, "inner_steps": steps}
                inner, tuned = (select(results, p, **place) for p in ("inner", "finetune"))
                lasts = {r.last["update"] for r in inner}
                for updates in sorted({min(equal, last) for equal in EQUAL_UPDATES for last in lasts} | lasts):
                    rows.append([method, steps, str(updates), *_after(updates, inner, tuned)])
        sections.append(f"## {domain}, 128 wide ({_seeds(results, domain=domain)})\n\n{as_markdown(rows)}")
    return "\n\n".join(["nRMSE; " + _INTERVALS, *sections]) + "\n"


def _after(updates: int, inner: list[Result], tuned: list[Result]) -> list[str]:
    """A row of the horizons' table, from seeds on, of the seeds that were trained for so long."""
    inner, tuned = ([r.until(updates) for r in rs if r.last["update"] >= updates] for rs in (inner, tuned))
    places = (("test", 0), ("test", -1), ("support", -1))
    least = over_seeds([min(r.last["test"]["mean"]) for r in tuned])
    seconds = np.median([r.seconds for r in inner])
    return [str(len(inner)), f"{seconds:.3g}", *(over_seeds([r.at(*place) for r in inner]) for place in places), least]


def trained_on(results: list[Result], horizons: list[Result]) -> str:
    """A row a domain and seed: Reptile's theta, and what each method makes of it in how many seconds."""
    methods = _order(results, "method")
    rows = [["domain", "seed", "Reptile", *(cell for m in methods for cell in (f"then {m}", "updates", "seconds"))]]
    for domain in _order(results, "domain"):
        for seed in _order(results, "seed", domain=domain):
            place = {"domain": domain, "seed": seed}
            before = select(horizons, "inner", method="reptile", inner_steps="200", **place)
            cells = [over_seeds([r.at("test", -1) for r in before])]
            for method in methods:
                after = select(results, "inner", method=method, **place)
                cells += _spent(after[0]) if after else [""] * 3
            rows.append([domain, seed, *cells])
    return f"## Trained on from the theta that Reptile reaches over 200 steps\n\n{as_markdown(rows)}\n"


def _spent(r: Result) -> list[str]:
    return [over_seeds([r.at("test", -1)]), str(r.last["update"]), f"{r.last['update'] * r.seconds:.0f}"]


_INTERVALS = "mean ± 95% interval over the seeds. Made by `python -m benchmarks.paper` from the runs' test.json."
_FIGURE_HEAD = [
    "method",
    "paper",
    "released, support",
    "released, test",
    "ours, support",
    "ours, test",
    "released: verdict at epoch 0; at 1000",
]
_TABLE_COLUMNS = [
    "inner loop, unseen",
    "inner loop, seen",
    "100 epochs of Adam, unseen",
    "100 epochs of Adam, seen",
    "epoch at which the seen error passes the paper's",
    "verdict",
]
_HORIZON_COLUMNS = [
    "test before",
    "test after the inner loop",
    "support after the inner loop",
    "least test error in 200 epochs of Adam",
]


def _order(results: list[Result], name: str, **labels: str) -> list[str]:
    """The places on an axis that have results, in the grid's order."""
    return list(dict.fromkeys(r.labels[name] for r in results if labels.items() <= r.labels.items()))


def _seeds(results: list[Result], **labels: str) -> str:
    seeds = sorted({r.seed for r in results if labels.items() <= r.labels.items()})
    if not seeds:
        return "not run"
    return f"seed {seeds[0]}" if len(seeds) == 1 else f"seeds {', '.join(map(str, seeds))}"


def _epochs(passed: list[float]) -> str:
    """First epochs over the seeds."""
    if not passed:
        return ""
    words = ["never" if np.isinf(p) else f"{p:.0f}" for p in sorted(passed)]
    return words[0] if words[0] == words[-1] else f"{words[0]} to {words[-1]}"


def main() -> None:
    """Write everything that the runs found allow."""
    found = {part: [r for target in targets for r in read(target)] for part, targets in TARGETS.items()}
    OUT.mkdir(parents=True, exist_ok=True)
    contents = {"cells.csv": cells_csv([(part, r) for part, results in found.items() for r in results])}
    for part, make in (("figure", figure), ("tables", tables), ("horizons", horizons)):
        if found[part]:
            contents[f"{part}.md"] = make(found[part])
    if found["horizons"] and found["trained on"]:
        contents["horizons.md"] += "\n" + trained_on(found["trained on"], found["horizons"])
    for name, content in contents.items():
        write_atomically(OUT / name, content.encode())
    paper_pictures.draw(found["figure"], found["horizons"], found["trained on"], PAPER, EQUAL_UPDATES[0], OUT)


if __name__ == "__main__":
    main()
