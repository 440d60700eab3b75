"""Seconds and memory of one meta-update by every library, side by side; gradients compared with each other.

    python -m benchmarks.peers --python PYTHON-WITH-THE-PEERS --networks small wide conv --steps 200 --out peers.csv

PYTHON-WITH-THE-PEERS: one that benchmarks/peers/requirements.txt is installed for. A process a library, one thread
each; rounds take each quantity from every library in turn, after a call of each that traces and compiles; medians of
the rounds. gradient, product: of the support losses of all tasks at theta. The rest: a meta-update of so many inner
steps. memory: what a call adds to the resident memory of its process. off: the relative distance of the result from
ours, where both compute the same.
"""

import argparse
import csv
import itertools
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np

from benchmarks.peers.ours import NETWORKS, direction, named
from benchmarks.problems import Problem
from experiment.tables import as_markdown

HERE = Path(__file__).parent
OURS = "amaml"


class Peer:
    """A library's process (benchmarks.peers.turns)."""

    def __init__(self, name: str, command: list[str]) -> None:
        flags = "--xla_cpu_multi_thread_eigen=false intra_op_parallelism_threads=1"
        environment = os.environ | {"OMP_NUM_THREADS": "1", "XLA_FLAGS": flags, "PYTHONPATH": str(HERE.parent.parent)}
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True, "env": environment}
        self.name, self.process = name, subprocess.Popen(command, **pipes)
        self.quantities = self._answer()

    def call(self, quantity: str, seconds: float, file: Path) -> list[float]:
        """The numbers it answers with; the result lies in the file."""
        self.process.stdin.write(f"{quantity}; {seconds}; {file}\n")
        self.process.stdin.flush()
        return [float(number) for number in self._answer()]

    def end(self) -> int:
        """Let it end; its status."""
        with self.process:
            self.process.stdin.close()
        return self.process.returncode

    def _answer(self) -> list[str]:
        line = self.process.stdout.readline()
        if not line:
            raise SystemExit(f"{self.name} has ended with status {self.process.wait()}")
        return line.rstrip("\n").split("; ")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--python", default=sys.executable, help="of the peers")
    parser.add_argument("--networks", choices=NETWORKS, nargs="+", default=list(NETWORKS))
    parser.add_argument("--dtypes", nargs="+", default=["float64", "float32"])
    parser.add_argument("--steps", type=int, nargs="+", default=[200])
    parser.add_argument("--trained", help="checkpoint.pt of a run; its theta instead of an untrained one")
    parser.add_argument("--quantities", nargs="+", help="some of them (default: all)")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--turn", type=float, default=0.5, help="seconds of a turn, one call at least")
    parser.add_argument("--out", help="the CSV file, to which lines are added")
    a = parser.parse_args()
    rows = []
    for network, dtype, steps in itertools.product(a.networks, a.dtypes, a.steps):
        with tempfile.TemporaryDirectory() as folder:
            found = measured(a, network, dtype, steps, Path(folder))
        if a.out:
            append(Path(a.out), found)
        rows += found
    print(as_markdown([list(rows[0]), *([shown(value) for value in row.values()] for row in rows)]))


def append(path: Path, rows: list[dict]) -> None:
    """Lines to a CSV, which may be new."""
    new = not path.exists()
    with path.open("a", newline="") as file:
        writer = csv.DictWriter(file, rows[0], lineterminator="\n")
        if new:
            writer.writeheader()
        writer.writerows(rows)


def measured(a: argparse.Namespace, network: str, dtype: str, steps: int, folder: Path) -> list[dict]:
    """A row a library and quantity, for one problem."""
    p, file = named(network, dtype, a.trained), str(folder / "problem.npz")
    write(p, file)
    peers = [
        Peer(
            OURS,
            [sys.executable, "-m", "benchmarks.peers.ours", network, dtype, str(steps), *filter(None, [a.trained])],
        ),
        Peer("JAX", [a.python, str(HERE / "xla.py"), file, network, str(steps)]),
        Peer("PyTorch", [a.python, "-W", "ignore", "-m", "benchmarks.peers.pytorch", file, network, str(steps)]),
    ]
    names = dict.fromkeys(
        name for peer in peers for name in peer.quantities if not a.quantities or name in a.quantities
    )
    cells = {(name, peer): [] for name in names for peer in peers if name in peer.quantities}
    for name, peer in cells:
        peer.call(name, 0, folder / f"{peer.name} {name}")
    for _ in range(a.rounds):
        for (name, peer), taken in cells.items():
            taken.append(peer.call(name, a.turn, folder / f"{peer.name} {name}"))
    rows = []
    for (name, peer), taken in cells.items():
        seconds, _, memory = (statistics.median(column) for column in zip(*taken, strict=True))
        row = {"network": network, "dtype": dtype, "steps": steps, "theta": "trained" if a.trained else "untrained"}
        row |= {"library": peer.name, "quantity": name, "seconds": seconds, "memory_mib": memory / 2**20}
        rows.append(row | {"off": distance(folder, peer.name, name)})
    for peer in peers:
        peer.end()
    return rows


def write(p: Problem, file: str) -> None:
    """All that a library needs to know of a problem."""
    shapes = [tuple(part.shape) for part in p.module.parameters()]
    padded = [shape + (0,) * (4 - len(shape)) for shape in shapes]
    parts = {name: getattr(p.tasks, name).numpy() for name in ("support_x", "support_y", "query_x", "query_y")}
    v = direction(p.theta)
    np.savez(file, shapes=padded, theta=p.theta.numpy(), v=v.numpy(), inner_lr=p.inner_lr, **parts)


def distance(folder: Path, library: str, name: str) -> float | None:
    """From our result of the same kind, relative to it; every MAML computes the same."""
    ours = folder / f"{OURS} {'MAML, checkpointed' if name.startswith('MAML') else name}.npy"
    if library == OURS and not name.startswith("MAML"):
        return None
    found, expected = np.load(folder / f"{library} {name}.npy"), np.load(ours)
    return float(np.linalg.norm(found - expected) / np.linalg.norm(expected))


def shown(value: object) -> str:
    return "" if value is None else f"{value:.3g}" if isinstance(value, float) else str(value)


if __name__ == "__main__":
    main()
