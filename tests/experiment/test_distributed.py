"""One run in several processes, or in a thread: the same bits, and one end for all, whatever happens to one of them."""

import os
import signal
import subprocess
import sys
import threading
from unittest.mock import Mock

import pytest
from helpers.commands import ROOT, TINY, assert_same_run, checkpoint, content, files, has_checkpoint, start, wait_for
from helpers.processes import Run, said

import run
from amaml import InputError
from experiment import distributed
from experiment.distributed import Group, Stopped
from experiment.folder import RunFolder

SMALL = ["--meta-batch", "4", "--task-chunk", "1", "--checkpoint-interval", "2", "--compile", "off"]
AUTO = [*SMALL, "--method", "amaml", "--inner-steps", "20", "--test-interval", "3"]
ENDLESS = [*SMALL, "--meta-updates", "100000", "--test-interval", "0"]

# a process that has computed may fork, as long as it has one thread
pytestmark = pytest.mark.filterwarnings("ignore:This process .* is multi-threaded")


@pytest.mark.parametrize("chunk", ["1", "3"], ids=["", "more processes than chunks"])
def test_any_number_of_processes_makes_the_same_bits(tmp_path, quick, chunk):
    start(tmp_path / "1", *AUTO, "--task-chunk", chunk)
    assert checkpoint(tmp_path / "1")["model"]["meta._extra_state"]
    assert Run(3, tmp_path / "3", *AUTO, "--task-chunk", chunk).end() == ([0] * 3, [])
    assert content(tmp_path / "3", "config.json")["settings"]["processes"] == 3
    assert_same_run(tmp_path / "3", tmp_path / "1")


def test_a_killed_process_ends_the_run_and_it_goes_on_to_the_bit(tmp_path, quick):
    group = Run(2, tmp_path / "run", *ENDLESS)
    wait_for(has_checkpoint(tmp_path / "run"), "checkpoint")
    group.ranks[1].kill()
    statuses, (line,) = group.end()
    assert statuses == [1, -signal.SIGKILL]
    assert line.startswith("run.py: another process of this run has ended")
    assert line.endswith("go on with --resume")
    flags = [*ENDLESS, "--meta-updates", str(checkpoint(tmp_path / "run")["update"] + 5)]
    assert Run(2, tmp_path / "run", *flags, "--resume").end() == ([0, 0], [])
    start(tmp_path / "whole", *flags)
    assert_same_run(tmp_path / "run", tmp_path / "whole")


def test_a_process_that_does_not_answer_is_given_up(tmp_path, quick, monkeypatch):
    monkeypatch.setattr(distributed, "SILENCE", distributed.timedelta(seconds=2))
    group = Run(2, tmp_path / "run", *ENDLESS)
    wait_for(has_checkpoint(tmp_path / "run"), "checkpoint")
    os.kill(group.ranks[1].pid, signal.SIGSTOP)
    group.ranks[0].join(180)
    group.ranks[1].kill()
    statuses, (line,) = group.end()
    assert statuses[0] == 1
    assert "has not answered" in line


def test_the_launcher_ends_with_one_line_and_the_status_of_the_run(tmp_path):
    command = [sys.executable, str(ROOT / "run.py"), *TINY, "--out", str(tmp_path), *ENDLESS, "--processes", "2"]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    stopped = subprocess.Popen(command, **pipes)
    wait_for(has_checkpoint(tmp_path), "checkpoint", stopped)
    stopped.send_signal(signal.SIGTERM)
    _, stderr = stopped.communicate(timeout=180)
    assert stopped.returncode == 128 + signal.SIGTERM
    line = f"run.py: stopped after update {checkpoint(tmp_path)['update']}; go on with --resume"
    assert said(stderr) == [line]


@pytest.mark.parametrize(("name", "other"), [("save", 1), ("create", 2)])
def test_a_fault_of_the_first_process_is_told_once(tmp_path, quick, monkeypatch, name, other):
    """Where it saves alone, the other one is lost; where both wait for it, it is the fault of both."""
    monkeypatch.setattr(RunFolder, name, Mock(side_effect=InputError("no space left; free some")))
    statuses, (line,) = Run(2, tmp_path / "run", *SMALL).end()
    assert statuses == [2, other]
    assert line.startswith("run.py: no space left; free some")


def test_a_share_of_the_batch_is_the_default_chunk(tmp_path, quick):
    assert Run(2, tmp_path / "run", "--meta-batch", "5").end() == ([0, 0], [])
    assert content(tmp_path / "run", "config.json")["settings"]["task_chunk"] == 3
    statuses, (line,) = Run(2, tmp_path / "run", "--meta-batch", "5", "--task-chunk", "2", "--resume").end()
    assert statuses == [2, 2]
    assert "holds a run with --task-chunk 3, not 2" in line


def test_a_checkpoint_is_evaluated_by_several_processes_to_the_bit(tmp_path, quick):
    start(tmp_path / "run", *SMALL)
    command = ["--evaluate", str(tmp_path / "run"), "--test-tasks", "5"]
    name = "evaluation-CosMixture-4shot-finetune-test_tasks5.json"
    assert run.main([*command, "--out", str(tmp_path / "alone")]) == 0
    assert Run(2, tmp_path / "both", command=command).end() == ([0, 0], [])
    assert (tmp_path / "alone" / name).read_bytes() == (tmp_path / "both" / name).read_bytes()


def beside(other: tuple) -> Group:
    """The first of two processes, of which the other has sent something already."""
    group = Group(0, 2)
    group.exchange = lambda mine: [mine, other]
    return group


def test_the_fault_of_the_first_chunk_is_raised_wherever_it_was_met_and_a_signal_counts_once_all_know():
    def solve(part):
        raise ValueError(f"part {part}")

    group = beside((None, [ValueError("part 1")]))
    for own, first in ((solve, 0), (lambda part: solve(part) if part == 2 else None, 1)):
        with pytest.raises(ValueError, match=f"part {first}"):
            group.map_chunks(own, [0, 1, 2, 3])
    group = beside((signal.SIGTERM, [1]))
    with pytest.raises(Stopped):
        group.map_chunks(lambda part: None, [0])


def test_a_run_in_a_thread_is_that_of_the_main_one(tmp_path, quick):
    ended = []
    thread = threading.Thread(target=lambda: ended.append(start(tmp_path / "thread")))
    thread.start()
    wait_for(lambda: not thread.is_alive(), "end of the thread")
    assert ended == [start(tmp_path / "main")] == [0]
    assert files(tmp_path / "thread")["metrics.jsonl"] == files(tmp_path / "main")["metrics.jsonl"]
    assert content(tmp_path / "thread", "summary.json")["updates"] == 6
