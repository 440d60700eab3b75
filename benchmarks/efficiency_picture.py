"""The table and the picture of a benchmark run, from its CSV: seconds, their ratios beside the paper's, memory."""

from pathlib import Path
from typing import Any

import pandas as pd
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import LogLocator, NullFormatter

from benchmarks.paper import PAPER
from benchmarks.paper_pictures import NAMES, STYLES
from data.files import write_atomically
from experiment.figures_compare import save

A_MAML, LINE = STYLES["amaml"], {"linewidth": 1.5, "markersize": 4}
SHOWN = {  # a line's name and look
    "A-MAML auto 1e-2": ("A-MAML, rtol 1e-2", A_MAML | LINE),
    "A-MAML auto": ("A-MAML, rtol 1e-3", A_MAML | LINE | {"linestyle": (0, (4, 1))}),
    "released A-MAML": ("A-MAML as released", A_MAML | LINE | {"linestyle": (0, (1, 1.5)), "marker": "x"}),
    **{NAMES[name]: (NAMES[name], LINE | STYLES[name]) for name in ("maml", "imaml", "fomaml", "reptile")},
}
OPEN = {"linestyle": "none", "markerfacecolor": "none", "markersize": 9, "markeredgewidth": 1.5}
Points = dict[str, list[tuple[int, float]]]  # by method: inner steps and a number


def draw(path: Path) -> None:
    """The table and the picture of a CSV, beside it."""
    frame = pd.read_csv(path)
    write_atomically(path.with_suffix(".md"), table(frame).encode())
    save(figure(frame, PAPER["efficiency"]), path.with_suffix(""))


def table(frame: pd.DataFrame) -> str:
    """Markdown, a block for every number of inner steps."""
    a = frame.iloc[0]
    lines = [
        f"`{a['command']}`",
        "",
        f"{a['network']}, {'meta-trained' if pd.notna(a['trained']) else 'untrained'} theta, {a['dtype']}, "
        f"{a['device']} ({a['machine']}), {a['threads']} thread(s), torch {a['torch']}, compile {a['compile']}; "
        f"medians of {a['rounds']} rounds, seconds of "
        "computing where it is one CPU thread. Ratio: seconds over those of FOMAML. Memory: what the inner steps add "
        "to the peak of a process that has made an update with one inner step, compile off. "
        "Gradients and HVPs: calls for all tasks. Reported: the error that A-MAML carries from its last measurement. "
        "Long run: gradients and HVPs of a call of A-MAML, mean over other batches, measuring included, as in the "
        "seconds. Measuring: what it adds to them. "
        "Floor: matrix products at the measured rate over the time taken.",
        "",
        "| steps | method | seconds | ratio | memory MiB | gradients | HVPs | long run | measuring | relative error "
        "| reported | cosine | floor |",
        "|" + "---|" * 13,
    ]
    first_order = frame[frame["method"] == "FOMAML"].set_index("steps")["seconds"].dropna()
    return "\n".join([*lines, *(_line(row.dropna(), first_order) for _, row in frame.iterrows())]) + "\n"


def _line(r: pd.Series, first_order: pd.Series) -> str:
    """A method's row; r: the numbers that it has."""
    if "refused" in r:
        return f"| {r['steps']} | {r['method']} | refused: {r['refused']} ||||||||||||"
    ratio = f"{r['seconds'] / first_order[r['steps']]:.2f}" if r["steps"] in first_order else ""
    peak = f"{r['peak_bytes'] / 2**20:.1f}" if "peak_bytes" in r else ""
    reported = f"{r['reported_error']:.1e}" if "reported_error" in r else ""
    long_run = f"{r['long_run']:.0f} | {r['measuring']:.0%}" if "long_run" in r else " | "
    return (
        f"| {r['steps']} | {r['method']} | {r['seconds']:.4f} | {ratio} | {peak} | {r['gradients']:.0f} | "
        f"{r['hvps']:.0f} | {long_run} | {r['relative_error']:.1e} | {reported} | {r['cosine']:.4f} | "
        f"{100 * r['floor_fraction']:.0f}% |"
    )


def figure(frame: pd.DataFrame, paper: dict[str, Any]) -> Figure:
    """frame: method, steps, seconds, peak_bytes; paper: seconds by method and inner steps, whose ratios are drawn."""
    seconds, memory = _points(frame, "seconds", 1.0), _points(frame, "peak_bytes", 2.0**20)
    published = {name: [(int(steps), value) for steps, value in line.items()] for name, line in paper.items()}
    panels = [  # title, our lines, the paper's marks
        ("seconds of a meta-update", seconds, {}),
        ("the same, relative to FOMAML", _ratios(seconds), _ratios(published)),
    ]
    if memory:
        panels.append(("memory that the inner steps add, MiB", memory, {}))
    drawing = Figure(figsize=(3.7 * len(panels), 4.2), layout="constrained")
    for axes, (title, points, marks) in zip(drawing.subplots(1, len(panels), squeeze=False)[0], panels, strict=True):
        axes.set(xlabel="inner steps", xscale="log", yscale="log")
        axes.set_title(title, fontsize=11)
        for method, line in points.items():
            axes.plot(*zip(*line, strict=True), **SHOWN[method][1])
        for method, line in marks.items():
            axes.plot(*zip(*line, strict=True), **SHOWN[method][1] | OPEN)
        steps = sorted({n for line in points.values() for n, _ in line})
        axes.set_xticks(steps, [str(n) for n in steps])
        axes.xaxis.set_minor_formatter(NullFormatter())
        axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axes.yaxis.set_major_formatter("{x:g}")
        axes.yaxis.set_minor_formatter(NullFormatter())
        axes.grid(alpha=0.25, linewidth=0.6)
        axes.spines[["top", "right"]].set_visible(False)
    handles = [Line2D([], [], label=SHOWN[method][0], **SHOWN[method][1]) for method in seconds]
    handles.append(Line2D([], [], label="open: the paper, one GPU", color="0.3", marker="o", **OPEN))
    drawing.legend(handles=handles, loc="outside lower center", ncols=4, frameon=False)
    return drawing


def _points(frame: pd.DataFrame, column: str, unit: float) -> Points:
    found = frame[frame.get(column, pd.Series(0.0, frame.index)) > 0].sort_values("steps")
    lines = {name: found[found["method"] == name] for name in SHOWN}
    return {name: list(zip(f["steps"], f[column] / unit, strict=True)) for name, f in lines.items() if len(f)}


def _ratios(points: Points) -> Points:
    """Over FOMAML's number at as many inner steps."""
    whole = dict(points.get("FOMAML", ()))
    ratios = {name: [(n, value / whole[n]) for n, value in line if n in whole] for name, line in points.items()}
    return {name: line for name, line in ratios.items() if line}
