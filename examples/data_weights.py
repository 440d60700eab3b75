"""Which support points help? The meta-gradient in their weights, checked by leaving each point out.

Adapted without point i, the query loss changes by about -dJ/dw_i, a first-order estimate: one backward pass instead of
one adaptation a point. Two of the points have wrong targets; they stand out.

    PYTHONPATH=. python examples/data_weights.py

point   predicted change   change without it
    8             -0.020              -0.012   wrong target
    3             -0.017              -0.009   wrong target
   11             -0.001              -0.001
    1              0.008               0.013
correlation over all points: 0.96
"""

import torch
from torch import nn

import amaml


def half_squares(prediction: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    """The loss of every point, (points, 1)."""
    return 0.5 * (prediction - target).square()


if __name__ == "__main__":
    torch.manual_seed(0)
    x = torch.linspace(-2, 2, 12, dtype=torch.float64)[None, :, None]  # one task, 12 support points
    y = torch.sin(x)
    wrong = [3, 8]
    y[0, wrong] += torch.tensor([[1.5], [-1.5]]).double()
    query_x = torch.linspace(-2, 2, 50, dtype=torch.float64)[None, :, None]

    module = nn.Sequential(nn.Linear(1, 20), nn.Tanh(), nn.Linear(20, 1)).double()
    meta = amaml.Adaptation(module, half_squares, inner_lr=0.05, inner_steps=200)

    def tasks(weight: torch.Tensor) -> amaml.Tasks:
        return amaml.Tasks(x, y, query_x, torch.sin(query_x), support_weight=weight)

    weight = torch.ones(1, 12, dtype=torch.float64, requires_grad=True)
    value = meta(tasks(weight))
    value.backward()
    predicted = -weight.grad[0]

    with torch.no_grad():
        losses = torch.stack([meta(tasks((torch.arange(12) != i).double()[None])) for i in range(12)])
    changes = losses - value.detach()
    print("point   predicted change   change without it")
    for i in changes.argsort()[[0, 1, 2, -1]].tolist():
        print(f"{i:5} {predicted[i]:18.3f} {changes[i]:19.3f}" + ("   wrong target" if i in wrong else ""))
    together = torch.stack([predicted, changes])
    print(f"correlation over all points: {torch.corrcoef(together)[0, 1]:.2f}")
