"""Runs of several processes, as torchrun starts them, forked from this one: they need not load torch again."""

import itertools
import os
import socket
import sys
from pathlib import Path

import torch.multiprocessing

import run
from helpers.commands import TINY

WORKER = int(os.environ.get("PYTEST_XDIST_WORKER", "gw0").removeprefix("gw"))
PORTS = itertools.count(12_000 + 500 * WORKER)  # which no other test process takes, nor the system for itself


class Run:
    """A run of so many processes; command: its flags besides --out."""

    def __init__(self, world: int, out: Path, *flags: str, command: list[str] = TINY) -> None:
        port = next(port for port in PORTS if _is_free(port))
        context = torch.multiprocessing.get_context("fork")
        self.logs = [out.with_name(f"{out.name}.{rank}") for rank in range(world)]
        self.ranks = []
        for rank, log in enumerate(self.logs):
            place = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": world, "MASTER_ADDR": "localhost"}
            variables = {name: str(value) for name, value in {**place, "MASTER_PORT": port}.items()}
            arguments = variables, log, [*command, "--out", str(out), *flags]
            self.ranks.append(context.Process(target=_rank, args=arguments))
            self.ranks[-1].start()

    def end(self) -> tuple[list[int], list[str]]:
        """The exit statuses, and the lines on stderr but those of the progress."""
        for rank in self.ranks:
            rank.join(180)
        assert not any(
            log.read_text().startswith("update ") for log in self.logs[1:]
        )  # the first tells of its progress
        return [rank.exitcode for rank in self.ranks], said("".join(log.read_text() for log in self.logs))


def _is_free(port: int) -> bool:
    with socket.socket() as socket_:
        try:
            socket_.bind(("localhost", port))
        except OSError:
            return False
    return True


def _rank(variables: dict[str, str], log: Path, arguments: list[str]) -> None:
    os.environ.update(variables)
    with open(log, "w", buffering=1) as sys.stderr, open(os.devnull, "w") as sys.stdout:
        os.dup2(sys.stderr.fileno(), 2)
        status = run.main(arguments)
    os._exit(status)


def said(stderr: str) -> list[str]:
    """The lines of a run but those of its progress, and one of the C++ runtime where gloo's threads were cut short."""
    others = "terminate called without an active exception"
    return [line for line in stderr.splitlines() if not line.startswith("update ") and line != others]
