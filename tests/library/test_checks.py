"""Mistakes in what a learner is given: one line each, from every method, that names what is wrong and the remedy."""

from dataclasses import replace
from itertools import count
from types import SimpleNamespace

import pytest
import torch
from helpers.problems import METHODS, generator, linear, regression, relative_error
from torch import nn
from torch.nn import functional as F

import amaml
from amaml import AMAML, Diverged, InputError, half_mse
from amaml.engine import closures
from baselines import FOMAML, Pretrained, Scratch


@pytest.fixture(params=METHODS)
def method(request):
    return METHODS[request.param]


NAMES = ("support_x", "support_y", "query_x", "query_y")


def quartic(prediction, target):
    return (prediction - target).pow(4).mean()


def refused(method, message, error=InputError, **given):
    """Both calls of the method end in the error, of the smallest network and its tasks but for what is given."""
    (theta, apply), tasks = linear(), regression(shots=5)
    learner = method(given.get("apply", apply), given.get("loss", half_mse), 0.05, 5)
    for call in (learner.meta_gradient, learner.adapt):
        with pytest.raises(error, match=message):
            call(given.get("theta", theta), given.get("tasks", tasks))


def mistakes():
    """What is given, and what is said of it."""
    (theta, _), t = linear(), regression(shots=5)
    flat, number = r"theta must be one flat tensor \(P,\)", "must be a tensor of one floating-point number, got"
    float32 = r"is torch.float32, theta is torch.float64.*tasks.to\(torch.float64\)"
    return [
        ({"theta": [theta[:2], theta[2:]]}, flat + ".*got list of 2; amaml.flatten"),
        ({"theta": theta[None]}, flat + r".*got shape \(1, 3\)"),
        ({"theta": theta.long()}, flat + r" of floating-point numbers, got shape \(3,\) of torch.int64"),
        ({"theta": theta[:-1]}, r"theta has shape \(2,\), the module has 3 parameters"),
        ({"theta": theta * torch.nan}, "theta holds NaN"),
        ({"apply": nn.Linear(2, 1)}, "apply must be a function.*got Linear; amaml.flatten"),
        ({"tasks": replace(t, support_y=t.support_y[..., 0])}, r"targets \(5,\)"),
        *(({"tasks": replace(t, **{n: getattr(t, n).float()})}, f"{n} {float32}") for n in NAMES),
        ({"loss": lambda p, t: (p - t) ** 2}, number + r" torch.float64 of shape \(5, 1\); take the mean"),
        ({"loss": lambda p, t: 0.0}, number + " float"),
        ({"loss": lambda p, t: (p - t).sum().long()}, number + " torch.int64"),
    ]


@pytest.mark.parametrize(("given", "message"), mistakes())
def test_a_mistake_is_told_by_every_method(method, given, message):
    refused(method, message, **given)


@pytest.mark.parametrize("loss", [half_mse, F.mse_loss, F.l1_loss, lambda p, t: ((p.exp() - t) ** 2).mean()])
@pytest.mark.filterwarnings("ignore:Using a target size")
def test_targets_that_would_broadcast_are_refused(loss):
    (_, apply), tasks = linear(), regression(shots=5)
    flat = {"tasks": replace(tasks, support_y=tasks.support_y[..., 0], query_y=tasks.query_y[..., 0])}
    message = r"predictions \({}\) and targets \({}\) of a task.*reshape"
    refused(METHODS["FOMAML"], message.format("5, 1", "5,"), loss=loss, **flat)
    refused(METHODS["FOMAML"], message.format("5,", "5, 1"), loss=loss, apply=lambda theta, x: apply(theta, x)[:, 0])


def test_half_mse_wants_equal_shapes_where_nothing_is_silent_too():
    for metric, dtype in ((half_mse, None), (amaml.mse, None), (amaml.rmse, None), (amaml.accuracy, torch.int64)):
        with pytest.raises(InputError, match=r"predictions \(5, 3\) and targets \(5, 1\)"):
            metric(torch.zeros(5, 3), torch.zeros(5, 1, dtype=dtype))


def test_losses_that_reshape_are_their_authors_own():
    (theta, apply), tasks = linear(), regression(shots=5)
    flat = replace(tasks, support_y=tasks.support_y[..., 0], query_y=tasks.query_y[..., 0])

    def value(loss, tasks):
        return FOMAML(apply, loss, 0.05, 5).meta_gradient(theta, tasks).value

    for loss in (
        lambda p, t: half_mse(p.squeeze(-1), t),
        lambda p, t: half_mse(p, t[:, None]),
        lambda p, t: half_mse(p.flatten(), t.flatten()),
    ):
        assert relative_error(value(loss, flat), value(half_mse, tasks)) < 1e-13
    quantiles = torch.tensor([0.1, 0.5, 0.9], dtype=torch.float64)
    assert value(lambda p, t: ((t - p * quantiles) * quantiles).abs().mean(), tasks).isfinite().all()  # three a target


def test_a_loss_that_has_no_derivative_at_theta_and_an_inner_loop_that_diverges_say_so(method):
    def branch(prediction, target):
        return torch.where(prediction > 1e9, (-prediction.square()).sqrt(), prediction - target).square().mean()

    def norm(prediction, target):
        return half_mse(prediction, target) + (prediction - prediction).norm()

    message = "derivative at theta, where no inner_lr and no number of steps can help; look for a norm, square root"
    refused(method, f"has no finite {message}", Diverged, loss=branch)
    (theta, apply), tasks = linear(), regression(shots=5)
    refused(method, "the support loss has no finite value at theta", Diverged, loss=lambda p, y: (p - p).log().mean())
    with pytest.raises(Diverged, match=f"has no finite second {message}"):
        METHODS["AMAML-euler"](apply, norm, 0.05, 5).meta_gradient(theta, tasks)
    with pytest.raises(Diverged, match="the query loss has no finite derivative at theta"):
        AMAML(apply, half_mse, 0.05, 5, query_loss=lambda p, y: (p - p).sum().sqrt()).meta_gradient(theta, tasks)
    refused(method, "try a smaller inner_lr", Diverged, loss=lambda p, t: 1e6 * quartic(p, t), theta=100 * theta)


@pytest.mark.parametrize(("name", "value"), [*zip(NAMES, (torch.nan, -torch.inf) * 2, strict=True)])
def test_what_is_not_finite_is_named_with_its_task(method, name, value):
    (theta, apply), tasks = linear(), regression(tasks=4)
    tensor, learner = getattr(tasks, name).clone(), method(apply, half_mse, 0.05, 5)
    tensor[2, 1] = tensor[3, 0] = value
    kind = "NaN" if value != value else "infinity"
    for call in (learner.meta_gradient, learner.adapt)[: 2 if name.startswith("support") else 1]:
        with pytest.raises(InputError, match=rf"{name} holds {kind} in 2 of 4 tasks \(number 2, 3, from 0\)"):
            call(theta, replace(tasks, **{name: tensor}))


@pytest.mark.parametrize("kind", [Pretrained, Scratch])
def test_methods_without_an_inner_loop_in_training_check_too(kind):
    (theta, apply), tasks = linear(), regression(shots=5)
    refused(kind, "support_x is torch.float32, theta is torch.float64", tasks=tasks.to(torch.float32))
    refused(kind, "theta holds NaN", theta=theta * torch.nan)
    with pytest.raises(InputError, match="query_y holds NaN in 3 of 3 tasks"):
        kind(apply, half_mse, 0.1, 3).meta_gradient(theta, replace(tasks, query_y=tasks.query_y * torch.nan))
    with pytest.raises(Diverged, match="phi is not finite"):
        kind(apply, quartic, 1e3, 400).adapt(100 * theta, tasks)


def test_missing_targets_that_a_loss_leaves_out_are_no_mistake(method):
    (theta, apply), tasks = linear(), regression()
    tasks.support_y[1, 2] = torch.nan

    def masked(prediction, target):
        known = ~target.isnan()
        return (known * (prediction - target.nan_to_num()) ** 2).sum() / known.sum()

    assert method(apply, masked, 0.05, 5).meta_gradient(theta, tasks).value.isfinite().all()


def test_a_loss_that_counts_its_calls_or_draws_from_a_generator_of_its_own_is_refused():
    """The noise with a factor that is zero at the start."""
    (theta, network), tasks, calls, draws = linear(), regression(), count(1), generator()

    def noisy(u, x):
        return network(u, x) + (u - theta).sum() * torch.randn(len(x), 1, generator=draws, dtype=u.dtype)

    for apply, loss in ((network, lambda p, t: next(calls) * half_mse(p, t)), (noisy, half_mse)):
        with pytest.raises(InputError, match="another value every time"):
            FOMAML(apply, loss, 0.05, 2).meta_gradient(theta, tasks)


def test_of_a_large_dict_a_part_is_looked_at_and_of_attributes_and_classes_all():
    many = {f"word {i}": i for i in range(10_000)}
    assert len(closures.find_values(lambda: many)) < 1000
    assert len(closures.find_values(SimpleNamespace(**many))) > 10_000
    kind = None  # a class, whose namespace is made anew for every look, and may be taken for none that is gone
    for i in range(20):
        kind = type("Kind", (), {"number": i, "inner": kind})
    values = closures.find_values(kind())
    assert sorted(value for path, value in values.items() if path and path[-1][1] == "number") == [*range(20)]
