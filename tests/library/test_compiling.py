"""Where torch.compile does not work, the traced graphs do."""

import warnings

import pytest
import torch
from helpers.problems import regression, relative_error, seeded
from torch import nn

import amaml
from amaml import half_mse
from amaml.engine import compiling
from baselines import MAML


class NoCompiler:
    """torch.compile as it is without a compiler: it fails when the graph is called first."""

    def __init__(self) -> None:
        self.attempts = 0

    def __call__(self, graph, **options):
        def fails(*arguments):
            self.attempts += 1
            raise OSError("\nno compiler here\nand much more")

        return fails


def test_one_warning_and_the_traced_graphs_where_compiling_fails(monkeypatch):
    (theta, apply), tasks = seeded(lambda: nn.Linear(2, 1)), regression()
    learner, compiler = MAML(apply, half_mse, 0.05, 3), NoCompiler()
    expected = learner.meta_gradient(theta, tasks)
    monkeypatch.setattr(torch, "compile", compiler)
    monkeypatch.setattr(compiling, "_without_compiler", set())
    with amaml.compiled():
        with pytest.warns(RuntimeWarning, match=r"torch.compile fails on this cpu device \(no compiler here\).*off"):
            found = learner.meta_gradient(theta, tasks)
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            again = learner.meta_gradient(theta, tasks[:2])
    assert compiler.attempts == 1
    assert torch.equal(found.value, expected.value)
    assert relative_error(again.value, learner.meta_gradient(theta, tasks[:2]).value) == 0
