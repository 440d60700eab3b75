"""What many runs say together: they are read, and sorted into panels and variants.

Runs of the same test (domain, shots, queries, protocol) make a panel. Within it, runs that differ in their seed alone
are one variant, named after its method and, where a method has several, after settings that tell these apart.
"""

import itertools
import re
import shlex
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from amaml.errors import InputError
from data.outside import short
from experiment import results
from experiment.settings import CONTROL, METHODS, merged, parse_flags
from experiment.summary import SUMMARY_EPOCHS

TEST = ["domain", "shots", "queries", "ways", "test_tasks"]  # settings that make a panel
ELSEWHERE = {*CONTROL, *TEST, "seed", "method", "protocol"}  # settings that do not name a variant
Column = int | None  # an epoch, None for the last of each variant
Settings = dict[str, dict[str, Any]]  # of every run


@dataclass(frozen=True)
class Panel:
    """Runs that were tested alike, a line a record (experiment.results), with their variant, an ordered category.

    final: the lines of each run's last meta-test. differences: a line for every setting that the variants do not share.
    """

    name: str
    title: str
    metric: str
    unit: str
    frame: pd.DataFrame
    differences: list[str]

    @property
    def final(self) -> pd.DataFrame:
        return self.frame[self.frame["final"]]

    @property
    def labels(self) -> list[str]:
        """The names of its variants."""
        return list(self.frame["variant"].cat.categories)

    @property
    def seeds(self) -> pd.Series:
        """How many each variant has."""
        return self.frame.groupby("variant", observed=True)["seed"].nunique()

    @property
    def columns(self) -> list[Column]:
        """Those of its tables; None is the end of each variant's own test, where those are not the same."""
        there, ends = {*self.final["epoch"]}, {*self.final.loc[self.final["end"], "epoch"]}
        wanted = there if self.unit != "epoch" else there & {*SUMMARY_EPOCHS, *ends}
        return sorted(wanted) + ([None] if len(ends) > 1 else [])

    def at(self, column: Column) -> pd.DataFrame:
        """The lines of a column."""
        return self.final[self.final["end"] if column is None else self.final["epoch"] == column]


def read_runs(paths: list[Path], only: dict[str, list[str]] | None = None) -> tuple[pd.DataFrame, Settings]:
    """A line a record (experiment.results) of every run and evaluation in, or below, the paths; and their settings.

    A path is the CSV of a grid's results, a run, or a folder of either; raises InputError where there is none.
    only: the places on the axes of a CSV that count.
    """
    lines, settings = [], {}
    for path in paths:
        files = sorted(path.rglob("*.csv")) if path.is_dir() else [path] if path.is_file() else []
        tables = [pd.read_csv(file) for file in files if {*results.FACTS} <= {*pd.read_csv(file, nrows=0)}]
        found = [*sorted(path.rglob("summary.json")), *sorted(path.rglob("evaluation*.json"))]
        if not tables and not found:
            lacking = "no finished run (a folder with summary.json) and no CSV of results"
            raise InputError(f"{path} holds {lacking}; give a run or a folder of runs")
        for own, line in itertools.chain(*map(_of_folder, found), *(_of_table(table, only or {}) for table in tables)):
            lines.append(line)
            # the seeds of one variant belong together, also where each starts from a run of its own seed
            origin = own.get("start_from")
            origin = origin and re.sub(rf"\bseed{own['seed']}\b", "seed*", origin)
            settings[line["run"]] = own | {"start_from": origin}
    return results.marked(results.tidy(pd.DataFrame(lines))), settings


def _of_folder(file: Path) -> Iterator[tuple[dict[str, Any], dict[str, Any]]]:
    """Settings and line of every meta-test in a run's own files."""
    run, trained = results.run_of(file), file.name == "summary.json"
    config = results.read_json(run / "config.json") if run else {}
    settings = config.get("settings") if trained else results.read_json(file)["settings"]
    if settings is None or (trained and not (file.parent / "test.json").exists()):
        raise InputError(f"{file.parent} has lost its config.json or test.json, which hold its settings and tests")
    flags = config.get("command", []) if trained else ["--evaluate", str(run or file.parent)]
    for row in results.rows(file):
        own = {"run": str(file.resolve()), "then": 0, **row, "command": shlex.join(["python", "run.py", *flags])}
        yield settings, own


def _of_table(table: pd.DataFrame, only: dict[str, list[str]]) -> Iterator[tuple[dict[str, Any], dict[str, Any]]]:
    """The same of a grid's CSV, whose commands say the settings; those of `then` add theirs to the run's."""
    axes, trained, known = list(table.columns[: table.columns.get_loc("then")]), {}, {}
    results.check_places(only, {axis: {*table[axis].astype(str)} for axis in axes})
    for axis, places in only.items():
        table = table[table[axis].astype(str).isin(places)]
    for line in table.sort_values("then", kind="stable").to_dict("records"):
        place = " ".join(str(line.pop(axis)) for axis in axes)
        run = f"{place} {line['command']}"
        if run not in known:
            flags = parse_flags(shlex.split(line["command"])[2:])
            own = {name: value for name, value in flags.items() if name not in ("evaluate", "out")}
            known[run] = asdict(merged(trained.setdefault(place, own) | own))
        yield known[run], {"run": run} | line


def panels(frame: pd.DataFrame, settings: Settings) -> list[Panel]:
    """The runs, sorted by what is tested and by what differs."""
    runs = pd.DataFrame([*settings.values()], [*settings], dtype=object)
    runs = runs.where(runs.notna(), None)  # also what a run of another version does not know
    tested = runs[TEST].map(str).agg("|".join, axis="columns")
    groups = [own for _, own in frame.groupby([frame["run"].map(tested), "unit", "metric"], sort=False)]
    firsts = [(runs.loc[group["run"].iloc[0]], group["unit"].iloc[0].replace(" ", "-")) for group in groups]
    names = [f"{short(s['domain'])}-{s['shots']}-{s['queries']}-{unit}s" for s, unit in firsts]
    return [
        _panel(group, runs.loc[group["run"].unique()], name if names.count(name) == 1 else f"{name}-{i}")
        for i, (name, group) in enumerate(zip(names, groups, strict=True), 1)
    ]


def _panel(frame: pd.DataFrame, runs: pd.DataFrame, name: str) -> Panel:
    """runs: a line of settings for each run of the frame."""
    differing = sorted(name for name in {*runs} - ELSEWHERE if runs[name].map(str).nunique() > 1)
    labels = _labels(runs, differing)
    frame = frame.assign(seed=frame["run"].map(runs["seed"].astype(int)))
    frame["variant"] = pd.Categorical(frame["run"].map(labels), labels.unique(), ordered=True)
    ends = frame.sort_values("update", ascending=False, kind="stable").drop_duplicates(["variant", "seed"])
    frame = frame[frame["run"].isin(ends["run"])]  # an earlier theta of a seed is left out
    first, steps, unit = runs.iloc[0], runs["inner_steps"].unique(), frame["unit"].iloc[0]
    title = [short(first["domain"]), f"{first['shots']} shots", f"{first['queries']} queries"]
    title += [f"{steps[0]} inner steps"] if len(steps) == 1 else []
    seeds = sorted({*frame["seed"]})
    title += ["fine-tuned" if unit == "epoch" else "own inner loop"]
    title += [f"seed {seeds[0]}" if len(seeds) == 1 else f"{len(seeds)} seeds"]
    differences = []
    for name_ in differing:
        who = labels.groupby(runs[name_].map(str), sort=False).unique()
        differences.append(f"{name_}: " + "; ".join(f"{value} ({', '.join(names)})" for value, names in who.items()))
    return Panel(name, ", ".join(title), frame["metric"].iloc[0], unit, frame, differences)


def _labels(runs: pd.DataFrame, differing: list[str]) -> pd.Series:
    """The variant of every run, in the order of the methods: its method, and what tells it from others of that."""
    methods, order = runs["method"].map(short), list(METHODS)

    def place(run: str) -> tuple[int, str]:
        method = methods[run]
        return order.index(method) if method in order else len(order), str((method, *runs.loc[run, differing]))

    labels = {}
    for method, own in runs.loc[sorted(runs.index, key=place)].groupby(methods, sort=False):
        for run, values in own[_telling(own[differing].map(str))].iterrows():
            told = [f"{name} {value}" for name, value in values.items() if value is not None]
            labels[run] = ", ".join([method, *told])
    return pd.Series(labels)


def _telling(variants: pd.DataFrame) -> list[str]:
    """The fewest settings, taken one by one, by which the variants of a method are all told apart."""

    def kinds(names: list[str]) -> int:
        return variants.groupby(names).ngroups if names else 1

    chosen: list[str] = []
    while kinds(chosen) < kinds([*variants]):
        chosen.append(max(variants, key=lambda name: kinds([*chosen, name])))
    return [name for name in variants if name in chosen]
