"""Seconds and memory of one meta-update by every library, side by side; gradients compared with each other.

    python -m benchmarks.peers --python PYTHON-WITH-THE-PEERS --networks small wide conv --steps 200 --out peers.csv
    python -m benchmarks.peers --libraries amaml --device cuda:0 --ways graphs compiled --tasks 5 500

PYTHON-WITH-THE-PEERS: one that benchmarks/peers/requirements.txt is installed for. A process a library, one thread
each; rounds take each quantity from every library in turn, after a call of each that traces and compiles (first);
medians of the rounds. gradient, product: of the support losses of all tasks at theta. The rest: a meta-update of so
many inner steps. memory: what a call adds to the memory of its process or, on CUDA, its device. waits: how often the
host waits for a device in a call. off: the relative distance of the result from ours, where both compute the same.
"""

import argparse
import csv
import itertools
import json
import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.peers.ours import WAYS
from benchmarks.peers.problems import NETWORKS, problem, write

HERE = Path(__file__).parent
OURS = "amaml"
LIBRARIES = (OURS, "JAX", "PyTorch")
QUANTITIES = ("gradient", "product", "FOMAML", "MAML", "A-MAML")
PLACE = ("network", "dtype", "tasks", "steps", "theta", "device", "way", "library", "quantity")
COLUMNS = (*PLACE, "seconds", "first", "memory_mib", "waits", "off", "fault")


class Peer:
    """A library's process (benchmarks.peers.turns)."""

    def __init__(self, name: str, command: list[str]) -> None:
        flags = "--xla_cpu_multi_thread_eigen=false intra_op_parallelism_threads=1"
        environment = os.environ | {"OMP_NUM_THREADS": "1", "XLA_FLAGS": flags, "PYTHONPATH": str(HERE.parent.parent)}
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True, "env": environment}
        self.name, self.process = name, subprocess.Popen(command, **pipes)
        self.quantities: list[str] = self._answer()

    def call(self, name: str, seconds: float, limit: int, file: Path) -> dict[str, Any]:
        """What it answers with; the result lies in the file."""
        told = {"name": name, "seconds": seconds, "limit": limit, "file": str(file)}
        self.process.stdin.write(json.dumps(told) + "\n")
        self.process.stdin.flush()
        return self._answer()

    def end(self) -> int:
        """Let it end; its status."""
        with self.process:
            self.process.stdin.close()
        return self.process.returncode

    def _answer(self) -> Any:
        line = self.process.stdout.readline()
        if not line:
            raise SystemExit(f"{self.name} has ended with status {self.process.wait()}")
        return json.loads(line)


def main() -> None:
    a = arguments()
    new = a.out and not Path(a.out).exists()
    with open(a.out or os.devnull, "a", newline="") as file:
        writer = csv.DictWriter(file, COLUMNS, lineterminator="\n")
        if new:
            writer.writeheader()
        for network, dtype, steps, tasks, way in itertools.product(a.networks, a.dtypes, a.steps, a.tasks, a.ways):
            told = {"network": network, "dtype": dtype, "tasks": tasks or NETWORKS[network]}
            told |= {"device": a.device, "trained": a.trained}
            with tempfile.TemporaryDirectory() as folder:
                for row in measured(a, told, steps, way, Path(folder)):
                    writer.writerow(row)
                    file.flush()
                    print(*(shown(row.get(name)) for name in COLUMNS), sep="; ", flush=True)


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--python", default=sys.executable, help="of the peers")
    parser.add_argument("--libraries", choices=LIBRARIES, nargs="+", default=LIBRARIES)
    parser.add_argument("--networks", choices=NETWORKS, nargs="+", default=["small"])
    parser.add_argument("--dtypes", nargs="+", default=["float64", "float32"])
    parser.add_argument("--tasks", type=int, nargs="+", default=[None], help="default: 5, of images 4")
    parser.add_argument("--steps", type=int, nargs="+", default=[200])
    parser.add_argument("--ways", choices=WAYS, nargs="+", default=WAYS[:1], help="how our graphs run")
    parser.add_argument("--device", default="cpu", help="of ours")
    parser.add_argument("--trained", help="checkpoint.pt of a run; its theta instead of an untrained one")
    parser.add_argument("--quantities", nargs="+", default=QUANTITIES, help="the beginnings of their names")
    parser.add_argument("--batches", type=int, default=50, help="of A-MAML's long run")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--turn", type=float, default=0.5, help="seconds of a turn, one call at least")
    parser.add_argument("--limit", type=int, default=600, help="seconds, after which a turn is given up")
    parser.add_argument("--out", help="the CSV file, to which lines are added")
    a = parser.parse_args()
    if a.device != "cpu" and set(a.libraries) != {OURS}:
        parser.error("the peers are measured on the CPU; with --device give --libraries amaml")
    return a


def measured(a: argparse.Namespace, told: dict[str, Any], steps: int, way: str, folder: Path) -> Iterator[dict]:
    """A row a library and quantity of one problem, as they come."""
    peers = started(a, told, steps, way, folder)
    place = told | {"steps": steps, "theta": "trained" if told["trained"] else "untrained"}
    del place["trained"]
    names = dict.fromkeys(n for peer in peers for n in peer.quantities if n.startswith(tuple(a.quantities)))
    for name in names:
        having = [peer for peer in peers if name in peer.quantities]
        answers = {peer: [peer.call(name, 0, a.limit, folder / f"{peer.name} {name}.npy")] for peer in having}
        for _ in range(a.rounds):
            for peer, own in answers.items():
                if "fault" not in own[-1]:
                    own.append(peer.call(name, a.turn, a.limit, folder / f"{peer.name} {name}.npy"))
        for peer, own in answers.items():
            row = place | {"way": way if peer.name == OURS else "", "library": peer.name, "quantity": name}
            yield row | numbers(own) | {"off": distance(folder, peer.name, name)}
    for peer in peers:
        peer.end()


def started(a: argparse.Namespace, told: dict[str, Any], steps: int, way: str, folder: Path) -> list[Peer]:
    """The processes of the libraries that are asked for, on one problem."""
    file = str(folder / "problem.npz")
    if set(a.libraries) != {OURS}:
        write(problem(**told), file)
    ours = json.dumps(told | {"steps": steps, "batches": a.batches, "way": way})
    given = [file, told["network"], str(steps)]
    commands = {
        OURS: [sys.executable, "-m", "benchmarks.peers.ours", ours],
        "JAX": [a.python, str(HERE / "xla.py"), *given],
        "PyTorch": [a.python, "-W", "ignore", "-m", "benchmarks.peers.pytorch", *given],
    }
    return [Peer(name, commands[name]) for name in LIBRARIES if name in a.libraries]


def numbers(answers: list[dict[str, Any]]) -> dict[str, Any]:
    """The columns of a row: the medians of the answers but the first, or the fault."""
    if "fault" in answers[-1]:
        return {"fault": answers[-1]["fault"]}
    later = answers[1:] or answers
    seconds, memory = (statistics.median(one[name] for one in later) for name in ("seconds", "memory_mib"))
    return {"seconds": seconds, "first": answers[0]["seconds"], "memory_mib": memory, "waits": later[-1]["waits"]}


def distance(folder: Path, library: str, name: str) -> float | None:
    """From our result of the same kind, relative to it; every MAML computes the same."""
    ours = folder / f"{OURS} {'MAML, checkpointed' if name.startswith('MAML') else name}.npy"
    own = folder / f"{library} {name}.npy"
    if own == ours or not (own.exists() and ours.exists()):
        return None
    expected = np.load(ours)
    return float(np.linalg.norm(np.load(own) - expected) / np.linalg.norm(expected))


def shown(value: Any) -> str:
    return "" if value is None else f"{value:.3g}" if isinstance(value, float) else str(value)


if __name__ == "__main__":
    main()
