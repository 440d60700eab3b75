"""flatten and its way back: what a module loses is said, what it cannot be is refused, and all of it can be pickled."""

import copy
import multiprocessing
import pickle
import random

import numpy as np
import pytest
import torch
from helpers.modules import Forward
from helpers.problems import METHODS, mlp, regression, relative_error
from torch import nn
from torch.nn import functional as F

import amaml
from amaml import InputError, half_mse
from baselines import FOMAML, MAML


def test_batch_norm_in_eval_mode_warns_and_names_the_layer():
    module, x = nn.Sequential(nn.Linear(2, 3), nn.BatchNorm1d(3), nn.Tanh()).double(), regression().support_x[0]
    module(1 + x)  # which has other statistics
    with pytest.warns(UserWarning, match=r"batch norm '1' is in eval mode.*apply\(theta, x\) differs from module\(x\)"):
        theta, apply = amaml.flatten(module.eval())
    assert relative_error(apply(theta, x), module(x)) > 1e-3
    theta, apply = amaml.flatten(module.train())  # a warning would be an error here
    torch.testing.assert_close(apply(theta, x), module(x), rtol=1e-12, atol=0)


def test_spectral_norm_is_told_to_stay_as_it_was():
    with pytest.warns(UserWarning, match="spectral norm 'parametrizations.weight.0' iterates in every call in train"):
        amaml.flatten(nn.utils.parametrizations.spectral_norm(nn.Linear(2, 3)))


def noisy(m, x):
    return m.out(x) + torch.randn(1, dtype=x.dtype)


def seldom(draw):
    """Goes another way once in a billion calls."""
    return lambda m, x: m.out(x if draw() > 1e-9 else -x)


DRAWS = [
    lambda m, x: F.dropout(m.out(x), 0.5, m.training),
    lambda m, x: F.scaled_dot_product_attention(*3 * [m.out(x)[None]], dropout_p=0.5 * m.training)[0],
    lambda m, x: F.rrelu(m.out(x), training=m.training),
    *map(seldom, (random.random, np.random.rand)),
]


@pytest.mark.filterwarnings("ignore:torch cannot batch:RuntimeWarning")
@pytest.mark.parametrize(
    ("method", "forward"), [*((FOMAML, f) for f in DRAWS), *((m, noisy) for m in METHODS.values())]
)
def test_random_draws_inside_the_network_are_refused(method, forward):
    theta, apply = amaml.flatten(Forward(forward, out=nn.Linear(2, 1)).double())
    learner = method(apply, half_mse, 0.1, 3)
    for call in (learner.meta_gradient, learner.adapt):
        with pytest.raises(InputError, match=r"draws random numbers.*no deterministic gradient; call module.eval\(\)"):
            call(theta, regression())


def test_running_statistics_are_neither_used_nor_written():
    module, plain = (
        nn.Sequential(nn.Unflatten(1, (1, 2)), norm, nn.Flatten(), nn.Linear(2, 1)).double()
        for norm in (nn.InstanceNorm1d(1, track_running_stats=True), nn.InstanceNorm1d(1))
    )
    plain[3].load_state_dict(module[3].state_dict())
    meta, other = (amaml.Adaptation(one, half_mse, 0.1, 3, method="maml") for one in (module, plain))
    assert meta(regression()).item() == other(regression()).item()
    assert torch.equal(module[1].running_mean, torch.zeros(1).double())
    with pytest.warns(UserWarning, match="'1' is in eval mode"):
        assert amaml.flatten(module.eval())[1](meta.function.theta(), regression().support_x[0]).isfinite().all()


class Tied(nn.Module):
    """Frozen, tied and trainable parameters, running statistics and a buffer."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(2, 2), nn.Linear(2, 2)
        self.second.weight = self.first.weight
        self.norm, self.frozen = nn.BatchNorm1d(2), nn.Linear(2, 2).requires_grad_(False)
        self.register_buffer("scale", torch.tensor(2.0))

    def forward(self, x):
        return self.scale * self.frozen(self.norm(self.second(torch.tanh(self.first(x)))))


def test_theta_goes_back_into_a_module():
    torch.manual_seed(0)
    module, x = Tied().double(), torch.randn(5, 2, dtype=torch.float64)
    module(torch.randn(9, 2, dtype=torch.float64))
    theta, apply = amaml.flatten(module)
    before, changed = copy.deepcopy(module.state_dict()), theta + torch.arange(len(theta)).to(theta)
    expected = apply(changed, x)
    with pytest.warns(UserWarning, match="'norm' keeps running statistics, which are not those of theta") as warned:
        state = apply.unflatten(changed)
    assert warned[0].filename == __file__
    for name in ("norm.running_mean", "norm.num_batches_tracked", "frozen.weight", "scale"):
        assert torch.equal(state[name], before[name])
    module.load_state_dict(state)  # strict
    torch.testing.assert_close(module(x), expected, rtol=1e-12, atol=1e-12)
    assert torch.equal(amaml.flatten(module)[0], changed)
    state["first.weight"].zero_()  # copies all
    assert torch.equal(apply(changed, x), expected)

    module.load_state_dict(before)
    with pytest.warns(UserWarning, match="'norm' keeps running statistics, which are not those of theta") as warned:
        amaml.load(module, changed)
    assert warned[0].filename == __file__
    assert torch.equal(amaml.flatten(module)[0], changed)
    assert module.first.weight.requires_grad
    assert torch.equal(module.norm.running_mean, before["norm.running_mean"])


def _gradient(pickled: bytes) -> torch.Tensor:
    learner, theta, tasks = pickle.loads(pickled)
    return learner.meta_gradient(theta, tasks).value.numpy()


@pytest.mark.parametrize("method", METHODS.values(), ids=METHODS)
def test_a_learner_can_be_pickled_after_its_first_call(method):
    (theta, apply), tasks = mlp(), regression()
    learner = method(apply, half_mse, 0.05, 4)
    value = learner.meta_gradient(theta, tasks).value.numpy()
    pickled = pickle.dumps((learner, theta, tasks))
    assert (_gradient(pickled) == value).all()
    if method is MAML:
        with multiprocessing.get_context("spawn").Pool(1, torch.set_num_threads, (1,)) as pool:
            assert (pool.apply(_gradient, (pickled,)) == value).all()
