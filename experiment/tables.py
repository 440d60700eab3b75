"""The tables of a comparison: Markdown to read, CSV to compute with."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd

from data.files import write_atomically
from experiment.compare import Panel
from experiment.evaluation import mean_and_interval

HEADS = {"test": "on test points", "support": "on the support set"}
SINGLE = "In brackets: half the 95% interval over the test tasks"
SEVERAL = f"Mean ± half the 95% interval over seeds; of two seeds, both. {SINGLE} of one seed"
FEW = 3  # seeds that a mean stands for; half the interval of two would be 6.4 times their distance
CELLS = ["panel", "method", "setting", "seed", "protocol", "epoch", "support", "test", "command"]
COSTS = {"seconds": ".4f", "gradients": ".1f", "hvps": ".1f"}
Table = list[list[str]]  # the first row is the head


def write(panels: list[Panel], pictures: dict[str, list[Path]], out: Path) -> str:
    """comparison.md and cells.csv, a line a run and record, in a folder; returns the first's text."""
    parts = []
    for panel in panels:
        parts += [f"## {panel.title}", *(f"![{path.stem}]({path.name})" for path in pictures[panel.name])]
        parts += [f"{SEVERAL if panel.seeds.max() > 1 else SINGLE}."]
        tables = {f"{panel.metric} {words}": errors(panel, points) for points, words in HEADS.items()}
        if len(panel.labels) > 1:
            base = "amaml" if "amaml" in panel.labels else panel.labels[0]
            caption = f"{panel.metric} on test points, difference to {base} on the same seeds"
            tables[caption] = differences(panel, base)
        if len(simple := predictors(panel)) > 1:
            tables[f"{panel.metric} of simple predictors on the same test points"] = simple
        tables["Cost of an update"] = costs(panel)
        parts += [f"{name}\n\n{as_markdown(table)}" for name, table in tables.items()]
        lines = "\n".join(f"- {difference}" for difference in panel.differences)
        parts += [f"Settings that differ besides method and seed:\n\n{lines}"]
    text, cells = "\n\n".join(parts) + "\n", pd.concat(map(_cells, panels))[CELLS]
    write_atomically(out / "comparison.md", text.encode())
    write_atomically(out / "cells.csv", cells.to_csv(index=False, lineterminator="\n").encode())
    return text


def errors(panel: Panel, points: str) -> Table:
    """A row a variant, a column an epoch; empty where a seed has no record of it."""
    found, rows = [panel.at(column) for column in panel.columns], [_head(panel)]
    for label, count in panel.seeds.items():
        own = [at[at["variant"] == label] for at in found]
        rows.append([label, str(count), *(_shown(of, points) if len(of) == count else "" for of in own)])
    return rows


def differences(panel: Panel, base: str) -> Table:
    """Each variant minus the base on the seeds that both have, paired."""
    found = [panel.at(column).pivot(index="seed", columns="variant", values="test") for column in panel.columns]
    seeds = {label: {*own["seed"]} for label, own in panel.final.groupby("variant", observed=True)}
    rows = [_head(panel)]
    for label in panel.labels:
        both = sorted(seeds[label] & seeds[base])
        if label == base or not both:
            continue
        row = [label, str(len(both))]
        for at in found:
            pair = at.reindex(index=both, columns=[label, base])
            apart = pair[label] - pair[base]
            row.append("" if apart.isna().any() else shown(apart, sign=True))
        rows.append(row)
    return rows


def predictors(panel: Panel) -> Table:
    """Predictors that need no network, over the seeds of the panel."""
    by_seed = panel.final.drop_duplicates("seed", keep="last").filter(regex="^predictor_").dropna(axis=1, how="all")
    rows = [["predictor", "seeds", panel.metric]]
    for name in (name for name in by_seed if not name.endswith("_ci95")):
        own = by_seed.reindex(columns=[name, f"{name}_ci95"]).dropna(subset=name)
        rows.append([name.removeprefix("predictor_"), str(len(own)), _shown(own, name)])
    return rows


def costs(panel: Panel) -> Table:
    """Updates, and seconds and evaluations of one, means over the seeds."""
    rows = [["method", "updates", "seconds", "gradients", "Hessian-vector products"]]
    for label, own in panel.final.drop_duplicates("run").groupby("variant", observed=True):
        numbers = own[list(COSTS)].astype(float).mean()
        cells = ("" if np.isnan(n) else format(n, f) for n, f in zip(numbers, COSTS.values(), strict=True))
        rows.append([label, str(own["update"].iloc[0]), *cells])
    return rows


def _head(panel: Panel) -> list[str]:
    return ["method", "seeds", *(f"own last {panel.unit}" if c is None else f"{panel.unit} {c}" for c in panel.columns)]


def _cells(panel: Panel) -> pd.DataFrame:
    """A line a record of every run, with its command."""
    lines = panel.final[panel.final["epoch"].isin(panel.columns)].sort_values(["variant", "seed", "epoch"])
    names = lines["variant"].str.partition(", ")
    protocol = "finetune" if panel.unit == "epoch" else "inner"
    return lines.assign(panel=panel.name, method=names[0], setting=names[2], protocol=protocol)


def _shown(lines: pd.DataFrame, name: str) -> str:
    """A column of the lines of every seed, and in brackets the mean half-interval over tasks, where there is one."""
    return shown(lines[name], lines[f"{name}_ci95"].mean(skipna=False))


def shown(of_seeds: Sequence[float], over_tasks: float = np.nan, sign: bool = False) -> str:
    """The mean of the seeds with its half-interval, the values of fewer than FEW; over_tasks in brackets, nan: none."""
    if len(of_seeds) < FEW:
        text = ", ".join(_number(value, sign) for value in of_seeds)
    else:
        mean, half = mean_and_interval(np.asarray(of_seeds))
        text = f"{_number(mean, sign)} ± {_number(half)}"
    return text + ("" if np.isnan(over_tasks) else f" (± {_number(over_tasks)})")


def _number(value: float, sign: bool = False) -> str:
    return format(value, ("+" if sign else "") + (".3f" if abs(value) < 1000 else ".2e"))


def as_markdown(table: Table) -> str:
    """A table of GitHub's Markdown."""
    head, *rows = [f"| {' | '.join(row)} |" for row in table]
    return "\n".join([head, "|" + "---|" * len(table[0]), *rows])
