"""What users of PyTorch write themselves, and its packages: unrolled MAML in one process, whichever is installed.

    python -m benchmarks.peers.pytorch PROBLEM.npz NETWORK STEPS

torch.func: gradients vmapped over the tasks, autograd through the steps, plain or under torch.utils.checkpoint in
segments of sqrt(steps). higher 0.2.1: a monkey-patched copy of the network and a differentiable SGD for each task.
TorchOpt 0.7.3: a differentiable SGD whose steps are taken back after each task.
"""

import importlib.util
import math
import sys
from functools import partial

import numpy as np
import torch
from torch import Tensor, nn
from torch.func import functional_call, grad, vjp, vmap
from torch.nn.functional import cross_entropy
from torch.utils.checkpoint import checkpoint

from amaml import Tasks, half_mse, mlp
from benchmarks.peers.turns import Quantity, serve
from experiment.networks import conv4

MOST_MAML = 500  # steps
MOST_UNROLLED = 200


def main() -> None:
    file, network, steps = sys.argv[1], sys.argv[2], int(sys.argv[3])
    torch.set_num_threads(1)
    given = {name: torch.from_numpy(value) for name, value in np.load(file).items()}
    tasks = Tasks(*(given[name] for name in ("support_x", "support_y", "query_x", "query_y")))
    if network == "conv":
        module, loss = conv4(tasks.support_x.shape[2:], 5, strided=True, activation="gelu"), cross_entropy
    else:
        module, loss = mlp(2, 1, given["shapes"][0, 0].item()), half_mse
    inner = module.to(given["theta"]), given["theta"], tasks, loss, given["inner_lr"].item(), steps
    quantities = by_torch(*inner, given["v"])
    for name in filter(importlib.util.find_spec, PACKAGES if steps <= MOST_UNROLLED else ()):
        quantities[f"MAML, {name}"] = partial(by_package, PACKAGES[name], *inner)
    serve(quantities)


def by_torch(module, theta, tasks, loss, inner_lr, steps, v) -> dict[str, Quantity]:
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
    }
    if steps <= MOST_MAML:
        quantities["MAML, checkpointed"] = lambda: unrolled(checkpointed)
    if steps <= MOST_UNROLLED:
        quantities["MAML, unrolled"] = lambda: unrolled(lambda phi: run(phi, steps))
    return quantities


def by_package(adapt, module, theta: Tensor, tasks: Tasks, loss, inner_lr: float, steps: int) -> Tensor:
    """The meta-gradient (P,), task by task; adapt goes back from the query loss of one to the module's parameters.

    adapt(module, support, query, inner_lr, steps) takes both losses as functions of a module.
    """
    nn.utils.vector_to_parameters(theta, module.parameters())
    module.zero_grad()
    for i in range(len(tasks)):
        support, query = (lambda net, x=x[i], y=y[i]: loss(net(x), y) for x, y in (tasks.support, tasks.query))
        adapt(module, support, query, inner_lr, steps)
    return torch.cat([p.grad.reshape(-1) for p in module.parameters()]) / len(tasks)


def _by_higher(module, support, query, inner_lr, steps) -> None:
    import higher

    optimizer = torch.optim.SGD(module.parameters(), lr=inner_lr)
    with higher.innerloop_ctx(module, optimizer, copy_initial_weights=False) as (net, inner):
        for _ in range(steps):
            inner.step(support(net))
        query(net).backward()


def _by_torchopt(module, support, query, inner_lr, steps) -> None:
    import torchopt

    optimizer = torchopt.MetaSGD(module, lr=inner_lr)
    start = [torchopt.extract_state_dict(part, by="reference") for part in (module, optimizer)]
    for _ in range(steps):
        optimizer.step(support(module))
    query(module).backward()
    for part, state in zip((module, optimizer), start, strict=True):
        torchopt.recover_state_dict(part, state)


PACKAGES = {"higher": _by_higher, "torchopt": _by_torchopt}

if __name__ == "__main__":
    main()
