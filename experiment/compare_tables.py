"""The tables of a comparison: Markdown to read, CSV to compute with, LaTeX to print."""

import csv
import io
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from amaml.errors import unknown
from experiment.compare import Panel, Run, Variant
from experiment.evaluation import mean_and_interval
from experiment.folder import write_atomically

POINTS = {"test": "on test points", "support": "on the support set"}
INTERVALS = "Mean ± 95% interval over seeds; in brackets the interval over the test tasks of one seed."
Column = int | None  # an epoch, None for the last
Table = list[list[str]]  # the first row is the head


def write(
    panels: list[Panel], pictures: dict[str, list[Path]], out: Path, asked: Sequence[int] | None, reference: str
) -> str:
    """comparison.md, comparison.tex, table.csv and cells.csv in a folder; returns the text of comparison.md."""
    markdown, latex = [], []
    for panel in panels:
        columns, base = panel.epochs(asked), _reference(panel, reference)
        tables = {f"{panel.metric} {words}": errors(panel, points, columns) for points, words in POINTS.items()}
        if len(panel.variants) > 1:
            tables[f"{panel.metric} on test points, difference to {base.label} on the same seeds"] = differences(
                panel, base, columns
            )
        if len(simple := predictors(panel)) > 1:
            tables[f"{panel.metric} of simple predictors on the same test points"] = simple
        tables["Cost of an update"] = costs(panel)
        markdown += [f"## {panel.title}", *(f"![{path.stem}]({path.name})" for path in pictures[panel.name])]
        markdown += [INTERVALS if any(len(v.runs) > 1 for v in panel.variants) else "In brackets: 95% over test tasks."]
        markdown += [f"{name}\n\n{as_markdown(table)}" for name, table in tables.items()]
        markdown += [
            "Settings that differ besides method and seed:\n\n" + "\n".join(f"- {d}" for d in panel.differences)
        ]
        latex += [as_latex(table, f"{panel.title}: {name}") for name, table in tables.items()]
    text = "\n\n".join(markdown) + "\n"
    contents = {
        "comparison.md": text,
        "comparison.tex": "\n\n".join(latex) + "\n",
        "table.csv": as_csv(_table_lines(panels, asked)),
        "cells.csv": as_csv(_cell_lines(panels, asked)),
    }
    for name, content in contents.items():
        write_atomically(out / name, content.encode())
    return text


def _reference(panel: Panel, name: str) -> Variant:
    labels = [v.label for v in panel.variants]
    if name != "amaml" and name not in labels:
        raise unknown("variant of --reference", name, labels)
    return panel.variants[labels.index(name) if name in labels else 0]


def statistics(variant: Variant, points: str, epoch: Column) -> tuple[float, float, float] | None:
    """Mean over the seeds, its 95% half-interval, and the mean half-interval over tasks; nan where there is none."""
    values = [run.at(points, epoch) for run in variant.runs.values()]
    if None in values:
        return None
    tasks = [run.at(points, epoch, interval=True) for run in variant.runs.values()]
    within = float(np.mean([np.nan if t is None else t for t in tasks]))
    return *mean_and_interval(np.array(values)), within


def errors(panel: Panel, points: str, columns: Sequence[Column]) -> Table:
    """A row a variant, a column an epoch."""
    rows = [["method", "seeds", *(_head(panel, c) for c in columns)]]
    for variant in panel.variants:
        found = [statistics(variant, points, c) for c in columns]
        rows.append([variant.label, str(len(variant.runs)), *("" if f is None else shown(*f) for f in found)])
    return rows


def differences(panel: Panel, base: Variant, columns: Sequence[Column]) -> Table:
    """Each variant minus the base on the seeds that both have: mean and 95% half-interval of the paired differences."""
    rows = [["method", "seeds", *(_head(panel, c) for c in columns)]]
    for variant in panel.variants:
        seeds = [seed for seed in variant.runs if seed in base.runs]
        if variant is base or not seeds:
            continue
        row = [variant.label, str(len(seeds))]
        for c in columns:
            pairs = [(variant.runs[s].at("test", c), base.runs[s].at("test", c)) for s in seeds]
            whole = all(None not in pair for pair in pairs)
            row.append(shown(*mean_and_interval(np.array([a - b for a, b in pairs])), sign=True) if whole else "")
        rows.append(row)
    return rows


def predictors(panel: Panel) -> Table:
    """Predictors that need no network, over the seeds of the panel."""
    by_seed = {seed: run for variant in panel.variants for seed, run in variant.runs.items()}
    found = [run.tests[-1].get("predictors", {}) for run in by_seed.values()]
    rows = [["predictor", "seeds", panel.metric]]
    for name in found[0]:
        pairs = [each[name] for each in found if name in each]
        within = float(np.mean([np.nan if pair[1] is None else pair[1] for pair in pairs]))
        rows.append([name, str(len(pairs)), shown(*mean_and_interval(np.array([p[0] for p in pairs])), within)])
    return rows


def costs(panel: Panel) -> Table:
    """Updates, and seconds and evaluations of one, means over the seeds."""
    rows = [["method", "updates", "seconds", "gradients", "Hessian-vector products"]]
    for variant in panel.variants:
        runs = variant.runs.values()
        numbers = [_average(runs, name) for name in ("seconds", "gradients", "hvps")]
        formats = (".4f", ".1f", ".1f")
        shown = ["" if n is None else format(n, f) for n, f in zip(numbers, formats, strict=True)]
        rows.append([variant.label, str(variant.any.updates), *shown])
    return rows


def _average(runs: Sequence[Run], name: str) -> float | None:
    values = [getattr(run, name) for run in runs if getattr(run, name) is not None]
    return float(np.mean(values)) if values else None


def _head(panel: Panel, column: Column) -> str:
    return f"own last {panel.unit}" if column is None else f"{panel.unit} {column}"


def shown(mean: float, over_seeds: float, over_tasks: float = np.nan, sign: bool = False) -> str:
    """A mean with its half-intervals; nan: there is none."""
    text = _number(mean, sign) + ("" if np.isnan(over_seeds) else f" ± {_number(over_seeds)}")
    return text + ("" if np.isnan(over_tasks) else f" (± {_number(over_tasks)})")


def _number(value: float, sign: bool = False) -> str:
    return format(value, ("+" if sign else "") + (".3f" if abs(value) < 1000 else ".2e"))


def as_markdown(table: Table) -> str:
    """A table of GitHub's Markdown."""
    head, *rows = [f"| {' | '.join(row)} |" for row in table]
    return "\n".join([head, "|" + "---|" * len(table[0]), *rows])


def as_latex(table: Table, caption: str) -> str:
    """A booktabs table."""

    def line(row: list[str]) -> str:
        cells = [cell.replace("_", r"\_").replace("±", r"$\pm$").replace("%", r"\%") for cell in row]
        return "  " + " & ".join(cells) + r" \\"

    head, *rows = (line(row) for row in table)
    columns = "l" + "r" * (len(table[0]) - 1)
    above = [r"\begin{table}", rf"\caption{{{line([caption]).strip()[:-3]}}}", rf"\begin{{tabular}}{{{columns}}}"]
    below = [r"\bottomrule", r"\end{tabular}", r"\end{table}"]
    return "\n".join([*above, r"\toprule", head, r"\midrule", *rows, *below])


def _table_lines(panels: list[Panel], asked: Sequence[int] | None) -> list[list]:
    lines = [["panel", "method", "setting", "protocol", "points", "epoch", "mean", "seeds_ci95", "tasks_ci95", "seeds"]]
    for panel in panels:
        for variant in panel.variants:
            for points in POINTS:
                for epoch in panel.epochs(asked):
                    found = statistics(variant, points, epoch)
                    if found is not None and epoch is not None:
                        place = [panel.name, variant.method, variant.setting, _protocol(panel), points, epoch]
                        numbers = ["" if np.isnan(number) else number for number in found]
                        lines.append([*place, *numbers, len(variant.runs)])
    return lines


def _cell_lines(panels: list[Panel], asked: Sequence[int] | None) -> list[list]:
    lines = [["panel", "method", "setting", "seed", "protocol", "epoch", "support", "test", "command"]]
    for panel in panels:
        for variant in panel.variants:
            for seed, run in variant.runs.items():
                for epoch in panel.epochs(asked):
                    pair = [run.at("support", epoch), run.at("test", epoch)]
                    if epoch is not None and None not in pair:
                        place = [panel.name, variant.method, variant.setting, seed, _protocol(panel), epoch]
                        lines.append([*place, *pair, run.command])
    return lines


def _protocol(panel: Panel) -> str:
    return "finetune" if panel.unit == "epoch" else "inner"


def as_csv(lines: list[list]) -> str:
    """Lines of comma-separated values."""
    buffer = io.StringIO()
    csv.writer(buffer, lineterminator="\n").writerows(lines)
    return buffer.getvalue()
