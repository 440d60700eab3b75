"""The README and the pages name what the program has and nothing else; the examples print what they say they print.

docs/build.sh checks the rest.
"""

import re
import runpy
import sys
from pathlib import Path

import pytest
import torch
from helpers.commands import ROOT

import data
from experiment.settings import METHODS

DOCS = [ROOT / "README.md", *sorted(ROOT.glob("docs/**/*.md"))]
PAGES = "\n".join(path.read_text() for path in DOCS)
EXAMPLES = sorted((ROOT / "examples").glob("*.py"))
NUMBER = re.compile(r"-?\d+(?:\.\d+)?")


@pytest.mark.parametrize("name", [*data.DOMAINS, *METHODS])
def test_every_domain_and_method_is_in_the_pages(name):
    assert re.search(rf"(?<![\w-]){re.escape(name)}(?![\w-])", PAGES)


@pytest.mark.parametrize("path", [*DOCS, *ROOT.glob("results/*/README.md")], ids=lambda p: str(p.relative_to(ROOT)))
def test_what_a_page_links_to_is_there(path):
    text = path.read_text()
    assert not re.search(r"@[A-Z]+@|[A-Z]+_WORDS|\bHEADLINE\b|TODO", text)
    links = re.findall(r"!?\[[^]]*\]\(([^)#:]+)\)", text) + re.findall(r'^--8<-- "(.+)"$', text, re.MULTILINE)
    for link in links:
        assert (path.parent / link).exists() or (ROOT / link).exists(), link


def test_the_readme_is_short():
    assert len((ROOT / "README.md").read_text().splitlines()) <= 120


def test_the_dependency_table_lists_what_is_installed():
    for folder in (".", "tests", "docs"):
        for line in (ROOT / folder / "requirements.txt").read_text().split():
            assert line.split("==")[0] in PAGES


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
    assert len(path.read_text().splitlines()) < 80
    assert words(printed) == words(said(path))
    for now, then in zip(NUMBER.findall(printed), NUMBER.findall(said(path)), strict=True):
        assert abs(float(now) - float(then)) <= 0.02 + 0.2 * abs(float(then)), (now, then)
