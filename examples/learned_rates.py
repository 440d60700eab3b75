"""Learned inner rates: one for all parameters (the horizon of the inner loop), or one for each (Meta-SGD).

    PYTHONPATH=. python examples/learned_rates.py

fixed    : query loss 0.40 at first, 0.09 at last; rates from 0.020 to 0.020
scalar   : query loss 0.40 at first, 0.06 at last; rates from 0.073 to 0.073
parameter: query loss 0.40 at first, 0.05 at last; rates from 0.006 to 0.182
"""

import torch
from own_data import batch, network

import amaml


def train(kind: str) -> None:
    torch.manual_seed(0)
    module = network()
    start = torch.tensor(0.02).log()
    rates = {  # logarithms, so that the rates stay positive
        "fixed": start,
        "scalar": start.clone().requires_grad_(),
        "parameter": {n: start.expand_as(p).clone().requires_grad_() for n, p in module.named_parameters()},
    }[kind]
    leaves = list(rates.values()) if isinstance(rates, dict) else [rates]
    meta = amaml.Adaptation(module, amaml.half_mse, inner_lr=0.02, inner_steps=10, method="maml")
    groups = [{"params": list(meta.parameters())}, {"params": [r for r in leaves if r.requires_grad], "lr": 0.02}]
    optimizer = torch.optim.Adam([group for group in groups if group["params"]], lr=0.005)
    values = []
    for update in range(100):
        now = {n: r.exp() for n, r in rates.items()} if isinstance(rates, dict) else rates.exp()
        optimizer.zero_grad()
        value = meta(batch(update), inner_lr=now)
        value.backward()
        optimizer.step()
        values.append(value.item())
    learned = torch.cat([r.detach().exp().reshape(-1) for r in leaves])
    print(
        f"{kind:9}: query loss {values[0]:.2f} at first, {sum(values[-20:]) / 20:.2f} at last; "
        f"rates from {learned.min():.3f} to {learned.max():.3f}"
    )


if __name__ == "__main__":
    for kind in ("fixed", "scalar", "parameter"):
        train(kind)
