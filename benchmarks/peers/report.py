"""What results/efficiency/peers.csv says, beside it: tables of all milliseconds in Markdown, and a picture of some.

python -m benchmarks.peers.report
"""

from pathlib import Path

import pandas as pd
from matplotlib.figure import Figure

from data.files import write_atomically
from experiment.figures import save
from experiment.tables import as_markdown

CSV = Path("results/efficiency/peers.csv")
COLORS = {"amaml": "#101c6b", "JAX": "#ef6c00", "PyTorch": "#9e9e9e"}
NAMES = {"MAML, higher": "MAML by higher", "MAML, torchopt": "MAML by TorchOpt", "PyTorch": "torch.func"}
SHOWN = ["FOMAML", "MAML, checkpointed", "MAML, unrolled", "MAML, higher", "MAML, torchopt"]
SHOWN += ["A-MAML, 1e-2", "A-MAML, 1e-3"]


def tables(frame: pd.DataFrame) -> str:
    """One for each network and precision: a row a quantity and number of inner steps, a column a library and theta."""
    sections = ["Milliseconds of computing by `bash reproduce.sh efficiency`; README.md says what was run and where."]
    for (network, dtype), own in frame.groupby(["network", "dtype"], sort=False):
        heads = list(dict.fromkeys(own[["theta", "library"]].itertuples(index=False, name=None)))
        rows = [["inner steps", "quantity", *(f"{library}, {theta}" for theta, library in heads)]]
        own = own.sort_values("steps", kind="stable")
        for (steps, quantity), lines in own.groupby(["steps", "quantity"], sort=False):
            found = 1e3 * lines.set_index(["theta", "library"])["seconds"].dropna()
            rows.append([str(steps), quantity, *(_shown(found[head]) if head in found else "" for head in heads)])
        sections.append(f"## {network}, {dtype}\n\n{as_markdown(rows)}")
    return "\n\n".join(sections) + "\n"


def _shown(milliseconds: float) -> str:
    """Three digits, or all before the point."""
    return f"{milliseconds:.0f}" if milliseconds >= 100 else f"{milliseconds:#.3g}"


def figure(frame: pd.DataFrame) -> Figure:
    """The seconds of a meta-update as bars, the fastest above: a panel a precision, of the small network, one thread of
    a CPU, untrained theta. Of a line that was measured in several ways (columns way, device) the fastest is shown.
    """
    frame = frame[(frame["network"] == "small") & (frame["theta"] == "untrained") & (frame["steps"] == 200)]
    frame = frame[frame["quantity"].isin(SHOWN) & frame["seconds"].notna()].copy()
    other = frame["quantity"].str.replace(", 1e", ", rtol 1e") + ": " + frame["library"].replace(NAMES)
    frame["name"] = frame["quantity"].map(NAMES).fillna(other)
    kinds = list(frame["dtype"].unique())
    drawing = Figure(figsize=(9.6, 4.6), layout="constrained")
    axes = drawing.subplots(1, len(kinds), sharex=True, sharey=True, squeeze=False)[0]
    for axis, dtype in zip(axes, kinds, strict=True):
        own = frame[frame["dtype"] == dtype].sort_values("seconds").drop_duplicates("name").set_index("name")
        own = own.reindex(frame.drop_duplicates("name").sort_values("seconds", ascending=False)["name"])
        bars = axis.barh(own.index, 1000 * own["seconds"], color=own["library"].map(COLORS))
        axis.bar_label(bars, [f" {float(f'{1000 * s:.3g}'):g}" for s in own["seconds"]], fontsize=9)
        axis.set(xscale="log", xlabel="milliseconds", title=dtype)
        axis.set_xlim(2, 3000)
        axis.spines[["top", "right"]].set_visible(False)
        axis.xaxis.set_major_formatter("{x:g}")
    text = "A meta-update through 200 inner steps: 5 tasks of Alpine2D, 2-32-32-1 tanh, one CPU thread"
    drawing.suptitle(text, fontsize=11)
    return drawing


if __name__ == "__main__":
    frame = pd.read_csv(CSV)
    write_atomically(CSV.with_suffix(".md"), tables(frame).encode())
    save(figure(frame), CSV.with_name("meta-update"))
