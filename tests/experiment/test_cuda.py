"""Everything that differs on a GPU, against the CPU; needs one."""

import os

import pytest
import torch
from helpers.commands import OFTEN, assert_same_run, checkpoint, content, killed, start, theta
from helpers.problems import classification, convnet, mlp, regression, relative_error

import amaml
import baselines
from amaml import AMAML, Chunked, half_mse
from amaml.flow.optimizers import Optimizer
from experiment.machine import environment

DEVICE = os.environ.get("AMAML_DEVICE", "cuda:0")  # "cpu" tries the tests themselves
pytestmark = pytest.mark.skipif(DEVICE != "cpu" and not torch.cuda.is_available(), reason="needs a CUDA device")
os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # for --deterministic, before any test uses CUDA

LEARNERS = {
    "A-MAML auto": lambda *a: AMAML(*a),
    **{f"A-MAML {solver}": lambda *a, s=solver: AMAML(*a, solver=s) for solver in ("euler", "rk4", "rkc", "dopri5")},
    "A-MAML continuous": lambda *a: AMAML(*a, solver="rk4", adjoint="continuous"),
    "A-MAML in chunks": lambda *a: Chunked(AMAML(*a), 2),
    "A-MAML, checkpoints": lambda *a: AMAML(*a, checkpoints=3),
    "A-MAML, Adam": lambda *a: AMAML(*a, inner_optimizer=Optimizer("adam"), inner_batch=2),
    "MAML, convolutions": baselines.MAML,
    **{name: getattr(baselines, name) for name in ("MAML", "FOMAML", "IMAML", "Reptile", "Scratch", "Pretrained")},
}


@pytest.mark.parametrize("compiled", [False, True], ids=["traced", "compiled"])
@pytest.mark.parametrize("name", LEARNERS)
def test_a_learner_computes_what_it_does_on_the_cpu(name, compiled):
    images = "convolutions" in name  # which cuDNN sums in another order
    (theta, apply), tasks = (convnet(), classification()) if images else (mlp(), regression())
    loss, same = (torch.nn.functional.cross_entropy, 1e-9) if images else (half_mse, 1e-10)  # relative, in float64
    here, there = (LEARNERS[name](apply, loss, 0.05, 3 if images else 12) for _ in range(2))
    moved = theta.to(DEVICE), tasks.to(DEVICE)
    for _ in range(4):  # a CUDA graph is warmed up, recorded, replayed
        expected = here.meta_gradient(theta, tasks)
        with amaml.compiled(compiled):
            found = there.meta_gradient(*moved)
        assert found.value.device == moved[0].device
        assert (found.value.cpu() - expected.value).norm() <= same * expected.value.norm()
        torch.testing.assert_close(found.query_loss.cpu(), expected.query_loss, rtol=same, atol=0)
    with amaml.compiled(compiled):
        phi = there.adapt(*moved)
    assert relative_error(phi.cpu(), here.adapt(theta, tasks)) < same


@pytest.mark.parametrize("compile", ["off", "on"])
def test_a_run_resumes_to_the_bit(tmp_path, compile, monkeypatch):
    flags = [*OFTEN, "--device", DEVICE, "--method", "amaml", "--deterministic", "--compile", compile]
    start(tmp_path / "whole", *flags)
    assert killed(monkeypatch, 6, tmp_path / "run", *flags)
    assert 0 < checkpoint(tmp_path / "run")["update"] < checkpoint(tmp_path / "whole")["update"]
    assert start(tmp_path / "run", *flags, "--resume") == 0
    assert_same_run(tmp_path / "run", tmp_path / "whole")


@pytest.mark.parametrize("compile", ["off", "on"])
def test_a_whole_experiment_ends_as_on_the_cpu(tmp_path, compile):
    flags = ["--method", "amaml", "--protocol", "both", "--draw", "2", "--test-epochs", "10"]
    assert start(tmp_path / "cpu", *flags) == 0
    assert start(tmp_path / "cuda", *flags, "--device", DEVICE, "--compile", compile) == 0
    here, there = (theta(tmp_path / name).cpu() for name in ("cpu", "cuda"))
    assert relative_error(there, here) < 1e-8  # Adam's first steps divide by the size of the gradient
    tests = [content(tmp_path / name, "test.json")[-1] for name in ("cpu", "cuda")]
    assert tests[1]["test"]["mean"] == pytest.approx(tests[0]["test"]["mean"], rel=1e-6)
    assert (tmp_path / "cuda" / "fits.png").exists()
    assert content(tmp_path / "cuda", "config.json")["device"] == environment(DEVICE)["device"]


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two CUDA devices")
def test_two_gpus_make_the_bits_of_one(tmp_path):
    flags = ["--method", "amaml", "--meta-batch", "4", "--task-chunk", "1", "--device", "cuda", "--deterministic"]
    assert start(tmp_path / "one", *flags) == 0
    assert start(tmp_path / "two", *flags, "--processes", "2") == 0
    assert_same_run(tmp_path / "two", tmp_path / "one")
