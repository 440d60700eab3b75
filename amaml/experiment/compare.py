"""bash reproduce.sh compare RUN_OR_FOLDER...: what many runs say together, as tables and pictures.

Runs of the same test (domain, shots, queries, protocol) make a panel. Within it, runs that differ in their seed alone
are one variant, named after its method and, where a method has several, after the settings in which they differ.
"""

import argparse
import shlex
import sys
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

from amaml.errors import InputError
from amaml.experiment.folder import RunFolder
from configs.settings import CONTROL, METHODS

TEST = ("domain", "shots", "queries", "ways", "test_tasks", "train_tasks", "unseen", "item_features")
EPOCHS = (0, 10, 100, 500, 1000)  # that the tables show, besides the last


@dataclass(frozen=True)
class Run:
    """One run, or one evaluation of it, by one protocol: its settings and its meta-tests, the last one last."""

    folder: Path
    settings: dict[str, Any]
    tests: list[dict[str, Any]]
    metric: str
    updates: int
    command: str
    seconds: float | None = None  # an update
    gradients: float | None = None  # evaluations an update, means
    hvps: float | None = None

    @property
    def unit(self) -> str:
        """What the meta-test counts: epoch or inner step."""
        return self.tests[-1]["unit"]

    def at(self, points: str, epoch: int | None, interval: bool = False) -> float | None:
        """The metric on "support" or "test" points at an epoch, None for the last; or its 95% interval over tasks."""
        last = self.tests[-1]
        if epoch is not None and epoch not in last["epochs"]:
            return None
        return last[points]["ci95" if interval else "mean"][-1 if epoch is None else last["epochs"].index(epoch)]


@dataclass(frozen=True)
class Variant:
    """Runs that differ in their seed alone."""

    label: str
    method: str
    setting: str
    runs: dict[int, Run]  # by seed

    @property
    def any(self) -> Run:
        """One of the runs, for what all of them share."""
        return next(iter(self.runs.values()))


@dataclass(frozen=True)
class Panel:
    """Variants that were tested alike. differences: a line for every other setting that they do not share."""

    name: str
    title: str
    metric: str
    unit: str
    variants: list[Variant]
    differences: list[str]

    def epochs(self, asked: Iterable[int] | None) -> list[int | None]:
        """The columns of its tables; None is the end of each variant's own test, where those are not the same."""
        recorded = [variant.any.tests[-1]["epochs"] for variant in self.variants]
        there, ends = set().union(*recorded), {epochs[-1] for epochs in recorded}
        if asked is not None:
            return sorted(there & set(asked))
        wanted = there if self.unit != "epoch" else there & {*EPOCHS, *ends}
        return sorted(wanted) + ([None] if len(ends) > 1 else [])


def read_runs(paths: list[Path]) -> list[Run]:
    """Every finished run and evaluation at or below the paths; raises InputError where there is none."""
    runs = []
    for path in paths:
        found = [*sorted(path.rglob("summary.json")), *sorted(path.rglob("evaluation*.json"))] if path.is_dir() else []
        if not found:
            raise InputError(
                f"{path} holds no finished run (a folder with summary.json); give a run or a folder of runs"
            )
        for file in found:
            runs += _read_run(file) if file.name == "summary.json" else _read_evaluation(file)
    return list({(run.folder.resolve(), run.unit, run.settings.get("evaluate")): run for run in runs}.values())


def _read_run(file: Path) -> list[Run]:
    folder = RunFolder(file.parent)
    summary, tests, settings = folder.read("summary.json", {}), folder.read("test.json", []), folder.settings()
    if settings is None or not tests:
        raise InputError(f"{file.parent} has lost its config.json or test.json, which hold its settings and tests")
    metrics = folder.metrics()
    given = folder.read("config.json", {}).get("command", [])
    common = {
        "metric": summary["metric"],
        "updates": summary["updates"],
        "seconds": summary.get("seconds_per_update"),
        "command": shlex.join(["python", "run.py", *given]),
        "gradients": _mean(metrics, "gradients"),
        "hvps": _mean(metrics, "hvps"),
    }
    units = dict.fromkeys(test["unit"] for test in tests)
    return [Run(file.parent, settings, [t for t in tests if t["unit"] == unit], **common) for unit in units]


def _read_evaluation(file: Path) -> list[Run]:
    entry = RunFolder(file.parent).read(file.name, {})
    settings = entry["settings"]
    source = Path(settings["evaluate"])
    source = next((p for p in (source, source.parent) if (p / "summary.json").exists()), None)
    trained = _read_run(source / "summary.json")[0] if source else None
    return [
        Run(
            file.parent,
            settings,
            [entry],
            trained.metric if trained else "metric",
            entry["update"],
            shlex.join(["python", "run.py", "--evaluate", settings["evaluate"]]),
            *((trained.seconds, trained.gradients, trained.hvps) if trained else ()),
        )
    ]


def _mean(metrics: list[dict[str, Any]], name: str) -> float | None:
    values = [m[name] for m in metrics if name in m]
    return sum(values) / len(values) if values else None


def panels(runs: list[Run]) -> list[Panel]:
    """The runs, sorted by what is tested and by what differs."""
    groups: dict[tuple, list[Run]] = {}
    for run in runs:
        key = (*(str(run.settings.get(name)) for name in TEST), run.unit, run.metric)
        groups.setdefault(key, []).append(run)
    names = [_panel_name(group[0]) for group in groups.values()]
    count = {name: names.count(name) for name in names}
    return [
        _panel(group, name if count[name] == 1 else f"{name}-{i}")
        for i, (name, group) in enumerate(zip(names, groups.values(), strict=True), 1)
    ]


def _panel_name(run: Run) -> str:
    return f"{run.settings['domain']}-{run.settings['shots']}-{run.settings['queries']}-{run.unit.replace(' ', '-')}s"


def _panel(runs: list[Run], name: str) -> Panel:
    apart = CONTROL | set(TEST) | {"seed", "method", "protocol"}
    ours = sorted({n for run in runs for n in run.settings} - apart)
    differing = [n for n in ours if len({str(run.settings.get(n)) for run in runs}) > 1]
    groups: dict[tuple, list[Run]] = {}
    for run in runs:
        groups.setdefault((run.settings["method"], *(run.settings.get(n) for n in differing)), []).append(run)
    methods = [*METHODS]
    keys = sorted(groups, key=lambda key: (methods.index(key[0]) if key[0] in methods else 99, str(key)))
    variants = [_variant(groups[key], key, keys, differing) for key in keys]
    first = runs[0].settings
    steps = {run.settings["inner_steps"] for run in runs}
    parts = [first["domain"], f"{first['shots']} shots", f"{first['queries']} queries"]
    parts += [f"{steps.pop()} inner steps"] if len(steps) == 1 else []
    lines = []
    for n in differing:
        values = {str(run.settings.get(n)): None for run in runs}
        who = (", ".join(v.label for v in variants if str(v.any.settings.get(n)) == value) for value in values)
        lines.append(f"{n}: " + "; ".join(f"{value} ({names})" for value, names in zip(values, who, strict=True)))
    return Panel(name, ", ".join(parts) + f", {_seeds(variants)}", runs[0].metric, runs[0].unit, variants, lines)


def _variant(runs: list[Run], key: tuple, keys: list[tuple], differing: list[str]) -> Variant:
    rivals = [other for other in keys if other[0] == key[0]]
    own = [
        f"{name} {value}"
        for i, (name, value) in enumerate(zip(differing, key[1:], strict=True), 1)
        if value is not None and len({str(rival[i]) for rival in rivals}) > 1
    ]
    by_seed: dict[int, Run] = {}
    for run in sorted(runs, key=lambda run: run.settings["seed"]):
        by_seed.setdefault(run.settings["seed"], run)
    return Variant(", ".join([key[0], *own]), key[0], ", ".join(own), by_seed)


def _seeds(variants: list[Variant]) -> str:
    seeds = sorted({seed for variant in variants for seed in variant.runs})
    return f"seed {seeds[0]}" if len(seeds) == 1 else f"{len(seeds)} seeds"


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise InputError(f"{message}; see --help")


def main(arguments: list[str]) -> int:
    """Exit status: 0 done, 2 a mistake in the input."""
    from amaml.experiment import compare_pictures, compare_tables

    parser = _Parser(prog="reproduce.sh compare", description=__doc__, allow_abbrev=False)
    parser.add_argument("paths", nargs="+", type=Path, metavar="RUN_OR_FOLDER")
    parser.add_argument("--out", type=Path, default=Path("results/comparison"), help="default: results/comparison")
    parser.add_argument("--epochs", type=int, nargs="+", metavar="N", help="epochs, or inner steps, of the tables")
    parser.add_argument("--reference", default="amaml", help="the variant of the paired differences (default amaml)")
    try:
        given = parser.parse_args(arguments)
        found = panels(read_runs(given.paths))
        given.out.mkdir(parents=True, exist_ok=True)
        pictures = {panel.name: compare_pictures.draw(panel, given.out) for panel in found}
        text = compare_tables.write(found, pictures, given.out, given.epochs, given.reference)
    except InputError as fault:
        print(f"reproduce.sh compare: {' '.join(str(fault).split())}", file=sys.stderr)
        return 2
    print(text)
    print(given.out)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
