"""The networks of the experiments: sizes, the layers in order, their first weights."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import amaml
from amaml.engine import derivatives
from amaml.errors import InputError
from experiment import methods
from experiment.networks import conv4, fourier, resnet12

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


SIZES = [
    (lambda: conv4((3, 84, 84), 5, filters=32), 32901),  # MAML's mini-ImageNet network
    (lambda: conv4((1, 28, 28), 5), 112261),
    (lambda: conv4((1, 28, 28), 20, strided=True), 113236),
    (lambda: resnet12((3, 84, 84), 5, 8, blocks=2), 7557),
]


@pytest.mark.parametrize(("module", "parameters"), SIZES)
def test_sizes(module, parameters):
    network = module()
    assert sum(p.numel() for p in network.parameters()) == parameters
    assert not list(network.buffers())  # no running statistics


def test_resnet12_halves_once_a_block():
    network, x = resnet12((3, 20, 20), 7, 2), torch.randn(6, 3, 20, 20)
    shapes = [tuple((x := block(x)).shape) for block in network[:4]]
    assert shapes == [(6, 2, 10, 10), (6, 4, 5, 5), (6, 8, 2, 2), (6, 16, 1, 1)]
    assert network[4:](x).shape == (6, 7)


NETWORKS = [lambda: conv4(IMAGE, 3, filters=4), lambda: resnet12(IMAGE, 3, 4, blocks=1)]


@pytest.mark.parametrize("build", NETWORKS)
def test_second_derivatives_of_all_tasks_come_from_one_pass(build):
    """The engine compares them with autograd's, and warns where it has to go task by task."""
    theta, apply = amaml.flatten(build().double())
    x, phi = torch.randn(2, 5, *IMAGE, dtype=torch.float64), theta.expand(2, -1)
    assert derivatives.hvps(apply, F.cross_entropy, phi, phi.sin(), x, torch.arange(10).view(2, 5) % 3).isfinite().all()


@pytest.mark.parametrize("build", NETWORKS)
def test_weights_are_xavier_uniform_and_biases_zero(build):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        network = build()
    for part in network.modules():
        if isinstance(part, nn.Conv2d | nn.Linear):
            fan = sum(part.weight.shape[:2]) * part.weight[0, 0].numel()
            bound = (6 / fan) ** 0.5
            assert 0.6 * bound < part.weight.abs().max() <= bound
            assert part.bias is None or not part.bias.any()


def test_images_too_small_to_pool_are_refused():
    for network, shape in ((conv4, (1, 8, 8)), (resnet12, (1, 15, 20))):
        with pytest.raises(InputError, match=f"{shape[1]} x {shape[2]} cannot be halved 4 times; use 16 x 16"):
            network(shape, 5)
    assert conv4((1, 8, 8), 5, strided=True)(torch.zeros(2, 1, 8, 8)).shape == (2, 5)
    strided = methods.NETWORKS["conv4-strided"]
    assert strided.make((1, 8, 8), 5, **strided.fixed)(torch.zeros(2, 1, 8, 8)).shape == (2, 5)


def test_fourier_features_are_waves_that_stay():
    features, layers = fourier((2,), 1, width=2000, scale=3.0)
    assert features.frequencies.std().item() == pytest.approx(3.0, rel=0.05)
    assert [name for name, _ in features.named_parameters()] == []
    x = torch.rand(5, 7, 2)  # places along rays
    sine, cosine = features(x).chunk(2, -1)
    waves = torch.exp(2j * torch.pi * (x.double() @ features.frequencies.double()))
    torch.testing.assert_close(torch.complex(cosine, sine).to(waves), waves, rtol=0, atol=1e-4)
    assert layers(features(x)).shape == (5, 7, 1)
