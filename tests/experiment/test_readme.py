"""The README names what the program has."""

import re
from pathlib import Path

import pytest

import data
from experiment.settings import FIELDS, METHODS, flag_name

ROOT = Path(__file__).parents[2]
PAGES = "\n".join(path.read_text() for path in (ROOT / "README.md", *sorted(ROOT.glob("docs/*.md"))))


@pytest.mark.parametrize("name", [*map(flag_name, FIELDS), *data.DOMAINS, *METHODS])
def test_every_flag_domain_and_method_is_in_the_pages(name):
    assert re.search(rf"(?<![\w-]){re.escape(name)}(?![\w-])", PAGES)


def test_what_the_readmes_name_is_there():
    for path in (ROOT / "README.md", *(ROOT / "results").glob("*/README.md")):
        text = path.read_text()
        assert not re.search(r"@[A-Z]+@|[A-Z]+_WORDS|\bHEADLINE\b|TODO", text), path
        for link in re.findall(r"!?\[[^]]*\]\(([^)#:]+)\)", text):
            assert (path.parent / link).exists(), (path, link)


def test_the_dependency_table_lists_what_is_installed():
    for path in (ROOT / "requirements.txt", ROOT / "tests" / "requirements.txt"):
        for line in path.read_text().split():
            assert f"{line.split('==')[0]}" in PAGES
