"""The meta-gradients of everything that enters the inner loss, against unrolled autograd, task by task."""

import copy

import pytest
import torch
from problems import generator, relative_error
from torch import nn
from torch.func import functional_call

import amaml
from amaml import Adaptation, Tasks

STEPS = 7


class Body(nn.Module):
    """A shared body of two layers and a head."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Linear(2, 5), nn.Tanh(), nn.Linear(5, 4), nn.Tanh())
        self.head = nn.Linear(4, 1)

    def forward(self, x):
        return self.head(self.body(x))


class Convolutional(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(1, 3, 3, stride=2, padding=1, bias=False), nn.BatchNorm2d(3), nn.Tanh(), nn.Flatten()
        )
        self.head = nn.Linear(48, 3)

    def forward(self, x):
        return self.head(self.body(x))


class Encoder(nn.Module):
    """A transformer layer over embedded sequences with padding, from a dict of two tensors."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.TransformerEncoderLayer(4, 2, 6, dropout=0.0, activation="gelu", batch_first=True)
        self.head = nn.Linear(4, 1)

    def forward(self, tokens, mask):
        seen = self.body(tokens, src_key_padding_mask=mask) * ~mask.unsqueeze(-1)
        return self.head(seen.sum(-2) / (~mask).sum(-1, keepdim=True))


def half_squares(prediction, target):
    return 0.5 * (prediction - target).square()


def half_mse(prediction, target):
    return half_squares(prediction, target).mean()


def per_point(prediction, labels):
    return nn.functional.cross_entropy(prediction, labels, reduction="none")


def random(*shape):
    return torch.randn(shape, generator=generator(len(shape)), dtype=torch.float64)


def regression():
    return Tasks(random(3, 6, 2), random(3, 6, 1), random(3, 5, 2), random(3, 5, 1)[:, :, :])


def images():
    labels = [torch.randint(3, (2, n), generator=generator(n)) for n in (4, 6)]
    return Tasks(random(2, 4, 1, 8, 8), labels[0], random(2, 6, 1, 8, 8), labels[1])


def sequences():
    def points(n):
        mask = torch.arange(3) >= torch.randint(1, 4, (2, n, 1), generator=generator(n))
        return {"tokens": random(2, n, 3, 4), "mask": mask}

    return Tasks(points(5), random(2, 5, 1), points(4), random(2, 4, 1))


def mlp():
    return amaml.mlp(2, 1, 5)


# network, tasks, loss of every point, the part that adapts, inner_lr, prox
CASES = {
    "mlp": (mlp, regression, half_squares, None, 0.1, 0.3),
    "head of a body": (Body, regression, half_squares, ("head",), 0.1, 0.3),
    "body of a head": (Body, regression, half_squares, ("body.2", "body.0.bias"), 0.1, 0.0),
    "conv head": (Convolutional, images, per_point, ("head",), 0.05, 0.1),
    "conv": (Convolutional, images, per_point, None, 0.05, 0.1),
    "transformer head": (Encoder, sequences, half_squares, ("head", "body.linear2"), 0.1, 0.2),
}
RATES = ("scalar", "each")


class Problem:
    """A module, tasks with weights, rates and prox, all of which require a gradient."""

    def __init__(self, case: str, rates: str = "scalar") -> None:
        build, tasks, self.loss, self.adapt, lr, prox = CASES[case]
        with torch.random.fork_rng():
            torch.manual_seed(1)
            self.module = build().double()
        t = tasks()
        weights = [1 + random(*amaml.points.first(x).shape[:2]).sigmoid() for x in (t.support_x, t.query_x)]
        leaves = {"support_weight": weights[0], "query_weight": weights[1]}
        self.tasks = Tasks(t.support_x, t.support_y, t.query_x, t.query_y, **leaves)
        self.leaves = {n: v.requires_grad_() for n, v in self.tasks.leaves().items() if v.is_floating_point()}
        self.adapted = amaml.adaptation.adapted_names(self.module, self.adapt)
        self.prox = torch.tensor(prox, dtype=torch.float64, requires_grad=True)
        if rates == "scalar":
            self.lr = torch.tensor(lr, dtype=torch.float64, requires_grad=True)
            self.inputs = [self.lr]
        else:  # scalars for biases, of a shape of their own for weights, and one that does not move
            shapes = {n: p.shape for n, p in self.module.named_parameters() if n in self.adapted}
            self.lr = {n: lr * (1 + random(*s).sigmoid() if len(s) > 1 else torch.ones(())) for n, s in shapes.items()}
            self.lr = {n: rate.double().requires_grad_() for n, rate in self.lr.items()}
            self.lr[self.adapted[0]].data.reshape(-1)[0] = 0.0
            self.inputs = list(self.lr.values())
        self.inputs += [self.prox, *self.module.parameters(), *self.leaves.values()]

    def meta(self, **options) -> Adaptation:
        options = {"inner_lr": self.lr, "prox": self.prox, "solver": "euler"} | options
        return Adaptation(self.module, self.loss, inner_steps=STEPS, adapt=self.adapt, **options)

    def unrolled(self, steps: int = STEPS, finer: int = 1):
        """The mean query loss with its graph, by steps of autograd: steps * finer of inner_lr / finer."""
        module = copy.deepcopy(self.module).train()
        parameters = dict(self.module.named_parameters())

        def loss_of(phi, x, y, weight):
            args, kwargs = ((), x) if isinstance(x, dict) else ((x,), {})
            with torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH):
                prediction = functional_call(module, parameters | phi, args, kwargs)
            values = self.loss(prediction, y)
            return (weight * values.reshape(len(weight), -1).mean(1)).sum() / weight.sum()

        total = 0.0
        for i in range(len(self.tasks)):
            task = self.tasks[i : i + 1]
            rows = [
                {k: v[0] for k, v in x.items()} if isinstance(x, dict) else x[0]
                for x in vars(task).values()
                if x is not None
            ]
            support_x, support_y, query_x, query_y, support_weight, query_weight = rows
            theta = {name: parameters[name] for name in self.adapted}
            phi = theta
            for _ in range(steps * finer):
                pull = sum((phi[n] - theta[n]).square().sum() for n in phi)
                inner = loss_of(phi, support_x, support_y, support_weight) + self.prox / 2 * pull
                gradients = torch.autograd.grad(inner, list(phi.values()), create_graph=True)
                rates = self.lr if isinstance(self.lr, dict) else dict.fromkeys(phi, self.lr)
                phi = {n: p - rates[n] / finer * g for (n, p), g in zip(phi.items(), gradients, strict=True)}
            total = total + loss_of(phi, query_x, query_y, query_weight) / len(self.tasks)
        return total


def compared(problem: Problem, value, reference, tolerance: float) -> None:
    """Every gradient, by itself, against the reference's."""
    assert abs(value.item() / reference.item() - 1) < tolerance
    found = torch.autograd.grad(value, problem.inputs, allow_unused=True)
    expected = torch.autograd.grad(reference, problem.inputs, allow_unused=True)
    for i, (a, b) in enumerate(zip(found, expected, strict=True)):
        assert b.norm() > 0, i
        assert relative_error(a, b) < tolerance, i


@pytest.mark.parametrize("rates", RATES)
@pytest.mark.parametrize("case", CASES)
def test_euler_is_unrolled_autograd(case, rates):
    problem = Problem(case, rates)
    compared(problem, problem.meta()(problem.tasks), problem.unrolled(), 1e-10)


@pytest.mark.parametrize("rates", RATES)
def test_the_flow_is_the_limit_of_unrolled_autograd(rates):
    problem = Problem("head of a body", rates)
    coarse, fine = (torch.autograd.grad(problem.unrolled(finer=n), problem.inputs) for n in (6, 12))
    expected = [2 * b - a for a, b in zip(coarse, fine, strict=True)]
    for options in (
        {"solver": "auto"},
        {"solver": "rkc"},
        {"solver": "dopri5"},
        {"solver": "auto", "adjoint": "continuous"},
        {"solver": "auto", "checkpoints": 2},
        {"solver": "auto", "task_chunk": 2},
    ):
        found = torch.autograd.grad(problem.meta(**options)(problem.tasks), problem.inputs)
        for i, (a, b) in enumerate(zip(found, expected, strict=True)):
            assert relative_error(a, b) < 2e-3, (options, i)
