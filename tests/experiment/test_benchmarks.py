"""What benchmarks measures side by side, and benchmarks/gpu.sh, tiny on the CPU."""

import copy
import csv
import json
import os
import re
import subprocess
import sys
import time
from functools import partial

import numpy as np
import pytest
import torch
from helpers.commands import ROOT, start, theta

from amaml.engine import derivatives
from benchmarks.peers import turns
from benchmarks.peers.__main__ import Peer, distance, main
from benchmarks.peers.ours import quantities
from benchmarks.peers.problems import problem, write
from benchmarks.peers.pytorch import by_package


@pytest.fixture(scope="module")
def ours():
    """Our quantities of three tasks and two inner steps."""
    p = problem("small", "float64", tasks=3)
    return p, quantities(p, steps=2, batches=1)


def test_a_library_answers_with_seconds_memory_and_our_gradient(ours, tmp_path):
    p, mine = ours
    write(p, str(tmp_path / "problem.npz"))
    module = [sys.executable, "-W", "ignore", "-m", "benchmarks.peers.pytorch"]
    peer = Peer("PyTorch", [*module, str(tmp_path / "problem.npz"), "small", "2"])
    assert peer.quantities[:5] == ["gradient", "product", "FOMAML", "MAML, checkpointed", "MAML, unrolled"]
    for name in peer.quantities[:5]:
        answer = peer.call(name, 0, 60, tmp_path / f"PyTorch {name}.npy")
        assert answer["seconds"] > 0
        np.save(tmp_path / f"amaml {name}.npy", mine[name]())
        assert distance(tmp_path, "PyTorch", name) < 1e-12
    assert peer.call("MAML", 0, 60, tmp_path / "none") == {"fault": "KeyError: 'MAML'"}
    assert peer.end() == 0


def test_our_maml_and_what_is_asked_of_it_are_one_gradient(ours):
    _, mine = ours
    whole = ("MAML, unrolled", "MAML, checkpointed", "MAML, by autograd")
    asking = [name for name in mine if name.startswith("asking") and not name.endswith(("auto", "head", "body"))]
    assert len(asking) == 4
    for name in (*whole, *asking):
        assert torch.allclose(mine[name](), mine["MAML, unrolled"](), rtol=1e-10, atol=0), name
    assert mine["asking for a head"]().shape == (33,)
    released = mine["A-MAML as released"]()  # of the mean over the tasks as well
    assert torch.cosine_similarity(released, mine["MAML, unrolled"](), dim=0) > 0.99


def test_a_package_goes_task_by_task_from_theta_to_the_mean(ours):
    p, _ = ours

    def no_step(module, support, query, inner_lr, steps) -> None:
        query(module).backward()

    found = by_package(no_step, copy.deepcopy(p.module), 2 * p.theta, p.tasks, p.loss, p.inner_lr, 2)
    expected = derivatives.gradients(p.apply, p.loss, 2 * p.theta.expand(3, -1), *p.tasks.query).mean(0)
    assert torch.allclose(found, expected, rtol=1e-10)


def test_a_problem_has_as_many_different_tasks_as_asked_for_and_the_trained_network_of_a_run(tmp_path):
    tasks = problem("small", "float32", tasks=150).episode(1)
    assert len(tasks) == 150
    assert len(tasks.support_x[:, 0].unique(dim=0)) == 150
    assert start(tmp_path / "run", "--domain", "Alpine2D", "--width", "32", "--meta-updates", "1") == 0
    p = problem("small", "float64", trained=str(tmp_path / "run" / "checkpoint.pt"))
    assert torch.equal(p.theta, theta(tmp_path / "run"))
    assert not torch.equal(p.theta, problem("small", "float64").theta)


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # of a finalizer that the alarm met
def test_a_call_that_takes_too_long_or_fails_is_told(capsys, monkeypatch, tmp_path):
    told, limits = {"seconds": 0, "file": str(tmp_path / "x")}, {"a": 1, "b": 60, "c": 60}
    lines = [turns.json.dumps(told | {"name": name, "limit": limit}) for name, limit in limits.items()]
    monkeypatch.setattr(sys, "stdin", lines)
    turns.serve({"a": partial(time.sleep, 60), "b": partial(int, "no number"), "c": lambda: 3.0})
    names, late, failed, good = map(turns.json.loads, capsys.readouterr().out.splitlines())
    assert (names, late) == (["a", "b", "c"], {"fault": "over 1 s"})
    assert failed["fault"].startswith("ValueError: invalid literal")
    assert good["seconds"] < 1
    assert np.load(tmp_path / "x.npy") == 3.0


def test_peers_are_measured_on_the_cpu_alone(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["peers", "--device", "cuda"])
    with pytest.raises(SystemExit):
        main()
    assert "--libraries amaml" in capsys.readouterr().err


def gpu(out, *arguments) -> tuple[int, dict[str, str]]:
    """The exit status of benchmarks/gpu.sh, and what it says of each section."""
    environment = {**os.environ, "OUT": str(out), "PYTHON": sys.executable}
    ended = subprocess.run(["bash", ROOT / "benchmarks/gpu.sh", *arguments], env=environment, capture_output=True)
    log = (out / "log.txt").read_text()
    assert log == ended.stdout.decode(), ended.stderr
    return ended.returncode, dict(re.findall(r"^(\w+): status (\w+)", log, re.MULTILINE))


def test_every_section_runs_and_leaves_its_results(tmp_path):
    sections = ("machine", "smoke", "tests", "update", "table", "long")
    assert gpu(tmp_path, "--device", "cpu", "--seconds", "600") == (0, dict.fromkeys(sections, "0"))
    assert "1 passed" in (tmp_path / "tests.txt").read_text()
    updates = [json.loads((tmp_path / f"{name}.json").read_text())["updates"] for name in ("smoke", "update", "long")]
    assert updates == [2, 3, 4]
    (row,) = csv.DictReader((tmp_path / "table.csv").read_text().splitlines())
    place = (row["tasks"], row["steps"], row["device"], row["way"], row["quantity"], row["fault"])
    assert place == ("2", "2", "cpu", "traced", "FOMAML", "")
    assert float(row["first"]) > float(row["seconds"]) > 0


def test_a_fault_stops_no_other_section(tmp_path):
    status, sections = gpu(tmp_path, "--device", "cuda:99", "--only", "machine smoke")
    assert status == 1
    assert sections == {"machine": "1", "smoke": "2"}
    assert "cuda:99" in (tmp_path / "smoke.txt").read_text()
