"""The networks of the experiments: the layers in order, their sizes and first weights."""

import math

import pytest
import torch
from helpers.problems import checksum
from torch.nn import functional as F

import amaml
from amaml.engine import derivatives
from amaml.errors import InputError
from experiment import methods
from experiment.networks import conv4, resnet12, seeded

IMAGE = (2, 16, 16)


@pytest.mark.parametrize(("strided", "activation"), [(False, "relu"), (True, "gelu")])
def test_conv4_is_the_composition_of_the_field(strided, activation):
    module = conv4(IMAGE, 3, filters=4, strided=strided, activation=activation).double()
    x = hidden = torch.randn(5, *IMAGE, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    parameters = list(module.parameters())
    for kernel, bias, scale, shift in zip(*[iter(parameters[:16])] * 4, strict=True):
        hidden = F.conv2d(hidden, kernel, bias, stride=2 if strided else 1, padding=1)
        mean, variance = hidden.mean((0, 2, 3), keepdim=True), hidden.var((0, 2, 3), correction=0, keepdim=True)
        hidden = (hidden - mean) / (variance + 1e-5).sqrt() * scale[:, None, None] + shift[:, None, None]
        hidden = getattr(F, activation)(hidden)
        if not strided:
            hidden = hidden.unflatten(-1, (-1, 2)).unflatten(-3, (-1, 2)).amax((-1, -3))
    features = hidden.mean((-2, -1)) if strided else hidden.flatten(1)
    torch.testing.assert_close(module(x), features @ parameters[16].T + parameters[17])


KNOWN = {  # of width 4: its parameters, and checksums of them and of predictions
    "mlp": ((2, 4), 71, -0.18723114384, 1.3150379296),
    "linear": ((2, 4), 27, 0.31422188258, 2.796427044),
    "fourier": ((2,), 71, 1.3887228116, -2.5895849130),
    "conv4": (IMAGE, 567, 27.670516345, 9.4982925606),
    "conv4-strided": (IMAGE, 567, 27.670516345, 2.5431404662),
    "resnet12": (IMAGE, 31859, 341.27909043, 17.901722985),
}


@pytest.mark.parametrize("name", methods.NETWORKS)
def test_a_network_is_that_of_the_results(name):
    (shape, *known), chosen = KNOWN[name], methods.NETWORKS[name]
    options = {keyword: 4 for setting, keyword in chosen.takes.items() if setting == "width"} | dict(chosen.fixed)
    network = seeded(lambda: chosen.make(shape, 3, **options), 0).double()
    x = torch.linspace(-1, 1, 6 * math.prod(shape), dtype=torch.float64).sin().reshape(6, *shape)
    found = sum(p.numel() for p in network.parameters()), checksum(*network.parameters()), checksum(network(x).detach())
    assert found == pytest.approx(tuple(known), rel=1e-6)
    assert [name for name, _ in network.named_buffers()] == ["0.frequencies"] * (name == "fourier")  # no statistics


NETWORKS = [lambda: conv4(IMAGE, 3, filters=4), lambda: resnet12(IMAGE, 3, 4, blocks=1)]


@pytest.mark.parametrize("build", NETWORKS)
def test_second_derivatives_of_all_tasks_come_from_one_pass(build):
    """The engine compares them with autograd's, and warns where it has to go task by task."""
    theta, apply = amaml.flatten(build().double())
    x, phi = torch.randn(2, 5, *IMAGE, dtype=torch.float64), theta.expand(2, -1)
    assert derivatives.hvps(apply, F.cross_entropy, phi, phi.sin(), x, torch.arange(10).view(2, 5) % 3).isfinite().all()


def test_images_too_small_to_pool_are_refused():
    for network, shape in ((conv4, (1, 8, 8)), (resnet12, (1, 15, 20))):
        with pytest.raises(InputError, match=f"{shape[1]} x {shape[2]} cannot be halved 4 times; use 16 x 16"):
            network(shape, 5)
    assert conv4((1, 8, 8), 5, strided=True)(torch.zeros(2, 1, 8, 8)).shape == (2, 5)
    strided = methods.NETWORKS["conv4-strided"]
    assert strided.make((1, 8, 8), 5, **strided.fixed)(torch.zeros(2, 1, 8, 8)).shape == (2, 5)
