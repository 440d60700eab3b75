"""The library as others install it: what the wheel holds, what it requires, and that this is enough for it to work."""

import ast
import json
import shutil
import subprocess
import sys
import tomllib
import venv
import zipfile
from importlib import metadata
from pathlib import Path

import pytest
from helpers.commands import ROOT
from packaging.requirements import Requirement

PACKAGES = ("amaml", "amaml/engine", "amaml/flow", "baselines")
ONE_META_GRADIENT = """
import json, sys
import torch
import amaml, baselines

torch.manual_seed(0)
theta, apply = amaml.flatten(torch.nn.Sequential(torch.nn.Linear(2, 4), torch.nn.Tanh(), torch.nn.Linear(4, 1)))
theta = theta.double()
tasks = amaml.Tasks(*(torch.randn(3, 5, n, dtype=torch.float64) for n in (2, 1, 2, 1)))
arguments = {"inner_lr": 0.1, "inner_steps": 7}
adjoint = amaml.AMAML(apply, amaml.half_mse, solver="euler", **arguments).meta_gradient(theta, tasks).value
unrolled = baselines.MAML(apply, amaml.half_mse, **arguments).meta_gradient(theta, tasks).value
assert unrolled.norm() > 0.01
error = ((adjoint - unrolled).norm() / unrolled.norm()).item()
rkc = amaml.AMAML(apply, amaml.half_mse, **arguments).meta_gradient(theta, tasks)
assert rkc.value.isfinite().all()
files = {name.partition(".")[0]: getattr(sys.modules[name], "__file__", None) for name in sorted(sys.modules)}
print(json.dumps({"error": error, "amaml": amaml.__file__, "loaded": [name for name, file in files.items() if file]}))
"""


def imported(path: Path) -> set[str]:
    """All modules that a file names in its imports."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0
            parts = {f"{node.module}.{alias.name}" for alias in node.names}
            below = ROOT / node.module.replace(".", "/")
            submodules = {part for part in parts if (below / f"{part.rpartition('.')[2]}.py").exists()}
            found |= submodules if submodules == parts else submodules | {node.module}
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
LEAVES = {f"amaml.{name}" for name in ("errors", "points", "tasks", "losses", "models", "robust")}


def test_imports_run_one_way():
    known = modules("amaml", "baselines", "data", "experiment", "benchmarks")
    for name, path in known.items():
        later = {other for other in imported(path) & known.keys() - LEAVES if rank(other) > rank(name)}
        assert not later, (name, later)
        assert not {"baselines", "data"} <= {other.split(".")[0] for other in imported(path)} or rank(name) > 4
        assert "import_module" not in path.read_text(), name  # nor by a string


def test_no_modules_import_each_other():
    known = modules("amaml", "baselines", "data", "experiment", "benchmarks")
    left = {name: imported(path) & known.keys() - {name} for name, path in known.items()}
    while free := [name for name, needs in left.items() if not needs]:
        for name in free:
            del left[name]
        left = {name: needs - set(free) for name, needs in left.items()}
    assert not left


@pytest.mark.parametrize("folder", PACKAGES)
def test_the_library_imports_only_what_its_wheel_requires(folder):
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    required = {Requirement(text).name for text in project["dependencies"]}
    assert required == {"torch", "numpy", "scipy"}
    known = required | {"amaml", "baselines"}
    found = {name.split(".")[0] for path in (ROOT / folder).glob("*.py") for name in imported(path)}
    assert found <= set(sys.stdlib_module_names) | known


@pytest.fixture(scope="module")
def wheel(tmp_path_factory) -> Path:
    setuptools = pytest.importorskip("setuptools", minversion="77", reason="building needs setuptools >= 77")
    root = tmp_path_factory.mktemp("checkout")
    for name in ("pyproject.toml", "LICENSE", "README.md"):
        shutil.copy(ROOT / name, root / name)
    for name in ("amaml", "baselines", "data", "experiment", "tests"):
        shutil.copytree(ROOT / name, root / name, ignore=shutil.ignore_patterns("__pycache__"))
    build = f"import {setuptools.__name__}.build_meta as b; b.build_wheel('dist')"
    subprocess.run([sys.executable, "-c", build], cwd=root, capture_output=True, check=True)
    (built,) = (root / "dist").glob("amaml-*.whl")
    return built


def test_the_wheel_holds_the_library_and_nothing_else(wheel):
    with zipfile.ZipFile(wheel) as archive:
        modules = {name for name in archive.namelist() if ".dist-info/" not in name}
    assert modules == {f"{package}/{path.name}" for package in PACKAGES for path in (ROOT / package).glob("*.py")}


def required_by(*names: str) -> set[str]:
    """These distributions and all that they require here, by their names."""
    found, left = set(), [Requirement(name) for name in names]
    while left:
        wanted = left.pop()
        distribution, extras = metadata.distribution(wanted.name), ("", *sorted(wanted.extras))
        if (distribution.name, extras) not in found:
            found.add((distribution.name, extras))
            needs = [Requirement(text) for text in distribution.requires or ()]
            left += [n for n in needs if n.marker is None or any(n.marker.evaluate({"extra": e}) for e in extras)]
    return {name for name, _ in found}


@pytest.fixture(scope="module")
def environment(tmp_path_factory) -> Path:
    """An environment that shows torch, scipy and what these require, by links, and nothing else."""
    folder = tmp_path_factory.mktemp("environment")
    venv.create(folder, symlinks=True)
    (packages,) = folder.glob("lib/python*/site-packages")
    for name in required_by("torch", "scipy"):
        files = metadata.distribution(name).files
        for top in {file.parts[0] for file in files} - {"..", "__pycache__"}:
            if not (packages / top).exists():  # a folder that packages share
                (packages / top).symlink_to(files[0].locate().parents[len(files[0].parts) - 1] / top)
    return folder


def test_an_environment_of_torch_and_scipy_alone_is_enough(wheel, environment):
    """pip finds all that the wheel requires there, without an index; a meta-gradient is computed; no module is loaded
    from a package that torch and scipy do not require."""
    python = str(environment / "bin" / "python")
    pip = [sys.executable, "-m", "pip", "--python", python]
    if subprocess.run([*pip, "--version"], capture_output=True).returncode:
        pytest.skip("installing needs pip >= 22.3")
    offline = ["install", "--no-index", "--no-compile", "--quiet"]
    subprocess.run([*pip, *offline, str(wheel)], check=True, capture_output=True)
    absent = subprocess.run([python, "-I", "-c", "import matplotlib"], capture_output=True, text=True)
    assert "No module named 'matplotlib'" in absent.stderr
    ended = subprocess.run(
        [python, "-I", "-c", ONE_META_GRADIENT], cwd=environment, capture_output=True, text=True, check=True
    )
    said = json.loads(ended.stdout)
    assert Path(said["amaml"]).is_relative_to(environment)
    assert said["error"] < 1e-12
    allowed = required_by("torch", "scipy") | {"amaml"}
    tops = metadata.packages_distributions() | {"amaml": ["amaml"], "baselines": ["amaml"]}
    foreign = {name: tops.get(name) for name in said["loaded"] if name not in sys.stdlib_module_names}
    assert not {name for name, owners in foreign.items() if owners and not set(owners) & allowed}
