"""What many runs say together: they are read, and sorted into panels and variants.

Runs of the same test (domain, shots, queries, protocol) make a panel. Within it, runs that differ in their seed alone
are one variant, named after its method and, where a method has several, after the settings in which they differ.
"""

import shlex
from collections.abc import Iterable, Sequence, Set
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from amaml.errors import InputError
from experiment.folder import RunFolder

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
            read = _read_run(file) if file.name == "summary.json" else _read_evaluation(file)
            runs += [replace(run, settings=_of_any_seed(run.settings)) for run in read]
    return list({(run.folder.resolve(), run.unit, str(run.settings)): run for run in runs}.values())


def _read_run(file: Path) -> list[Run]:
    folder = RunFolder(file.parent)
    summary, entries, settings = folder.read("summary.json", {}), folder.read("test.json", []), folder.settings()
    if settings is None or not entries:
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
    # a run that was made longer under another protocol was not tested by the former one at its end
    tested = (tests for tests in _by_unit(entries) if tests[-1]["update"] == summary["updates"])
    return [Run(file.parent, settings, tests, **common) for tests in tested]


def _of_any_seed(settings: dict[str, Any]) -> dict[str, Any]:
    """The settings, whose start_from does not name the run's own seed: the seeds of one variant belong together."""
    if settings.get("start_from") is None:
        return settings
    own = f"seed{settings['seed']}"
    parts = ("seed*" if part == own else part for part in settings["start_from"].split("/"))
    return settings | {"start_from": "/".join(parts)}


def _by_unit(entries: list[dict[str, Any]]) -> list[list[dict[str, Any]]]:
    """The meta-tests of a run, those of one protocol together; left out are those that the last one did not repeat."""
    found: dict[str, list[dict[str, Any]]] = {}
    for entry in entries:
        for part in (entry, *entry.get("also", [])):
            found.setdefault(part["unit"], []).append({"update": entry["update"], **part})
    return [
        [t for t in tests if (t["epochs"], t["tasks"]) == (tests[-1]["epochs"], tests[-1]["tasks"])]
        for tests in found.values()
    ]


def _read_evaluation(file: Path) -> list[Run]:
    entry = RunFolder(file.parent).read(file.name, {})
    settings = entry["settings"]
    sources = [file.parent, *map(Path, filter(None, [entry.get("evaluated"), settings.get("evaluate")]))]
    source = next((p for p in sources if (p / "summary.json").exists()), None)
    trained = _read_run(source / "summary.json")[0] if source else None
    costs = (trained.seconds, trained.gradients, trained.hvps) if trained else ()
    metric = entry.get("metric") or (trained.metric if trained else "metric")
    command = shlex.join(["python", "run.py", "--evaluate", str(source or file.parent)])
    return [Run(file.parent, settings, tests, metric, entry["update"], command, *costs) for tests in _by_unit([entry])]


def _mean(metrics: list[dict[str, Any]], name: str) -> float | None:
    values = [m[name] for m in metrics if name in m]
    return sum(values) / len(values) if values else None


def panels(runs: list[Run], control: Set[str], methods: Sequence[str]) -> list[Panel]:
    """The runs, sorted by what is tested and by what differs.

    control: settings that leave the numbers of a run alone. methods: names in the order of the rows.
    """
    groups: dict[tuple, list[Run]] = {}
    for run in runs:
        key = (*(str(run.settings.get(name)) for name in TEST), run.unit, run.metric)
        groups.setdefault(key, []).append(run)
    names = [_panel_name(group[0]) for group in groups.values()]
    count = {name: names.count(name) for name in names}
    return [
        _panel(group, name if count[name] == 1 else f"{name}-{i}", control, methods)
        for i, (name, group) in enumerate(zip(names, groups.values(), strict=True), 1)
    ]


def _panel_name(run: Run) -> str:
    return f"{run.settings['domain']}-{run.settings['shots']}-{run.settings['queries']}-{run.unit.replace(' ', '-')}s"


def _panel(runs: list[Run], name: str, control: Set[str], methods: Sequence[str]) -> Panel:
    apart = {*control, *TEST, "seed", "method", "protocol"}
    ours = sorted({n for run in runs for n in run.settings} - apart)
    differing = [n for n in ours if len({str(run.settings.get(n)) for run in runs}) > 1]
    groups: dict[tuple, list[Run]] = {}
    for run in runs:
        groups.setdefault((run.settings["method"], *(run.settings.get(n) for n in differing)), []).append(run)
    order = {method: i for i, method in enumerate(methods)}
    keys = sorted(groups, key=lambda key: (order.get(key[0], len(order)), str(key)))
    variants = [_variant(groups[key], key, keys, differing) for key in keys]
    first = runs[0].settings
    steps = {run.settings["inner_steps"] for run in runs}
    parts = [first["domain"], f"{first['shots']} shots", f"{first['queries']} queries"]
    parts += [f"{steps.pop()} inner steps"] if len(steps) == 1 else []
    parts += ["fine-tuned" if runs[0].unit == "epoch" else "own inner loop", _seeds(variants)]
    lines = []
    for n in differing:
        values = {str(run.settings.get(n)): None for run in runs}
        who = (", ".join(v.label for v in variants if str(v.any.settings.get(n)) == value) for value in values)
        lines.append(f"{n}: " + "; ".join(f"{value} ({names})" for value, names in zip(values, who, strict=True)))
    return Panel(name, ", ".join(parts), runs[0].metric, runs[0].unit, variants, lines)


def _variant(runs: list[Run], key: tuple, keys: list[tuple], differing: list[str]) -> Variant:
    rivals = [other for other in keys if other[0] == key[0]]
    own = [
        f"{name} {value}"
        for i, (name, value) in enumerate(zip(differing, key[1:], strict=True), 1)
        if value is not None and len({str(rival[i]) for rival in rivals}) > 1
    ]
    by_seed: dict[int, Run] = {}
    for run in sorted(runs, key=lambda run: (run.settings["seed"], -run.updates)):  # an earlier theta comes later
        by_seed.setdefault(run.settings["seed"], run)
    return Variant(", ".join([key[0], *own]), key[0], ", ".join(own), by_seed)


def _seeds(variants: list[Variant]) -> str:
    seeds = sorted({seed for variant in variants for seed in variant.runs})
    return f"seed {seeds[0]}" if len(seeds) == 1 else f"{len(seeds)} seeds"
