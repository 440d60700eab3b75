"""Away from a terminal: in a thread, below a notebook's kernel, where a run's lines go to a file."""

import os
import subprocess
import sys
import threading

from helpers.commands import ROOT, TINY, content, files, start, wait_for

from experiment import progress
from experiment.progress import Progress


def test_a_run_in_a_thread_is_that_of_the_main_one(tmp_path, quick):
    ended = []
    thread = threading.Thread(target=lambda: ended.append(start(tmp_path / "thread")))
    thread.start()
    wait_for(lambda: not thread.is_alive(), "end of the thread")
    assert ended == [start(tmp_path / "main")] == [0]
    assert files(tmp_path / "thread")["metrics.jsonl"] == files(tmp_path / "main")["metrics.jsonl"]
    assert content(tmp_path / "thread", "summary.json")["updates"] == 6


def test_the_backend_of_a_kernel_is_left_to_the_kernel(tmp_path):
    command = [sys.executable, str(ROOT / "run.py"), *TINY, "--meta-updates", "1", "--out", str(tmp_path / "run")]
    environment = {**os.environ, "MPLBACKEND": "module://not_installed_here"}
    subprocess.run(command, env=environment, check=True, capture_output=True)
    assert (tmp_path / "run" / "curves.png").exists()


def test_the_first_process_prints_a_line_at_every_meta_test_and_about_every_minute(capsys, monkeypatch):
    last = {"metric": "nRMSE", "unit": "epoch", "epochs": [0, 10], "test": {"mean": [1.2, 0.9]}, "also": []}
    line = "update 200/500, query loss 0.2500, 8 updates/s, 0:00:38 left"
    for first in (False, True):
        with Progress(500, 100, first) as shown:
            monkeypatch.setattr(progress, "EVERY", 60.0)
            shown.trained([{"update": 101, "query_loss": 0.5}], None)
            assert capsys.readouterr().err == ""
            shown.trained([{"update": n, "query_loss": 0.25} for n in range(102, 201)], 0.125)
            shown.tested(last | {"update": 200})
            expected = f"{line}, meta-test after update 200: nRMSE 0.9000 after 10 epochs\n"
            assert capsys.readouterr().err == (expected if first else "")
            monkeypatch.setattr(progress, "EVERY", 0.0)
            shown.trained([{"update": 201, "query_loss": 0.5}], 0.1)
            expected = "update 201/500, query loss 0.5000, 10 updates/s, 0:00:30 left\n"
            assert capsys.readouterr().err == (expected if first else "")
