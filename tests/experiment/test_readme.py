"""The README and the pages name what the program has, and what they name is there. docs/build.sh checks the rest."""

import re
from pathlib import Path

import pytest

import data
from experiment.settings import METHODS

ROOT = Path(__file__).parents[2]
DOCS = [ROOT / "README.md", *sorted(ROOT.glob("docs/**/*.md"))]
PAGES = "\n".join(path.read_text() for path in DOCS)


@pytest.mark.parametrize("name", [*data.DOMAINS, *METHODS])
def test_every_domain_and_method_is_in_the_pages(name):
    assert re.search(rf"(?<![\w-]){re.escape(name)}(?![\w-])", PAGES)


@pytest.mark.parametrize(
    "path", [*DOCS, *(ROOT / "results").glob("*/README.md")], ids=lambda p: str(p.relative_to(ROOT))
)
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
