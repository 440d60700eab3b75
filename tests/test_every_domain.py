"""Each method on each domain, from the command line to the table."""

import json

import pytest

import data
import run
from configs.settings import METHODS

SIZES = {
    "shots": 2,
    "queries": 2,
    "inner-steps": 2,
    "meta-updates": 2,
    "meta-batch": 2,
    "test-tasks": 3,
    "test-epochs": 10,
    "test-interval": 0,
    "width": 4,
    "ways": 2,
    "train-tasks": 30,
}


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("domain", data.DOMAINS)
def test_every_method_runs_on_every_domain(tmp_path, data_sets, quick, domain, method):
    flags = ["--domain", domain, "--method", method, "--data-root", data_sets, "--out", str(tmp_path / "run")]
    flags += ["--shots", "1"] if domain in ("Omniglot", "CIFARFS") else []  # of three images a class
    sizes = [x for name, value in SIZES.items() for x in (f"--{name}", str(value))]
    assert run.main([*sizes, *flags]) == 0
    table = json.loads((tmp_path / "run" / "summary.json").read_text())["table"]
    assert table.startswith(f"{domain}, ")
    assert f" {method}, seed 0" in table
