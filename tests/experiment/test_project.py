"""The project as others see it: its pages and examples (docs/build.sh checks more), its wheel, and who imports whom."""

import ast
import re
import runpy
import shutil
import subprocess
import sys
import tarfile
import tomllib
import zipfile
from pathlib import Path

import pytest
import torch
from helpers.commands import ROOT
from packaging.requirements import Requirement

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


def test_the_readme_is_short_and_the_dependency_table_lists_what_is_installed():
    assert len((ROOT / "README.md").read_text().splitlines()) <= 120
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


PACKAGES = {"baselines": "amaml/baselines"} | {name: name for name in ("amaml", "amaml/engine", "amaml/flow")}
ONE_META_GRADIENT = """
import sys
sys.path.insert(0, sys.argv[1])
import torch, amaml, amaml.baselines

theta, apply = amaml.flatten(torch.nn.Linear(2, 1))
tasks = amaml.Tasks(*(torch.randn(3, 5, n) for n in (2, 1, 2, 1)))
for method in (amaml.AMAML, amaml.baselines.MAML):
    assert method(apply, amaml.half_mse, 0.1, 7).meta_gradient(theta, tasks).value.isfinite().all()
print(amaml.__file__)
"""


def imported(path: Path) -> set[str]:
    """All modules that a file names in its imports."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert not node.level or path == ROOT / "baselines" / "__init__.py"  # which moves in the wheel
            module = f"baselines.{node.module}" if node.level else node.module
            parts = {f"{module}.{alias.name}" for alias in node.names}
            below = ROOT / module.replace(".", "/")
            submodules = {part for part in parts if (below / f"{part.rpartition('.')[2]}.py").exists()}
            found |= submodules if submodules == parts else submodules | {module}
    return found


def modules(*folders: str) -> dict[str, Path]:
    """The modules below some folders by name, and run."""
    paths = [ROOT / "run.py", *(path for folder in folders for path in (ROOT / folder).rglob("*.py"))]
    names = (path.relative_to(ROOT).with_suffix("").as_posix().replace("/", ".") for path in paths)
    return {name.removesuffix(".__init__"): path for name, path in zip(names, paths, strict=True)}


ORDER = ["amaml.engine", "amaml.flow", "amaml", "baselines", "data", "experiment", "run", "benchmarks"]


def rank(name: str) -> int:
    """The place of a module's package in ORDER, for the longest that fits."""
    return ORDER.index(max((o for o in ORDER if name == o or name.startswith(o + ".")), key=len))


# that the engine and the flow know as well; of models the type Apply alone
LEAVES = {f"amaml.{name}" for name in ("arguments", "errors", "points", "tasks", "losses", "models", "robust")}
KNOWN = modules("amaml", "baselines", "data", "experiment", "benchmarks")


def test_imports_run_one_way_and_no_modules_import_each_other():
    for name, path in KNOWN.items():
        later = {other for other in imported(path) & KNOWN.keys() - LEAVES if rank(other) > rank(name)}
        assert not later, (name, later)
        assert not {"baselines", "data"} <= {other.split(".")[0] for other in imported(path)} or rank(name) > 4
        assert "import_module" not in path.read_text(), name  # nor by a string
    left = {name: imported(path) & KNOWN.keys() - {name} for name, path in KNOWN.items()}
    while free := [name for name, needs in left.items() if not needs]:
        left = {name: needs - set(free) for name, needs in left.items() if name not in free}
    assert not left
    for path in (ROOT / "tests" / "library").glob("*.py"):  # which need the library alone
        assert not {name.split(".")[0] for name in imported(path)} & {"data", "experiment", "benchmarks", "run"}, path


@pytest.mark.parametrize("folder", PACKAGES)
def test_the_library_imports_only_what_its_wheel_requires(folder):
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    required = {Requirement(text).name for text in project["dependencies"]}
    assert required == {"torch", "numpy", "scipy"}
    found = {name.split(".")[0] for path in (ROOT / folder).glob("*.py") for name in imported(path)}
    assert found <= set(sys.stdlib_module_names) | required | {"amaml", "baselines"}


def built_in(folder: Path, kind: str, *out: str) -> None:
    subprocess.run([sys.executable, "-m", "hatchling", "build", "-t", kind, *out], cwd=folder, check=True)


def test_the_wheel_holds_the_library_and_nothing_else_and_computes_away_from_the_checkout(tmp_path):
    for name in ("pyproject.toml", "LICENSE", "README.md"):
        shutil.copy(ROOT / name, tmp_path / name)
    for name in ("amaml", "baselines", "data", "experiment", "tests"):
        shutil.copytree(ROOT / name, tmp_path / name, ignore=shutil.ignore_patterns("__pycache__"))
    built_in(tmp_path, "wheel")
    (wheel,) = (tmp_path / "dist").glob("amaml-*.whl")
    with zipfile.ZipFile(wheel) as archive:
        modules = {name for name in archive.namelist() if ".dist-info/" not in name}
    files = {f"{there}/{path.name}" for here, there in PACKAGES.items() for path in (ROOT / here).glob("*.py")}
    assert modules == files | {"amaml/py.typed"}
    command = [sys.executable, "-I", "-c", ONE_META_GRADIENT, str(wheel)]
    ended = subprocess.run(command, capture_output=True, text=True, cwd=wheel.parent)
    assert ended.returncode == 0, ended.stderr
    assert ended.stdout.startswith(str(wheel))


def test_the_sdist_holds_what_git_keeps(tmp_path):
    if not (ROOT / ".git").exists():
        pytest.skip("of a clone alone")
    built_in(ROOT, "sdist", "-d", str(tmp_path))
    with tarfile.open(next(tmp_path.glob("*.tar.gz"))) as archive:
        held = {member.partition("/")[2] for member in archive.getnames()}
    kept = subprocess.run(["git", "ls-files"], capture_output=True, text=True, check=True).stdout.split()
    assert held == {*kept, "PKG-INFO"}


def test_a_users_program_passes_mypy_strict(tmp_path):
    """tests/helpers/typed.py, also where it says of what type a result is."""
    flags = ["--strict", "--follow-imports=silent", "--cache-dir", str(tmp_path)]
    command = [sys.executable, "-m", "mypy", *flags, "tests/helpers/typed.py"]
    ended = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert ended.returncode == 0, ended.stdout + ended.stderr
