"""This library: the same quantities, and A-MAML's gradient of the flow.

    python -m benchmarks.peers.ours NETWORK DTYPE STEPS [CHECKPOINT]

A-MAML's seconds are those of a long run: a call is one for each of BATCHES batches, by a learner that has settled on
as many others; measuring its error is counted in.
"""

import itertools
import sys
import warnings

import torch
from torch import Tensor

from amaml import AMAML, compiled
from amaml.engine import derivatives
from benchmarks.peers.turns import Quantity, serve
from benchmarks.problems import Problem, methods, problem

BATCHES = 50
NETWORKS = {"small": ("alpine", 32), "wide": ("alpine", 256), "conv": ("conv", 0)}  # a problem, and its width
LEARNERS = {
    "FOMAML": "FOMAML",
    "MAML, checkpointed": "MAML checkpointed",
    "MAML, unrolled": "A-MAML euler",
    "A-MAML, 1e-2": "A-MAML auto 1e-2",
    "A-MAML, 1e-3": "A-MAML auto",
}


def named(network: str, dtype: str, trained: str | None = None) -> Problem:
    """The problem of a network of NETWORKS."""
    name, width = NETWORKS[network]
    return problem(name, getattr(torch, dtype), "cpu", trained, width=width)


def direction(theta: Tensor) -> Tensor:
    """The v of the products, (P,)."""
    return torch.sin(torch.arange(len(theta), dtype=torch.float64)).to(theta)


def main() -> None:
    network, dtype, steps, *trained = sys.argv[1:]
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    p = named(network, dtype, *trained)
    phi = p.theta.expand(len(p.tasks), -1).contiguous()
    given, v = (p.apply, p.loss, phi), direction(p.theta).expand_as(phi).contiguous()
    quantities = {
        "gradient": lambda: derivatives.gradients(*given, *p.tasks.support),
        "product": lambda: derivatives.hvps(*given, v, *p.tasks.support),
    }
    for name, method in LEARNERS.items():
        of_flow = name.startswith("A-MAML")
        quantities[name] = (settled if of_flow else once)(methods(p)[method](int(steps)), p)
    with compiled():
        serve(quantities, lambda name: BATCHES if name.startswith("A-MAML") else 1)


def once(learner: AMAML, p: Problem) -> Quantity:
    return lambda: learner.meta_gradient(p.theta, p.tasks).value


def settled(learner: AMAML, p: Problem) -> Quantity:
    first = itertools.count(1, BATCHES)

    def call() -> Tensor:
        start = min(next(first), BATCHES + 1)
        return [learner.meta_gradient(p.theta, p.episode(n)).value for n in range(start, start + BATCHES)][-1]

    return call


if __name__ == "__main__":
    main()
