"""The tables of a CSV of benchmarks.peers, in Markdown beside it: milliseconds, a column a library and theta.

python -m benchmarks.peers.table results/efficiency/peers.csv
"""

import sys
from pathlib import Path

import pandas as pd

from data.files import write_atomically
from experiment.tables import as_markdown


def tables(frame: pd.DataFrame) -> str:
    """One for each network and precision."""
    groups = frame.groupby(["network", "dtype"], sort=False)
    sections = [f"## {network}, {dtype}\n\n{as_markdown(_table(own))}" for (network, dtype), own in groups]
    head = "Milliseconds of computing by `bash reproduce.sh efficiency`; README.md says what was run and where."
    return "\n\n".join([head, *sections]) + "\n"


def _table(frame: pd.DataFrame) -> list[list[str]]:
    """A row a quantity and number of inner steps."""
    heads = list(dict.fromkeys(frame[["theta", "library"]].itertuples(index=False, name=None)))
    rows = [["inner steps", "quantity", *(f"{library}, {theta}" for theta, library in heads)]]
    for (steps, quantity), own in frame.sort_values("steps", kind="stable").groupby(["steps", "quantity"], sort=False):
        found = 1e3 * own.set_index(["theta", "library"])["seconds"].dropna()
        rows.append([str(steps), quantity, *(_shown(found[head]) if head in found else "" for head in heads)])
    return rows


def _shown(milliseconds: float) -> str:
    """Three digits, or all before the point."""
    return f"{milliseconds:.0f}" if milliseconds >= 100 else f"{milliseconds:#.3g}"


if __name__ == "__main__":
    path = Path(sys.argv[1])
    write_atomically(path.with_suffix(".md"), tables(pd.read_csv(path)).encode())
