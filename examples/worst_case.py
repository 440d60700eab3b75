"""A loss over tasks of one's own: theta for the worst task of a batch instead of for the mean.

    PYTHONPATH=. python examples/worst_case.py

OUTPUT

phi is in autograd's graph: whatever is computed from it, backward() is the adjoint from its derivative in phi.
"""

import torch
from own_data import batch, network

import amaml


def train(over_tasks: str) -> None:
    torch.manual_seed(0)
    meta = amaml.Adaptation(network(), amaml.half_mse, inner_lr=0.1, inner_steps=10, method="maml")
    optimizer = torch.optim.Adam(meta.parameters(), lr=0.005)

    def query_losses(tasks: amaml.Tasks) -> torch.Tensor:
        phi = meta.adapt(tasks)  # (tasks, P)
        errors = meta.predict(phi, tasks.query_x) - tasks.query_y
        return 0.5 * errors.square().flatten(1).mean(1)

    for update in range(100):
        optimizer.zero_grad()
        losses = query_losses(batch(update))
        value = losses.mean() if over_tasks == "mean" else 0.01 * torch.logsumexp(losses / 0.01, 0)  # a smooth maximum
        value.backward()
        optimizer.step()
    with torch.no_grad():
        losses = torch.cat([query_losses(batch(1000 + n)) for n in range(10)])
    print(f"{over_tasks:5}: query loss {losses.mean():.2f} in the mean, {losses.quantile(0.95):.2f} of one task in 20")


if __name__ == "__main__":
    train("mean")
    train("worst")
