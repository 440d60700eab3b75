"""ANIL and learned rates in the experiments: their gradients by another road, and their runs from flag to table."""

import pytest
import torch
from helpers.commands import checkpoint, content, start, theta
from helpers.problems import relative_error, slope_error

from experiment.build import build
from experiment.distributed import Group
from experiment.settings import merged

SMALL = {"domain": "Sinusoid", "shots": 5, "queries": 5, "meta_batch": 3, "inner_steps": 4, "inner_lr": 0.1, "width": 4}
SMALL |= {"activation": "tanh", "solver": "euler", "dtype": "float64", "test_tasks": 2, "test_epochs": 0}


def experiment(**settings):
    return build(merged(SMALL | settings), Group())


def gradient(e) -> torch.Tensor:
    """Of all that is trained, at the first episode."""
    e.meta(e.domain.episode(0), **e.rates()).backward()
    return torch.cat([p.grad.reshape(-1) for p in e.model.parameters()])


@pytest.mark.parametrize("method", ["amaml", "anil"])
@pytest.mark.parametrize("kind", ["scalar", "parameter"])
def test_the_gradient_in_network_and_rates_is_the_slope_of_the_query_loss(method, kind):
    e = experiment(method=method, learn_rates=kind)
    with torch.no_grad():
        for log in e.model["log_rates"]:
            log.copy_(0.3 * torch.randn(log.shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64))
    parameters = list(e.model.parameters())
    adapted = sum(shape.numel() for shape in e.meta.function.shapes.values())
    rates = sum(p.numel() for p in e.model["log_rates"])
    assert rates == (1 if kind == "scalar" else adapted)
    assert adapted == (5 if method == "anil" else sum(p.numel() for p in parameters) - rates)

    def query_loss(point):
        torch.nn.utils.vector_to_parameters(point, parameters)
        with torch.no_grad():
            return e.meta(e.domain.episode(0), **e.rates())

    at = torch.nn.utils.parameters_to_vector(parameters).detach().clone()
    assert slope_error(gradient(e), query_loss, at) < 1e-7


def test_rates_that_are_not_learned_yet_are_those_of_the_run():
    plain, scalar, each = (experiment(learn_rates=kind) for kind in ("none", "scalar", "parameter"))
    expected = plain.meta.adapt(plain.domain.episode(0))
    for e in (scalar, each):
        assert relative_error(e.meta.adapt(e.domain.episode(0), **e.rates()), expected) < 1e-14


@pytest.mark.parametrize(("domain", "kind"), [("Sinusoid", "scalar"), ("Glyphs", "parameter")])
def test_learned_rates_run_from_flags_to_results(tmp_path, quick, domain, kind):
    images = ["--ways", "2", "--network", "mlp"] if domain == "Glyphs" else []
    flags = ["--domain", domain, "--method", "anil", "--learn-rates", kind, "--protocol", "inner", *images]
    assert start(tmp_path / "run", *flags) == 0
    assert "inner step" in content(tmp_path / "run", "summary.json")["table"]
    assert checkpoint(tmp_path / "run")["model"]["log_rates.0"].abs().max() > 0
    assert start(tmp_path / "chunks", *flags, "--task-chunk", "1") == 0
    assert relative_error(theta(tmp_path / "chunks"), theta(tmp_path / "run")) < 1e-5
