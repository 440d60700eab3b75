"""A module as a function and back, after faults and to other threads too; what it loses is said, or refused."""

import copy
import multiprocessing
import os
import pickle
import random
import sys
import threading
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
from helpers.modules import Forward, layers, maml, two_layers
from helpers.problems import METHODS, generator, mlp, regression, relative_error
from torch import nn
from torch.nn import functional as F

import amaml
from amaml import InputError, half_mse
from amaml.engine.calling import exclusive
from baselines import FOMAML, MAML


def test_batch_norm_in_eval_mode_and_spectral_norm_are_told_with_their_layer():
    module, x = nn.Sequential(nn.Linear(2, 3), nn.BatchNorm1d(3), nn.Tanh()).double(), regression().support_x[0]
    module(1 + x)  # which has other statistics
    with pytest.warns(UserWarning, match=r"batch norm '1' is in eval mode.*apply\(theta, x\) differs from module\(x\)"):
        theta, apply = amaml.flatten(module.eval())
    assert relative_error(apply(theta, x), module(x)) > 1e-3
    theta, apply = amaml.flatten(module.train())  # a warning would be an error here
    torch.testing.assert_close(apply(theta, x), module(x), rtol=1e-12, atol=0)
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


def test_a_call_that_fails_or_is_interrupted_gives_the_module_back():
    def forward(m, h, x):
        m.kept.append(h)
        if len(m.kept) > 1:
            raise m.ends
        return h

    module = two_layers(forward).double()
    module.ends, module.kept = None, []
    meta, kinds = maml(module), [type(p) for p in module.parameters()]
    for ends, expected in ((KeyboardInterrupt(), KeyboardInterrupt), (RuntimeError("broken"), InputError)):
        module.kept, module.ends = [torch.zeros(1)], ends
        with pytest.raises(expected, match="test_models.py line .*broken" if expected is InputError else None):
            meta(regression())
        assert [type(p) for p in module.parameters()] == kinds
        assert len(module.kept) == 1


def test_tensors_in_attributes_are_given_back_and_written_into_in_a_batch():
    def forward(m, h, x):
        m.calls += 1
        m.kept["calls"].add_(1)
        return h.tanh()

    module = two_layers(forward).double()
    module.calls, module.kept = torch.zeros(1), {"calls": torch.zeros(1)}
    meta = maml(module, batched=True)
    meta(regression()).backward()
    meta.predict(meta.adapt(regression()), regression().query_x)
    assert not module.calls
    assert not module.kept["calls"]


def test_threads_wait_for_each_other():
    module = two_layers(lambda m, h, x: h.tanh()).double()
    meta, traced, interval, wrong = maml(module), maml(module), sys.getswitchinterval(), []
    phi = torch.randn(4, 1, 17, generator=generator(), dtype=torch.float64)
    tasks = [regression(tasks=1, seed=seed) for seed in range(4)]
    expected = [meta.predict(phi[k], tasks[k].query_x) for k in range(4)]

    def work(k):
        if k == 0:
            traced(tasks[0])
        wrong.extend(k for _ in range(20) if not torch.equal(meta.predict(phi[k], tasks[k].query_x), expected[k]))

    try:
        sys.setswitchinterval(1e-5)
        with ThreadPoolExecutor() as threads:
            list(threads.map(work, range(4)))
    finally:
        sys.setswitchinterval(interval)
    assert not wrong
    assert all(isinstance(p, nn.Parameter) for p in module.parameters())


@pytest.mark.skipif(not hasattr(os, "fork"), reason="without os.fork")
@pytest.mark.filterwarnings("ignore:.*multi-threaded.*fork:DeprecationWarning")
def test_a_fork_waits_for_calls_of_other_threads():
    taken, forked = threading.Event(), threading.Event()

    def work():
        with exclusive:
            taken.set()
            forked.wait(0.2)

    thread = threading.Thread(target=work)
    thread.start()
    taken.wait()
    child = os.fork()
    if not child:
        os._exit(0 if exclusive.acquire(timeout=5) else 1)
    forked.set()
    thread.join()
    assert os.waitpid(child, 0)[1] == 0


def test_a_module_changed_after_wrapping_is_seen():
    module = layers()
    meta = maml(module, method="fomaml")  # of few graphs
    before = meta(regression()).item()
    for change in (
        lambda: module.append(nn.Linear(1, 1).double()),
        lambda: module[0].requires_grad_(False),
        lambda: module[0].requires_grad_(True),
        lambda: module.__setitem__(1, nn.ReLU()),
    ):
        change()
        fresh = maml(module, method="fomaml")
        assert meta(regression()).item() == pytest.approx(fresh(regression()).item(), rel=1e-12)
        assert abs(meta(regression()).item() - before) > 1e-6


@pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning")
def test_compiled_and_parallel_modules_are_unwrapped():
    module = layers()
    inside = nn.Sequential(torch.compile(module[0]), module[1], module[2])
    wrapped = module, torch.compile(module), nn.DataParallel(module), inside
    assert len({maml(one, adapt=("2",))(regression()).item() for one in wrapped}) == 1
