"""The seconds of a meta-update in each library, as bars: results/efficiency/meta-update, from peers.csv.

python -m benchmarks.peers.picture
"""

from pathlib import Path

import pandas as pd
from matplotlib.figure import Figure

from experiment.figures_compare import save

CSV = Path("results/efficiency/peers.csv")
COLORS = {"amaml": "#101c6b", "JAX": "#ef6c00", "PyTorch": "#9e9e9e"}
NAMES = {"MAML, higher": "MAML by higher", "MAML, torchopt": "MAML by TorchOpt", "PyTorch": "torch.func"}
SHOWN = (
    "FOMAML",
    "MAML, checkpointed",
    "MAML, unrolled",
    "MAML, higher",
    "MAML, torchopt",
    "A-MAML, 1e-2",
    "A-MAML, 1e-3",
)


def figure(frame: pd.DataFrame) -> Figure:
    """A panel a precision: the lines of the small network, one thread of a CPU, untrained theta; the fastest above.

    Of a line that was measured in several ways (columns way, device) the fastest is shown.
    """
    frame = frame[(frame["network"] == "small") & (frame["theta"] == "untrained") & (frame["steps"] == 200)]
    frame = frame[frame["quantity"].isin(SHOWN) & frame["seconds"].notna()].copy()
    frame["name"] = [
        NAMES[quantity]
        if quantity in NAMES
        else f"{quantity.replace(', 1e', ', rtol 1e')}: {NAMES.get(library, library)}"
        for library, quantity in zip(frame["library"], frame["quantity"], strict=True)
    ]
    kinds = list(frame["dtype"].unique())
    drawing = Figure(figsize=(9.6, 4.6), layout="constrained")
    for axis, dtype in zip(
        drawing.subplots(1, len(kinds), sharex=True, sharey=True, squeeze=False)[0], kinds, strict=True
    ):
        own = frame[frame["dtype"] == dtype].sort_values("seconds").drop_duplicates("name").set_index("name")
        own = own.reindex(frame.drop_duplicates("name").sort_values("seconds", ascending=False)["name"])
        bars = axis.barh(own.index, 1000 * own["seconds"], color=own["library"].map(COLORS))
        axis.bar_label(bars, [f" {float(f'{1000 * s:.3g}'):g}" for s in own["seconds"]], fontsize=9)
        axis.set(xscale="log", xlabel="milliseconds", title=dtype)
        axis.set_xlim(5, 3000)
        axis.spines[["top", "right"]].set_visible(False)
        axis.xaxis.set_major_formatter("{x:g}")
    text = "A meta-update through 200 inner steps: 5 tasks of Alpine2D, 2-32-32-1 tanh, one CPU thread"
    drawing.suptitle(text, fontsize=11)
    return drawing


if __name__ == "__main__":
    save(figure(pd.read_csv(CSV)), CSV.with_name("meta-update"))
