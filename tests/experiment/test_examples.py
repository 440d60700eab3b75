"""The examples print what they say they print, to what another machine's rounding may change."""

import re
import runpy
import sys
from pathlib import Path

import pytest
import torch

EXAMPLES = sorted((Path(__file__).parents[2] / "examples").glob("*.py"))
NUMBER = re.compile(r"-?\d+(?:\.\d+)?")


def words(text: str) -> str:
    return " ".join(NUMBER.sub("#", text).split())


def said(path: Path) -> str:
    """The output in an example's docstring: what follows the command."""
    docstring = path.read_text().split('"""')[1]
    return docstring.split(f"python examples/{path.name}\n")[1].strip().split("\n\n")[0]


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.stem)
def test_the_output_is_as_it_says(path, monkeypatch, capsys):
    monkeypatch.setattr(sys, "path", [str(path.parent), *sys.path])
    with torch.random.fork_rng():
        runpy.run_path(str(path), run_name="__main__")
    printed = capsys.readouterr().out
    assert words(printed) == words(said(path))
    for now, then in zip(NUMBER.findall(printed), NUMBER.findall(said(path)), strict=True):
        assert abs(float(now) - float(then)) <= 0.02 + 0.2 * abs(float(then)), (now, then)


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.stem)
def test_it_is_short(path):
    assert len(path.read_text().splitlines()) < 80
