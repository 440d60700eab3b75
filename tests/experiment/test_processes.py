"""One run in several processes: the same bits as in one, and one end for all, whatever happens to one of them."""

import itertools
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch.multiprocessing
from helpers.commands import ROOT, TINY, assert_same_run, checkpoint, content, error_line, metrics, start

import run
from amaml import AMAML, Diverged, InputError, OverBudget
from baselines import FOMAML
from experiment import processes
from experiment.folder import RunFolder
from experiment.processes import AgreedStop, Group
from experiment.stop import Stopped

SMALL = ["--meta-batch", "4", "--task-chunk", "1", "--checkpoint-interval", "2", "--compile", "off"]
AUTO = [*SMALL, "--method", "amaml", "--inner-steps", "20", "--test-interval", "3"]
ENDLESS = [*SMALL, "--meta-updates", "100000", "--test-interval", "0"]

# a process that has computed may fork, as long as it has one thread; so they need not load torch again
pytestmark = pytest.mark.filterwarnings("ignore:This process .* is multi-threaded")


WORKER = int(os.environ.get("PYTEST_XDIST_WORKER", "gw0").removeprefix("gw"))
PORTS = itertools.count(12_000 + 500 * WORKER)  # which no other test process takes, nor the system for itself


def free_port() -> int:
    """A port that nobody listens on."""
    return next(port for port in PORTS if _is_free(port))


def _is_free(port: int) -> bool:
    with socket.socket() as socket_:
        try:
            socket_.bind(("localhost", port))
        except OSError:
            return False
    return True


class Run:
    """A run of several processes, as torchrun starts them, forked from this one."""

    def __init__(self, world: int, out: Path, *flags: str, command: list[str] = TINY) -> None:
        port = free_port()
        context = torch.multiprocessing.get_context("fork")
        self.logs = [out.with_name(f"{out.name}.{rank}") for rank in range(world)]
        self.ranks = []
        for rank, log in enumerate(self.logs):
            place = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": world, "MASTER_ADDR": "localhost"}
            variables = {name: str(value) for name, value in {**place, "MASTER_PORT": port}.items()}
            self.ranks.append(
                context.Process(target=_rank, args=(variables, log, [*command, "--out", str(out), *flags]))
            )
            self.ranks[-1].start()

    def end(self) -> tuple[list[int], list[str]]:
        """The exit statuses, and the lines on stderr but those of the progress."""
        for rank in self.ranks:
            rank.join(60)
        return [rank.exitcode for rank in self.ranks], _lines("".join(log.read_text() for log in self.logs))


def _rank(variables: dict[str, str], log: Path, arguments: list[str]) -> None:
    os.environ.update(variables)
    with open(log, "w", buffering=1) as sys.stderr, open(os.devnull, "w") as sys.stdout:
        os.dup2(sys.stderr.fileno(), 2)
        status = run.main(arguments)
    os._exit(status)


def _lines(stderr: str) -> list[str]:
    return [line for line in stderr.splitlines() if not line.startswith("update ")]


def _said(stderr: str) -> list[str]:
    """The lines of a run that was ended from outside, whose gloo threads may abort with a line of the C++ runtime."""
    return [line for line in _lines(stderr) if line != "terminate called without an active exception"]


def wait_for_checkpoint(out: Path, update: int = 1) -> None:
    deadline = time.monotonic() + 60
    while not (out / "checkpoint.pt").exists() or checkpoint(out)["update"] < update:
        assert time.monotonic() < deadline
        time.sleep(0.02)


def test_one_two_and_four_processes_make_the_same_bits(tmp_path, quick):
    start(tmp_path / "1", *AUTO)
    assert len(checkpoint(tmp_path / "1")["control"]["errors"]) > 1
    for n in (2, 4):
        assert Run(n, tmp_path / str(n), *AUTO).end() == ([0] * n, [])
        assert content(tmp_path / str(n), "config.json")["settings"]["processes"] == n
        assert_same_run(tmp_path / str(n), tmp_path / "1")


def test_more_processes_than_chunks_do_no_harm(tmp_path, quick):
    start(tmp_path / "1", *AUTO, "--task-chunk", "3")
    assert Run(3, tmp_path / "3", *AUTO, "--task-chunk", "3").end() == ([0] * 3, [])
    assert_same_run(tmp_path / "3", tmp_path / "1")


def test_a_killed_process_ends_the_run_and_it_goes_on_to_the_bit(tmp_path, quick):
    group = Run(2, tmp_path / "run", *ENDLESS)
    wait_for_checkpoint(tmp_path / "run")
    group.ranks[1].kill()
    statuses, lines = group.end()
    assert statuses == [1, -signal.SIGKILL]
    (line,) = lines
    assert line.startswith("run.py: another process of this run has ended")
    assert line.endswith("go on with --resume")
    flags = [*ENDLESS, "--meta-updates", str(checkpoint(tmp_path / "run")["update"] + 5)]
    assert Run(2, tmp_path / "run", *flags, "--resume").end() == ([0, 0], [])
    start(tmp_path / "whole", *flags)
    assert_same_run(tmp_path / "run", tmp_path / "whole")


def test_a_process_that_does_not_answer_is_given_up(tmp_path, quick, monkeypatch):
    monkeypatch.setattr(processes, "SILENCE", processes.timedelta(seconds=1))
    group = Run(2, tmp_path / "run", *ENDLESS)
    wait_for_checkpoint(tmp_path / "run")
    os.kill(group.ranks[1].pid, signal.SIGSTOP)
    group.ranks[0].join(60)
    group.ranks[1].kill()
    statuses, (line,) = group.end()
    assert statuses[0] == 1
    assert "has not answered" in line


def test_a_stop_of_one_process_is_met_by_all(tmp_path, quick):
    group = Run(2, tmp_path / "run", *ENDLESS)
    wait_for_checkpoint(tmp_path / "run")
    os.kill(group.ranks[1].pid, signal.SIGTERM)
    statuses, lines = group.end()
    assert statuses == [128 + signal.SIGTERM] * 2
    assert lines == [f"run.py: stopped after update {checkpoint(tmp_path / 'run')['update']}; go on with --resume"]


def spawn(out: Path, *flags: str) -> subprocess.Popen:
    """A run of two processes that the program starts itself."""
    return subprocess.Popen(
        [sys.executable, str(ROOT / "run.py"), *TINY, "--out", str(out), *flags, "--processes", "2"],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def test_the_launcher_ends_with_one_line_and_the_status_of_the_run(tmp_path):
    stopped = spawn(tmp_path, *ENDLESS)
    wait_for_checkpoint(tmp_path)
    stopped.send_signal(signal.SIGTERM)
    _, stderr = stopped.communicate(timeout=60)
    update = checkpoint(tmp_path)["update"]
    assert stopped.returncode == 128 + signal.SIGTERM
    assert _said(stderr) == [f"run.py: stopped after update {update}; go on with --resume"]

    killed = spawn(tmp_path, *ENDLESS, "--resume")
    wait_for_checkpoint(tmp_path, update + 2)
    os.kill(int(content_of_lock(tmp_path)), signal.SIGKILL)
    _, stderr = killed.communicate(timeout=60)
    assert killed.returncode == 128 + signal.SIGKILL
    assert _said(stderr) == ["run.py: the first process was killed by SIGKILL; go on with --resume"]


def content_of_lock(out: Path) -> str:
    """The number of the process that works in a folder."""
    return (out / "lock").read_text().split()[1]


def diverging(learner, theta, tasks, calls=[], whole=FOMAML.meta_gradient):  # noqa: B006
    calls.append(tasks)
    if os.environ["RANK"] == "1" and len(calls) == 5:  # two chunks an update: in the third
        raise Diverged("as it was asked to; try another")
    return whole(learner, theta, tasks)


def full(folder, checkpoint):
    raise InputError("no space left; free some")


@pytest.mark.parametrize(
    ("where", "name", "cause", "line"),
    [
        (
            FOMAML,
            "meta_gradient",
            diverging,
            "update 3: as it was asked to; try another; the checkpoint of update 2 is kept",
        ),
        (RunFolder, "save", full, "no space left; free some; there is no checkpoint yet"),
        (RunFolder, "create", full, "no space left; free some"),
    ],
)
def test_a_fault_of_one_process_ends_all_with_its_line(tmp_path, quick, monkeypatch, where, name, cause, line):
    monkeypatch.setattr(where, name, cause)
    assert Run(2, tmp_path / "run", *SMALL).end() == ([2, 2], [f"run.py: {line}"])


def test_mistakes_are_told_once_before_anything_starts(tmp_path, capsys):
    assert start(tmp_path / "run", "--processes", "2", "--shots", "0") == 2
    assert "--shots must be a positive integer" in error_line(capsys)
    assert start(tmp_path / "run", "--processes", "0") == 2
    assert "--processes must be a positive integer" in error_line(capsys)


def test_a_share_of_the_batch_is_the_default_chunk(tmp_path, quick):
    assert Run(2, tmp_path / "run", "--meta-batch", "5").end() == ([0, 0], [])
    assert content(tmp_path / "run", "config.json")["settings"]["task_chunk"] == 3
    group = Run(2, tmp_path / "run", "--meta-batch", "5", "--task-chunk", "2", "--resume")
    statuses, (line,) = group.end()
    assert statuses == [2, 2]
    assert "holds a run with --task-chunk 3, not 2" in line


def test_a_checkpoint_is_evaluated_by_several_processes_to_the_bit(tmp_path, quick):
    start(tmp_path / "run", *SMALL)
    command = ["--evaluate", str(tmp_path / "run"), "--test-tasks", "5"]
    name = "evaluation-CosMixture-4shot-finetune.json"
    assert run.main([*command, "--out", str(tmp_path / "alone")]) == 0
    assert Run(2, tmp_path / "both", command=command).end() == ([0, 0], [])
    assert (tmp_path / "alone" / name).read_bytes() == (tmp_path / "both" / name).read_bytes()


def over_budget(learner, theta, tasks, calls=[], whole=AMAML.look):  # noqa: B006
    calls.append(tasks)
    if os.environ["RANK"] == "1" and len(calls) == 5:
        raise OverBudget("too dear")
    return whole(learner, theta, tasks)


@pytest.mark.filterwarnings("ignore:update 3. the meta-gradient of this batch")
def test_a_batch_with_a_chunk_over_budget_is_left_out_by_all(tmp_path, quick, monkeypatch):
    monkeypatch.setattr(AMAML, "look", over_budget)
    assert Run(2, tmp_path / "run", *AUTO).end() == ([0, 0], [])
    assert [record["update"] for record in metrics(tmp_path / "run") if "skipped" in record] == [3]
    assert checkpoint(tmp_path / "run")["update"] == 6


class Pair(Group):
    """Process rank of two, of which the other has told something already."""

    def __init__(self, rank: int, other: processes.Told) -> None:
        super().__init__(rank, 2)
        self.other = other

    def _gather(self, mine):
        return [mine, self.other] if self.first else [self.other, mine]


def test_the_fault_of_the_first_chunk_is_raised_wherever_it_was_met():
    def solve(part):
        raise ValueError(f"part {part}")

    group = Pair(0, processes.Told(([], []), ValueError("part 1"), place=1))
    with pytest.raises(ValueError, match="part 0"):
        group.each(solve, [0, 1, 2, 3])
    with pytest.raises(ValueError, match="part 1"):
        group.each(lambda part: solve(part) if part == 2 else None, [0, 1, 2, 3])


def test_a_signal_counts_once_all_processes_know():
    stop = AgreedStop()
    stop.number = signal.SIGTERM
    stop.check(3)
    group = Pair(0, processes.Told(([], []), stop=signal.SIGTERM))
    with pytest.raises(Stopped):
        group.each(lambda part: None, [0])
    with pytest.raises(Stopped, match="stopped after update 3"):
        group.stop.check(3)


def test_a_stop_before_the_first_update_of_one_process_is_a_stop():
    group = Group()
    with group.stop:
        signal.raise_signal(signal.SIGINT)
        with pytest.raises(Stopped) as stopped:
            group.of_first(lambda: 1)
    assert stopped.value.number == signal.SIGINT
