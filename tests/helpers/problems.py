"""Tasks and networks for the tests, in float64: some with answers in closed form."""

import functools

import torch
from torch import Tensor, nn

import amaml
from amaml import Tasks
from amaml.flow.field import GradientFlow
from amaml.models import Apply
from baselines import FOMAML, IMAML, MAML, Reptile

METHODS = {  # of apply, loss, inner_lr and inner_steps
    "AMAML": amaml.AMAML,
    "AMAML-euler": functools.partial(amaml.AMAML, solver="euler"),
    "MAML": MAML,
    "FOMAML": FOMAML,
    "IMAML": IMAML,
    "Reptile": Reptile,
}


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def regression(tasks: int = 3, shots: int = 6, queries: int = 5, point: tuple[int, ...] = (2,), seed: int = 0) -> Tasks:
    """Random regression tasks of one output."""
    g = generator(seed)
    shapes = [(tasks, shots, *point), (tasks, shots, 1), (tasks, queries, *point), (tasks, queries, 1)]
    return Tasks(*(torch.randn(shape, generator=g, dtype=torch.float64) for shape in shapes))


def classification(tasks: int = 2, shots: int = 4, queries: int = 6, classes: int = 3, seed: int = 0) -> Tasks:
    """Random 8 x 8 grey images with random labels."""
    g = generator(seed)
    images = [torch.randn(tasks, n, 1, 8, 8, generator=g, dtype=torch.float64) for n in (shots, queries)]
    labels = [torch.randint(classes, (tasks, n), generator=g) for n in (shots, queries)]
    return Tasks(images[0], labels[0], images[1], labels[1])


def seeded(build, seed: int = 1) -> tuple[Tensor, Apply]:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return amaml.flatten(build().double())


@functools.cache  # one network for all tests, so that its graphs are traced once
def mlp(inputs: int = 2, width: int = 5) -> tuple[Tensor, Apply]:
    return seeded(lambda: amaml.mlp(inputs, 1, width))


def mlp_flow(shots: int = 6, prox: float = 0.0) -> GradientFlow:
    """The flow of that network on regression tasks."""
    theta, apply = mlp()
    return GradientFlow(apply, amaml.half_mse, regression(shots=shots), theta, prox)


@functools.cache
def linear() -> tuple[Tensor, Apply]:
    """The smallest network, three parameters: its graphs are traced in no time."""
    return seeded(lambda: nn.Linear(2, 1))


@functools.cache
def convnet(classes: int = 3) -> tuple[Tensor, Apply]:
    """A small convolutional classifier with batch norm."""

    def build() -> nn.Module:
        convolution = nn.Conv2d(1, 3, 3, stride=2, padding=1)
        return nn.Sequential(convolution, nn.BatchNorm2d(3), nn.Tanh(), nn.Flatten(), nn.Linear(48, classes))

    return seeded(build)


class Quadratic:
    """Linear regression without noise-free luck: every gradient flow and every scheme has a closed form.

    The support loss 0.5 mean (x u - y)^2 has the Hessian H = x'x / n and the minimum u*; so has the query loss with
    G = q'q / m and w*. All per task.
    """

    def __init__(self, tasks: int = 3, points: int = 8, inputs: int = 4, seed: int = 0) -> None:
        self.tasks = regression(tasks, points, points, (inputs,), seed)
        self.theta = torch.linspace(-1.0, 1.0, inputs, dtype=torch.float64)
        t = self.tasks
        self.hessian = t.support_x.mT @ t.support_x / points
        self.query_hessian = t.query_x.mT @ t.query_x / points
        self.minimum = torch.linalg.solve(self.hessian, t.support_x.mT @ t.support_y / points)[..., 0]
        self.query_minimum = torch.linalg.solve(self.query_hessian, t.query_x.mT @ t.query_y / points)[..., 0]

    @staticmethod
    def apply(theta: Tensor, x: Tensor) -> Tensor:
        return (x @ theta)[:, None]

    def gradient(self, propagator: Tensor, shift: Tensor) -> Tensor:
        """Mean meta-gradient where u(T) = propagator theta + shift."""
        final = (propagator @ self.theta) + shift
        lam = (self.query_hessian @ (final - self.query_minimum)[..., None])[..., 0]
        return (propagator.mT @ lam[..., None])[..., 0].mean(0)


def diagonal(values: list, theta: list[float], target: list[float]) -> tuple[Tensor, Tasks, Tensor]:
    """theta, a task for each row of values, its diagonal support Hessian; query gradients hold every direction."""
    values, theta, target = (torch.tensor(v, dtype=torch.float64) for v in (values, theta, target))
    rows = values.view(-1, len(theta))
    x, q = ((len(theta) * v).sqrt().diag_embed() for v in (rows, torch.ones_like(rows)))
    return theta, Tasks(x, x @ target[:, None], q, q @ (target[:, None] + 1)), values


def slope_error(gradient: Tensor, function, x: Tensor, directions: int = 6, step: float = 1e-4) -> float:
    """How far a gradient is from the differences of its function along random unit directions, relative.

    The five-point formula, good to about 1e-9 at this step.
    """
    along = torch.randn(directions, len(x), generator=generator(7), dtype=x.dtype)
    along = along / along.norm(dim=-1, keepdim=True)

    def difference(e: Tensor) -> Tensor:
        near, far = function(x + e) - function(x - e), function(x + 2 * e) - function(x - 2 * e)
        return (8 * near - far) / (12 * step)

    return relative_error(along @ gradient, torch.stack([difference(step * e) for e in along]))


def remembered(learner, theta: Tensor, batches: list[Tasks]):
    """What a learner remembers after a call for every batch."""
    memory = learner.init()
    for tasks in batches:
        memory = learner.update(memory, learner.gradient(theta, tasks, memory))
    return memory


def relative_error(value: Tensor, reference: Tensor) -> float:
    return ((value - reference).norm() / reference.norm()).item()


def checksum(*arrays) -> float:
    """A sum that every number enters, each with a weight of its own."""
    flat = torch.cat([torch.as_tensor(part).double().flatten() for part in arrays])
    return (flat * torch.linspace(1, 2, len(flat), dtype=torch.float64)).sum().item()
