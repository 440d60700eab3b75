"""How much faster one run is on two processes, side by side: the same chunks of tasks, one thread a process.

    python -m benchmarks.processes

Two runs of run.py in turn, the one with one process and the one with two, as often as ROUNDS; seconds of an update by
the clock, from summary.json, which leaves out the first update. It needs two free cores. Prints a table.
"""

import json
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

from experiment.machine import environment
from experiment.tables import as_markdown

ROOT = Path(__file__).parent.parent
ROUNDS, UPDATES, TASKS = 3, 12, 8
MLP = ["--domain", "Alpine2D", "--width", "256"]
WORK = {
    "256-wide MLP, A-MAML, 200 steps": [*MLP, "--inner-steps", "200", "--rtol", "0.01"],
    "256-wide MLP, FOMAML, 200 steps": [*MLP, "--inner-steps", "200", "--method", "fomaml"],
}


def seconds(flags: list[str], processes: int, out: Path) -> float:
    """Of an update, with 8 tasks in two chunks."""
    small = {"meta-batch": TASKS, "task-chunk": TASKS // 2, "meta-updates": UPDATES, "test-tasks": 2}
    sizes = [text for name, value in small.items() for text in (f"--{name}", str(value))]
    tests = ["--protocol", "inner", "--test-steps", "1", "--test-interval", "0", "--compile", "on"]
    command = [sys.executable, str(ROOT / "run.py"), *flags, *sizes, *tests, "--dtype", "float32"]
    command += ["--processes", str(processes), "--out", str(out)]
    subprocess.run(command, check=True, capture_output=True, env={**os.environ, "OMP_NUM_THREADS": "1"})
    return json.loads((out / "summary.json").read_text())["seconds_per_update"]


def main() -> None:
    """A row a kind of work."""
    rows = [["work, 8 tasks in two chunks, float32", "one process", "two processes", "times as fast (each round)"]]
    for name, flags in WORK.items():
        with tempfile.TemporaryDirectory() as folder:
            pairs = [
                tuple(seconds(flags, count, Path(folder, f"{turn}-{count}")) for count in (1, 2))
                for turn in range(ROUNDS)
            ]
        one, two = (statistics.median(column) for column in zip(*pairs, strict=True))
        ratios = ", ".join(f"{a / b:.2f}" for a, b in pairs)
        rows.append([name, f"{one:.3f} s", f"{two:.3f} s", f"{one / two:.2f} ({ratios})"])
        print(as_markdown([rows[0], rows[-1]]), file=sys.stderr, flush=True)
    machine = environment("cpu")
    print(f"`python -m benchmarks.processes`, {machine['device']}, torch {machine['versions']['torch']}, gloo; medians")
    print(f"of {ROUNDS} rounds of {UPDATES} updates.\n")
    print(as_markdown(rows))


if __name__ == "__main__":
    main()
