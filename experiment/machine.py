"""The machine that an experiment runs on: what it has, what it is, what was used of it."""

import contextlib
import os
import platform
import re
import subprocess
import sys
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path
from typing import Any

import torch

from amaml.errors import InputError

ROOT = Path(__file__).parents[1]


def check_device(device: str, processes: int = 1) -> None:
    """Raise InputError for a device that is not there, or that these processes cannot have one each of."""
    count = torch.cuda.device_count()
    present = ["cpu", *(["cuda"] if count else []), *(f"cuda:{i}" for i in range(count))]
    if device not in present:
        raise InputError(f"--device {device!r} is not there; this machine has: {', '.join(present)}")
    here = int(os.environ.get("LOCAL_WORLD_SIZE", processes))
    if processes > 1 and device.startswith("cuda:"):
        raise InputError(f"--device {device} is one device for {here} processes; choose --device cuda, one for each")
    if processes > 1 and device == "cuda" and here > count:
        raise InputError(f"{here} processes need a GPU each, this machine has {count}; choose --processes {count}")


def memory_of(device: str) -> float | None:
    """GiB that a device has, None where the system does not say."""
    if device.startswith("cuda"):
        return torch.cuda.get_device_properties(device).total_memory / 2**30
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30 if hasattr(os, "sysconf") else None


@contextlib.contextmanager
def deterministic(on: bool) -> Iterator[None]:
    """Within this context torch uses only operations that give the same bits every time; elsewhere CUDA's may not.

    cuBLAS reads CUBLAS_WORKSPACE_CONFIG once a process, which run.py sets.
    """
    before = torch.are_deterministic_algorithms_enabled()
    torch.use_deterministic_algorithms(on or before)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(before)


def peak_memory_mib(device: str) -> float | None:
    """Peak memory so far: of the device's allocator on CUDA, of the process elsewhere; None where nobody counts it."""
    if device.startswith("cuda"):
        return torch.cuda.max_memory_allocated(device) / 2**20
    try:
        import resource
    except ImportError:  # Windows
        return None
    unit = 1 if sys.platform == "darwin" else 2**10  # ru_maxrss is in bytes there, in KiB on Linux
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 2**20


def environment(device: str) -> dict[str, Any]:
    """Versions, commit and machine: what a number needs beside it."""
    # in a container the checkout belongs to somebody else, which git refuses unless told that it is safe
    command = ["git", "-c", "safe.directory=*", "-C", str(ROOT), "rev-parse", "HEAD"]
    commit = None
    with contextlib.suppress(OSError, subprocess.CalledProcessError):
        commit = subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    versions = dict.fromkeys(packages())
    for name in versions:
        with contextlib.suppress(metadata.PackageNotFoundError):  # a run needs not all of them
            versions[name] = metadata.version(name)
    return {
        # torch's own version names the build too, which its metadata may not
        "versions": {"python": platform.python_version(), **versions, "torch": str(torch.__version__)},
        "commit": commit,
        "device": torch.cuda.get_device_name(device) if device.startswith("cuda") else platform.machine(),
        "threads": torch.get_num_threads(),
        "command": sys.argv[1:],
    }


def packages() -> list[str]:
    """The names in requirements.txt."""
    return re.findall(r"^[\w-]+", (ROOT / "requirements.txt").read_text(), re.MULTILINE)
