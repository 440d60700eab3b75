"""Adaptation as a function: any outer loss, inner step and inner optimiser, against unrolled autograd."""

import copy
import warnings
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from helpers.modules import Forward
from helpers.problems import generator, mlp, regression, relative_error, slope_error
from helpers.unrolled import STEPS, Problem, number, random

import amaml
from amaml import InputError
from amaml.engine import derivatives
from amaml.flow.optimizers import RULES, Optimizer


def plain(case: str = "head of a body") -> Problem:
    return Problem(case, plain=True)


@pytest.mark.parametrize("at", [None, (0, 1, 4, STEPS), (2,)])
@pytest.mark.parametrize("case", ["conv", "head of a body"])
def test_phi_is_a_differentiable_function_of_everything(case, at):
    """At its end, or at the steps asked for."""
    problem = plain(case)
    expected = problem.path()[-1 if at is None else list(at)]
    problem.compare(problem.adaptation().adapt(problem.tasks, at=at), expected)


@pytest.mark.parametrize("method", ["fomaml", "reptile"])
def test_first_order_methods_have_the_same_path(method):
    problem, at = plain(), (0, 1, 4, STEPS)
    found = problem.adaptation(method=method).adapt(problem.tasks, at=at)
    torch.testing.assert_close(found.detach(), problem.path()[list(at)].detach(), rtol=1e-9, atol=1e-12)


def test_a_weighted_sum_of_losses_along_the_way():
    problem, at, weights = Problem(), (1, 4, 6), (0.1, 0.2, 0.7)
    value = problem.adaptation()(problem.tasks, at=at, weights=weights)
    path = problem.path()[list(at)]
    problem.compare(value, sum(w * problem.query_loss(phi) for w, phi in zip(weights, path, strict=True)))


@pytest.mark.parametrize(("solver", "tolerance"), [("euler", 0.0), ("auto", 1e-2)])
def test_two_backward_passes_give_the_same(solver, tolerance):
    """Of a flow, the first of which measures its error, each has a budget of its own."""
    problem = plain("mlp")
    phi = problem.adaptation(solver=solver, inner_lr=0.01, inner_steps=100).adapt(problem.tasks)
    leaves = list(problem.module.parameters())
    first, second = (torch.autograd.grad(phi.sum(), leaves, retain_graph=True) for _ in range(2))
    torch.testing.assert_close(first, second, rtol=tolerance, atol=tolerance / 100)


def test_the_flow_s_gradient_of_an_outer_loss_has_its_tolerance():
    problem, found = plain("mlp"), []
    for rtol in (1e-3, 1e-5):
        meta = problem.adaptation(solver="rk4", rtol=rtol, inner_steps=40)
        outer = meta.adapt(problem.tasks)[0].square().sum()
        gradients = torch.autograd.grad(outer, problem.inputs, materialize_grads=True)
        found.append(torch.cat([gradient.reshape(-1) for gradient in gradients]))
        assert meta.latest.error < rtol
    assert relative_error(*found) < 2e-3


OPTIMIZERS = [  # rule, torch's own, what both are given besides the rate
    ("momentum", torch.optim.SGD, {"momentum": 0.9}),
    ("sgd", torch.optim.SGD, {"momentum": 0.9, "nesterov": True, "weight_decay": 0.1}),
    ("rmsprop", torch.optim.RMSprop, {}),
    ("adam", torch.optim.Adam, {"betas": (0.8, 0.99), "weight_decay": 0.1}),
    ("adamw", torch.optim.AdamW, {"weight_decay": 0.2}),
]


@pytest.mark.parametrize(("rule", "make", "options"), OPTIMIZERS)
def test_inner_optimisers_take_torchs_steps(rule, make, options):
    problem = plain("mlp")
    module = copy.deepcopy(problem.module)
    optimizer = make(module.parameters(), 0.1, **options)
    for _ in range(STEPS):
        optimizer.zero_grad()
        amaml.half_mse(module(problem.tasks.support_x[1].detach()), problem.tasks.support_y[1].detach()).backward()
        optimizer.step()
    phi = problem.adaptation(inner_optimizer=rule, **options).adapt(problem.tasks)[1]
    torch.testing.assert_close(phi, torch.cat([p.reshape(-1) for p in module.parameters()]), rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize(("network", "checkpoints"), [("head of a body", None), ("mlp", 2)])
def test_the_gradient_through_adam_reaches_its_numbers_too(network, checkpoints):
    problem = plain(network)
    rates = torch.linspace(0.1, 0.01, STEPS, dtype=torch.float64, requires_grad=True)
    betas, decay, prox = (number(0.8), number(0.9)), number(0.1), number(0.3)
    options = {"inner_optimizer": "adam", "betas": betas, "weight_decay": decay, "checkpoints": checkpoints}
    meta = problem.adaptation(inner_lr=rates, prox=prox, **options)
    for at in ((0, 3, STEPS), (1, 4)):
        reference = problem.path(rates, lambda g, s, k: RULES["adam"](g, s, k, betas=betas), decay=decay, prox=prox)
        problem.compare(meta.adapt(problem.tasks, at=at), reference[list(at)], rates, *betas, decay, prox)


@pytest.mark.parametrize("name", RULES)
def test_the_gradient_through_every_rule_is_the_slope_of_the_adapted_loss(name):
    """Autograd, which the other tests compare with, would not see a rule that cuts its own derivative."""
    (theta, apply), tasks, momentum = mlp(), regression(), {"momentum": 0.9, "nesterov": True}
    rule = Optimizer.of(name, 0.1, **momentum if name == "sgd" else {})
    learner = amaml.AMAML(apply, amaml.half_mse, 0.02, 4, solver="euler", inner_optimizer=rule, inner_batch=2)

    def query_loss(theta):
        return derivatives.losses(apply, amaml.half_mse, learner.adapt(theta, tasks), *tasks.query).mean()

    assert slope_error(learner.meta_gradient(theta, tasks).value, query_loss, theta) < 1e-6


def test_a_rule_of_ones_own():
    """It sees one task, whose norm is not that of all; it learns by its keywords, of any shape."""

    def rule(gradient, state, step, mix):
        mean = gradient if state is None else 0.5 * state[0] + gradient
        return torch.tanh(mix @ mean / mean.norm()) / (step + 1), (mean,)

    problem = plain()
    size = len(problem.theta())
    mix = (torch.eye(size, dtype=torch.float64) + 0.1 * random(size, size)).requires_grad_()
    phi = problem.adaptation(inner_optimizer=Optimizer(rule, {"mix": mix})).adapt(problem.tasks)
    problem.compare(phi, problem.path(rule=lambda *given: rule(*given, mix))[-1], mix)


def test_batches_of_the_support_set():
    problem = plain()
    order = torch.randint(6, (STEPS, 3), generator=generator(3))
    problem.compare(problem.adaptation(inner_batch=order).adapt(problem.tasks), problem.path(points=order)[-1])
    drawn = problem.adaptation(inner_batch=np.int32(2))
    assert torch.equal(drawn.adapt(problem.tasks), drawn.adapt(problem.tasks))
    assert not torch.equal(drawn.adapt(problem.tasks), problem.adaptation().adapt(problem.tasks))


@pytest.mark.parametrize("rate", [[0.1, 0.05, 0.01], lambda step: 0.1 / (step + 1), torch.tensor([0.1, 0.05, 0.01])])
def test_a_schedule_is_a_size_for_every_step(rate):
    problem = plain()
    sizes = [rate(k) for k in range(3)] if callable(rate) else [float(r) for r in rate]
    phi = problem.adaptation(inner_lr=rate, inner_steps=3).adapt(problem.tasks)
    problem.compare(phi, problem.path(sizes)[-1], tolerance=1e-7)


def test_adam_at_a_zero_gradient_has_a_finite_derivative():
    problem = plain()
    with torch.no_grad():
        problem.tasks.support_x.zero_()
    phi = problem.adaptation(inner_optimizer="adam").adapt(problem.tasks)
    for gradient in torch.autograd.grad(phi.sum(), problem.inputs, materialize_grads=True):
        assert gradient.isfinite().all()


CHANGES = {
    "eval": lambda m, held, meta: m.eval(),
    "number": lambda m, held, meta: setattr(m, "sign", -1.0),
    "buffer": lambda m, held, meta: m.mean.add_(1),
    "tensor": lambda m, held, meta: m.scale.mul_(3),
    "another tensor": lambda m, held, meta: setattr(m, "scale", 3 * m.scale),
    "tensor of the loss": lambda m, held, meta: held.mul_(3),
    "rate": lambda m, held, meta: meta.inner_lr.detach().mul_(3),
}


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
def test_what_changed_before_the_way_back_is_refused(change):
    class Shifted(torch.nn.Linear):
        def forward(self, x):
            return (super().forward(x) - self.mean).tanh() * self.scale * (self.sign if self.training else 2.0)

    module, held = Shifted(2, 1).double(), torch.ones(()).double()
    module.sign, module.scale = 1.0, torch.ones(1).double()
    module.register_buffer("mean", torch.ones(1).double())
    meta = amaml.Adaptation(module, lambda p, y: held * amaml.mse(p, y), number(0.03), 3, method="maml")
    phi = meta.adapt(regression())
    change(module, held, meta)
    with pytest.raises(InputError, match="changed between adapt.. and backward.., which goes the way again"):
        phi.sum().backward()


def test_what_no_graph_uses_may_change_before_the_way_back_and_all_where_the_gradient_is_there_already():
    trainer, module = SimpleNamespace(mean=torch.zeros(1), scale=2.0), torch.nn.Linear(2, 1).double()
    meta = amaml.Adaptation(module, lambda p, y: trainer.scale * amaml.mse(p, y), number(0.03), 3, method="maml")
    trainer.meta = meta
    first, second = meta.adapt(regression()), meta.adapt(regression(seed=1))
    trainer.mean.add_(1)
    trainer.last = first.detach()
    (first.sum() + second.sum()).backward()
    value = meta(regression())
    meta.inner_lr.detach().mul_(3)
    value.backward()
    assert module.weight.grad.isfinite().all()


@pytest.mark.parametrize("apart", [False, True])
def test_nothing_changes_in_inference_mode(apart):
    def loss(prediction, target):
        return amaml.mse(prediction, target) * (2 if apart and target.sum().item() > 1e9 else 1)

    module, tasks = torch.nn.Linear(2, 1).double(), regression()
    meta = amaml.Adaptation(module, loss, 0.03, 3, method="maml")
    with warnings.catch_warnings(action="ignore"), torch.inference_mode():
        value = meta(tasks)
        prediction = meta.predict(meta.adapt(tasks), tasks.query_x)
    meta(tasks).backward()
    torch.testing.assert_close(meta(tasks).item(), value.item())
    torch.testing.assert_close(amaml.mse(prediction, tasks.query_y).item(), value.item())


@pytest.mark.filterwarnings("ignore:torch cannot batch:RuntimeWarning")
def test_a_point_of_weight_zero_does_not_reach_those_after_it():
    layers, tasks = (torch.nn.Linear(2, 1), Forward(lambda m, h: h.cumsum(0))), regression(2, 4, 5)
    network, loss = torch.nn.Sequential(*layers).double(), torch.nn.MSELoss(reduction="none")
    meta = amaml.Adaptation(network, loss, 0.03, 3, method="maml")
    x, y, weight = tasks.support_x, tasks.support_y, torch.ones(2, 4).double()
    fewer = replace(tasks, support_x=x[:, 1:], support_y=y[:, 1:], support_weight=weight[:, 1:])
    weight[:, 0] = 0
    assert meta(replace(tasks, support_weight=weight)).item() == pytest.approx(meta(fewer).item(), rel=1e-12)


@pytest.mark.filterwarnings("ignore:torch cannot batch:RuntimeWarning")
def test_nodes_of_a_graph_are_not_left_out():
    class Convolution(torch.nn.Linear):
        def forward(self, x, edges):
            return torch.zeros_like(x[:, :1]).index_add(0, edges[1], super().forward(x)[edges[0]])

    module, edges = Convolution(2, 1).double(), torch.tensor([[[0, 1, 2, 2], [1, 2, 0, 1]]])
    x, y, known = torch.randn(1, 3, 2).double(), torch.randn(1, 3, 1).double(), torch.tensor([[1.0, 1.0, 0.0]]).double()
    tasks = amaml.Tasks((x, edges), y, (x, edges), y, support_weight=known)
    with pytest.raises(InputError, match=r"x.1 of a task \(2, 4\) has no axis of 3 points; give a mask"):
        amaml.Adaptation(module, torch.nn.MSELoss(reduction="none"), 0.03, 2, method="maml")(tasks)
