"""The networks of the experiments are those of the results; domains, networks and methods of a user's own module."""

import math
import sys

import pytest
import torch
from helpers.commands import ROOT, checkpoint, content, refused, start
from helpers.problems import checksum
from torch.nn import functional as F

import run
from amaml import InputError, flatten, half_mse
from amaml.engine import derivatives
from data import Sampling, make
from experiment.methods import METHODS, NETWORKS
from experiment.networks import conv4, resnet12, seeded

IMAGE = (2, 16, 16)
SETTINGS = {"width": 4, "activation": "gelu"}
KNOWN = {  # with these, where it takes them: its parameters, and checksums of them and of predictions
    "mlp": ((2, 4), 71, -0.18723114384, 2.5824585275),
    "linear": ((2, 4), 27, 0.31422188258, 2.796427044),
    "fourier": ((2,), 71, 1.3887228116, -1.0625469096),
    "conv4": (IMAGE, 567, 27.670516345, 8.7769264817),
    "conv4-strided": (IMAGE, 567, 27.670516345, 2.6259228633),
    "resnet12": (IMAGE, 31859, 341.27909043, 17.901722985),
}


@pytest.mark.parametrize("name", NETWORKS)
def test_a_network_is_that_of_the_results(name):
    (shape, *known), chosen = KNOWN[name], NETWORKS[name]
    options = {chosen.takes[key]: n for key, n in SETTINGS.items() if key in chosen.takes} | dict(chosen.fixed)
    network = seeded(lambda: chosen.make(shape, 3, **options), 0).double()
    x = torch.linspace(-1, 1, 6 * math.prod(shape), dtype=torch.float64).sin().reshape(6, *shape)
    found = sum(p.numel() for p in network.parameters()), checksum(*network.parameters()), checksum(network(x).detach())
    assert found == pytest.approx(tuple(known), rel=1e-6)
    assert [name for name, _ in network.named_buffers()] == ["0.frequencies"] * (name == "fourier")  # no statistics


@pytest.mark.parametrize("build", [lambda: conv4(IMAGE, 3, filters=4), lambda: resnet12(IMAGE, 3, 4, blocks=1)])
def test_second_derivatives_of_all_tasks_come_from_one_pass(build):
    """The engine compares them with autograd's, and warns where it has to go task by task."""
    theta, apply = flatten(build().double())
    x, phi = torch.randn(2, 5, *IMAGE, dtype=torch.float64), theta.expand(2, -1)
    assert derivatives.hvps(apply, F.cross_entropy, phi, phi.sin(), x, torch.arange(10).view(2, 5) % 3).isfinite().all()


def test_images_too_small_to_pool_are_refused():
    for network, shape in ((conv4, (1, 8, 8)), (resnet12, (1, 15, 20))):
        with pytest.raises(InputError, match=f"{shape[1]} x {shape[2]} cannot be halved 4 times; use 16 x 16"):
            network(shape, 5)
    strided = NETWORKS["conv4-strided"]
    assert strided.make((1, 8, 8), 5, **strided.fixed)(torch.zeros(2, 1, 8, 8)).shape == (2, 5)


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
