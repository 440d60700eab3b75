"""Losses along the way: theta learns to predict well after 1, 5 and 20 steps, not after the last one alone.

    PYTHONPATH=. python examples/maml_plus_plus.py

weights (0.0, 0.0, 1.0): query loss 0.079 after 1, 0.036 after 5, 0.021 after 20
weights (0.3, 0.3, 0.4): query loss 0.063 after 1, 0.037 after 5, 0.020 after 20

The inner loop runs once and the adjoint goes back once; at each of the steps named, the query loss there adds its own
gradient (the multi-step loss of MAML++, Antoniou et al. 2019, without a graph of the steps).
"""

import torch
from own_data import batch, network

import amaml

STEPS = (1, 5, 20)


def train(weights: tuple[float, ...]) -> None:
    torch.manual_seed(0)
    meta = amaml.Adaptation(network(), amaml.half_mse, inner_lr=0.1, inner_steps=20, method="maml")
    optimizer = torch.optim.Adam(meta.parameters(), lr=0.005)
    for update in range(60):
        optimizer.zero_grad()
        meta(batch(update), at=STEPS, weights=weights).backward()
        optimizer.step()
    tasks = batch(1000)
    with torch.no_grad():
        path = meta.adapt(tasks, at=STEPS)  # (times, tasks, P)
        losses = [amaml.half_mse(meta.predict(phi, tasks.query_x), tasks.query_y).item() for phi in path]
    named = ", ".join(f"{loss:.3f} after {n}" for n, loss in zip(STEPS, losses, strict=True))
    print(f"weights {weights}: query loss {named}")


if __name__ == "__main__":
    train((0.0, 0.0, 1.0))
    train((0.3, 0.3, 0.4))
