"""MAML's options: checkpoints, other inner optimisers, a batch a step."""

import itertools

import pytest
import torch
from helpers.problems import classification, convnet, mlp, most_saved, regression, relative_error, slope_error
from torch.nn.functional import cross_entropy

from amaml import AMAML, InputError, Tasks, half_mse
from amaml.engine import derivatives
from baselines import MAML
from baselines.inner import INNER_OPTIMIZERS
from experiment import registry

TORCHS = {
    "sgd": lambda p, lr: torch.optim.SGD(p, lr=lr),
    "momentum": lambda p, lr: torch.optim.SGD(p, lr=lr, momentum=0.9),
    "rmsprop": lambda p, lr: torch.optim.RMSprop(p, lr=lr),
    "adam": lambda p, lr: torch.optim.Adam(p, lr=lr),
}


@pytest.mark.parametrize("name", INNER_OPTIMIZERS)
def test_inner_optimisers_take_torchs_steps(name):
    (theta, apply), tasks = mlp(), regression()
    phi = MAML(apply, half_mse, 0.03, 7, inner_optimizer=name).adapt(theta, tasks)
    expected = theta.expand(len(tasks), -1).clone().requires_grad_()
    optimizer = TORCHS[name]([expected], lr=0.03)
    for _ in range(7):
        expected.grad = derivatives.gradients(apply, half_mse, expected.detach(), tasks.support_x, tasks.support_y)
        optimizer.step()
    torch.testing.assert_close(phi, expected.detach(), rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("name", INNER_OPTIMIZERS)
@pytest.mark.parametrize("batch", [None, 2])
def test_the_gradient_through_every_inner_optimiser_is_that_of_the_adapted_loss(name, batch):
    (theta, apply), tasks = mlp(), regression()
    learner = MAML(apply, half_mse, 0.02, 4, inner_optimizer=name, inner_batch=batch)

    def mean_query_loss(theta):
        phi = learner.adapt(theta, tasks)
        return derivatives.losses(apply, half_mse, phi, tasks.query_x, tasks.query_y).mean()

    gradient = learner.meta_gradient(theta, tasks)
    assert slope_error(gradient.value, mean_query_loss, theta) < 1e-6
    torch.testing.assert_close(gradient.query_loss.mean(), mean_query_loss(theta), rtol=1e-12, atol=0)


def _backpropagated(learner: MAML, theta: torch.Tensor, tasks: Tasks) -> torch.Tensor:
    """The meta-gradient by autograd through an untraced inner loop, the graph of every step kept."""
    step, slots = INNER_OPTIMIZERS[learner.inner_optimizer]
    losses = torch.vmap(lambda phi, x, y: learner.loss(learner.apply(phi, x), y))
    start = theta.clone().requires_grad_()
    phi = start.expand(len(tasks), -1)
    state = tuple(torch.zeros_like(phi) for _ in range(slots))
    for k in range(learner.inner_steps):
        loss = losses(phi, *learner._batch(tasks, k)).sum()
        (gradient,) = torch.autograd.grad(loss, phi, create_graph=True)
        phi, state = step(phi, gradient, state, learner.inner_lr, k + 1)
    (gradient,) = torch.autograd.grad(losses(phi, tasks.query_x, tasks.query_y).mean(), start)
    return gradient


@pytest.mark.parametrize("name", INNER_OPTIMIZERS)
@pytest.mark.parametrize("batch", [None, 3])
@pytest.mark.parametrize("network", ["mlp", "conv"])
def test_the_traced_unroll_is_backpropagation_through_the_steps(name, batch, network):
    if network == "mlp":
        (theta, apply), tasks, loss = mlp(), regression(), half_mse
    else:
        (theta, apply), tasks, loss = convnet(), classification(), cross_entropy
    learner = MAML(apply, loss, 0.02, 12, inner_optimizer=name, inner_batch=batch)
    value = learner.meta_gradient(theta, tasks).value
    assert relative_error(value, _backpropagated(learner, theta, tasks)) < 1e-12


@pytest.mark.parametrize("name", INNER_OPTIMIZERS)
@pytest.mark.parametrize("every", [1, 3, 4, 10, 50])
def test_checkpoints_leave_the_gradient_unchanged(name, every):
    (theta, apply), tasks = convnet(), classification()
    options = {"inner_optimizer": name, "inner_batch": 3}
    whole = MAML(apply, cross_entropy, 0.05, 10, **options).meta_gradient(theta, tasks)
    parts = MAML(apply, cross_entropy, 0.05, 10, checkpoint_every=every, **options).meta_gradient(theta, tasks)
    assert relative_error(parts.value, whole.value) < 1e-12
    torch.testing.assert_close(parts.query_loss, whole.query_loss, rtol=1e-12, atol=0)
    assert whole.evaluations.recomputations == 0
    assert parts.evaluations.recomputations == every * ((10 - 1) // every)


def test_checkpointed_maml_keeps_as_much_as_the_steps_between_checkpoints():
    (theta, apply), tasks = mlp(), regression()
    plain = [most_saved(MAML(apply, half_mse, 0.05, steps), theta, tasks) for steps in (8, 64)]
    checkpointed = most_saved(MAML(apply, half_mse, 0.05, 64, checkpoint_every=8), theta, tasks)
    assert plain[1] > 6 * plain[0]
    assert checkpointed < 1.3 * plain[0]


def test_checkpointed_maml_is_the_discrete_adjoint_of_gradient_descent():
    (theta, apply), tasks = mlp(), regression()
    a = MAML(apply, half_mse, 0.05, 20, checkpoint_every=5).meta_gradient(theta, tasks)
    b = AMAML(apply, half_mse, 0.05, 20, solver="euler").meta_gradient(theta, tasks)
    assert relative_error(a.value, b.value) < 1e-12


def test_inner_batches_go_through_the_support_set_in_random_orders():
    _, tasks = mlp(), regression(shots=6)
    learner = MAML(None, half_mse, 0.1, 9, inner_batch=2)
    batches = [learner._batch(tasks, k) for k in range(9)]
    rounds = [torch.cat([x for x, _ in batches[first : first + 3]], dim=1) for first in (0, 3, 6)]
    for points in rounds:
        assert torch.equal(points.sort(1).values, tasks.support_x.sort(1).values)
    for one, other in itertools.combinations(rounds, 2):
        assert not torch.equal(one, other)
    assert not any(torch.equal(a[0], b[0]) for a, b in itertools.pairwise(batches))
    for x, y in batches:  # inputs and targets stay together
        row = (tasks.support_x[0] == x[0, 0]).all(-1).nonzero()[0, 0]
        assert torch.equal(tasks.support_y[0, row], y[0, 0])


def test_a_vanishing_gradient_has_a_finite_derivative():
    """Inputs of zeros: whole columns of the gradient are zero, and the root of the mean square has no slope there."""
    (theta, apply), tasks = mlp(), regression()
    tasks.support_x.zero_()
    for name in INNER_OPTIMIZERS:
        assert MAML(apply, half_mse, 0.02, 3, inner_optimizer=name).meta_gradient(theta, tasks).value.isfinite().all()


def test_every_inner_optimiser_has_its_flag():
    assert tuple(INNER_OPTIMIZERS) == registry.INNER_OPTIMIZERS


def test_bad_options_are_refused():
    (theta, apply), tasks = mlp(), regression(shots=4)
    with pytest.raises(InputError, match="unknown inner optimizer 'adamm'; did you mean 'adam'"):
        MAML(apply, half_mse, 0.1, 5, inner_optimizer="adamm")
    with pytest.raises(InputError, match="checkpoint_every must be a positive integer or None, got 0"):
        MAML(apply, half_mse, 0.1, 5, checkpoint_every=0)
    with pytest.raises(InputError, match="inner_batch must be a positive integer or None, got 2.5"):
        MAML(apply, half_mse, 0.1, 5, inner_batch=2.5)
    with pytest.raises(InputError, match="inner_batch 5 is more than the 4 support points"):
        MAML(apply, half_mse, 0.1, 5, inner_batch=5).meta_gradient(theta, tasks)


def test_an_inner_batch_leaves_one_number_a_task_alone():
    """An argument of the loss that stands beside the targets: as if the loss had it built in."""
    (theta, apply), tasks = mlp(), regression()
    weights = torch.tensor([1.0, 2.0, 0.5], dtype=torch.float64)

    def weighted(prediction, target):
        return target["weight"] * half_mse(prediction, target["y"])

    given = [{"y": y, "weight": weights} for y in (tasks.support_y, tasks.query_y)]
    together = Tasks(tasks.support_x, given[0], tasks.query_x, given[1])
    value = MAML(apply, weighted, 0.05, 4, inner_batch=2).meta_gradient(theta, together).value
    alone = [
        MAML(apply, lambda p, y, w=w: w * half_mse(p, y), 0.05, 4, inner_batch=2).meta_gradient(theta, tasks[i : i + 1])
        for i, w in enumerate(weights.tolist())
    ]
    torch.testing.assert_close(value, sum(one.value for one in alone) / 3, rtol=1e-10, atol=0)
