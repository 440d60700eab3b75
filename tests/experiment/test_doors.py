"""Domains, networks and methods of a user's own module, from the command line."""

import sys

import pytest
import torch
from helpers.commands import ROOT, checkpoint, content, refused, start

import run
from amaml import flatten, half_mse
from data import Sampling, make
from experiment.methods import METHODS, NETWORKS

EXAMPLE = ROOT / "examples" / "own_experiment"
OWN = ["--domain", "lines:Lines", "--network", "lines:two_heads", "--method", "lines:SignFOMAML"]
BROKEN = "import data.domain, nothing_of_this_name_is_installed"
PARTS = """
from data.domain import Domain, Endless
text = "text"
class Bare(Domain): pass
class Shapeless(Endless):
    input_shape = (1,)
    def tasks(self, rng, count, first=0, test=False): ...
def sizes(input_shape, outputs, width): return outputs
"""


@pytest.fixture
def here(tmp_path, monkeypatch):
    """The folder where the program starts, and whose modules it finds."""
    monkeypatch.setattr(sys, "path", [*sys.path])
    (tmp_path / "parts_of_a_test.py").write_text(PARTS)
    (tmp_path / "broken_of_a_test.py").write_text(BROKEN)
    (tmp_path / "lines.py").write_bytes((EXAMPLE / "lines.py").read_bytes())
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_the_example_trains_with_its_own_network_and_goes_on(here, quick):
    assert start("run", *OWN, "--meta-updates", "2") == 0
    saved = checkpoint(here / "run")
    assert saved["model"]["meta.module.body.0.weight"].shape == (4, 1)  # the width of TINY
    assert saved["settings"]["method"] == "lines:SignFOMAML"
    assert start("run", *OWN, "--meta-updates", "4", "--resume") == 0
    assert content(here / "run", "summary.json")["metric"] == "MSE"
    assert run.main(["--evaluate", "run", "--shots", "3"]) == 0
    assert (here / "run" / "evaluation-Lines-3shot-finetune.json").exists()


def test_its_tasks_are_lines_and_its_directions_are_votes(here):
    tasks = make("lines:Lines", Sampling(5, 4, 3, 0)).episode(7)
    x, y = torch.cat([tasks.support_x, tasks.query_x], 1), torch.cat([tasks.support_y, tasks.query_y], 1)
    slopes = (y[:, 1:] - y[:, :1]) / (x[:, 1:] - x[:, :1])
    assert torch.allclose(slopes, slopes[:, :1].expand_as(slopes))
    theta, apply = flatten(NETWORKS["lines:two_heads"].make((1,), 1, width=3).double())
    found = METHODS["lines:SignFOMAML"].make(apply, half_mse, 0.1, 5).meta_gradient(theta, tasks)
    assert found.of_tasks.shape == (3, len(theta))
    assert torch.equal(found.of_tasks.abs(), torch.ones_like(found.of_tasks))


MISTAKES = [
    (["--domain", "nowhere.to_be:Found"], ["no module 'nowhere'", "PYTHONPATH"]),
    (["--domain", "lines:Curves"], ["has no attribute 'Curves'"]),
    (["--domain", "lines:Li nes"], ["must be a name, or package.module:Name"]),
    (["--domain", "parts_of_a_test:text"], ["must be a class that inherits from data.domain.Domain", "'text'"]),
    (["--domain", "parts_of_a_test:Bare"], ["lacks episode, meta_test"]),
    (["--domain", "parts_of_a_test:Shapeless"], ["lacks outputs, objective"]),
    (["--network", "parts_of_a_test:text"], ["must be a function (input_shape, outputs)"]),
    (["--network", "parts_of_a_test:sizes"], ["must make a torch.nn.Module, got int"]),
    (["--method", "parts_of_a_test:Bare"], ["must be a dataclass", "it lacks apply"]),
    (["--method", "lines:SignFOMAML", "--cg-steps", "3"], ["--cg-steps 3 is for --method imaml"]),
    (["--method", "lines"], ["unknown method 'lines'", "package.module:Name"]),
]


@pytest.mark.parametrize(("flags", "fragments"), MISTAKES, ids=lambda value: " ".join(value)[:40])
def test_what_cannot_be_used_gets_one_line(here, capsys, flags, fragments):
    line = refused(capsys, "run", *flags)
    assert all(fragment in line for fragment in fragments), line
    assert not (here / "run").exists()


def test_a_fault_inside_the_module_is_shown_as_it_is(here):
    with pytest.raises(ModuleNotFoundError, match="nothing_of_this_name_is_installed"):
        start("run", "--domain", "broken_of_a_test:Anything")
