"""Adaptation as a function: any outer loss, inner step and inner optimiser, against unrolled autograd."""

import copy

import pytest
import torch
from helpers.problems import generator, relative_error
from torch import nn
from torch.func import functional_call

import amaml
from amaml import Adaptation, InputError, Tasks
from amaml.flow.optimizers import RULES

STEPS = 6


class Body(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.body, self.head = nn.Sequential(nn.Linear(2, 4), nn.Tanh()), nn.Linear(4, 1)

    def forward(self, x):
        return self.head(self.body(x))


class Convolutional(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(1, 2, 3, stride=2), nn.BatchNorm2d(2), nn.Tanh(), nn.Flatten())
        self.head = nn.Linear(18, 1)

    def forward(self, x):
        return self.head(self.body(x))


class Recurrent(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.body, self.head = nn.LSTM(2, 3, batch_first=True), nn.Linear(3, 1)

    def forward(self, x):
        return self.head(self.body(x)[0][:, -1])


class Transformer(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        layer = nn.TransformerEncoderLayer(4, 2, 5, dropout=0.0, activation="gelu", batch_first=True)
        self.body, self.head = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False), nn.Linear(4, 1)

    def forward(self, x):
        return self.head(self.body(x).mean(1))


# network, shape of a point, the part that adapts
NETWORKS = {
    "mlp": (lambda: amaml.mlp(2, 1, 5), (2,), None),
    "shared body": (Body, (2,), ("head",)),
    "conv": (Convolutional, (1, 8, 8), None),
    "lstm": (Recurrent, (3, 2), None),
    "transformer": (Transformer, (3, 4), ("head", "body.layers.1.linear2")),
}


def random(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=generator(seed + len(shape)), dtype=torch.float64)


class Problem:
    """A network and tasks of which everything requires a gradient, and its inner loop by plain autograd."""

    def __init__(self, name: str = "shared body") -> None:
        build, point, self.adapt = NETWORKS[name]
        with torch.random.fork_rng():
            torch.manual_seed(1)
            self.module = build().double()
        sets = random(2, 5, *point), random(2, 5, 1, seed=1), random(2, 4, *point, seed=2), random(2, 4, 1, seed=3)
        self.tasks = Tasks(*(one.requires_grad_() for one in sets))
        self.meta = self.adaptation()
        self.names = list(self.meta.function.shapes)
        self.inputs = [*self.module.parameters(), self.tasks.support_x, self.tasks.support_y]

    def adaptation(self, **options) -> Adaptation:
        return Adaptation(
            self.module,
            amaml.half_mse,
            **{"inner_lr": 0.1, "inner_steps": STEPS, "adapt": self.adapt, "method": "maml"} | options,
        )

    def path(
        self, rates=(0.1,) * STEPS, rule=None, state=None, decay=0.0, decoupled=0.0, points=None, prox=0.0
    ) -> torch.Tensor:
        """phi after 0 to K steps, (K + 1, tasks, P), with its graph."""
        module, parameters = copy.deepcopy(self.module), dict(self.module.named_parameters())
        rows = []
        for task in range(len(self.tasks)):
            x, y = self.tasks.support_x[task], self.tasks.support_y[task]
            phi, state, steps = torch.cat([parameters[n].reshape(-1) for n in self.names]), None, []
            steps.append(phi)
            for k, rate in enumerate(rates):
                chosen = slice(None) if points is None else points[k]
                pieces = {
                    n: piece.view(parameters[n].shape)
                    for n, piece in zip(self.names, phi.split([parameters[n].numel() for n in self.names]), strict=True)
                }
                with torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH):
                    loss = amaml.half_mse(functional_call(module, parameters | pieces, (x[chosen],)), y[chosen])
                (gradient,) = torch.autograd.grad(loss, phi, create_graph=True)
                gradient = gradient + decay * phi + prox * (phi - steps[0])
                update, state = (gradient, ()) if rule is None else rule(gradient, state, k)
                phi = phi - rate * (update + decoupled * phi)
                steps.append(phi)
            rows.append(torch.stack(steps))
        return torch.stack(rows, 1)

    def compare(
        self, phi: torch.Tensor, reference: torch.Tensor, *inputs: torch.Tensor, tolerance: float = 1e-10
    ) -> None:
        """phi, and the gradients of an outer loss that no mean over tasks is, in everything."""
        assert relative_error(phi, reference) < tolerance
        weights = random(*phi.shape, seed=5)
        inputs = [*self.inputs, *inputs]
        ours, theirs = (
            torch.autograd.grad((weights * p).sum() + (p.norm(dim=-1).amax()) ** 2, inputs, materialize_grads=True)
            for p in (phi, reference)
        )
        for mine, right in zip(ours, theirs, strict=True):
            assert (mine - right).norm() <= tolerance * max(right.norm(), 1e-3)


@pytest.mark.parametrize("network", NETWORKS)
def test_phi_is_a_differentiable_function_of_everything(network):
    problem = Problem(network)
    problem.compare(problem.meta.adapt(problem.tasks), problem.path()[-1])


def test_the_path_lands_on_the_steps_asked_for():
    problem = Problem()
    at = (0, 1, 4, STEPS)
    problem.compare(problem.meta.adapt(problem.tasks, at=at), problem.path()[list(at)])
    problem.compare(problem.meta.adapt(problem.tasks, at=(2,)), problem.path()[[2]])


def test_a_weighted_sum_of_losses_along_the_way():
    problem = Problem()
    at, weights = (1, 4, 6), (0.1, 0.2, 0.7)
    value = problem.meta(problem.tasks, at=at, weights=weights)
    expected = sum(
        w * amaml.half_mse(problem.meta.predict(phi, problem.tasks.query_x), problem.tasks.query_y)
        for w, phi in zip(weights, problem.path()[list(at)], strict=True)
    )
    assert abs(value - expected) < 1e-12
    inputs = [*problem.inputs, problem.tasks.query_x, problem.tasks.query_y]
    for mine, right in zip(torch.autograd.grad(value, inputs), torch.autograd.grad(expected, inputs), strict=True):
        assert relative_error(mine, right) < 1e-10


@pytest.mark.parametrize(
    "outer",
    [
        lambda losses, phi, theta: losses.max(),
        lambda losses, phi, theta: losses @ torch.tensor([0.9, 0.1], dtype=losses.dtype),
        lambda losses, phi, theta: torch.logsumexp(losses, 0),
        lambda losses, phi, theta: losses.mean() + (phi - theta).square().sum(),
    ],
    ids=["worst case", "weighted", "soft maximum", "penalty on the way"],
)
def test_outer_losses_of_ones_own(outer):
    problem = Problem()
    theta = torch.cat([dict(problem.module.named_parameters())[n].reshape(-1) for n in problem.names])
    gradients = []
    for phi in (problem.meta.adapt(problem.tasks), problem.path()[-1]):
        errors = problem.meta.predict(phi, problem.tasks.query_x) - problem.tasks.query_y
        value = outer(errors.square().mean((1, 2)), phi, theta)
        gradients.append(torch.autograd.grad(value, problem.inputs))
    for mine, right in zip(*gradients, strict=True):
        assert relative_error(mine, right) < 1e-10


def test_two_backward_passes_give_the_same():
    problem = Problem()
    phi = problem.meta.adapt(problem.tasks)
    first, second = (torch.autograd.grad(phi.sum(), problem.inputs, retain_graph=True) for _ in range(2))
    for a, b in zip(first, second, strict=True):
        assert torch.equal(a, b)


def test_second_derivatives_are_refused():
    problem = Problem()
    (gradient,) = torch.autograd.grad(problem.meta.adapt(problem.tasks).sum(), problem.inputs[:1], create_graph=True)
    with pytest.raises(InputError, match="first derivatives alone"):
        gradient.sum().backward()


def test_the_flow_s_gradient_of_an_outer_loss_has_its_tolerance():
    problem = Problem("mlp")
    fine = problem.adaptation(inner_lr=0.1 / 64, inner_steps=40 * 64)
    flow = problem.adaptation(method="amaml", rtol=1e-3, inner_steps=40, solver="rk4")
    exact, ours = (
        torch.autograd.grad(meta.adapt(problem.tasks)[0].square().sum(), problem.inputs) for meta in (fine, flow)
    )
    assert flow.latest.error < 1e-3
    whole = [torch.cat([g.reshape(-1) for g in gradients]) for gradients in (ours, exact)]
    assert relative_error(*whole) < 2e-3


OPTIMIZERS = {
    "momentum": ({"inner_optimizer": "sgd", "momentum": 0.9}, lambda p: torch.optim.SGD(p, 0.1, momentum=0.9)),
    "nesterov": (
        {"inner_optimizer": "sgd", "momentum": 0.9, "nesterov": True, "weight_decay": 0.1},
        lambda p: torch.optim.SGD(p, 0.1, momentum=0.9, nesterov=True, weight_decay=0.1),
    ),
    "rmsprop": ({"inner_optimizer": "rmsprop"}, lambda p: torch.optim.RMSprop(p, 0.1)),
    "adam": (
        {"inner_optimizer": "adam", "betas": (0.8, 0.99), "weight_decay": 0.1},
        lambda p: torch.optim.Adam(p, 0.1, betas=(0.8, 0.99), weight_decay=0.1),
    ),
    "adamw": ({"inner_optimizer": "adamw", "weight_decay": 0.2}, lambda p: torch.optim.AdamW(p, 0.1, weight_decay=0.2)),
}


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_inner_optimisers_take_torchs_steps(name):
    options, make = OPTIMIZERS[name]
    problem = Problem("mlp")
    module = copy.deepcopy(problem.module)
    optimizer = make(module.parameters())
    for _ in range(STEPS):
        optimizer.zero_grad()
        amaml.half_mse(module(problem.tasks.support_x[1].detach()), problem.tasks.support_y[1].detach()).backward()
        optimizer.step()
    phi = problem.adaptation(**options).adapt(problem.tasks)[1]
    torch.testing.assert_close(phi, torch.cat([p.reshape(-1) for p in module.parameters()]), rtol=1e-10, atol=1e-12)


def number(value: float) -> torch.Tensor:
    return torch.tensor(value, dtype=torch.float64, requires_grad=True)


@pytest.mark.parametrize("network", ["shared body", "lstm"])
@pytest.mark.parametrize("checkpoints", [None, 2])
def test_the_gradient_through_adam_reaches_its_numbers_too(network, checkpoints):
    problem = Problem(network)
    rates = torch.linspace(0.1, 0.01, STEPS, dtype=torch.float64, requires_grad=True)
    betas, decay, prox = (number(0.8), number(0.9)), number(0.1), number(0.3)
    options = {"inner_optimizer": "adam", "betas": betas, "weight_decay": decay, "checkpoints": checkpoints}
    meta = problem.adaptation(inner_lr=rates, prox=prox, **options)
    for at in ((0, 3, STEPS), (1, 4)):
        reference = problem.path(rates, lambda g, s, k: RULES["adam"](g, s, k, betas=betas), decay=decay, prox=prox)
        problem.compare(meta.adapt(problem.tasks, at=at), reference[list(at)], rates, *betas, decay, prox)


def test_the_gradient_through_momentum_and_decoupled_decay():
    problem = Problem()
    momentum, decay = number(0.9), number(0.1)
    phi = problem.adaptation(inner_optimizer="sgd", momentum=momentum, nesterov=True).adapt(problem.tasks)
    reference = problem.path(rule=lambda g, s, k: RULES["sgd"](g, s, k, momentum=momentum, nesterov=True))
    problem.compare(phi, reference[-1], momentum)
    phi = problem.adaptation(inner_optimizer="adamw", weight_decay=decay).adapt(problem.tasks)
    problem.compare(phi, problem.path(rule=RULES["adam"], decoupled=decay)[-1], decay)


def test_a_rule_of_ones_own():
    def sign_like(gradient, state, step):
        mean = gradient if state is None else 0.5 * state[0] + gradient
        return torch.tanh(mean) / (step + 1), (mean,)

    problem = Problem()
    problem.compare(
        problem.adaptation(inner_optimizer=sign_like).adapt(problem.tasks), problem.path(rule=sign_like)[-1]
    )


def test_batches_of_the_support_set():
    problem = Problem()
    order = torch.randint(5, (STEPS, 3), generator=generator(3))
    problem.compare(problem.adaptation(inner_batch=order).adapt(problem.tasks), problem.path(points=order)[-1])
    drawn = problem.adaptation(inner_batch=2)
    assert torch.equal(drawn.adapt(problem.tasks), drawn.adapt(problem.tasks))
    assert not torch.equal(drawn.adapt(problem.tasks), problem.meta.adapt(problem.tasks))


@pytest.mark.parametrize("rate", [[0.1, 0.05, 0.01], lambda step: 0.1 / (step + 1), torch.tensor([0.1, 0.05, 0.01])])
def test_a_schedule_is_a_size_for_every_step(rate):
    problem = Problem()
    sizes = [rate(k) for k in range(3)] if callable(rate) else [float(r) for r in rate]
    problem.compare(
        problem.adaptation(inner_lr=rate, inner_steps=3).adapt(problem.tasks), problem.path(sizes)[-1], tolerance=1e-7
    )


def test_adam_at_a_zero_gradient_has_a_finite_derivative():
    problem = Problem()
    with torch.no_grad():
        problem.tasks.support_x.zero_()
    phi = problem.adaptation(inner_optimizer="adam").adapt(problem.tasks)
    for gradient in torch.autograd.grad(phi.sum(), problem.inputs):
        assert gradient.isfinite().all()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"inner_lr": [0.1, 0.2]}, "a schedule has a size for each of the 6 inner steps, got 2"),
        ({"inner_lr": torch.optim.SGD([torch.zeros(1)], 0.1)}, "inner_lr must be a number.* got SGD"),
        ({"inner_lr": "0.1"}, "inner_lr must be a number.* got str"),
        ({"inner_optimizer": "adam", "momentum": 0.9}, "unknown keyword of the inner optimizer adam 'momentum'"),
        ({"inner_optimizer": "adamm"}, "unknown inner optimizer 'adamm'; did you mean 'adam'"),
        ({"inner_optimizer": "sgd", "momentum": 1.5}, r"momentum must be in \[0, 1\), got 1.5"),
        ({"method": "amaml", "solver": "rk4", "inner_optimizer": "adam"}, "solver rk4 follows plain gradient descent"),
        ({"adjoint": "continuous", "inner_batch": 2}, "adjoint continuous is that of plain gradient descent"),
        ({"inner_batch": 9}, "inner_batch 9 is more than the 5 support points"),
        ({"method": "reptile"}, "method reptile defines no meta-gradient of phi"),
    ],
)
def test_what_cannot_be_is_said(options, message):
    problem = Problem()
    with pytest.raises(InputError, match=message):
        problem.adaptation(**options).adapt(problem.tasks).sum().backward()


@pytest.mark.parametrize("at", [(), (3, 2), (0, 7), (-1,), (1.5,)])
def test_inner_steps_to_land_on_increase_within_the_loop(at):
    with pytest.raises(InputError, match="at must be increasing numbers of inner steps from 0 to 6"):
        Problem().meta.adapt(Problem().tasks, at=at)
