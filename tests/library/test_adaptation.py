"""The meta-gradients of everything that enters the inner loss, against unrolled autograd, task by task."""

import copy
import io
from dataclasses import replace

import numpy as np
import pytest
import torch
from helpers.problems import relative_error
from helpers.unrolled import CASES, STEPS, Problem, half_squares, small
from torch import nn

import amaml
from amaml import Adaptation, InputError, Tasks
from amaml.engine import derivatives
from amaml.models import Flattened
from baselines import FOMAML, IMAML, MAML, Pretrained, Reptile, Scratch

EACH = [(case, "each") for case in ("mlp", "head of a body", "conv head")]


@pytest.mark.parametrize(("case", "rates"), [(case, "scalar") for case in CASES] + EACH)
def test_euler_is_unrolled_autograd(case, rates):
    problem = Problem(case, rates)
    problem.compare(problem.adaptation()(problem.tasks), problem.query_loss(problem.path()[-1]))


def again(meta: Adaptation, **options) -> Adaptation:
    """The same module with other options of A-MAML, and the graphs that were traced."""
    chunk = options.pop("task_chunk", None)
    other = copy.copy(meta)
    other.task_chunk, other._learner = chunk, replace(meta._learner, **options)
    other.memory = other._learner.init()
    return other


def limit(problem: Problem, meta: Adaptation) -> list[torch.Tensor]:
    """Every gradient of the flow, by ever finer steps of gradient descent, which the test above shows to be right."""
    gradients = []
    for n in (8, 16):
        finer = again(meta, inner_steps=n * STEPS)
        rate = {k: v / n for k, v in problem.lr.items()} if isinstance(problem.lr, dict) else problem.lr / n
        gradients.append(torch.autograd.grad(finer(problem.tasks, inner_lr=rate), problem.inputs))
    return [2 * b - a for a, b in zip(*gradients, strict=True)]


OPTIONS = ({"solver": "rkc"}, {"solver": "dopri5"}, {"adjoint": "continuous"}, {"checkpoints": 2}, {"task_chunk": 2})
FLOWS = [(case, "scalar", ({},)) for case in ("mlp", "parts of both", "conv", "dict")]
FLOWS += [("head of a body", rates, OPTIONS) for rates in ("scalar", "each")]


@pytest.mark.parametrize(("case", "rates", "many"), FLOWS)
def test_the_flow_is_the_limit_of_ever_finer_steps(case, rates, many):
    problem = Problem(case, rates)
    meta = problem.adaptation()
    expected = limit(problem, meta)
    for options in many:
        found = torch.autograd.grad(again(meta, **{"solver": "rk4"} | options)(problem.tasks), problem.inputs)
        for i, (a, b) in enumerate(zip(found, expected, strict=True)):
            assert relative_error(a, b) < 1e-3, (options, i)


def test_numbers_of_numpy_are_numbers():
    plain, tasks = small(inner_lr=0.1, prox=0.5, inner_steps=5)
    numpy, _ = small(inner_lr=np.float64(0.1), prox=np.float32(0.5), inner_steps=np.int64(5), rtol=np.float32(1e-3))
    assert torch.equal(numpy(tasks), plain(tasks))
    named, _ = small(inner_lr={"head.weight": 0.1, "head.bias": np.float64(0.1)}, prox=0.5, inner_steps=5)
    torch.testing.assert_close(named(tasks), plain(tasks), rtol=1e-13, atol=0.0)


def test_compiled_once_more_and_back_within_autocast_it_stays_as_it_is():
    meta, tasks = small()
    expected = torch.autograd.grad(meta(tasks), list(meta.parameters()))
    value = torch.compile(meta, backend="eager")(tasks)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = torch.autograd.grad(value, list(meta.parameters()))
    assert all(map(torch.equal, found, expected))


def test_it_is_a_module_like_any_other_that_can_be_saved_and_goes_on_to_the_bit():
    meta, tasks = small(solver="rk4")
    assert set(map(id, meta.parameters())) == set(map(id, meta.module.parameters()))
    assert {name.split(".")[0] for name in meta.state_dict()} == {"module", "_extra_state"}
    optimizer = torch.optim.SGD(meta.parameters(), lr=0.5)
    values = []
    for _ in range(4):
        optimizer.zero_grad()
        value = meta(tasks)
        value.backward()
        optimizer.step()
        values.append(value.item())
    assert values == sorted(values, reverse=True)
    torch.save(meta.state_dict(), file := io.BytesIO())
    other, _ = small(solver="rk4")
    other.load_state_dict(torch.load(io.BytesIO(file.getvalue()), weights_only=True))
    copied = copy.deepcopy(meta)
    copied.memory = meta._learner.init()
    copied.control.load_state_dict(meta.control.state_dict())
    assert str(other.memory) == str(copied.memory) == str(meta.memory) != str(meta._learner.init())
    for _ in range(2):
        assert other(tasks).item() == copied(tasks).item() == meta(tasks).item() < values[-1]
    assert meta.float()(tasks.to(torch.float32)).dtype == torch.float32


def test_what_is_replaced_counts_from_then_on():
    (meta, tasks), momentum = small(momentum=nn.Parameter(torch.tensor(0.5).double())), torch.tensor(0.9, dtype=float)
    expected = small(momentum=0.9)[0](tasks).item()
    meta.load_state_dict(meta.state_dict() | {"momentum": momentum}, assign=True)
    value = meta(tasks)
    value.backward()
    assert value.item() == expected
    assert meta.momentum.grad.abs() > 0
    meta.module = copy.deepcopy(meta.module).requires_grad_(True)
    with torch.no_grad():
        meta.module.head.weight.add_(1)
    assert meta(tasks).item() != expected
    meta.momentum, meta.inner_lr = 0.9, {"head.weight": nn.Parameter(torch.tensor(0.2)), "head.bias": 0.2}
    value = meta(tasks).item()
    meta.inner_lr = 0.2
    assert abs(meta(tasks).item() / value - 1) < 1e-6
    assert not {"momentum", "inner_lr.rate/head/weight"} & dict(meta.named_parameters()).keys()


def test_a_module_with_unflattened_phi_predicts_what_predict_does():
    meta, tasks = small()
    phi, module = meta.adapt(tasks), copy.deepcopy(meta.module)
    module.load_state_dict({name: value[1] for name, value in meta.unflatten(phi).items()}, strict=False)
    prediction = meta.predict(phi, tasks.query_x)[1]
    torch.testing.assert_close(prediction, module(tasks.query_x[1]), rtol=1e-12, atol=1e-14)


def test_nothing_is_computed_that_nobody_asked_for(monkeypatch):
    meta, tasks = small()
    meta.module.body.requires_grad_(False)
    wanted, compute = [], derivatives.losses_and_gradients
    monkeypatch.setattr(derivatives, "losses_and_gradients", lambda *a: wanted.append(a[-1]) or compute(*a))
    monkeypatch.setattr(derivatives, "pull_backs", None)
    meta(tasks).backward()
    assert wanted == [()]
    assert meta.latest.evaluations.hvps == 5
    assert meta.module.body[0].weight.grad is None
    monkeypatch.setattr(derivatives, "hvps", None)
    with torch.no_grad():
        value = meta(tasks)
    assert abs(value.item() - meta.latest.query_loss.mean().item()) < 1e-14
    with pytest.raises(TypeError):
        meta.requires_grad_()(tasks)


def test_a_second_derivative_is_refused():
    meta, tasks = small()
    for outer in (lambda: meta.adapt(tasks).sum(), lambda: meta(tasks)):
        (gradient,) = torch.autograd.grad(outer(), meta.module.head.weight, create_graph=True)
        with pytest.raises(InputError, match="first derivatives alone.*leave create_graph out"):
            gradient.sum().backward()
    rate = torch.tensor(0.1, dtype=torch.float64)
    with pytest.raises(InputError, match="first derivatives alone"):  # by the derivative of a backward pass in lam
        torch.autograd.functional.jvp(lambda rate: meta(tasks, inner_lr=rate), rate, torch.ones_like(rate))
    (2 * meta(tasks)).backward()
    torch.testing.assert_close(meta.module.head.weight.grad, 2 * gradient.detach())


def test_rates_and_prox_that_are_parameters_are_trained():
    weight, bias, prox = map(nn.Parameter, (torch.full((1, 4), 0.1), torch.tensor(0.1), torch.tensor(0.2)))
    meta, tasks = small(inner_lr={"head.weight": weight, "head.bias": bias}, prox=prox)
    meta(tasks).backward()
    assert len(list(meta.parameters())) == 7
    assert all(p.grad is not None and p.grad.shape == p.shape for p in meta.parameters())
    assert {"inner_lr.rate/head/weight", "prox"} < meta.state_dict().keys()
    logarithm = torch.tensor(0.1).log().requires_grad_()
    for _ in range(2):  # a graph of its own for every call
        meta(tasks, inner_lr=logarithm.exp()).backward()
    scalar = sum((p.grad * p.detach()).sum().item() for p in meta.inner_lr.parameters())
    assert abs(logarithm.grad.item() / (2 * scalar) - 1) < 1e-5  # float32 rates
    given = replace(tasks, support_x=tasks.support_x * logarithm.exp())
    meta(given).backward()
    for call in (meta, meta.adapt):
        with pytest.raises(InputError, match="support_x was computed once, and backward.. has freed its graph"):
            call(given)
    meta.inner_lr = logarithm.exp()
    meta(tasks).backward(retain_graph=True)
    meta(tasks).backward()
    with pytest.raises(InputError, match="inner_lr was computed once, and backward.. has freed its graph"):
        meta(tasks)


def test_fomaml_takes_every_phi_for_theta_and_the_query_loss_s_own_gradients():
    problem = Problem(plain=True)
    phi = problem.path()[-1].detach().requires_grad_()
    body, head = (list(part.parameters()) for part in (problem.module.body, problem.module.head))
    *of_body, of_phi = torch.autograd.grad(problem.query_loss(phi), [*body, phi])
    meta, tasks = problem.adaptation(method="fomaml"), problem.tasks.detach()
    for outer, right in (
        (meta(tasks), [*of_body, of_phi.sum(0)]),
        (meta.adapt(tasks).square().sum(), [*(0 * p for p in body), 2 * phi.sum(0)]),  # of nothing but theta
    ):
        found = torch.autograd.grad(outer, [*body, *head], materialize_grads=True)
        one, two = (torch.cat([part.reshape(-1) for part in parts]) for parts in (found, right))
        assert relative_error(one, two) < 1e-12


def test_imaml_is_the_implicit_function_theorem_for_everything():
    problem = Problem(plain=True)
    prox = torch.tensor(2.0, dtype=torch.float64, requires_grad=True)
    meta = problem.adaptation(method="imaml", inner_steps=120, prox=prox, cg_steps=20)
    reference = problem.query_loss(problem.path([0.1] * 120, prox=prox)[-1])  # unrolled to convergence
    inputs = [prox, *problem.inputs]
    found, expected = (torch.autograd.grad(value, inputs) for value in (meta(problem.tasks), reference))
    for i, (a, b) in enumerate(zip(found, expected, strict=True)):
        assert relative_error(a, b) < 1e-8, i


def test_the_outer_loss_may_be_another_one():
    def absolute(prediction, target):
        return (prediction - target).abs().mean()

    for method in ("amaml", "fomaml", "imaml"):
        meta, tasks = small(method=method, query_loss=absolute)
        predictions = meta.predict(meta.adapt(tasks), tasks.query_x)
        assert meta(tasks).item() == pytest.approx(absolute(predictions, tasks.query_y).item(), rel=1e-12)
    problem = Problem(plain=True)
    phi, value = problem.path()[-1], problem.adaptation(query_loss=absolute)(problem.tasks)
    problem.points_loss = lambda prediction, target: (prediction - target).abs()
    problem.compare(value, problem.query_loss(phi))


@pytest.mark.parametrize("method", [MAML, FOMAML, IMAML, Reptile, Pretrained, Scratch])
def test_every_baseline_takes_weights_and_dicts(method):
    problem = Problem("dict")
    theta, apply = amaml.flatten(problem.module)
    found = method(apply, problem.loss, 0.1, 3).meta_gradient(theta, problem.tasks.detach())
    assert (bool(found.value.isfinite().all()), found.gradients) == (True, {})


def test_ragged_tasks_are_those_by_themselves():
    (meta, whole), (single, _) = small(loss=half_squares), small()
    sizes, parts = [(4, 5), (6, 2), (1, 3)], []
    for i, (s, q) in enumerate(sizes):
        parts.append((*(t[i, :s] for t in whole.support), *(t[i, :q] for t in whole.query)))
    tasks = Tasks.ragged(parts)
    assert tasks.support_weight.sum(1).tolist() == [4, 6, 1]
    assert (tasks.support_x.shape[1], tasks.query_x.shape[1]) == (8, 8)  # few sizes, few graphs
    assert Tasks.ragged(parts[1:2] * 2).support_x.shape[1] == 6
    expected = sum(single(Tasks(*(t[None] for t in part))) for part in parts) / 3
    found = torch.autograd.grad(meta(tasks), list(meta.parameters()))
    for a, b in zip(found, torch.autograd.grad(expected, list(single.parameters())), strict=True):
        assert relative_error(a, b) < 1e-12


@pytest.mark.parametrize("solver", ["euler", "auto"])
def test_single_precision_gives_the_same_to_its_rounding(solver):
    gradients = []
    for dtype in (torch.float64, torch.float32):
        lr, prox = (torch.tensor(v, dtype=dtype, requires_grad=True) for v in (0.1, 0.3))
        meta, tasks = small(solver=solver, inner_lr=lr, prox=prox, adapt=("head",))
        meta.module.to(dtype)
        tasks = tasks.to(dtype)
        tasks.support_x.requires_grad_()
        inputs = [lr, prox, *meta.module.parameters(), tasks.support_x]
        gradients.append(torch.autograd.grad(meta(tasks), inputs))
    for wide, narrow in zip(*gradients, strict=True):
        assert narrow.dtype == torch.float32
        assert relative_error(narrow.double(), wide) < 2e-5


def test_names_and_patterns_say_what_adapts_and_a_tied_parameter_has_each_of_its_names():
    module = nn.ModuleDict({"body": nn.Linear(2, 2), "head": nn.Linear(2, 2)})
    module["head"].weight = module["body"].weight
    for given, names in (("head", ["body.weight", "head.bias"]), ("body", ["body.weight", "body.bias"])):
        assert [*Flattened(module, (given,)).shapes] == names
    meta = Adaptation(module, amaml.mse, 0.1, 2, adapt=("*.bias",))
    assert list(meta.function.shapes) == ["body.bias", "head.bias"]
    assert "method='amaml', inner_steps=2, inner_lr=0.1, solver='auto'" in repr(meta)
