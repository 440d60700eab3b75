"""Networks and tasks of which everything requires a gradient, and their inner loops by plain autograd, task by task."""

import copy
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call

import amaml
from amaml import Adaptation, Tasks
from amaml.models import Flattened
from amaml.points import first
from helpers.problems import classification, generator, regression, relative_error

STEPS = 7


class Headed(nn.Module):
    """A shared body and a head."""

    def __init__(self, body: nn.Module, head: nn.Module) -> None:
        super().__init__()
        self.body, self.head = body, head

    def forward(self, x):
        return self.head(self.body(x))


class Sets(Headed):
    """Of tokens with padding, from a dict of two tensors."""

    def forward(self, tokens, mask):
        seen = self.body(tokens) * ~mask.unsqueeze(-1)
        return self.head(seen.sum(-2) / (~mask).sum(-1, keepdim=True))


def body(kind: type[Headed] = Headed) -> Headed:
    return kind(nn.Sequential(nn.Linear(2, 4), nn.Tanh()), nn.Linear(4, 1))


def convolutional() -> Headed:
    layers = nn.Conv2d(1, 3, 3, stride=2, padding=1, bias=False), nn.BatchNorm2d(3), nn.Tanh(), nn.Flatten()
    return Headed(nn.Sequential(*layers), nn.Linear(48, 3))


def half_squares(prediction: Tensor, target: Tensor) -> Tensor:
    return 0.5 * (prediction - target).square()


def per_point(prediction: Tensor, labels: Tensor) -> Tensor:
    return nn.functional.cross_entropy(prediction, labels, reduction="none")


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=generator(seed + len(shape)), dtype=torch.float64)


def sequences() -> Tasks:
    def points(n: int) -> dict[str, Tensor]:
        mask = torch.arange(3) >= torch.randint(1, 4, (2, n, 1), generator=generator(n))
        return {"tokens": random(2, n, 3, 2), "mask": mask}

    return Tasks(points(5), random(2, 5, 1), points(4), random(2, 4, 1))


# network, tasks, loss of every point, the part that adapts, inner_lr, prox
CASES = {
    "mlp": (lambda: amaml.mlp(2, 1, 5), regression, half_squares, None, 0.1, 0.3),
    "head of a body": (body, regression, half_squares, ("head",), 0.1, 0.3),
    "parts of both": (body, regression, half_squares, ("head.weight", "body.0.bias"), 0.1, 0.0),
    "conv head": (convolutional, classification, per_point, ("head",), 0.05, 0.1),
    "conv": (convolutional, partial(classification, seed=1), per_point, None, 0.05, 0.1),
    "dict": (partial(body, Sets), sequences, half_squares, ("head", "body.0.weight"), 0.1, 0.2),
}


def small(**options: Any) -> tuple[Adaptation, Tasks]:
    """The head of a body on tasks that require no gradient."""
    problem = Problem(plain=True)
    return problem.adaptation(**{"loss": amaml.half_mse, "inner_steps": 5} | options), problem.tasks.detach()


def number(value: float) -> Tensor:
    return torch.tensor(value, dtype=torch.float64, requires_grad=True)


class Problem:
    """A module and tasks with weights, rates ("scalar", or "each" parameter's own) and prox.

    plain: without weights, of a fixed rate and no prox. inputs: all that requires a gradient.
    """

    def __init__(self, case: str = "head of a body", rates: str = "scalar", plain: bool = False) -> None:
        build, tasks, self.points_loss, self.adapt, lr, prox = CASES[case]
        with torch.random.fork_rng():
            torch.manual_seed(1)
            self.module = build().double()
        self.copy, self.plain = copy.deepcopy(self.module), plain
        t, weights = tasks(), {}
        if not plain:
            for name, x in (("support_weight", t.support_x), ("query_weight", t.query_x)):
                weights[name] = 1 + random(*first(x).shape[:2]).sigmoid()
        self.tasks = Tasks(t.support_x, t.support_y, t.query_x, t.query_y, **weights)
        self.leaves = {n: v.requires_grad_() for n, v in self.tasks.leaves().items() if v.is_floating_point()}
        self.loss = (lambda p, y: self.points_loss(p, y).mean()) if plain else self.points_loss
        self.names = [*Flattened(self.module, self.adapt).shapes]
        self.parameters = dict(self.module.named_parameters())
        self.shapes = {name: self.parameters[name].shape for name in self.names}
        self.lr, self.prox = (lr, 0.0) if plain else (number(lr), number(prox))
        if rates == "each":  # scalars for biases, of a shape of their own for weights, and one that does not move
            each = {n: 1 + random(*s).sigmoid() if len(s) > 1 else torch.ones(()) for n, s in self.shapes.items()}
            self.lr = {n: (lr * rate.double()).requires_grad_() for n, rate in each.items()}
            self.lr[self.names[0]].data.reshape(-1)[0] = 0.0
        rates = self.lr.values() if rates == "each" else [self.lr]
        self.inputs = [] if plain else [*rates, self.prox]
        self.inputs += [*self.parameters.values(), *self.leaves.values()]

    def adaptation(self, **options: Any) -> Adaptation:
        """By the steps themselves, unless another method or solver is asked for."""
        ours = {"loss": self.loss, "inner_lr": self.lr, "inner_steps": STEPS, "adapt": self.adapt}
        ours |= {} if "method" in options else {"solver": "euler"}
        ours |= {} if self.plain else {"prox": self.prox}
        return Adaptation(self.module, **ours | options)

    def theta(self) -> Tensor:
        """What adapts, with its graph to the module's parameters."""
        return torch.cat([self.parameters[name].reshape(-1) for name in self.names])

    def task_loss(self, phi: Tensor, task: int, kind: str, chosen: Any = slice(None)) -> Tensor:
        """The weighted mean over the chosen support or query points of a task."""
        x, y, weight = (getattr(self.tasks, f"{kind}_{part}") for part in ("x", "y", "weight"))
        x = {k: v[task] for k, v in x.items()} if isinstance(x, dict) else x[task][chosen]
        sizes = [shape.numel() for shape in self.shapes.values()]
        pieces = {n: p.view(s) for (n, s), p in zip(self.shapes.items(), phi.split(sizes), strict=True)}
        arguments = ((), x) if isinstance(x, dict) else ((x,), {})
        prediction = functional_call(self.copy, self.parameters | pieces, *arguments)
        values = self.points_loss(prediction, y[task][chosen])
        values = values.reshape(len(values), -1).mean(1)
        weight = torch.ones_like(values) if weight is None else weight[task]
        return (weight * values).sum() / weight.sum()

    def path(self, rates=None, rule=None, decay=0.0, points=None, prox=None) -> Tensor:
        """phi after 0 to K steps, (K + 1, tasks, P), with its graph; rates: of every step; points: what each sees."""
        own = self.lr
        if isinstance(own, dict):
            own = torch.cat([own[n].expand(shape).reshape(-1) for n, shape in self.shapes.items()])
        rates, prox = [own] * STEPS if rates is None else rates, self.prox if prox is None else prox
        rows = []
        for task in range(len(self.tasks)):
            steps, state = [self.theta()], None
            for k, rate in enumerate(rates):
                phi = steps[-1]
                loss = self.task_loss(phi, task, "support", slice(None) if points is None else points[k])
                (gradient,) = torch.autograd.grad(loss, phi, create_graph=True)
                gradient = gradient + decay * phi + prox * (phi - steps[0])
                update, state = (gradient, ()) if rule is None else rule(gradient, state, k)
                steps.append(phi - rate * update)
            rows.append(torch.stack(steps))
        return torch.stack(rows, 1)

    def query_loss(self, phi: Tensor) -> Tensor:
        """The mean over the tasks, each at its row of phi (tasks, P)."""
        return torch.stack([self.task_loss(row, task, "query") for task, row in enumerate(phi)]).mean()

    def compare(self, value: Tensor, reference: Tensor, *more: Tensor, tolerance: float = 1e-10) -> None:
        """A number or phi, and the gradients in every input, also of an outer loss that no mean over tasks is."""
        assert relative_error(value, reference) < tolerance
        inputs, weights = [*self.inputs, *more], random(*value.shape, seed=5)

        def gradients(v: Tensor) -> tuple[Tensor, ...]:
            outer = v if v.ndim == 0 else (weights * v).sum() + v.norm(dim=-1).amax() ** 2
            return torch.autograd.grad(outer, inputs, materialize_grads=True)

        for i, (mine, right) in enumerate(zip(gradients(value), gradients(reference), strict=True)):
            assert (mine - right).norm() <= tolerance * max(right.norm(), 1e-3), i
            assert value.ndim or right.norm() > 0, i
