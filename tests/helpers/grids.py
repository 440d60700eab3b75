"""Grids small enough for tests, cells that are shell scripts."""

from pathlib import Path

from experiment.cells import Cell, Grid, Step

TINY = """
domain = "CosMixture"
shots = 4
queries = 4
inner_steps = 2
meta_batch = 2
test_tasks = 2
test_epochs = 5
test_interval = 0
width = 4
compile = "off"
"""


def write_grid(folder: Path, text: str, name: str = "grid") -> Path:
    path = folder / f"{name}.toml"
    path.write_text(text)
    return path


def scripts(folder: Path, **texts: str) -> Grid:
    """A cell a shell script; {made} in it is the file that it is to make."""
    cells = [
        Cell(name, {"cell": name}, {}, folder, (Step(["bash", "-c", text.format(made=folder / name)], folder / name),))
        for name, text in texts.items()
    ]
    return Grid("scripts", cells, folder / ".cells" / "scripts", folder / "scripts.csv")
