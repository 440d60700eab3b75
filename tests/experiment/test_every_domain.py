"""Each method on a domain of every kind, and FOMAML on all of them, from the command line to the table."""

import json

import pytest

import run
from data import DOMAINS
from experiment.registry import METHODS, NETWORKS, PROTOCOLS, protocols
from experiment.settings import merged


def sizes(domain: str) -> dict[str, int]:
    """SIZES without those that the domain, its network or its protocol does not use."""
    s = merged({"domain": domain})
    tested = (name for protocol in protocols(s.protocol) for name in PROTOCOLS[protocol].uses)
    chosen = {*DOMAINS[domain].uses, *NETWORKS[s.network].uses, *tested}
    special = {"width", "ways", "train-tasks", "test-epochs"}
    return {name: n for name, n in SIZES.items() if name not in special or name.replace("-", "_") in chosen}


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


PAIRS = [
    (domain, method) for domain in ("CosMixture", "Sinusoid", "Logistic", "Jester", "Glyphs") for method in METHODS
]
PAIRS += [(domain, "fomaml") for domain in DOMAINS if (domain, "fomaml") not in PAIRS]


@pytest.mark.parametrize(("domain", "method"), PAIRS)
def test_it_runs_from_flags_to_a_table(tmp_path, data_sets, quick, domain, method):
    flags = ["--domain", domain, "--method", method, "--data-root", data_sets, "--out", str(tmp_path / "run")]
    flags += ["--shots", "1"] if domain in ("Omniglot", "CIFARFS") else []  # of three images a class
    general = [x for name, value in sizes(domain).items() for x in (f"--{name}", str(value))]
    assert run.main([*general, *flags]) == 0
    table = json.loads((tmp_path / "run" / "summary.json").read_text())["table"]
    assert table.startswith(f"{domain}, ")
    assert f" {method}, seed 0" in table
