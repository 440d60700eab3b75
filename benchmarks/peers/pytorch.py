"""What users of PyTorch write themselves, and its packages: unrolled MAML in one process, whichever is installed.

    python -m benchmarks.peers.pytorch PROBLEM.npz NETWORK STEPS

torch.func: gradients vmapped over the tasks, autograd through the steps, plain or under torch.utils.checkpoint in
segments of sqrt(steps). higher and TorchOpt: one task after the other, as they do it.
"""

import importlib.util
import math
import sys

import numpy as np
import torch
from torch.func import functional_call, grad, vjp, vmap
from torch.nn.functional import cross_entropy
from torch.utils.checkpoint import checkpoint

from amaml import Tasks, half_mse, mlp
from benchmarks.packages import Higher, TorchOpt
from benchmarks.peers.turns import Quantity, serve
from experiment.networks import conv4

PACKAGES = {"higher": Higher, "torchopt": TorchOpt}
MOST_UNROLLED = 200  # steps


def main() -> None:
    file, network, steps = sys.argv[1], sys.argv[2], int(sys.argv[3])
    torch.set_num_threads(1)
    given = {name: torch.from_numpy(value) for name, value in np.load(file).items()}
    tasks = Tasks(*(given[name] for name in ("support_x", "support_y", "query_x", "query_y")))
    if network == "conv":
        module, loss = conv4(tasks.support_x.shape[2:], 5, strided=True, activation="gelu"), cross_entropy
    else:
        module, loss = mlp(2, 1, given["shapes"][0, 0].item()), half_mse
    theta, inner_lr = given["theta"], given["inner_lr"].item()
    module = module.to(theta)
    quantities = by_torch(module, loss, tasks, theta, given["v"], inner_lr, steps)
    if steps <= MOST_UNROLLED:
        for name in filter(importlib.util.find_spec, PACKAGES):
            learner = PACKAGES[name](module, loss, inner_lr, steps)
            quantities[f"MAML, {name}"] = lambda learner=learner: learner.meta_gradient(theta, tasks).value
    serve(quantities)


def by_torch(module, loss, tasks, theta, v, inner_lr, steps) -> dict[str, Quantity]:
    """By torch.func and torch.utils.checkpoint."""
    names, shapes = zip(*((name, p.shape) for name, p in module.named_parameters()), strict=True)
    phi, v = (one.expand(len(tasks), -1).contiguous() for one in (theta, v))

    def value(phi, x, y):
        parts = phi.split([shape.numel() for shape in shapes])
        named = {name: part.view(shape) for name, part, shape in zip(names, parts, shapes, strict=True)}
        return loss(functional_call(module, named, (x,)), y)

    gradients = vmap(grad(value))
    products = vmap(lambda p, v, x, y: vjp(lambda p: grad(value)(p, x, y), p)[1](v)[0])

    def run(phi, count):
        for _ in range(count):
            phi = phi - inner_lr * gradients(phi, *tasks.support)
        return phi

    @torch.no_grad()
    def first_order():
        return gradients(run(phi, steps), *tasks.query).mean(0)

    def unrolled(advance):
        leaf = theta.clone().requires_grad_()
        vmap(value)(advance(leaf.expand(len(tasks), -1)), *tasks.query).mean().backward()
        return leaf.grad

    def checkpointed(phi):
        for first in range(0, steps, long := math.isqrt(steps)):
            phi = checkpoint(run, phi, min(long, steps - first), use_reentrant=True)
        return phi

    quantities = {
        "gradient": lambda: gradients(phi, *tasks.support),
        "product": lambda: products(phi, v, *tasks.support),
        "FOMAML": first_order,
        "MAML, checkpointed": lambda: unrolled(checkpointed),
    }
    if steps <= MOST_UNROLLED:
        quantities["MAML, unrolled"] = lambda: unrolled(lambda phi: run(phi, steps))
    return quantities


if __name__ == "__main__":
    main()
