"""Away from a terminal: in a thread, below a notebook's kernel."""

import os
import subprocess
import sys
import threading

from helpers.commands import ROOT, TINY, content, files, start, wait_for


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
