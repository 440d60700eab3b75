"""An inner loop of Adam, with weight decay and a size for each step: all of it learned by exact meta-gradients.

    PYTHONPATH=. python examples/inner_adam.py

update   0: query loss 0.21, steps of 0.030 to 0.030, decay 0.009
update  30: query loss 0.10, steps of 0.031 to 0.036, decay 0.000
update  60: query loss 0.07, steps of 0.033 to 0.037, decay 0.000

The query loss is the mean of the last 20 updates. The states of Adam are differentiated through step by step, so that
memory does not grow with a graph of the steps.
"""

import torch
from own_data import batch, network

import amaml

STEPS = 10


def main() -> None:
    torch.manual_seed(0)
    log_rates = torch.full((STEPS,), 0.03).log().requires_grad_()  # one for each inner step
    decay = torch.tensor(0.01, requires_grad=True)
    meta = amaml.Adaptation(
        network(),
        amaml.half_mse,
        inner_lr=0.02,
        inner_steps=STEPS,
        method="maml",
        inner_optimizer="adam",
        weight_decay=decay,
        eps=0.01,  # a smaller one makes long steps of small gradients, and learning a matter of chance
    )
    groups = [{"params": list(meta.module.parameters())}, {"params": [log_rates], "lr": 0.01}]
    optimizer, losses = torch.optim.Adam([*groups, {"params": [decay], "lr": 1e-3}], lr=0.002), []
    for update in range(61):
        optimizer.zero_grad()
        value = meta(batch(update), inner_lr=log_rates.exp())
        value.backward()
        optimizer.step()
        with torch.no_grad():
            decay.clamp_(min=0)
        losses = [*losses[-19:], value.item()]
        if update % 30 == 0:
            mean = sum(losses) / len(losses)
            first, last = log_rates[0].exp().item(), log_rates[-1].exp().item()
            print(f"update {update:3}: query loss {mean:.2f}, steps of {first:.3f} to {last:.3f}, decay {decay:.3f}")


if __name__ == "__main__":
    main()
