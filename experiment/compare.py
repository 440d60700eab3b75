"""What many runs say together: they are read, and sorted into panels and variants.

Runs of the same test (domain, shots, queries, protocol) make a panel. Within it, runs that differ in their seed alone
are one variant, named after its method and, where a method has several, after settings that tell these apart.
"""

import itertools
import shlex
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from amaml.errors import InputError, unknown
from data.outside import short
from experiment import results
from experiment.settings import CONTROL, METHODS, merged, parse_flags

TEST = ("domain", "shots", "queries", "ways", "test_tasks")
EPOCHS = (0, 10, 100, 500, 1000)  # that the tables show, besides the last
Column = int | None  # an epoch, None for the last of each variant


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

    def epochs(self, asked: Iterable[int] | None) -> list[Column]:
        """The columns of its tables; None is the end of each variant's own test, where those are not the same."""
        there, ends = {*self.final["epoch"]}, {*self.final.loc[self.final["end"], "epoch"]}
        if asked is not None:
            return sorted(there & set(asked))
        wanted = there if self.unit != "epoch" else there & {*EPOCHS, *ends}
        return sorted(wanted) + ([None] if len(ends) > 1 else [])

    def at(self, column: Column) -> pd.DataFrame:
        """The lines of a column."""
        return self.final[self.final["end"] if column is None else self.final["epoch"] == column]


Settings = dict[str, dict[str, Any]]  # of every run


def read_runs(paths: list[Path], only: dict[str, list[str]] | None = None) -> tuple[pd.DataFrame, Settings]:
    """A line a record (experiment.results) of every run and evaluation in, or below, the paths; and their settings.

    A path is the CSV of a grid's results, a run, or a folder of either; raises InputError where there is none.
    only: the places on the axes of a CSV that count.
    """
    lines, settings = [], {}
    for path in paths:
        files = sorted(path.rglob("*.csv")) if path.is_dir() else [path] if path.is_file() else []
        tables = [pd.read_csv(file) for file in files if {*results.FACTS} <= {*_header(file)}]
        found = [*sorted(path.rglob("summary.json")), *sorted(path.rglob("evaluation*.json"))]
        if not tables and not found:
            raise InputError(
                f"{path} holds no finished run (a folder with summary.json) and no CSV of results; give a run or a "
                "folder of runs"
            )
        tables = [_only(table, only or {}) for table in tables]
        for own, line in itertools.chain(*map(_of_folder, found), *map(_of_table, tables)):
            lines.append(line)
            settings[line["run"]] = _of_any_seed(own)
    return results.marked(results.tidy(pd.DataFrame(lines))), settings


def _header(file: Path) -> list[str]:
    with file.open() as lines:
        return next(lines, "").strip().split(",")


def _only(table: pd.DataFrame, only: dict[str, list[str]]) -> pd.DataFrame:
    for name, values in only.items():
        axes = table.columns[: table.columns.get_loc("then")]
        if name not in axes:
            raise unknown("axis of --only", name, axes)
        known = table[name].astype(str)
        for value in values:
            if value not in {*known}:
                raise unknown(f"{name} of --only", value, known.unique())
        table = table[known.isin(values)]
    return table


def _of_folder(file: Path) -> Iterator[tuple[dict[str, Any], dict[str, Any]]]:
    """Settings and line of every meta-test in a run's own files."""
    run, trained = results.run_of(file), file.name == "summary.json"
    config = results.read_json(run / "config.json") if run else {}
    settings = config.get("settings") if trained else results.read_json(file)["settings"]
    if settings is None or (trained and not (file.parent / "test.json").exists()):
        raise InputError(f"{file.parent} has lost its config.json or test.json, which hold its settings and tests")
    flags = config.get("command", []) if trained else ["--evaluate", str(run or file.parent)]
    for row in results.rows(file):
        yield (
            settings,
            {"run": str(file.resolve()), "then": 0, **row, "command": shlex.join(["python", "run.py", *flags])},
        )


def _of_table(table: pd.DataFrame) -> Iterator[tuple[dict[str, Any], dict[str, Any]]]:
    """The same of a grid's CSV, whose commands say the settings; those of `then` add theirs to the run's."""
    axes, trained, known = list(table.columns[: table.columns.get_loc("then")]), {}, {}
    for line in table.sort_values("then", kind="stable").to_dict("records"):
        place = " ".join(str(line.pop(axis)) for axis in axes)
        run = f"{place} {line['command']}"
        if run not in known:
            flags = parse_flags(shlex.split(line["command"])[2:])
            own = {name: value for name, value in flags.items() if name not in ("evaluate", "out")}
            known[run] = asdict(merged(trained.setdefault(place, own) | own))
        yield known[run], {"run": run} | line


def _of_any_seed(settings: dict[str, Any]) -> dict[str, Any]:
    """The settings, whose start_from does not name the run's own seed: the seeds of one variant belong together."""
    if settings.get("start_from") is None:
        return settings
    own = f"seed{settings['seed']}"
    parts = ("seed*" if part == own else part for part in settings["start_from"].split("/"))
    return settings | {"start_from": "/".join(parts)}


def panels(frame: pd.DataFrame, settings: Settings) -> list[Panel]:
    """The runs, sorted by what is tested and by what differs."""
    tested = {run: "|".join(str(s.get(name)) for name in TEST) for run, s in settings.items()}
    groups = [own for _, own in frame.groupby([frame["run"].map(tested), "unit", "metric"], sort=False)]
    names = [_name(group, settings) for group in groups]
    return [
        _panel(group, settings, name if names.count(name) == 1 else f"{name}-{i}")
        for i, (name, group) in enumerate(zip(names, groups, strict=True), 1)
    ]


def _name(frame: pd.DataFrame, settings: Settings) -> str:
    first = frame.iloc[0]
    domain, *parts = (settings[first["run"]][name] for name in ("domain", "shots", "queries"))
    return "-".join(map(str, [short(domain), *parts, f"{first['unit']}s".replace(" ", "-")]))


def _panel(frame: pd.DataFrame, settings: Settings, name: str) -> Panel:
    mine = {run: settings[run] for run in frame["run"].unique()}
    apart = {*CONTROL, *TEST, "seed", "method", "protocol"}
    differing = sorted(
        n for n in {n for s in mine.values() for n in s} - apart if len({str(s.get(n)) for s in mine.values()}) > 1
    )
    labels = _labels({run: (short(s["method"]), *(s.get(n) for n in differing)) for run, s in mine.items()}, differing)
    frame = frame.assign(seed=frame["run"].map({run: s["seed"] for run, s in mine.items()}))
    frame["variant"] = pd.Categorical(frame["run"].map(labels), dict.fromkeys(labels.values()), ordered=True)
    ends = frame.sort_values("update", ascending=False, kind="stable").drop_duplicates(["variant", "seed"])
    frame = frame[frame["run"].isin(ends["run"])]  # an earlier theta of a seed is left out
    first, steps = next(iter(mine.values())), {s["inner_steps"] for s in mine.values()}
    title = [short(first["domain"]), f"{first['shots']} shots", f"{first['queries']} queries"]
    title += [f"{steps.pop()} inner steps"] if len(steps) == 1 else []
    seeds, unit = sorted({*frame["seed"]}), frame["unit"].iloc[0]
    title += ["fine-tuned" if unit == "epoch" else "own inner loop"]
    title += [f"seed {seeds[0]}" if len(seeds) == 1 else f"{len(seeds)} seeds"]
    differences = []
    for n in differing:
        who: dict[str, dict[str, None]] = {}
        for run, label in labels.items():
            who.setdefault(str(mine[run].get(n)), {})[label] = None
        differences.append(f"{n}: " + "; ".join(f"{value} ({', '.join(names)})" for value, names in who.items()))
    return Panel(name, ", ".join(title), frame["metric"].iloc[0], unit, frame, differences)


def _labels(keys: dict[str, tuple], differing: list[str]) -> dict[str, str]:
    """The variant of every run, in the order of the methods; keys: its method and the settings that differ."""
    order = {method: i for i, method in enumerate(METHODS)}
    ordered = sorted({*keys.values()}, key=lambda key: (order.get(key[0], len(order)), str(key)))
    labels = {}
    for method, rivals in itertools.groupby(ordered, key=lambda key: key[0]):
        variants = list(rivals)
        telling = _telling(variants)
        for key in variants:
            own = [f"{differing[i - 1]} {key[i]}" for i in telling if key[i] is not None]
            labels[key] = ", ".join([method, *own])
    return {run: labels[key] for key in ordered for run in keys if keys[run] == key}


def _telling(variants: list[tuple]) -> list[int]:
    """The fewest places, taken one by one, at which the variants of a method are all told apart."""

    def kinds(places: list[int]) -> int:
        return len({tuple(str(variant[i]) for i in places) for variant in variants})

    chosen: list[int] = []
    while kinds(chosen) < len(variants):
        chosen.append(max(range(1, len(variants[0])), key=lambda i: kinds([*chosen, i])))
    return sorted(chosen)
