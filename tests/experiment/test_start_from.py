"""--start-from: a run begins with the theta of another, and with nothing else of it."""

import shutil

import pytest
import torch
from helpers.commands import OFTEN, assert_same_run, content, files, killed, refused, start, theta
from helpers.processes import Run

import run
from amaml import AMAML

SGD = ["--meta-optimizer", "sgd", "--meta-lr", "0.1"]

pytestmark = pytest.mark.filterwarnings("ignore:This process .* is multi-threaded")


@pytest.fixture
def reptile(tmp_path, quick):
    """The folder of a finished run."""
    start(tmp_path / "reptile", "--method", "reptile")
    return tmp_path / "reptile"


@pytest.mark.parametrize("named", ["", "checkpoint.pt"])
def test_the_first_update_is_a_step_from_the_other_runs_theta(tmp_path, reptile, monkeypatch, named):
    flags, seen, gradient = ["--method", "maml", "--meta-updates", "1", *SGD], [], AMAML.gradient

    def noted(learner, theta, *arguments):
        made = gradient(learner, theta, *arguments)
        seen.extend((theta.detach().clone(), made.value))
        return made

    monkeypatch.setattr(AMAML, "gradient", noted)
    assert start(tmp_path / "maml", *flags, "--start-from", str(reptile / named)) == 0
    start_, moved = theta(reptile), theta(tmp_path / "maml")
    assert torch.equal(seen[0], start_)
    torch.testing.assert_close(moved, start_ - 0.1 * seen[1], rtol=1e-12, atol=0)
    assert content(tmp_path / "maml", "config.json")["settings"]["start_from"] == str(reptile / named)


def test_it_resumes_to_the_bit_without_the_other_run_and_every_process_begins_with_it(tmp_path, reptile, monkeypatch):
    flags = [*OFTEN, "--meta-batch", "4", "--task-chunk", "1", "--compile", "off", "--start-from", str(reptile)]
    start(tmp_path / "whole", *flags)
    scratch = [content(out, "test.json")[-1]["scratch"] for out in (reptile, tmp_path / "whole")]
    assert scratch[0] == scratch[1]  # what it is compared with is the random initialisation
    assert Run(2, tmp_path / "two", *flags).end() == ([0, 0], [])
    assert_same_run(tmp_path / "two", tmp_path / "whole")
    assert killed(monkeypatch, 7, tmp_path / "parts", *flags)
    shutil.move(reptile, tmp_path / "elsewhere")
    assert start(tmp_path / "parts", *flags, "--resume") == 0
    assert_same_run(tmp_path / "parts", tmp_path / "whole")
    assert run.main(["--evaluate", str(tmp_path / "parts")]) == 0


def test_a_theta_that_does_not_fit_gets_one_line_and_nothing_is_lost(tmp_path, reptile, capsys):
    start(tmp_path / "there")
    before, _ = files(tmp_path), capsys.readouterr()
    for flags, words in {
        ("--width", "5"): ["--start-from", "--width 4", "not 5"],
        ("--domain", "CosMixture2D"): ["33 parameters", "the network has 37"],
        ("--method", "scratch"): ["--method scratch", f"--evaluate {reptile}"],
        ("--start-from", str(tmp_path / "nowhere")): ["nowhere", "its checkpoint.pt"],
    }.items():
        line = refused(capsys, tmp_path / "there", "--overwrite", "--start-from", str(reptile), *flags)
        assert all(word in line for word in words), line
        assert files(tmp_path) == before
