"""Seconds and memory of one meta-update by every library, side by side; gradients compared with each other.

    python -m benchmarks.peers --python PYTHON-WITH-THE-PEERS --networks small wide conv --steps 200 --out peers.csv
    python -m benchmarks.peers --libraries amaml --device cuda:0 --ways graphs compiled --tasks 5 500

PYTHON-WITH-THE-PEERS: one that benchmarks/peers/requirements.txt is installed for. A process a library, one after the
other, one thread each. gradient, product: of the support losses of all tasks at theta. The rest: a meta-update of so
many inner steps. seconds: the median of the calls after one that traces and compiles (first). memory: what a call adds
to the memory of its process or, on CUDA, its device. waits: how often the host waits for a device in a call. off: the
relative distance of the result from ours, where both compute the same.
"""

import argparse
import csv
import itertools
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.peers.measure import result_file
from benchmarks.peers.ours import WAYS
from benchmarks.peers.problems import NETWORKS, problem, write

HERE = Path(__file__).parent
OURS = "amaml"
LIBRARIES = (OURS, "JAX", "PyTorch")  # ours first, from whose results the others' distances are taken
QUANTITIES = ("gradient", "product", "FOMAML", "MAML", "A-MAML")
PLACE = ("network", "dtype", "tasks", "steps", "theta", "device", "way", "library", "quantity")
COLUMNS = (*PLACE, "seconds", "first", "memory_mib", "waits", "off", "fault")
ENVIRONMENT = {
    "OMP_NUM_THREADS": "1",
    "XLA_FLAGS": "--xla_cpu_multi_thread_eigen=false intra_op_parallelism_threads=1",
    "PYTHONPATH": str(HERE.parent.parent),
}


def main() -> None:
    a = arguments()
    new = a.out and not Path(a.out).exists()
    with open(a.out or os.devnull, "a", newline="") as file:
        writer = csv.DictWriter(file, COLUMNS, extrasaction="ignore", lineterminator="\n")
        if new:
            writer.writeheader()
        for network, dtype, steps, tasks, way in itertools.product(a.networks, a.dtypes, a.steps, a.tasks, a.ways):
            place = {"network": network, "dtype": dtype, "tasks": tasks or NETWORKS[network], "device": a.device}
            for row in measured(a, place | {"trained": a.trained}, steps, way):
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
    parser.add_argument("--seconds", type=float, default=2.0, help="of a quantity; two calls at least")
    parser.add_argument("--limit", type=int, default=600, help="seconds, after which a quantity is given up")
    parser.add_argument("--out", help="the CSV file, to which lines are added")
    a = parser.parse_args()
    if a.device != "cpu" and set(a.libraries) != {OURS}:
        parser.error("the peers are measured on the CPU; with --device give --libraries amaml")
    return a


def measured(a: argparse.Namespace, place: dict[str, Any], steps: int, way: str) -> Iterator[dict[str, Any]]:
    """A row a library and quantity of one problem, as they come."""
    row = place | {"steps": steps, "theta": "trained" if a.trained else "untrained"}
    with tempfile.TemporaryDirectory() as folder:
        if set(a.libraries) != {OURS}:
            write(problem(**place), f"{folder}/problem.npz")
        for library in (name for name in LIBRARIES if name in a.libraries):
            told = {"problem": place, "steps": steps, "batches": a.batches, "way": way, "names": a.quantities}
            told |= {"seconds": a.seconds, "limit": a.limit, "folder": folder, "library": library}
            for line in lines(library, a.python, told):
                off = distance(folder, library, line["quantity"])
                yield row | {"way": way if library == OURS else "", "library": library} | line | {"off": off}


def lines(library: str, python: str, told: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """What the program of a library says (benchmarks.peers.measure)."""
    program = {
        OURS: [sys.executable, "-m", "benchmarks.peers.ours"],
        "JAX": [python, str(HERE / "xla.py")],
        "PyTorch": [python, "-W", "ignore", "-m", "benchmarks.peers.pytorch"],
    }[library]
    options = {"stdout": subprocess.PIPE, "text": True, "env": os.environ | ENVIRONMENT}
    with subprocess.Popen([*program, json.dumps(told)], **options) as process:
        yield from map(json.loads, process.stdout)
    if process.returncode:
        raise SystemExit(f"{library} has ended with status {process.returncode}")


def distance(folder: str | Path, library: str, name: str) -> float | None:
    """From our result of the same kind, relative to it; every MAML computes the same."""
    ours = result_file(folder, OURS, "MAML, checkpointed" if name.startswith("MAML") else name)
    own = result_file(folder, library, name)
    if own == ours or not (own.exists() and ours.exists()):
        return None
    expected = np.load(ours)
    return float(np.linalg.norm(np.load(own) - expected) / np.linalg.norm(expected))


def shown(value: Any) -> str:
    return "" if value is None else f"{value:.3g}" if isinstance(value, float) else str(value)


if __name__ == "__main__":
    main()
