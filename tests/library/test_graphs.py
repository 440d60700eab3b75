"""Traced graphs against what apply and loss are now: nothing that changed outside a graph may stay in it."""

import gc
import weakref
from contextlib import nullcontext
from types import SimpleNamespace
from unittest.mock import patch

import numpy as np
import pytest
import torch
from helpers import problems
from helpers.modules import CHANGES, NEW_GRAPH, Used
from helpers.problems import linear, mlp, regression, relative_error
from torch import nn
from torch.nn import functional as F
from torch.nn.modules.module import register_module_forward_hook
from torch.overrides import TorchFunctionMode

import amaml
from amaml import InputError, compiled, half_mse, mse
from amaml.engine import derivatives, first_look, graphs, task, tracing
from amaml.engine.compiling import compiler_found
from amaml.engine.task import Definition
from baselines import FOMAML

METHODS = {name: method for name, method in problems.METHODS.items() if name != "AMAML"}  # whose euler is one
CASES = [("FOMAML", name) for name in CHANGES]
CASES += [(method, name) for method in METHODS if method != "FOMAML" for name in ("attribute", "rebound name")]


@pytest.fixture
def traces(monkeypatch) -> list:
    """What is traced from now on."""
    found, make_fx = [], tracing.make_fx
    monkeypatch.setattr(tracing, "make_fx", lambda f: found.append(f) or make_fx(f))
    return found


@pytest.mark.parametrize(("method", "name"), CASES)
def test_a_change_outside_the_graph_reaches_the_next_call(method, name, traces):
    """Tensors that are used are inputs of the graph: a new one needs no new graph."""
    (theta, network), tasks, (make, change), used = linear(), regression(queries=4), CHANGES[name], Used()
    apply, loss = make(used, network)
    learner = METHODS[method](apply, loss, 0.05, 5)
    before = learner.meta_gradient(theta, tasks)
    learner.adapt(theta, tasks)
    traces.clear()
    learner.meta_gradient(theta, tasks)
    assert not traces
    change(used)
    after = learner.meta_gradient(theta, tasks), learner.adapt(theta, tasks)
    assert bool(traces) == (name in NEW_GRAPH)
    fresh = METHODS[method](lambda theta, x: apply(theta, x), loss, 0.05, 5)
    assert relative_error(after[0].value, before.value) > 1e-3
    assert relative_error(after[0].value, fresh.meta_gradient(theta, tasks).value) < 1e-12
    assert relative_error(after[1], fresh.adapt(theta, tasks)) < 1e-12


class Scaled(torch.autograd.Function):
    @staticmethod
    def forward(ctx, p, used):
        ctx.used = used
        return p.clone()

    @staticmethod
    def backward(ctx, g):
        return ctx.used.scale * g, None


def backwards(p, scale):
    """With a factor of the gradient alone."""
    return scale * p + (1 - scale) * p.detach()


UNSEEN = [  # what is made of predictions, and how what is used for it changes
    (lambda used, p: p * used.scale if len(p) == 4 else p, lambda used: setattr(used, "scale", 0.3)),  # of queries
    (lambda used, p: Scaled.apply(p, used), lambda used: setattr(used, "scale", 0.3)),
    (lambda used, p: backwards(p, float(used.tensor)), lambda used: used.tensor.fill_(0.3)),
    (lambda used, p: backwards(p, float(used.array)), lambda used: used.array.fill(0.3)),
    (lambda used, p: backwards(p, 0.3 ** len(used.set)), lambda used: used.set.add(1)),
]


@pytest.mark.filterwarnings("ignore:torch cannot batch:RuntimeWarning")
@pytest.mark.parametrize(("make", "change"), UNSEEN)
def test_a_change_that_leaves_the_first_loss_as_it_was_is_seen(make, change):
    (theta, apply), tasks = linear(), regression(queries=4)
    with torch.no_grad():
        tasks.support_y[0] = apply(theta, tasks.support_x[0]) + 1e-3
    used = SimpleNamespace(scale=1.0, tensor=torch.ones(()), array=np.ones(()), set=set())
    learner = FOMAML(apply, lambda p, t: half_mse(make(used, p), t), 0.05, 5)
    before = learner.meta_gradient(theta, tasks).value
    change(used)
    expected = FOMAML(apply, lambda p, t: half_mse(make(used, p), t), 0.05, 5).meta_gradient(theta, tasks).value
    assert relative_error(before, expected) > 1e-2
    assert relative_error(learner.meta_gradient(theta, tasks).value, expected) < 1e-12


class Doubled(TorchFunctionMode):
    def __torch_function__(self, function, types, arguments=(), options=None):
        result = function(*arguments, **(options or {}))
        return 2 * result if function is F.linear else result


CONTEXTS = [
    Doubled,
    lambda: patch.object(nn.Linear, "forward", lambda self, x: 2 * F.linear(x, self.weight, self.bias)),
    lambda: register_module_forward_hook(lambda part, x, y: 2 * y if isinstance(part, nn.Linear) else None),
]


@pytest.mark.parametrize("context", CONTEXTS)
def test_a_network_of_torchs_own_layers_is_looked_at_again_where_something_else_changes_what_they_do(context):
    net = nn.Sequential(nn.Linear(2, 3), nn.Tanh(), nn.Linear(3, 1)).double()
    (theta, apply), tasks = amaml.flatten(net), regression(2)
    learner = FOMAML(apply, F.mse_loss, 0.05, 5)
    before = learner.meta_gradient(theta, tasks).value
    with context():
        found = learner.meta_gradient(theta, tasks).value
        fresh = FOMAML(amaml.flatten(net)[1], F.mse_loss, 0.05, 5).meta_gradient(theta, tasks).value
    assert torch.equal(found, fresh)
    assert relative_error(found, before) > 0.1
    assert torch.equal(learner.meta_gradient(theta, tasks).value, before)


def test_a_counter_that_no_graph_depends_on_is_looked_at_once(traces):
    (theta, apply), tasks = linear(), regression()
    trainer = SimpleNamespace(step=0, log=[], rows=[], named={}, loss=half_mse)
    learner, counts = FOMAML(apply, lambda p, t: trainer.loss(p, t), 0.05, 5), []
    for _ in range(4):
        learner.meta_gradient(theta, tasks)
        counts.append(len(traces))
        trainer.step += 1
        trainer.log.append(0.5)
        trainer.rows.append({"step": trainer.step})
        trainer.named[f"step {trainer.step}"] = SimpleNamespace(error=0.5)
    assert counts[1] == counts[-1]
    trainer.loss = F.l1_loss
    learner.meta_gradient(theta, tasks)
    assert len(traces) > counts[-1]


def test_what_could_not_be_traced_is_tried_again_when_something_has_changed(traces):
    (theta, network), tasks, used = linear(), regression(), SimpleNamespace(log=True, unread=0)

    def apply(theta, x):  # which nothing was said of yet
        return network(theta, x)

    def loss(p, t):
        return half_mse(p, t) * (2 if used.log and p.sum().item() > 1e9 else 1)

    def is_traced(log, unread):
        traces.clear()
        used.log, used.unread = log, unread
        derivatives.gradients(apply, loss, theta.expand(3, -1), *tasks.support)
        graphs.refresh(apply, loss, theta)
        return bool(traces)

    with pytest.warns(RuntimeWarning, match="torch cannot batch"):
        assert [is_traced(True, unread) for unread in (0, 0, 1, 2)] == [True, False, True, False]
    assert [is_traced(False, unread) for unread in (2, 2, 3, 4)] == [True, True, True, False]


@pytest.mark.parametrize(("queries", "points"), [(5, -1), (8, 8)], ids=["", "that the first points do not fit"])
def test_a_change_between_two_shapes_reaches_both(queries, points):
    """Support sets of two sizes in turn; with one query set its graph is older than the second size's."""
    (theta, network), small, large = linear(), regression(shots=4), regression(shots=8, queries=queries)
    used = SimpleNamespace(factor=1.0, points=-1)
    learner = FOMAML(network, lambda p, t: used.factor * half_mse(p.view(used.points), t.view(-1)), 0.05, 5)
    learner.meta_gradient(theta, small)
    used.factor, used.points = 3.0, points
    for tasks in (large, small)[: 2 if points == -1 else 1]:
        expected = FOMAML(network, lambda p, t: 3.0 * half_mse(p, t), 0.05, 5).meta_gradient(theta, tasks)
        assert relative_error(learner.meta_gradient(theta, tasks).value, expected.value) < 1e-12


@pytest.mark.skipif(not compiler_found(), reason="torch.compile needs a C++ compiler")
@pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning")
def test_a_compiled_graph_is_tied_neither_to_the_tensors_of_its_first_call_nor_to_those_of_the_loss():
    """The same tensor for two arguments, not contiguous, then two tensors, then another weight."""
    (theta, network), tasks = linear(), regression()
    (make, change), used = CHANGES["rebound name"], Used()
    apply, loss = make(used, network)
    phi, v = theta.expand(3, -1), torch.ones(3, len(theta), dtype=torch.float64)
    traced = derivatives.hvps(apply, loss, phi, v, *tasks.support)
    with compiled():
        derivatives.hvps(apply, loss, phi, phi, *tasks.support)
        before = derivatives.hvps(apply, loss, phi, v, *tasks.support)
        change(used)
        after = derivatives.hvps(apply, loss, phi, v, *tasks.support)
    torch.testing.assert_close(before, traced, rtol=1e-12, atol=1e-14)
    torch.testing.assert_close(after, 3 * traced, rtol=1e-12, atol=1e-14)


def test_a_loss_that_is_traced_anew_at_every_call_warns():
    (theta, network), tasks = linear(), regression()
    used = SimpleNamespace(factor=0.0)
    learner = FOMAML(network, lambda p, t: used.factor * half_mse(p, t), 0.05, 2)
    for call in range(5):
        used.factor += 1.0
        warned = pytest.warns(RuntimeWarning, match="keep a number that changes in a tensor")
        with warned if call == 3 else nullcontext():
            learner.meta_gradient(theta, tasks)


@pytest.mark.parametrize("method", METHODS)
def test_autocast_is_refused_before_and_after_the_first_call(method):
    (theta, network), tasks = linear(), regression()
    learner = METHODS[method](lambda theta, x: network(theta, x), half_mse, 0.05, 5)
    for _ in range(2):
        for call in (learner.meta_gradient, learner.adapt):
            with torch.autocast("cpu", dtype=torch.bfloat16), pytest.raises(InputError, match="autocast is on"):
                call(theta, tasks)
        learner.meta_gradient(theta, tasks)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.filterwarnings("ignore::ResourceWarning")
def test_what_a_learner_traced_goes_with_it(method):
    (theta, network), tasks, loss = linear(), regression(), lambda p, t: half_mse(p, t)
    METHODS[method](network, loss, 0.05, 5).meta_gradient(theta, tasks)
    ((*_, families),) = (entry for key, entry in graphs._families.items() if key == (id(network), id(loss)))
    traced = [weakref.ref(graph.call) for family in families.values() for graph in family.graphs.values()]
    traced += [weakref.ref(family.probe.graph.call) for family in families.values()]
    assert len(traced) >= 3
    loss = weakref.ref(loss)
    del families
    gc.collect()
    assert loss() is None
    assert not any(graph() for graph in traced)


def test_the_graphs_of_one_apply_and_loss_are_shared_by_learners_and_hold_no_autograd_graph(monkeypatch):
    (theta, network), tasks = linear(), regression()
    FOMAML(network, half_mse, 0.05, 5).meta_gradient(theta, tasks)
    monkeypatch.setattr(tracing, "make_fx", None)
    FOMAML(network, half_mse, 0.1, 3).meta_gradient(theta, tasks)
    phi = theta.expand(3, -1).clone().requires_grad_()
    assert not derivatives.gradients(network, half_mse, phi, *tasks.support).requires_grad


def test_data_is_detached():
    """(a b.data)^2 / 2 has the Hessian diag(b^2, 0) in (a, b); .data would hide b from one derivative alone."""
    theta, x = torch.tensor([[0.3, 0.7]], dtype=torch.float64), torch.ones(1, 1, 1, dtype=torch.float64)
    for v, expected in (([1.0, 0.0], [0.49, 0.0]), ([0.0, 1.0], [0.0, 0.0])):
        v, expected = (torch.tensor([row], dtype=torch.float64) for row in (v, expected))
        hvp = derivatives.hvps(lambda u, x: u[0] * u[1].data * x, half_mse, theta, v, x, 0 * x)
        torch.testing.assert_close(hvp, expected)


def test_a_graph_is_compared_with_autograd_beside_the_start_too():
    """Where symmetric weights hide an error, as that of a determinant; what is not finite is none of rounding."""
    (theta, apply), tasks, define = mlp(), regression(), Definition(task.gradient)
    root, arguments = (apply, mse), (theta.expand(3, -1), *tasks.support)
    right, expected = define.one_by_one(*root), define.of_row(*root, arguments, 0)
    for graph, agrees in (
        (right, True),
        (lambda phi, x, y: right(phi, x, y) * (1 + phi - theta), False),
        (lambda phi, x, y: right(phi, x, y) + 0 / (phi != theta), False),
    ):
        assert first_look.agrees(graph, define, root, arguments, expected, 0.0) == agrees


def test_the_least_recently_used_graphs_go(monkeypatch):
    monkeypatch.setattr(graphs, "MOST_GRAPHS", 3)
    (theta, apply), loss = mlp(), lambda p, y: half_mse(p, y)
    for shots in (2, 3, 4, 2, 5):
        derivatives.gradients(apply, loss, theta.expand(3, -1), *regression(shots=shots).support)
    (family,) = (families for key, (*_, families) in graphs._families.items() if key == (id(apply), id(loss)))
    kept = [key.signature[1][0][1] for found in family.values() for key in found.graphs]
    assert kept == [4, 2, 5]
