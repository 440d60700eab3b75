"""Grids small enough for tests, cells that are shell scripts."""

from pathlib import Path

from experiment.grid import Cell, Grid, Step
from helpers.commands import SIZES

TINY = 'domain = "CosMixture"\ntest_interval = 0\ncompile = "off"\n'
TINY += "".join(f"{name.replace('-', '_')} = {n}\n" for name, n in SIZES.items() if name != "meta-updates")


def write_grid(folder: Path, text: str, name: str = "grid") -> Path:
    path = folder / f"{name}.toml"
    path.write_text(text)
    return path


def scripts(folder: Path, **texts: str) -> Grid:
    """A cell a shell script; {made} in it is the file that it is to make."""
    cells = []
    for name, text in texts.items():
        step = Step(["bash", "-c", text.format(made=folder / name)], folder / name)
        cells.append(Cell(name, {"cell": name}, {}, folder, (step,)))
    return Grid("scripts", cells, folder / ".cells" / "scripts", folder / "scripts.csv")
