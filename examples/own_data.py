"""From a module and tensors to a network that adapts to new tasks: train, save, load, adapt, predict.

    PYTHONPATH=. python examples/own_data.py

meta-update   0: query loss of the adapted networks 0.42
meta-update 100: query loss of the adapted networks 0.03
new tasks, root mean squared error: before 0.77, adapted to 10 points 0.24
"""

import math
import tempfile
from pathlib import Path

import torch
from torch import Tensor, nn

import amaml


def sinusoids(tasks: int, seed: int) -> tuple[Tensor, Tensor]:
    """Your data here: inputs and targets of so many tasks, (tasks, points, 1) each."""
    g = torch.Generator().manual_seed(seed)
    amplitude, phase = (torch.rand(tasks, 1, 1, generator=g) for _ in range(2))
    x = 6 * torch.rand(tasks, 20, 1, generator=g) - 3
    return x, (0.5 + 1.5 * amplitude) * torch.sin(x - math.pi * phase)


def batch(seed: int) -> amaml.Tasks:
    x, y = sinusoids(8, seed)
    return amaml.Tasks(x[:, :10], y[:, :10], x[:, 10:], y[:, 10:])  # 10 points to adapt to, 10 to judge by


def network() -> nn.Module:
    return nn.Sequential(nn.Linear(1, 20), nn.Tanh(), nn.Linear(20, 20), nn.Tanh(), nn.Linear(20, 1))


if __name__ == "__main__":
    torch.manual_seed(0)
    meta = amaml.Adaptation(network(), amaml.half_mse, inner_lr=0.02, inner_steps=50)
    optimizer = torch.optim.Adam(meta.parameters(), lr=0.005)
    for update in range(101):
        optimizer.zero_grad()
        value = meta(batch(update))
        value.backward()
        optimizer.step()
        if update % 100 == 0:
            print(f"meta-update {update:3}: query loss of the adapted networks {value.item():.2f}")

    with tempfile.TemporaryDirectory() as folder:
        torch.save(meta.state_dict(), Path(folder, "meta.pt"))
        restored = amaml.Adaptation(network(), amaml.half_mse, inner_lr=0.02, inner_steps=50)
        restored.load_state_dict(torch.load(Path(folder, "meta.pt")))

    new = batch(seed=1_000_000)
    phi = restored.adapt(new)  # (tasks, P)
    with torch.no_grad():
        before = amaml.rmse(restored.module(new.query_x), new.query_y)
        after = amaml.rmse(restored.predict(phi, new.query_x), new.query_y)
    print(f"new tasks, root mean squared error: before {before:.2f}, adapted to 10 points {after:.2f}")
