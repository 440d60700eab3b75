"""A loss over tasks of one's own: theta for the worst task of a batch instead of for the mean.

    PYTHONPATH=. python examples/worst_case.py

mean : query loss 0.02 in the mean, 0.11 of the worst task
worst: query loss 0.04 in the mean, 0.06 of the worst task

phi is in autograd's graph: whatever is computed from it, backward() is the adjoint from its derivative in phi. Here
nine tasks of ten are alike, and three inner steps do not carry theta all the way from them to the tenth.
"""

import torch
from own_data import network
from torch import Tensor

import amaml


def batch(number: int) -> amaml.Tasks:
    """Nine tasks of noise about 0 and one about 1, ten points to adapt to and ten to judge by."""
    generator = torch.Generator().manual_seed(number)
    x, noise = torch.randn(2, 10, 20, 1, generator=generator)
    y = 0.1 * noise + (torch.arange(10) == 9).float()[:, None, None]
    return amaml.Tasks(x[:, :10], y[:, :10], x[:, 10:], y[:, 10:])


def train(name: str) -> None:
    torch.manual_seed(0)
    meta = amaml.Adaptation(network(), amaml.half_mse, inner_lr=0.01, inner_steps=3, method="maml")
    optimizer = torch.optim.Adam(meta.parameters(), lr=0.01)

    def query_losses(tasks: amaml.Tasks) -> Tensor:
        phi = meta.adapt(tasks)  # (tasks, P)
        return 0.5 * (meta.predict(phi, tasks.query_x) - tasks.query_y).square().mean((1, 2))

    for update in range(60):
        optimizer.zero_grad()
        losses = query_losses(batch(update))
        value = losses.mean() if name == "mean" else 0.02 * torch.logsumexp(losses / 0.02, 0)  # a smooth maximum
        value.backward()
        optimizer.step()
    with torch.no_grad():
        losses = query_losses(batch(1000))
    print(f"{name:5}: query loss {losses.mean():.2f} in the mean, {losses.max():.2f} of the worst task")


if __name__ == "__main__":
    train("mean")
    train("worst")
