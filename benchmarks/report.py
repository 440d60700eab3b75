"""A benchmark run as data, NAME.csv, of which benchmarks.efficiency_picture makes a table and a picture."""

import csv
import importlib.util
import io
import shlex
from pathlib import Path
from typing import Any

from data.files import write_atomically

ARGUMENTS = ("network", "trained", "dtype", "device", "threads", "compile", "rounds")  # that a line says


def write(folder: Path, name: str, result: dict[str, Any]) -> None:
    """NAME.csv in a folder, and where pandas is there NAME.md and NAME.png; result: arguments, environment, rows."""
    folder.mkdir(parents=True, exist_ok=True)
    environment = result["environment"]
    facts = {key: result["arguments"][key] for key in ARGUMENTS} | {"machine": environment["device"]}
    facts |= {"torch": environment["versions"]["torch"], "commit": (environment["commit"] or "")[:12]}
    facts |= {"command": shlex.join(["python", "-m", "benchmarks.meta_update", *environment["command"]])}
    text = io.StringIO()
    rows = [row | facts for row in result["rows"]]
    writer = csv.DictWriter(text, list(dict.fromkeys(name for row in rows for name in row)), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    write_atomically(folder / f"{name}.csv", text.getvalue().encode())
    print(folder / f"{name}.csv")
    if importlib.util.find_spec("pandas"):  # a machine lent for measurements may lack it
        from benchmarks.efficiency_picture import draw

        draw(folder / f"{name}.csv")
