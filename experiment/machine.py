"""The machine that an experiment runs on: what it has, what it is, what was used of it."""

import contextlib
import ctypes
import os
import platform
import re
import resource
import subprocess
import sys
from collections.abc import Callable, Iterator
from importlib import metadata
from pathlib import Path
from typing import Any

import torch

from amaml.errors import InputError

ROOT = Path(__file__).parents[1]
MMAP_THRESHOLD = -3  # M_MMAP_THRESHOLD of malloc.h


def check_device(device: str) -> None:
    """Raise InputError for a device that is not there."""
    count = torch.cuda.device_count()
    present = ["cpu", *(["cuda"] if count else []), *(f"cuda:{i}" for i in range(count))]
    if device not in present:
        raise InputError(f"--device {device!r} is not there; this machine has: {', '.join(present)}")


def check_memory(needed: int, device: str, what: str) -> None:
    """Raise InputError where more bytes are needed, for sure, than the device has."""
    if device.startswith("cuda"):
        there = torch.cuda.get_device_properties(device).total_memory
    else:
        there = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    if needed > there:
        raise InputError(f"{what} at least {needed / 2**30:,.0f} GiB of memory, {device} has {there / 2**30:,.0f}")


@contextlib.contextmanager
def deterministic(on: bool) -> Iterator[None]:
    """Within this context torch uses only operations that give the same bits every time; elsewhere CUDA's may not."""
    if not on:
        yield
        return
    before = torch.are_deterministic_algorithms_enabled()
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # cuBLAS reads it when it is first used
    torch.use_deterministic_algorithms(True)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(before)


@contextlib.contextmanager
def steady_memory() -> Iterator[Callable[[], None]]:
    """Within this context large tensors leave no holes in the heap; gives a function that returns what is free.

    For glibc; nothing happens elsewhere. Its heap takes tensors up to 32 MiB, and those of a meta-test, of a few large
    sizes, come to lie in ever new places: its peak wandered between 520 and 1140 MiB over four meta-tests of 500 epochs
    on Alpine2D. With the limit at 16 MiB and what is free returned at every record it grew from 501 to 540 MiB over ten
    meta-tests of 300 epochs, for a tenth more time. (At 1 MiB: 1.6 times the time, since every page is cleared anew.)
    """
    try:
        libc = ctypes.CDLL(None)
        limit, trim = libc.mallopt, libc.malloc_trim
    except (OSError, AttributeError):
        yield lambda: None
        return
    limit(MMAP_THRESHOLD, 16 << 20)
    trim(0)
    try:
        yield lambda: trim(0)
    finally:
        limit(MMAP_THRESHOLD, 32 << 20)
        trim(0)


def peak_memory_mib(device: str) -> float:
    """Peak memory so far: of the device's allocator on CUDA, of the process elsewhere."""
    if device.startswith("cuda"):
        return torch.cuda.max_memory_allocated(device) / 2**20
    unit = 1 if sys.platform == "darwin" else 2**10  # ru_maxrss is in bytes there, in KiB on Linux
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 2**20


def environment(device: str) -> dict[str, Any]:
    """Versions, commit and machine: what a number needs beside it."""
    return {
        "versions": {
            "python": platform.python_version(),
            **{name: metadata.version(name) for name in packages()},
            "torch": str(torch.__version__),  # names the build too, which its metadata may not
        },
        "commit": _commit(),
        "device": torch.cuda.get_device_name(device) if device.startswith("cuda") else platform.machine(),
        "threads": torch.get_num_threads(),
        "command": sys.argv[1:],
    }


def packages() -> list[str]:
    """The names in requirements.txt."""
    return re.findall(r"^[\w-]+", (ROOT / "requirements.txt").read_text(), re.MULTILINE)


def _commit() -> str | None:
    # in a container the checkout belongs to somebody else, which git refuses unless told that it is safe
    command = ["git", "-c", "safe.directory=*", "-C", str(ROOT), "rev-parse", "HEAD"]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return None
