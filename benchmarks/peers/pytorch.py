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
from torch.nn.functional import cross_entropy, mse_loss
from torch.utils.checkpoint import checkpoint

from amaml import mlp
from benchmarks.peers.turns import serve
from experiment.networks import conv4


def main() -> None:
    file, network, steps = sys.argv[1], sys.argv[2], int(sys.argv[3])
    torch.set_num_threads(1)
    given = {name: torch.from_numpy(value) for name, value in np.load(file).items()}
    theta, inner_lr = given["theta"], given["inner_lr"].item()
    support, query = ((given[f"{part}_x"], given[f"{part}_y"]) for part in ("support", "query"))
    is_conv = network == "conv"
    module = conv4(support[0].shape[2:], 5, strided=True, activation="gelu") if is_conv else mlp(2, 1, WIDTHS[network])
    module, loss = module.to(theta), cross_entropy if is_conv else lambda p, y: 0.5 * mse_loss(p, y)
    names, shapes = zip(*((name, p.shape) for name, p in module.named_parameters()), strict=True)
    sizes = [shape.numel() for shape in shapes]

    def value(phi, x, y):
        parts = (part.view(shape) for part, shape in zip(phi.split(sizes), shapes, strict=True))
        return loss(functional_call(module, dict(zip(names, parts, strict=True)), (x,)), y)

    gradients = vmap(grad(value))
    products = vmap(lambda p, v, x, y: vjp(lambda p: grad(value)(p, x, y), p)[1](v)[0])
    tasks = len(support[0])
    phi, v = theta.expand(tasks, -1).contiguous(), given["v"].expand(tasks, -1).contiguous()

    def run(phi, count):
        for _ in range(count):
            phi = phi - inner_lr * gradients(phi, *support)
        return phi

    def first_order():
        with torch.no_grad():
            return gradients(run(phi, steps), *query).mean(0)

    def unrolled(segments):
        leaf = theta.clone().requires_grad_()
        phi = leaf.expand(tasks, -1)
        for count in segments:
            phi = run(phi, count) if len(segments) == 1 else checkpoint(run, phi, count, use_reentrant=True)
        vmap(value)(phi, *query).mean().backward()
        return leaf.grad

    long = math.isqrt(steps)
    segments = [long] * (steps // long) + [steps % long] * bool(steps % long)
    quantities = {
        "gradient": lambda: gradients(phi, *support),
        "product": lambda: products(phi, v, *support),
        "FOMAML": first_order,
        "MAML, checkpointed": lambda: unrolled(segments),
    }
    if steps <= MOST_UNROLLED:
        quantities["MAML, unrolled"] = lambda: unrolled([steps])
        for package, each in (("higher", by_higher), ("torchopt", by_torchopt)):
            if importlib.util.find_spec(package):
                quantities[f"MAML, {package}"] = lambda each=each: each(
                    module, loss, theta, support, query, inner_lr, steps
                )
    serve(quantities)


def by_higher(module, loss, theta, support, query, inner_lr, steps):
    import higher

    torch.nn.utils.vector_to_parameters(theta, module.parameters())
    module.zero_grad()
    for x, y, x_q, y_q in zip(*support, *query, strict=True):
        optimizer = torch.optim.SGD(module.parameters(), lr=inner_lr)
        with higher.innerloop_ctx(module, optimizer, copy_initial_weights=False) as (net, inner):
            for _ in range(steps):
                inner.step(loss(net(x), y))
            (loss(net(x_q), y_q) / len(support[0])).backward()
    return torch.cat([p.grad.reshape(-1) for p in module.parameters()])


def by_torchopt(module, loss, theta, support, query, inner_lr, steps):
    import torchopt

    torch.nn.utils.vector_to_parameters(theta, module.parameters())
    module.zero_grad()
    optimizer = torchopt.MetaSGD(module, lr=inner_lr)
    start = torchopt.extract_state_dict(module, by="reference"), torchopt.extract_state_dict(optimizer, by="reference")
    parameters = list(module.parameters())
    for x, y, x_q, y_q in zip(*support, *query, strict=True):
        for _ in range(steps):
            optimizer.step(loss(module(x), y))
        (loss(module(x_q), y_q) / len(support[0])).backward()
        torchopt.recover_state_dict(module, start[0])
        torchopt.recover_state_dict(optimizer, start[1])
    return torch.cat([p.grad.reshape(-1) for p in parameters])


WIDTHS = {"small": 32, "wide": 256}
MOST_UNROLLED = 200

if __name__ == "__main__":
    main()
