"""The README names what the program has."""

import re
from pathlib import Path

import pytest

import data
from experiment.settings import FIELDS, METHODS, flag_name

README = (Path(__file__).parents[2] / "README.md").read_text()


@pytest.mark.parametrize("name", FIELDS)
def test_every_flag_is_in_the_readme_with_its_meaning(name):
    assert f"| `{flag_name(name)}` | {FIELDS[name].metadata['help']} |" in README


@pytest.mark.parametrize("name", [*data.DOMAINS, *METHODS])
def test_every_domain_and_method_is_in_the_readme(name):
    assert re.search(rf"(?<![\w-]){re.escape(name)}(?![\w-])", README)


def test_what_the_readmes_name_is_there():
    root = Path(__file__).parents[2]
    for path in (root / "README.md", *(root / "results").glob("*/README.md")):
        text = path.read_text()
        assert not re.search(r"@[A-Z]+@|[A-Z]+_WORDS|\bHEADLINE\b|TODO", text), path
        for link in re.findall(r"!?\[[^]]*\]\(([^)#:]+)\)", text):
            assert (path.parent / link).exists(), (path, link)


def test_the_dependency_table_lists_what_is_installed():
    root = Path(__file__).parents[2]
    for path in (root / "requirements.txt", root / "tests" / "requirements.txt"):
        for line in path.read_text().split():
            assert f"{line.split('==')[0]}" in README
