"""Away from a terminal on Linux: in a thread, below a notebook's kernel, on a system without file locks."""

import os
import subprocess
import sys
import threading

from helpers.commands import ROOT, TINY, content, files, start, wait_for
from helpers.grids import TINY as TINY_GRID
from helpers.grids import write_grid

from experiment import cells, reproduce


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


def test_without_file_locks_cells_are_shown_and_not_run(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(cells, "LOCKS", False)
    path = write_grid(tmp_path, TINY_GRID)
    assert reproduce.main([str(path), "--dry-run"]) == 0
    assert "run.py" in capsys.readouterr().out
    assert reproduce.main([str(path), "--status"]) == 0
    assert reproduce.main([str(path)]) == 2
    assert "fcntl" in capsys.readouterr().err
