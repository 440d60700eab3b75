"""A run that is stopped or killed, anywhere, ends with the same bits; one may begin with the theta of another."""

import os
import shutil
import signal
from itertools import count

import pytest
import torch
from helpers.commands import OFTEN, assert_same_run, checkpoint, content, files, killed, metrics, refused, start, theta
from helpers.processes import Run

import run
from data.synthetic import CosMixture
from experiment import folder
from experiment.evaluation import measured

# the cut at twice the median length is remembered, by Reptile's part too
REMEMBERING = ["--method", "amaml", "--robust", "2", "--learn-rates", "scalar", "--reptile-first", "4"]


@pytest.mark.parametrize("how", [["--meta-schedule", "cosine"], REMEMBERING], ids=["cosine", "remembering"])
def test_a_run_killed_in_any_of_its_writes_and_once_more_resumes_to_the_bit(tmp_path, quick, monkeypatch, how):
    flags, whole = [*OFTEN, *how], tmp_path / "whole"
    start(whole, *flags)
    for moment in count():
        out = tmp_path / f"killed{moment}"
        if not killed(monkeypatch, moment, out, *flags):
            break
        assert not (out / "summary.json").exists()
        killed(monkeypatch, 5, out, *flags, "--resume")  # where it comes to that
        assert start(out, *flags, "--resume") == 0
        assert_same_run(out, whole)
        assert set(files(out)) - {name + ".tmp" for name in folder.FILES} == set(files(whole))
    assert moment >= 12  # configuration, metrics, tests, checkpoints, curves, summary: each write died once
    if how is REMEMBERING:
        assert checkpoint(whole)["model"]["log_rates.0"] != 0
        start(tmp_path / "reptile", "--method", "reptile", "--robust", "2", "--meta-updates", "4")
        assert metrics(whole)[:4] == metrics(tmp_path / "reptile")
        assert [m["hvps"] > 0 for m in metrics(whole)] == [False] * 4 + [True] * 2
    longer = start(whole, *flags, "--meta-updates", "8", "--resume")
    assert longer == (0 if how is REMEMBERING else 2)  # a step size that falls to zero makes it another run


def signalled(monkeypatch, step: int | None, number: int, test: int = 0, repeat: int = 1):
    """Send a signal while episode step is drawn, or (step None) in the middle of the test-th meta-test."""
    draw, tests = CosMixture.episode, count()

    def send():
        for _ in range(repeat):
            os.kill(os.getpid(), number)

    def noisy_draw(domain, n):
        if n == step:
            send()
        return draw(domain, n)

    def noisy_records(records):
        current = next(tests)
        for record in records:
            if step is None and current == test and record.epoch == 10:
                send()
            yield record

    monkeypatch.setattr(CosMixture, "episode", noisy_draw)
    monkeypatch.setattr("experiment.build.measured", lambda records, *of: measured(noisy_records(records), *of))


STOPS = {  # by which signal, where, after which update, and the tests that are made by then
    "update 1": (signal.SIGTERM, {"step": 0}, 1, []),
    "update 4": (signal.SIGINT, {"step": 3}, 4, [3]),
    "first test": (signal.SIGTERM, {"step": None}, 3, []),
    "last test": (signal.SIGINT, {"step": None, "test": 1}, 6, [3]),
    "test of the random initialisation": (signal.SIGTERM, {"step": None, "test": 2}, 6, [3]),
}


@pytest.mark.parametrize("stop", STOPS.values(), ids=STOPS)
def test_a_stop_saves_at_once_and_resumes_to_the_bit(tmp_path, quick, monkeypatch, capsys, stop):
    """Also with other flags that leave the numbers alone; the clock goes on."""
    number, where, update, tests = stop
    out, flags = tmp_path / "run", ["--checkpoint-interval", "100", "--test-interval", "3", "--test-epochs", "25"]
    start(tmp_path / "whole", *flags)
    handlers = signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)
    with monkeypatch.context() as patch:
        signalled(patch, number=number, **where)
        line = refused(capsys, out, *flags, status=128 + number)
    assert line == f"run.py: stopped after update {update}; go on with --resume\n"
    assert (signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)) == handlers
    before = checkpoint(out)
    assert (before["update"], before["timed_updates"]) == (update, update - 1)  # a first update traces the network
    assert [m["update"] for m in metrics(out)] == list(range(1, update + 1))
    assert [t["update"] for t in content(out, "test.json")] == tests
    assert start(out, *flags, "--resume", "--checkpoint-interval", "1", "--draw", "1") == 0
    assert_same_run(out, tmp_path / "whole")
    assert (out / "fits.png").exists()
    after = checkpoint(out)
    assert after["timed_updates"] == 5 - (update < 6)
    assert (after["timed_seconds"] > before["timed_seconds"]) == (update < 5)


def test_a_second_interrupt_ends_at_once(tmp_path, quick, monkeypatch, capsys):
    with monkeypatch.context() as patch:
        signalled(patch, step=1, number=signal.SIGINT, repeat=2)
        assert refused(capsys, tmp_path / "run", status=130) == "run.py: interrupted\n"
    start(tmp_path / "whole")
    assert start(tmp_path / "run", "--resume") == 0
    assert_same_run(tmp_path / "run", tmp_path / "whole")


def test_a_finished_run_is_extended_to_what_a_longer_one_had_been(finished, tmp_path, monkeypatch):
    assert killed(monkeypatch, 1, finished, "--meta-updates", "10", "--resume")
    assert not (finished / "summary.json").exists()
    assert start(finished, "--meta-updates", "10", "--resume") == 0
    start(tmp_path / "whole", "--meta-updates", "10")
    assert (finished / "metrics.jsonl").read_bytes() == (tmp_path / "whole" / "metrics.jsonl").read_bytes()
    assert content(finished, "summary.json")["at_epochs"] == content(tmp_path / "whole", "summary.json")["at_epochs"]
    assert [t["update"] for t in content(finished, "test.json")] == [6, 10]
    assert content(finished, "config.json")["settings"]["meta_updates"] == 10


@pytest.fixture
def reptile(tmp_path, quick):
    """The folder of a finished run."""
    start(tmp_path / "reptile", "--method", "reptile")
    return tmp_path / "reptile"


@pytest.mark.parametrize("named", ["", "checkpoint.pt"])
def test_the_first_update_is_a_step_from_the_other_runs_theta(tmp_path, reptile, named):
    flags = ["--method", "maml", "--meta-updates", "1", "--meta-optimizer", "sgd", "--meta-lr", "1e-20"]
    assert start(tmp_path / "maml", *flags, "--start-from", str(reptile / named)) == 0
    assert torch.equal(theta(tmp_path / "maml"), theta(reptile))  # so short a step moves no number
    assert content(tmp_path / "maml", "config.json")["settings"]["start_from"] == str(reptile / named)


@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded")
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
    for flags, words in {
        ("--width", "5"): ["--start-from", "--width 4", "not 5"],
        ("--domain", "CosMixture2D"): ["33 parameters", "the network has 37"],
        ("--method", "scratch"): ["--method scratch", f"--evaluate {reptile}"],
        ("--start-from", str(tmp_path / "nowhere")): ["nowhere", "its checkpoint.pt"],
    }.items():
        flags = ["--overwrite", "--start-from", str(reptile), *flags]
        line = refused(capsys, tmp_path / "there", *flags, keeps=tmp_path)
        assert all(word in line for word in words), line
