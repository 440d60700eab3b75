"""Away from a terminal: in a thread, into a file; and benchmarks/gpu.sh, tiny on the CPU."""

import csv
import json
import os
import re
import subprocess
import sys
import threading
from importlib import metadata
from unittest.mock import Mock

from helpers.commands import ROOT, content, files, start, wait_for

from experiment import machine, summary
from experiment.summary import Progress


def test_a_run_in_a_thread_is_that_of_the_main_one(tmp_path, quick):
    ended = []
    thread = threading.Thread(target=lambda: ended.append(start(tmp_path / "thread")))
    thread.start()
    wait_for(lambda: not thread.is_alive(), "end of the thread")
    assert ended == [start(tmp_path / "main")] == [0]
    assert files(tmp_path / "thread")["metrics.jsonl"] == files(tmp_path / "main")["metrics.jsonl"]
    assert content(tmp_path / "thread", "summary.json")["updates"] == 6


def test_the_first_process_prints_a_line_at_every_meta_test_and_about_every_minute(capsys, monkeypatch):
    last = {"metric": "nRMSE", "unit": "epoch", "epochs": [0, 10], "test": {"mean": [1.2, 0.9]}, "also": []}
    known, test = "query loss 0.2500, 8 updates/s, 0:00:38 left", "meta-test after update 200: nRMSE 0.9000"
    for first in (True, False):
        with Progress(500, 100, first) as shown:
            monkeypatch.setattr(summary, "EVERY", 60.0)
            shown.trained([{"update": n, "query_loss": 0.25} for n in range(101, 201)], 0.125)
            assert capsys.readouterr().err == ""
            shown.tested(last | {"update": 200})
            monkeypatch.setattr(summary, "EVERY", 0.0)
            shown.trained([{"update": 201, "query_loss": 0.5}], 0.1)
            said = f"update 200/500, {known}, {test} after 10 epochs\nupdate 201/500, query loss 0.5000, 10 updates/s"
            assert capsys.readouterr().err.partition(", 0:00:30 left")[0] == (said if first else "")


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


def test_a_run_needs_no_pandas(monkeypatch):
    """Nor what else only the comparisons need: a machine that is lent may lack it."""
    with monkeypatch.context() as patch:
        patch.setattr(metadata, "version", Mock(side_effect=metadata.PackageNotFoundError))
        assert machine.environment("cpu")["versions"]["pandas"] is None
    used = "import sys, run; sys.exit('pandas' in sys.modules)"
    assert subprocess.run([sys.executable, "-W", "ignore", "-c", used], cwd=ROOT).returncode == 0
