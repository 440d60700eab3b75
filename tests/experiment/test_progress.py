"""What a batch log shows of a run."""

import re
import time

import pytest

from experiment import progress
from experiment.progress import Progress


@pytest.fixture
def log(capsys):
    """What was written so far to a stderr that is no terminal."""
    lines = []

    def read():
        lines.extend(capsys.readouterr().err.splitlines())
        return list(lines)

    return read


def test_there_is_a_line_at_every_meta_test(log):
    with Progress(500, 100) as shown:
        shown.trained(120, 0.5, None)
        assert log() == []
        shown.trained(200, 0.25, 0.125)
        shown.testing()
        shown.tested_with("nRMSE 0.9000 after 10 epochs")
    result = "meta-test after update 200: nRMSE 0.9000 after 10 epochs"
    assert log() == [f"update 200/500, query loss 0.2500, 8 updates/s, 0:00:38 left, {result}"]


def test_there_is_a_line_at_least_every_minute_whatever_the_run_is_at(log, monkeypatch):
    assert progress.EVERY <= 60
    monkeypatch.setattr(progress, "EVERY", 0.01)

    def wait_for(pattern):
        deadline = time.monotonic() + 20
        while not any(re.fullmatch(pattern, line) for line in log()):
            assert time.monotonic() < deadline, log()
            time.sleep(0.005)

    with Progress(500, 0) as shown:
        wait_for("update 0/500")
        shown.trained(20, 0.5, 0.1)
        wait_for(r"update 20/500, query loss 0.5000, 10 updates/s, 0:00:48 left")
        shown.testing()
        wait_for(r"update 20/500, .* left, meta-testing")
        shown.tested_with("nRMSE 1")
        shown.trained(40, 0.4, 0.1)
        wait_for(r"update 40/500, .* left, meta-test after update 20: nRMSE 1")
    ended = len(log())
    time.sleep(0.05)
    assert len(log()) == ended
