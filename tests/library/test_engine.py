"""Modules of any kind, batched or task by task, against unrolled autograd of the test's own."""

import contextlib
import copy
import warnings
from dataclasses import dataclass, replace
from functools import partial

import pytest
import torch
from helpers.modules import CASES, LR, ONE_BY_ONE, OTHERWISE, STEPS, Forward, layers, maml, two_layers
from helpers.problems import generator, regression
from torch import nn
from torch.autograd.function import once_differentiable
from torch.autograd.graph import save_on_cpu
from torch.func import functional_call
from torch.nn import functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.utils import parametrize
from torch.nn.utils.parametrizations import weight_norm
from torch.utils.checkpoint import checkpoint

import amaml
from amaml import Adaptation, InputError, Tasks, mse
from amaml.engine import derivatives
from amaml.flow import curvature


def loss_at(module, phi, x, y):
    """Of the parameters phi, by name, in place of the module's own."""
    buffers = {name: buffer.clone() for name, buffer in module.named_buffers()}
    return mse(functional_call(module, {name: 1 * p for name, p in phi.items()} | buffers, (x,)), y)


def unrolled(module, tasks, of):
    """The query loss of plain autograd through the steps, and its gradients by name; of(phi, x, y) for each task."""
    start, value = {name: p.detach().clone().requires_grad_() for name, p in module.named_parameters()}, 0.0
    for i in range(len(tasks)):
        phi = start
        for _ in range(STEPS):
            loss = of(phi, tasks.support_x[i], tasks.support_y[i])
            gradients = torch.autograd.grad(loss, phi.values(), create_graph=True, materialize_grads=True)
            phi = {name: p - LR * g for (name, p), g in zip(phi.items(), gradients, strict=True)}
        value = value + of(phi, tasks.query_x[i], tasks.query_y[i]) / len(tasks)
    return value.item(), dict(zip(start, torch.autograd.grad(value, start.values()), strict=True))


def switches() -> tuple[bool, bool, bool]:
    """What torch is told for a while, and must have back."""
    backends = torch.backends
    return backends.mha.get_fastpath_enabled(), backends.mkldnn.enabled, torch.compiler.is_compiling()


@pytest.mark.parametrize("name", [*CASES, *ONE_BY_ONE])
@pytest.mark.filterwarnings("ignore:.*non-contiguous", "ignore:spectral", "ignore:.torch.jit.script:DeprecationWarning")
def test_a_module_of_any_kind(name):
    batched, other = name in CASES, OTHERWISE.get(name)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        module = (CASES | ONE_BY_ONE)[name]().double()
    tasks, before, kinds = regression(), copy.deepcopy(module.state_dict()), [type(p) for p in module.parameters()]
    settings, meta = switches(), maml(module)
    with contextlib.nullcontext() if batched else pytest.warns(RuntimeWarning, match="cannot batch.*one by one"):
        value = meta(tasks)
    value.backward()
    with warnings.catch_warnings(action="ignore"):
        predicted = mse(meta.predict(meta.adapt(tasks), tasks.query_x), tasks.query_y)
    names, leaves = zip(*module.named_parameters(), strict=True)
    through = dict(zip(names, (leaf.grad for leaf in leaves), strict=True))
    if name == "checkpointed":  # whose way back is left to the user, when the module is at its own parameters
        with pytest.raises(InputError, match="what is checkpointed in the module would be computed again"):
            predicted.backward()
    else:
        through = dict(zip(names, torch.autograd.grad(predicted, leaves, materialize_grads=True), strict=True))
    copy.deepcopy(module)

    reference = module if other is None else other().double()
    reference.load_state_dict(before)
    with sdpa_kernel(SDPBackend.MATH):
        torch.backends.mha.set_fastpath_enabled(False)
        expected, gradients = unrolled(reference, tasks, partial(loss_at, reference))
        torch.backends.mha.set_fastpath_enabled(settings[0])
    assert abs(value.item() - expected) < 1e-12
    for key, parameter in module.named_parameters():
        torch.testing.assert_close(parameter.grad, gradients[key], rtol=1e-10, atol=1e-13)
        torch.testing.assert_close(through[key], gradients[key], rtol=1e-10, atol=1e-13)
    assert abs(predicted.item() - expected) < 1e-12

    assert [type(p) for p in module.parameters()] == kinds
    assert all(torch.equal(then, now) for then, now in zip(before.values(), module.state_dict().values(), strict=True))
    assert switches() == settings


@pytest.mark.parametrize(("wrong", "later"), [(0, False), (1, True), (2, True), (3, False)])
def test_a_token_that_there_is_not_is_told_and_is_no_fault_of_batching(wrong, later):
    parts = {"table": nn.Embedding(3, 4), "out": nn.Linear(4, 3)}
    meta = maml(Forward(lambda m, x: m.out(m.table(x).mean(1)), **parts).double(), F.cross_entropy)
    tokens, labels = torch.randint(0, 3, (3, 5, 2), generator=generator()), torch.zeros(3, 5, dtype=torch.long)
    given = [tokens, labels, tokens, labels]
    if later:
        meta(Tasks(*given))
    given[wrong] = given[wrong].clone()
    given[wrong][1, 2] = 4
    with pytest.raises(InputError, match=r"by itself: (?!.*cannot batch).*out of (range|bounds)"):
        meta(Tasks(*given))


def test_a_matrix_that_becomes_singular_is_divergence():
    def forward(m, x):
        return 10 * m.out.bias + torch.linalg.inv(m.out.bias.relu()[None]) * x[:, :1]

    module = Forward(forward, out=nn.Linear(1, 1)).double()
    nn.init.ones_(module.out.bias)
    with pytest.raises(amaml.Diverged, match=r"(inv.*singular;|is not finite;.*) try a smaller inner_lr"):
        maml(module)(regression())


def test_a_loss_that_reads_the_module_sees_the_parameters_of_the_task():
    module, tasks = layers(), regression()

    def penalty(parameters):
        return 0.1 * sum(p.square().sum() for p in parameters)

    def loss(prediction, target):
        return mse(prediction, target) + penalty(module.parameters())

    value, gradients = unrolled(module, tasks, lambda phi, x, y: loss_at(module, phi, x, y) + penalty(phi.values()))
    got = maml(module, loss)(tasks)
    got.backward()
    assert abs(got.item() - value) < 1e-12
    for name, parameter in module.named_parameters():
        torch.testing.assert_close(parameter.grad, gradients[name], rtol=1e-11, atol=1e-13)
    theta, apply = amaml.flatten(module)  # a copy, whose parameters the loss does not see
    with pytest.raises(InputError, match=r"the loss uses 0.weight of shape \(4, 2\), which requires a gradient"):
        derivatives.gradients(apply, loss, theta[None], *regression(tasks=1).support)


@pytest.mark.parametrize("make", [lambda w: w, torch.exp, lambda w: w.expand(3)[0]])
@pytest.mark.parametrize("later", [False, True])
def test_a_tensor_of_the_loss_that_requires_a_gradient_is_refused(make, later):
    weight = make(torch.ones((), dtype=torch.float64, requires_grad=True))  # or is computed from one that does
    held = [weight.detach() if later else weight]
    meta = maml(layers(), lambda p, y: held[0].exp() * mse(p, y))
    if later:
        meta(regression())
        held[0] = weight
    with pytest.raises(InputError, match=r"uses 0 of shape \(\), which requires a gradient and would get none"):
        meta(regression())


def test_a_scalar_that_is_shared_and_a_loss_of_probabilities_are_batched():
    module = Forward(lambda m, x: (m.net(x) * m.scale).sigmoid(), net=nn.Linear(2, 1).double())
    module.scale = nn.Parameter(torch.ones((), dtype=torch.float64))
    tasks = regression()
    tasks = replace(tasks, support_y=tasks.support_y.sigmoid(), query_y=tasks.query_y.sigmoid())
    maml(module, F.binary_cross_entropy, adapt=("net",), batched=True)(tasks).backward()
    assert module.scale.grad != 0


GATED = Forward(lambda m, h: h + m.g * h.mean(0))  # zero at the start, as in ReZero
GATED.g = nn.Parameter(torch.zeros(()))


@pytest.mark.filterwarnings("ignore:torch cannot batch:RuntimeWarning")
@pytest.mark.parametrize("layer", [nn.BatchNorm1d(4), Forward(lambda m, h: h * h[-1]), GATED])
def test_padding_does_not_reach_points_that_meet(layer):
    sets = regression(1, 4, 5), regression(1, 9, 7, seed=1)
    rows = [tuple(part[0] for part in (t.support_x, t.support_y, t.query_x, t.query_y)) for t in sets]
    module = nn.Sequential(nn.Linear(2, 4), layer, nn.Tanh(), nn.Linear(4, 1)).double()
    meta = maml(module, nn.MSELoss(reduction="none"))
    alone = sum(meta(Tasks.ragged([row])).item() for row in rows) / 2
    assert meta(Tasks.ragged(rows)).item() == pytest.approx(alone, rel=1e-12)


@dataclass
class Output:
    logits: torch.Tensor
    more: tuple


def test_predictions_are_structures_like_the_module_s():
    module = two_layers(lambda m, h, x: h.tanh()).double()
    structured = Forward(lambda m, x: {"out": Output(m.net(x), (None, 3, x))}, net=module)
    phi, x = torch.randn(2, 17, generator=generator(), dtype=torch.float64), regression(tasks=2).query_x
    found = maml(structured).predict(phi, x)["out"]
    assert torch.equal(found.logits, maml(module).predict(phi, x))
    assert found.more[:2] == (None, 3)
    assert torch.equal(found.more[2], x)


def test_what_has_no_second_derivative_names_the_operation_and_the_way_out():
    parts = {"into": nn.Linear(2, 4), "kernel": nn.Linear(4, 3)}
    module, t = Forward(lambda m, x: -torch.cdist(m.into(x), m.kernel.weight), **parts).double(), regression()
    tasks = Tasks(t.support_x, t.support_y[..., 0].gt(0).long(), t.query_x, t.query_y[..., 0].gt(0).long())
    with pytest.raises(InputError, match="_cdist_backward has no second derivative in torch.*'fomaml' or cdist's"):
        maml(module, F.cross_entropy)(tasks).backward()
    maml(module, F.cross_entropy, method="fomaml")(tasks).backward()


@pytest.mark.parametrize(("way", "name"), [(once_differentiable, "function"), (torch.no_grad(), "MeanBackward")])
@pytest.mark.filterwarnings("ignore:torch cannot batch:RuntimeWarning")
def test_a_function_that_is_differentiable_once_is_refused_though_its_gradient_is_constant(way, name):
    class Mean(torch.autograd.Function):
        @staticmethod
        def forward(ctx, p, y):
            ctx.difference = p - y
            return ctx.difference.square().mean()

        @staticmethod
        @way
        def backward(ctx, g):
            return 2 * g * ctx.difference / ctx.difference.numel(), None

    with pytest.raises(InputError, match=f"{name} has no second derivative in torch.*'fomaml'"):
        maml(layers(), Mean.apply)(regression())
    maml(layers(), Mean.apply, method="fomaml")(regression()).backward()


@pytest.mark.parametrize("loss", [lambda p, y: mse(p.detach(), y), lambda p, y: p.argmax(-1).double().square().mean()])
def test_a_loss_without_a_gradient_is_refused(loss):
    with pytest.raises(InputError, match="does not depend on the adapted parameters in a way that has a gradient"):
        maml(layers(), loss)(regression())
    with pytest.warns(RuntimeWarning, match="gradient of the loss in the adapted parameters is zero for every task"):
        maml(layers(), lambda p, y: mse(p.round(), y))(regression())


AROUND = lambda: torch.autograd.set_detect_anomaly(True), parametrize.cached, lambda: torch.device("meta")


@pytest.mark.parametrize("around", AROUND)
def test_what_stands_around_a_call_changes_nothing(around):
    def gradients() -> list[torch.Tensor]:
        curvature._noise.cache_clear()
        ways = maml(module, inner_batch=2), Adaptation(module, mse, 0.1, 40, solver="rkc")
        return [gradient for meta in ways for gradient in torch.autograd.grad(meta(tasks), list(module.parameters()))]

    module, tasks = layers(), regression()
    weight_norm(module[0])
    expected = gradients()
    with around():
        found = gradients()
    torch.testing.assert_close(found, expected)


def saved_on_cpu(function):
    with save_on_cpu():
        return function()


@pytest.mark.parametrize("within", [partial(checkpoint, use_reentrant=False), saved_on_cpu])
def test_hooks_of_saved_tensors_are_for_the_graph_around(within):
    meta, tasks = maml(layers()), regression()
    expected = torch.autograd.grad(meta(tasks), list(meta.parameters()))
    value = within(lambda: mse(meta.predict(meta.adapt(tasks), tasks.query_x), tasks.query_y))
    torch.testing.assert_close(torch.autograd.grad(value, list(meta.parameters())), expected)


def half(x, w=None):
    into, out = (torch.linspace(-1, 1, 64 * n).sin().to(torch.bfloat16) for n in (2, 5))
    features = F.linear(x.to(torch.bfloat16), into.view(64, 2), into[:64]).tanh()
    return F.linear(features, out.view(5, 64), (out[:5] if w is None else w[0].to(torch.bfloat16))).to(x.dtype)


@pytest.mark.parametrize(
    ("dtype", "of_features"),
    [
        (torch.float64, lambda x, w: half(x) @ w),
        (torch.float32, lambda x, w: half(x, w).sin()),
        (torch.float32, lambda x, w: torch.linalg.slogdet((x @ w[:2]).T @ x @ w[:2] + 1e-4 * torch.eye(5))[1]),
        (torch.float32, lambda x, w: torch.linalg.eigvalsh((x @ w[:2]).T @ x @ w[:2] + 1e-2 * torch.eye(5))[0]),
    ],
)
def test_what_rounding_explains_is_batched(dtype, of_features):  # or would be warned of
    """Layers of half precision in a network, and matrices near a singular one."""
    tasks, theta = regression().to(dtype), torch.randn(25, generator=generator(), dtype=dtype).expand(3, -1)
    apply = lambda u, x: x[:, :1] + of_features(x, u.view(5, 5)).mean()  # noqa: E731
    derivatives.hvps(apply, mse, theta, theta.cos(), *tasks.support)
