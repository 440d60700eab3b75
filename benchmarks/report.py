"""The table and the picture of a benchmark run."""

import json
import shlex
from pathlib import Path
from typing import Any

from benchmarks.efficiency_picture import figure
from benchmarks.paper import PAPER
from data.files import write_atomically


def write(folder: Path, name: str, result: dict[str, Any]) -> None:
    """NAME.json, NAME.md and NAME.png in a folder."""
    folder.mkdir(parents=True, exist_ok=True)
    write_atomically(folder / f"{name}.json", (json.dumps(result, indent=1) + "\n").encode())
    write_atomically(folder / f"{name}.md", table(result).encode())
    figure(result["rows"], PAPER["efficiency"]).savefig(folder / f"{name}.png", dpi=120)
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
    first_order = {r["steps"]: r["seconds"] for r in result["rows"] if r["method"] == "FOMAML" and "seconds" in r}
    for r in result["rows"]:
        if "refused" in r:
            lines.append(f"| {r['steps']} | {r['method']} | refused: {r['refused']} ||||||||||||")
            continue
        ratio = f"{r['seconds'] / first_order[r['steps']]:.2f}" if r["steps"] in first_order else ""
        peak = "" if r["peak_bytes"] is None else f"{r['peak_bytes'] / 2**20:.1f}"
        floor = f"{100 * r['floor_fraction']:.0f}%"
        reported = "" if r["reported_error"] is None else f"{r['reported_error']:.1e}"
        long_run = " | " if r["long_run"] is None else f"{r['long_run']:.0f} | {r['measuring']:.0%}"
        lines.append(
            f"| {r['steps']} | {r['method']} | {r['seconds']:.4f} | {ratio} | {peak} | {r['gradients']} | "
            f"{r['hvps']} | {long_run} | {r['relative_error']:.1e} | {reported} | {r['cosine']:.4f} | {floor} |"
        )
    return "\n".join(lines) + "\n"
