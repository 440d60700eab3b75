"""What is to be measured on a GPU, with tiny sizes on the CPU."""

import csv
import json
import os
import re
import subprocess
import sys
from importlib import metadata

from helpers.commands import ROOT

from experiment import machine


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

    def version(name: str) -> str:
        if name == "pandas":
            raise metadata.PackageNotFoundError(name)
        return "1.0"

    monkeypatch.setattr(metadata, "version", version)
    versions = machine.environment("cpu")["versions"]
    assert (versions["pandas"], versions["scipy"]) == (None, "1.0")
    used = "import sys, run; sys.exit('pandas' in sys.modules)"
    assert subprocess.run([sys.executable, "-W", "ignore", "-c", used], cwd=ROOT).returncode == 0
