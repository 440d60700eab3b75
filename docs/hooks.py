"""What the documentation is made of beside docs/: the results' pages, equations as MathML, tutorials as notebooks.

mkdocs calls these functions while it builds (configs/mkdocs.yml, hooks).
"""

import html
import posixpath
import re
import subprocess
from pathlib import Path
from textwrap import dedent
from typing import Any

import jupytext
from latex2mathml.converter import convert
from mkdocs.structure.files import File, Files

ROOT = Path(__file__).parents[1]
KINDS = {".md", ".png", ".csv"}  # of the results
LINK = re.compile(r"(!?)\[([^]]*)\]\(([^):#\s]+)(#[^)]*)?\)")
FORMULA = re.compile(r'<(span|div) class="arithmatex">\\[(\[](.*?)\\[)\]]</\1>', re.DOTALL)
SNIPPET = re.compile(r'^--8<-- "(.+)"$', re.MULTILINE)
PICTURE = re.compile(r'^text = io.StringIO\(\)\n.*?"</div>"\)$', re.MULTILINE | re.DOTALL)  # how a page shows a figure
OPTIONS = re.compile(r"^```python exec=.*$", re.MULTILINE)
COMMAND = re.compile(
    r"^```bash exec=.*?^```\n\n?", re.MULTILINE | re.DOTALL
)  # runs a program that a cell holds already
TAB = re.compile(r'^=== "(.+)"\n((?:    .*\n|\n)+)', re.MULTILINE)


def on_files(files: Files, config: Any) -> Files:
    """Add the README, which is the first page, and the pages and pictures of results/ that git keeps."""
    command = ["git", "ls-files", "README.md", "results"]
    kept = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    for name in kept.stdout.split():
        if Path(name).suffix in KINDS:
            files.append(File(name, str(ROOT), config.site_dir, config.use_directory_urls))
    return files


def on_page_markdown(markdown: str, page: Any, files: Files, **_: Any) -> str:
    """Links that hold in the repository, made to hold in the pages; a file that is no page is named without one."""
    path = page.file.src_uri
    here = path if path.startswith(("results/", "README")) else f"docs/{path}"

    def place(link: re.Match[str]) -> str:
        mark, text, target, anchor = link.groups()
        there = posixpath.normpath(posixpath.join(posixpath.dirname(here), target)).removeprefix("docs/")
        if files.get_file_from_path(there) is None:
            return link[0] if not (ROOT / there).exists() else text
        start = posixpath.dirname(path)
        return f"{mark}[{text}]({posixpath.relpath(there, start or '.')}{anchor or ''})"

    notebook = f'<a href="{Path(path).stem}.ipynb" download>This page as a notebook</a>'
    notebook += ": <code>PYTHONPATH=.:examples jupyter lab</code>"
    return LINK.sub(place, markdown) + (f"\n\n{notebook}\n" if path.startswith("tutorials/") else "")


def on_page_content(content: str, **_: Any) -> str:
    """Equations as MathML, which browsers show by themselves."""

    def formula(found: re.Match[str]) -> str:
        return convert(html.unescape(found[2]), display="block" if found[1] == "div" else "inline")

    return FORMULA.sub(formula, content)


def on_post_build(config: Any) -> None:
    """Every tutorial as a notebook beside its page, to be started in the repository's folder."""
    for path in (ROOT / "docs" / "tutorials").glob("*.md"):
        text = SNIPPET.sub(lambda snippet: (ROOT / snippet[1]).read_text(), path.read_text())
        text = OPTIONS.sub("```python", PICTURE.sub("%matplotlib inline\nfigure", COMMAND.sub("", text)))
        text = TAB.sub(lambda tab: f"**{tab[1]}**\n{dedent(tab[2]).replace('```', '~~~')}", text)  # to read, no cells
        notebook = jupytext.reads(text, fmt="md")
        jupytext.write(notebook, Path(config.site_dir, "tutorials", path.with_suffix(".ipynb").name))
