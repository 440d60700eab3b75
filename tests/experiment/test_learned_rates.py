"""ANIL and learned rates in the experiments: their gradients by another road, and their runs from flag to table."""

import pytest
import torch
from helpers.commands import checkpoint, content, error_line, start
from helpers.problems import mlp, regression, relative_error, slope_error
from torch import nn

import amaml
from amaml import AMAML, Adaptation, InputError, half_mse
from amaml.engine import derivatives
from baselines import FOMAML, IMAML, MAML, Reptile, anil
from experiment.rates import learn_rates
from experiment.settings import merged


def head_of_a_body() -> nn.Sequential:
    with torch.random.fork_rng():
        torch.manual_seed(1)
        return nn.Sequential(nn.Linear(2, 5), nn.Tanh(), nn.Linear(5, 1)).double()


@pytest.mark.parametrize("solver", ["auto", "euler"])
def test_anil_is_an_adaptation_of_the_head(solver):
    module, tasks = head_of_a_body(), regression()
    theta, apply = amaml.flatten(module)
    learner = anil(apply, half_mse, 0.1, 6, solver=solver)
    g = learner.meta_gradient(theta, tasks)
    meta = Adaptation(module, half_mse, 0.1, 6, adapt=("2",), solver=solver)
    meta(tasks).backward()
    expected = torch.cat([p.grad.reshape(-1) for p in module.parameters()])
    assert relative_error(g.value, expected) < (1e-12 if solver == "euler" else 1e-3)
    phi = learner.adapt(theta, tasks)
    assert torch.equal(phi[:, :15], theta[:15].expand(3, -1))  # the body stays
    assert (phi[:, 15:] - theta[15:]).abs().min() > 0


@pytest.mark.parametrize("method", ["amaml", "anil"])
@pytest.mark.parametrize(("kind", "rates"), [("scalar", 1), ("parameter", 51)])
def test_the_gradient_in_the_rates_is_the_slope_of_the_query_loss(method, kind, rates):
    (theta, apply), tasks = mlp(), regression()
    make = AMAML if method == "amaml" else anil
    learner = make(apply, half_mse, 0.1, 4, solver="euler")
    extended, leading, learned = learn_rates(kind, theta, apply, learner, None)
    assert len(extended) == 51 + rates
    assert relative_error(learned.adapt(extended, tasks)[:, :51], learner.adapt(theta, tasks)) < 1e-14
    extended[51:] = 0.3 * torch.randn(rates, generator=torch.Generator().manual_seed(0), dtype=torch.float64)

    def query_loss(point):
        phi = learned.adapt(point, tasks)
        return derivatives.losses(leading, half_mse, phi, tasks.query_x, tasks.query_y).mean()

    g = learned.meta_gradient(extended, tasks)
    assert slope_error(g.value, query_loss, extended) < 1e-7
    assert abs(g.query_loss.mean() - query_loss(extended)) < 1e-12
    _, _, chunked = learn_rates(kind, theta, apply, learner, 2)
    assert relative_error(chunked.meta_gradient(extended, tasks).value, g.value) < 1e-12


@pytest.mark.parametrize("kind", ["scalar", "parameter"])
@pytest.mark.parametrize("domain", ["Sinusoid", "Glyphs"])
def test_learned_rates_run_from_flags_to_results(tmp_path, domain, kind):
    images = ["--ways", "2", "--network", "mlp"] if domain == "Glyphs" else []
    flags = ["--domain", domain, "--method", "anil", "--learn-rates", kind, "--protocol", "inner", *images]
    assert start(tmp_path, *flags) == 0
    table = content(tmp_path, "summary.json")["table"]
    assert "inner step" in table
    theta = checkpoint(tmp_path)["theta"]
    if kind == "scalar":
        assert theta[-1] != 0
    assert start(tmp_path / "chunks", *flags, "--task-chunk", "1") == 0
    other = checkpoint(tmp_path / "chunks")["theta"]
    assert relative_error(other, theta) < 1e-5


def test_no_learned_rates_are_the_default(tmp_path):
    assert merged({"domain": "Sinusoid"}).learn_rates is None
    assert merged({"domain": "Sinusoid", "learn_rates": "none"}).learn_rates is None
    with pytest.raises(InputError, match="unknown learn-rates 'scaler'; did you mean 'scalar'"):
        merged({"domain": "Sinusoid", "learn_rates": "scaler"})


def test_methods_without_rates_to_learn_say_so(tmp_path, capsys):
    assert start(tmp_path, "--method", "maml", "--learn-rates", "scalar") == 2
    assert "--learn-rates scalar is for --method amaml or anil, not for maml" in error_line(capsys)


@pytest.mark.parametrize("solver", ["euler", "auto"])
@pytest.mark.parametrize("name", ["inner_lr", "prox"])
def test_a_learner_follows_a_tensor_that_is_trained(solver, name):
    (theta, apply), tasks = mlp(), regression()
    given = {"inner_lr": torch.tensor(0.05, dtype=torch.float64), "prox": torch.tensor(0.5, dtype=torch.float64)}
    learner = AMAML(apply, half_mse, inner_steps=10, solver=solver, rtol=5e-4, **given)
    learner.meta_gradient(theta, tasks)
    given[name].mul_(3)
    now = AMAML(apply, half_mse, inner_steps=10, solver=solver, rtol=5e-4, **given)
    value, expected = (one.meta_gradient(theta, tasks).value for one in (learner, now))
    assert relative_error(value, expected) < (1e-12 if solver == "euler" else 2e-3)
    assert relative_error(learner.adapt(theta, tasks), now.adapt(theta, tasks)) < 1e-12
    given[name].mul_(-1)
    for call in (learner.meta_gradient, learner.adapt):
        with pytest.raises(InputError, match=f"{name} must be .*, got -"):
            call(theta, tasks)


def test_rates_of_another_dtype_are_refused():
    (theta, apply), tasks = mlp(), regression()
    learner = AMAML(apply, half_mse, torch.full(theta.shape, 0.05, dtype=torch.float32), 3)
    with pytest.raises(InputError, match=r"inner_lr is torch.float32 on cpu, theta torch.float64"):
        learner.meta_gradient(theta, tasks)


@pytest.mark.parametrize("method", [FOMAML, IMAML, MAML, Reptile])
def test_methods_with_one_rate_refuse_a_vector(method):
    with pytest.raises(InputError, match=r"one inner_lr, a number; got a tensor of shape \(7,\)"):
        method(mlp()[1], half_mse, torch.ones(7), 3)
