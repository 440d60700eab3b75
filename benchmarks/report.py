"""The table and the figure of a benchmark run."""

import json
import shlex
from pathlib import Path
from typing import Any

import matplotlib
from matplotlib.figure import Figure
from matplotlib.ticker import NullFormatter

from amaml.files import write_atomically

matplotlib.use("Agg")


def write(folder: Path, name: str, result: dict[str, Any]) -> None:
    """NAME.json, NAME.md and NAME.png in a folder."""
    folder.mkdir(parents=True, exist_ok=True)
    write_atomically(folder / f"{name}.json", (json.dumps(result, indent=1) + "\n").encode())
    write_atomically(folder / f"{name}.md", table(result).encode())
    figure(result["rows"]).savefig(folder / f"{name}.png", dpi=120)
    print(folder / f"{name}.md")


def table(result: dict[str, Any]) -> str:
    """Markdown, a block for every number of inner steps."""
    a, e = result["arguments"], result["environment"]
    lines = [
        f"`python -m benchmarks.meta_update {shlex.join(e['command'])}`",
        "",
        f"{a['network']}, {'meta-trained' if a['trained'] else 'untrained'} theta, {a['dtype']}, {a['device']} "
        f"({e['device']}), {a['threads']} thread(s), torch {e['versions']['torch']}, compile {a['compile']}; "
        f"medians of {a['rounds']} rounds, seconds of "
        "computing where it is one CPU thread. Ratio: seconds over those of FOMAML. Memory: peak over a process that "
        "holds network and tasks, compile off; about 70 MiB of it is the tracer, where a method traces. "
        "Gradients and HVPs: calls for all tasks. Reported: the error that A-MAML carries from its last measurement. "
        "Measuring: what that adds to the evaluations, on 90 other batches; counted in the seconds. "
        "Floor: matrix products at the measured rate over the time taken.",
        "",
        "| steps | method | seconds | ratio | memory MiB | gradients | HVPs | relative error | reported | measuring "
        "| cosine | floor |",
        "|---|---|---|---|---|---|---|---|---|---|---|---|",
    ]
    first_order = {r["steps"]: r["seconds"] for r in result["rows"] if r["method"] == "FOMAML" and "seconds" in r}
    for r in result["rows"]:
        if "refused" in r:
            lines.append(f"| {r['steps']} | {r['method']} | refused: {r['refused']} |||||||||||")
            continue
        ratio = f"{r['seconds'] / first_order[r['steps']]:.2f}" if r["steps"] in first_order else ""
        peak = "" if r["peak_bytes"] is None else f"{r['peak_bytes'] / 2**20:.1f}"
        floor = f"{100 * r['floor_fraction']:.0f}%"
        reported = "" if r["reported_error"] is None else f"{r['reported_error']:.1e}"
        measuring = f"{r['measuring']:.0%}" if r["measuring"] else ""
        lines.append(
            f"| {r['steps']} | {r['method']} | {r['seconds']:.4f} | {ratio} | {peak} | {r['gradients']} | "
            f"{r['hvps']} | {r['relative_error']:.1e} | {reported} | {measuring} | "
            f"{r['cosine']:.4f} | {floor} |"
        )
    return "\n".join(lines) + "\n"


def figure(rows: list[dict[str, Any]]) -> Figure:
    """The paper's efficiency slide: seconds a meta-update, and memory where it was measured, over inner steps."""
    shown = [("seconds", 1.0, "seconds a meta-update"), ("peak_bytes", 2.0**20, "peak memory over baseline, MiB")]
    shown = [panel for panel in shown if any(r.get(panel[0]) for r in rows)]
    drawing = Figure(figsize=(1 + 6 * len(shown), 4.5), layout="constrained")
    panels = drawing.subplots(1, len(shown), squeeze=False)[0]
    for axes, (key, scale, label) in zip(panels, shown, strict=True):
        for i, method in enumerate(dict.fromkeys(r["method"] for r in rows)):
            points = [(r["steps"], r[key] / scale) for r in rows if r["method"] == method and r.get(key)]
            if points:
                style = "-" if method.startswith("A-MAML") else "--"
                axes.plot(*zip(*points, strict=True), style, marker=".", label=method, color=f"C{i % 10}")
        axes.set(xlabel="inner steps", ylabel=label, xscale="log", yscale="log")
        steps = sorted({r["steps"] for r in rows})
        axes.set_xticks(steps, [str(n) for n in steps])
        axes.xaxis.set_minor_formatter(NullFormatter())
    drawing.legend(*panels[0].get_legend_handles_labels(), loc="outside right center", fontsize=8)
    return drawing
