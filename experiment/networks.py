"""The networks of the experiments: fully connected ones, one of coordinates, convolutional ones of few-shot images.

Batch norm uses the statistics of the batch it sees, never running ones: a prediction then depends on the other query
points of its task ("transductive"), as in MAML and Reptile. Pooling is torch's max_pool2d: under vmap its first and
second derivatives are exact, and 1.3 times as fast (CPU) as a maximum over a reshaped axis.
"""

import itertools
import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from amaml.errors import InputError
from amaml.models import ACTIVATIONS, mlp

Shape = tuple[int, int, int]  # channels, height, width


def flat_mlp(input_shape: tuple[int, ...], outputs: int, **options: Any) -> nn.Module:
    """amaml.models.mlp for points of any shape."""
    return _flattened(input_shape, mlp(math.prod(input_shape), outputs, **options))


def flat_linear(input_shape: tuple[int, ...], outputs: int) -> nn.Module:
    """A linear layer for points of any shape."""
    return _flattened(input_shape, nn.Linear(math.prod(input_shape), outputs))


def fourier(
    input_shape: tuple[int, ...], outputs: int, width: int = 64, scale: float = 1.0, activation: str = "tanh"
) -> nn.Module:
    """amaml.models.mlp of random Fourier features (Tancik et al. 2020, section 5), for functions of a place.

    The features are sine and cosine at width frequencies, normal with deviation scale in cycles a unit of length:
    about the finest structure that a few steps of descent can draw. They are drawn once and stay, no part of theta.
    """
    frequencies = scale * torch.randn(math.prod(input_shape), width)
    return _flattened(input_shape, nn.Sequential(_Fourier(frequencies), mlp(2 * width, outputs, width, activation)))


class _Fourier(nn.Module):
    """(..., d) -> (..., 2 width), the sines and cosines of all frequencies (d, width)."""

    def __init__(self, frequencies: Tensor) -> None:
        super().__init__()
        self.register_buffer("frequencies", frequencies)

    def forward(self, x: Tensor) -> Tensor:
        angles = 2 * math.pi * x @ self.frequencies
        return torch.cat([angles.sin(), angles.cos()], -1)


def _flattened(input_shape: tuple[int, ...], network: nn.Module) -> nn.Module:
    return nn.Sequential(nn.Flatten(), network) if len(input_shape) > 1 else network


def conv4(
    input_shape: Shape, outputs: int, filters: int = 64, strided: bool = False, activation: str = "relu"
) -> nn.Sequential:
    """Conv-4: 4 x [3 x 3 convolution, batch norm, activation, halving], then a linear layer (Vinyals et al. 2016).

    Halving is 2 x 2 max-pooling and the features are flattened; where strided, as in MAML's Omniglot network (Finn et
    al. 2017, section 5.2), the convolutions have stride 2 and the features are averaged over space. MAML has 64 filters
    on Omniglot and 32 on mini-ImageNet. ReLU is the field's; a smooth activation ("gelu") with strides makes the inner
    loop a smooth flow. Weights are Xavier-uniform, biases zero.

    Raises InputError for images that cannot be pooled four times.
    """
    height, width = (1, 1) if strided else _pooled(input_shape[1:])
    layers: list[nn.Module] = []
    for channels in (input_shape[0], filters, filters, filters):
        layers.append(nn.Conv2d(channels, filters, 3, stride=2 if strided else 1, padding=1))
        layers += [nn.BatchNorm2d(filters, track_running_stats=False), ACTIVATIONS[activation]()]
        layers += [] if strided else [nn.MaxPool2d(2)]
    layers += [_SpaceMean() if strided else nn.Flatten(), nn.Linear(filters * height * width, outputs)]
    return _initialised(nn.Sequential(*layers))


def resnet12(input_shape: Shape, outputs: int, width: int = 64, blocks: int = 4) -> nn.Sequential:
    """ResNet-12: residual blocks of three 3 x 3 convolutions, each twice as wide; average over space, linear layer.

    As in Mishra et al. 2018 and Lee et al. 2019, without their dropout, which has no deterministic gradient.
    Weights are Xavier-uniform, biases zero. Raises InputError for images that cannot be pooled once a block.
    """
    _pooled(input_shape[1:], blocks)
    channels = [input_shape[0], *(width * 2**i for i in range(blocks))]
    body = [_Residual(*pair) for pair in itertools.pairwise(channels)]
    return _initialised(nn.Sequential(*body, _SpaceMean(), nn.Linear(channels[-1], outputs)))


class _Residual(nn.Module):
    """Three convolutions beside a 1 x 1 one, added, leaky ReLU, 2 x 2 max-pooling."""

    def __init__(self, inputs: int, width: int) -> None:
        super().__init__()
        first, second = ((*_normed(size, width, 3), nn.LeakyReLU(0.1)) for size in (inputs, width))
        self.body = nn.Sequential(*first, *second, *_normed(width, width, 3))
        self.shortcut = nn.Sequential(*_normed(inputs, width, 1))
        self.end = nn.Sequential(nn.LeakyReLU(0.1), nn.MaxPool2d(2))

    def forward(self, x: Tensor) -> Tensor:
        return self.end(self.body(x) + self.shortcut(x))


class _SpaceMean(nn.Module):
    """(points, channels, height, width) -> (points, channels)."""

    def forward(self, x: Tensor) -> Tensor:
        return x.mean((-2, -1))


def _normed(inputs: int, width: int, kernel: int) -> tuple[nn.Module, nn.Module]:
    convolution = nn.Conv2d(inputs, width, kernel, padding=kernel // 2, bias=False)  # batch norm has one
    return convolution, nn.BatchNorm2d(width, track_running_stats=False)


def _pooled(size: Sequence[int], times: int = 4) -> tuple[int, int]:
    """Height and width after so many halvings."""
    height, width = (side >> times for side in size)
    if not (height and width):
        remedy = f"use {2**times} x {2**times} up"
        raise InputError(f"images of {size[0]} x {size[1]} cannot be halved {times} times; {remedy}")
    return height, width


@torch.no_grad()
def _initialised(network: nn.Sequential) -> nn.Sequential:
    for part in network.modules():
        if isinstance(part, nn.Conv2d | nn.Linear):
            nn.init.xavier_uniform_(part.weight)
            if part.bias is not None:
                part.bias.zero_()
    return network


def last_layer(network: nn.Module) -> tuple[str]:
    """The name of the part whose parameters the network declares last."""
    *_, last = (name for name, _ in network.named_parameters())
    return (last.rpartition(".")[0],)


def seeded(build: Callable[[], nn.Module], seed: int) -> nn.Module:
    """build() with weights drawn from a seed; the global generator is left as it was."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return build()
