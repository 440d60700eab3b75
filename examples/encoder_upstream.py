"""An encoder upstream of the inner loop: it makes the inputs of the tasks, and learns by their meta-gradient.

Inputs of 20 numbers hide two that matter, the same two for all tasks. A linear head adapts to each task on what a
linear encoder makes of them; the encoder, an ordinary module, gets its gradient through the tensors of Tasks.

    PYTHONPATH=. python examples/encoder_upstream.py

meta-update   0: query loss 1.324, overlap with the hidden plane 0.243
meta-update  30: query loss 0.037, overlap with the hidden plane 0.992
meta-update  60: query loss 0.004, overlap with the hidden plane 1.000
"""

import torch
from torch import nn

import amaml


def batch(seed: int, hidden: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """x (tasks, 20 points, 20) and y (tasks, 20 points, 1), linear in x @ hidden with coefficients of each task."""
    g = torch.Generator().manual_seed(seed)
    x = torch.randn(16, 20, 20, generator=g)
    return x, x @ hidden @ torch.randn(16, 2, 1, generator=g)


if __name__ == "__main__":
    torch.manual_seed(0)
    hidden = torch.linalg.qr(torch.randn(20, 2)).Q
    encoder, head = nn.Linear(20, 2, bias=False), nn.Linear(2, 1)
    meta = amaml.Adaptation(head, amaml.half_mse, inner_lr=0.1, inner_steps=100)
    optimizer = torch.optim.Adam([*encoder.parameters(), *meta.parameters()], lr=0.02)
    for update in range(61):
        x, y = batch(update, hidden)
        code = encoder(x)
        value = meta(amaml.Tasks(code[:, :10], y[:, :10], code[:, 10:], y[:, 10:]))
        optimizer.zero_grad()
        value.backward()
        optimizer.step()
        if update % 30 == 0:
            found = torch.linalg.qr(encoder.weight.detach().T).Q
            overlap = torch.linalg.svdvals(found.T @ hidden).min()
            print(f"meta-update {update:3}: query loss {value.item():.3f}, overlap with the hidden plane {overlap:.3f}")
