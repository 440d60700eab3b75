"""The public names have types that a strict checker accepts."""

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]


def test_a_users_program_passes_mypy_strict(tmp_path):
    """tests/helpers/typed.py, also where it says of what type a result is."""
    flags = ["--strict", "--follow-imports=silent", "--cache-dir", str(tmp_path)]
    command = [sys.executable, "-m", "mypy", *flags, "tests/helpers/typed.py"]
    ended = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert ended.returncode == 0, ended.stdout + ended.stderr
