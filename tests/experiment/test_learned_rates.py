"""ANIL and learned rates in the experiments: what they stand for, and their runs from flag to table.

That the gradients in rates are right is a matter of tests/library.
"""

import math

import pytest
from helpers.commands import checkpoint, content, start, theta
from helpers.problems import relative_error

from experiment.build import build
from experiment.distributed import Group
from experiment.settings import merged

SMALL = {"domain": "Sinusoid", "shots": 5, "queries": 5, "meta_batch": 3, "inner_steps": 4, "inner_lr": 0.1, "width": 4}
SMALL |= {"activation": "tanh", "solver": "euler", "dtype": "float64", "test_tasks": 2, "test_epochs": 0}


def experiment(**settings):
    return build(merged(SMALL | settings), Group())


@pytest.mark.parametrize("method", ["amaml", "anil"])
def test_learned_rates_are_factors_of_the_runs_own(method):
    """Of one for all, and of one for each parameter that adapts; they begin at one."""
    plain, scalar, each = (experiment(method=method, learn_rates=kind) for kind in ("none", "scalar", "parameter"))
    tasks, adapting = plain.domain.meta_test(2), slice(-2 if method == "anil" else None, None)
    shapes = [p.shape for p in plain.meta.module.parameters()][adapting]
    assert [log.shape for log in each.model["log_rates"]] == shapes
    for rate in (0.1, 0.3):
        expected = plain.meta.adapt(tasks, inner_lr=rate)
        for e in (scalar, each):
            assert relative_error(e.adapt(tasks, "inner")[1].phi, expected) < 1e-14
            for log in e.model["log_rates"]:
                log.data += math.log(3)


@pytest.mark.parametrize(("domain", "kind"), [("Sinusoid", "scalar"), ("Glyphs", "parameter")])
def test_learned_rates_run_from_flags_to_results(tmp_path, quick, domain, kind):
    images = ["--ways", "2", "--network", "mlp"] if domain == "Glyphs" else []
    flags = ["--domain", domain, "--method", "anil", "--learn-rates", kind, "--protocol", "inner", *images]
    assert start(tmp_path / "run", *flags) == 0
    assert "inner step" in content(tmp_path / "run", "summary.json")["table"]
    assert checkpoint(tmp_path / "run")["model"]["log_rates.0"].abs().max() > 0
    assert start(tmp_path / "chunks", *flags, "--task-chunk", "1") == 0
    assert relative_error(theta(tmp_path / "chunks"), theta(tmp_path / "run")) < 1e-5
