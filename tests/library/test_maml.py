"""MAML by unrolling, the reference of the exact methods, and what it must agree with."""

import pytest
import torch
from helpers.problems import classification, convnet, mlp, regression, relative_error, slope_error
from torch.nn.functional import cross_entropy

from amaml import AMAML, half_mse
from amaml.engine import derivatives
from amaml.flow.optimizers import RULES, Optimizer
from baselines import MAML


@pytest.mark.parametrize("network", ["mlp", "conv"])
def test_the_unroll_is_the_adjoint_of_the_steps(network):
    if network == "mlp":
        (theta, apply), tasks, loss = mlp(), regression(), half_mse
    else:
        (theta, apply), tasks, loss = convnet(), classification(), cross_entropy
    learner = MAML(apply, loss, 0.02, 12)
    ours = AMAML(apply, loss, 0.02, 12, solver="euler")
    exact, unrolled = (one.meta_gradient(theta, tasks) for one in (ours, learner))
    assert relative_error(exact.value, unrolled.value) < 1e-12
    torch.testing.assert_close(exact.query_loss, unrolled.query_loss, rtol=1e-12, atol=0)
    torch.testing.assert_close(ours.adapt(theta, tasks), learner.adapt(theta, tasks), rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("name", RULES)
@pytest.mark.parametrize("batch", [None, 2])
def test_the_gradient_through_every_inner_optimiser_is_that_of_the_adapted_loss(name, batch):
    (theta, apply), tasks = mlp(), regression()
    learner = AMAML(
        apply, half_mse, 0.02, 4, solver="euler", inner_optimizer=Optimizer(name, weight_decay=0.1), inner_batch=batch
    )

    def mean_query_loss(theta):
        phi = learner.adapt(theta, tasks)
        return derivatives.losses(apply, half_mse, phi, tasks.query_x, tasks.query_y).mean()

    gradient = learner.meta_gradient(theta, tasks)
    assert slope_error(gradient.value, mean_query_loss, theta) < 1e-6
    torch.testing.assert_close(gradient.query_loss.mean(), mean_query_loss(theta), rtol=1e-12, atol=0)
