"""What it is worth to learn how much a noisy ray counts (results/tomography).

    python -m benchmarks.noise_weight              writes results/tomography/noise-weight.md, line by line

A ray through an integral I keeps a share exp(-I) of its photons, and its measurement has a variance in proportion to
exp(I). The inner loss weighs each squared residual by exp(-gamma I), in parts of the sum: gamma 0 is the plain mean, 1
the inverse of the variance. gamma is learned with theta, by the same gradient through all inner steps.
"""

import argparse
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from amaml import Adaptation, compiled
from amaml.objective import Model
from data.episodes import Sampling
from data.files import write_atomically
from data.phantoms import Phantoms, along_rays, psnr
from experiment.networks import fourier, seeded
from experiment.tables import as_markdown, shown

OUT = Path("results/tomography/noise-weight.md")
# as amaml-50 of the target tomography-cases
UPDATES, RATE, STEPS, TEST_STEPS, TEST_TASKS, NOISE = 180, 0.5, 50, (10, 50, 200), 12, 0.05
GAMMAS = {"0, the plain mean": 0.0, "1, the inverse variance": 1.0, "learned, from 0": None}


class Weighed(nn.Module):
    """A network of places beside gamma, which is no weight of it."""

    def __init__(self, network: nn.Module, gamma: float | None) -> None:
        super().__init__()
        self.network = network
        self.gamma = nn.Parameter(torch.tensor(gamma or 0.0), requires_grad=gamma is None)

    def forward(self, x: Tensor) -> Tensor:
        return self.network(x)


def weighed_residuals(model: Model, x: Tensor, y: Tensor) -> Tensor:
    """Of rays x (rays, samples, 2) with the means y (rays, 1) along their 2 units of length."""
    weights = torch.softmax(-2 * model.parameters["gamma"] * y, 0)
    return (weights * (model(x).mean(-2) - y).square()).sum()


def trained(seed: int, gamma: float | None) -> tuple[list[float], float]:
    """The mean PSNR in dB after TEST_STEPS, and gamma, after UPDATES from the network of a seed."""
    domain = Phantoms(Sampling(4, 256, 3, seed, torch.float32, noise=NOISE))
    module = Weighed(seeded(lambda: fourier((2,), 1, width=32), seed), gamma)
    meta = Adaptation(
        module, None, RATE, STEPS, ("network",), query_loss=along_rays, objective=weighed_residuals, robust="length"
    )
    optimizer = torch.optim.Adam(meta.parameters(), lr=0.01)
    for update in range(UPDATES):
        optimizer.zero_grad()
        meta(domain.episode(update)).backward()
        optimizer.step()
    new = domain.meta_test(TEST_TASKS)
    with torch.no_grad():
        path = meta.adapt(new, inner_steps=max(TEST_STEPS), at=TEST_STEPS)
        scores = [torch.vmap(psnr)(meta.predict(phi, new.test_x), new.test_y).mean().item() for phi in path]
    return scores, module.gamma.item()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    seeds = parser.parse_args().seeds
    torch.set_num_threads(1)
    table = [["gamma", *(f"{steps} steps" for steps in TEST_STEPS), "minus the plain mean", "learned gamma"]]
    with compiled():
        for name, gamma in GAMMAS.items():
            scores, learned = map(np.array, zip(*(trained(seed, gamma) for seed in seeds), strict=True))
            if gamma == 0:
                plain = scores[:, -1]
            apart = shown(scores[:, -1] - plain, sign=True) if gamma != 0 else ""
            values = ", ".join(f"{one:.2f}" for one in learned) if gamma is None else ""
            table.append([name, *map(shown, scores.T), apart, values])
            print(*table[-1], sep=" | ", flush=True)
            write_atomically(OUT, f"{_head(seeds)}\n\n{as_markdown(table)}\n".encode())


def _head(seeds: list[int]) -> str:
    return (
        f"`python -m benchmarks.noise_weight --seeds {' '.join(map(str, seeds))}`: 4 views with a noise of {NOISE}, "
        f"A-MAML through {STEPS} steps of {RATE}, {UPDATES} updates of 3 tasks, Adam 1e-2, tasks of equal length, "
        f"float32. PSNR in dB over {TEST_TASKS} phantoms after so many steps of reconstruction, mean ± 95% interval "
        "over the seeds; the differences, after the last, are of the same seeds."
    )


if __name__ == "__main__":
    main()
