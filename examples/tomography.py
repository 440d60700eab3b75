"""A picture from four views: initial weights for a network of places that is fitted to the means along a few rays.

    PYTHONPATH=. python examples/tomography.py

update  0: PSNR 6.0 dB before, 7.5 after 50 steps on four views
update 15: PSNR 6.7 dB before, 8.8 after 50 steps on four views
update 30: PSNR 6.6 dB before, 9.3 after 50 steps on four views
through the middle of a picture: 0.0 1.0 0.0 0.0 0.0 0.0 1.0 0.0
reconstructed: 0.2 0.7 0.3 0.3 0.2 -0.0 0.6 0.2

Every task is a disc in a ring, of its own density, size and place; theta learns by the gradient through all 50 steps.
"""

import math

import torch
from torch import Tensor, nn

import amaml

VIEWS, RAYS, SIDE = 4, 12, 16
MIDDLES = (2 * torch.arange(RAYS) + 1) / RAYS - 1  # of equal parts of [-1, 1]: rays of a view, and places on a ray
PIXELS = torch.cartesian_prod(*[(2 * torch.arange(SIDE) + 1) / SIDE - 1] * 2)[:, None]  # (pixels, 1, 2)


class Waves(nn.Module):
    """Sines and cosines of random frequencies at places (..., 2), which are no parameters."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("frequencies", 2 * math.pi * torch.randn(2, 16))

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([(x @ self.frequencies).sin(), (x @ self.frequencies).cos()], -1)


def batch(seed: int, tasks: int = 3) -> amaml.Tasks:
    """The means along the rays of four views, (tasks, rays, 1), and all pixels."""
    g = torch.Generator().manual_seed(seed)
    density, size, *place = torch.rand(4, tasks, 1, 1, generator=g)
    place = 0.3 * torch.stack(place, -1) - 0.15

    def densities(x: Tensor) -> Tensor:
        ring, disc = (x - place).norm(dim=-1), (x - 2 * place).norm(dim=-1)
        inside = (1 + density) / 2 * (disc < 0.2 + 0.2 * size)
        return (inside + 1.0 * ((ring > 0.6) & (ring < 0.8)))[..., None]

    angle = math.pi * (torch.arange(VIEWS) + torch.rand(tasks, 1, generator=g)) / VIEWS  # random, evenly apart
    across = torch.stack([angle.cos(), angle.sin()], -1)[:, :, None, None]  # (tasks, views, 1, 1, 2)
    along = torch.stack([-angle.sin(), angle.cos()], -1)[:, :, None, None]
    rays = (MIDDLES[:, None, None] * across + MIDDLES[:, None] * along).flatten(1, 2)  # (tasks, rays, places, 2)
    pixels = PIXELS.expand(tasks, -1, 1, 2)
    return amaml.Tasks(rays, densities(rays).mean(2), pixels, densities(pixels).mean(2))


def mean_squares(prediction: Tensor, target: Tensor) -> Tensor:
    return (prediction.mean(-2) - target).square().mean()  # of predictions (rays, places, 1) and (rays, 1)


if __name__ == "__main__":
    torch.manual_seed(0)
    network = nn.Sequential(Waves(), nn.Linear(32, 32), nn.Tanh(), nn.Linear(32, 32), nn.Tanh(), nn.Linear(32, 1))
    meta = amaml.Adaptation(network, mean_squares, inner_lr=0.2, inner_steps=50)
    optimizer = torch.optim.Adam(meta.parameters(), lr=0.01)
    new = batch(seed=1_000_000, tasks=8)
    for update in range(31):
        if update % 15 == 0:
            with torch.no_grad():
                found = [meta.predict(phi, new.query_x).mean(2) for phi in meta.adapt(new, at=(0, 50))]
            before, after = (-10 * (p - new.query_y).square().mean((1, 2)).log10().mean() for p in found)
            print(f"update {update:2}: PSNR {before:.1f} dB before, {after:.1f} after 50 steps on four views")
        optimizer.zero_grad()
        meta(batch(update)).backward()
        optimizer.step()
    row = slice(SIDE * (SIDE // 2), SIDE * (SIDE // 2) + SIDE, 2)
    print("through the middle of a picture:", *(f"{value:.1f}" for value in new.query_y[0, row, 0]))
    print("reconstructed:", *(f"{value:.1f}" for value in found[1][0, row, 0]))
