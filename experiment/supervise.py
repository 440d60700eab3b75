"""Runs the commands of one cell, one after the other, in a process of its own, and writes down how they went.

    python supervise.py RECORD OWNER COMMANDS     a cell; COMMANDS is a JSON list of commands
    python supervise.py --guard OWNER COMMAND...  any command, with nothing written down

The command is told to stop (SIGTERM, which a run answers with a checkpoint) when this process is, or when its parent
or its owner is gone. OWNER is HOST:PID of the program that started all cells; it is only looked for on its own host.
RECORD.json holds state, exit status, last line, attempts and seconds; RECORD.log what the commands printed; RECORD.lock
is locked as long as a command of the cell lives, so that no cell runs twice at the same time. The file needs nothing
but Python and imports nothing of this project, so that it starts at once wherever a cell is put.
"""

import contextlib
import fcntl
import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import IO, Any

LOOK_SECONDS = 0.3  # between two looks at the command, its parent and its owner
WRITE_SECONDS = 10.0  # between two records of the seconds
IN_USE = "is in use by"  # what a run says of a folder in which another one works
IN_USE_SECONDS = 10.0  # until it is tried again
STOPS = tuple(128 + number for number in (signal.SIGHUP, signal.SIGINT, signal.SIGKILL, signal.SIGTERM))


class Guard:
    """Whether a command may go on: until a signal comes, or the parent or the owner is gone."""

    def __init__(self, owner: str) -> None:
        self.host, self.pid = owner.rsplit(":", 1)
        self.parent, self.stopped = os.getppid(), False
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
            signal.signal(number, self._stop)

    def _stop(self, *_: object) -> None:
        self.stopped = True

    def allows(self) -> bool:
        """False from the first reason to stop on."""
        if not self.stopped:
            self.stopped = os.getppid() != self.parent or (
                self.host == socket.gethostname() and not self._owner_lives()
            )
        return not self.stopped

    def sleep(self, seconds: float) -> bool:
        """Wait; False as soon as there is a reason to stop."""
        end = time.monotonic() + seconds
        while self.allows() and time.monotonic() < end:
            time.sleep(LOOK_SECONDS)
        return not self.stopped

    def _owner_lives(self) -> bool:
        try:
            os.kill(int(self.pid), 0)
        except ProcessLookupError:
            return False
        except PermissionError:
            pass
        return True


def run(command: list[str], guard: Guard, on_look: Any = lambda: None, **options: Any) -> int:
    """The command's exit status, 128 + signal where one ended it; it is told to stop when the guard says so."""
    process, told = subprocess.Popen(command, **options), False
    while True:
        try:
            status = process.wait(LOOK_SECONDS)
            return status if status >= 0 else 128 - status
        except subprocess.TimeoutExpired:
            on_look()
        if not told and not guard.allows():
            process.terminate()
            told = True


def locked(path: Path) -> IO[str] | None:
    """The file, locked; None where somebody else holds it. A filesystem without locks counts as free."""
    file = open(path, "a")  # noqa: SIM115  closed by whoever asked for it
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        file.close()
        return None
    except OSError:
        pass
    return file


def read_record(path: Path) -> dict[str, Any]:
    """What RECORD.json says, empty where there is none."""
    with contextlib.suppress(OSError, ValueError):
        return json.loads(path.with_name(path.name + ".json").read_text())
    return {}


def cell(path: Path, guard: Guard, commands: list[list[str]]) -> int:
    """Run the commands of a cell up to the first that fails; the exit status is that one's."""
    path.parent.mkdir(parents=True, exist_ok=True)
    while guard.allows() and (lock := locked(path.with_name(path.name + ".lock"))) is None:
        guard.sleep(LOOK_SECONDS)  # an attempt before this one still ends
    if guard.stopped:
        return 128 + signal.SIGTERM
    before, start = read_record(path), time.monotonic()
    record = {
        "state": "started",
        "attempts": before.get("attempts", 0) + 1,
        "host": socket.gethostname(),
        "pid": os.getpid(),
    }
    written = 0.0

    def write(**changes: Any) -> None:
        nonlocal written
        written = time.monotonic()
        seconds = before.get("seconds", 0.0) + written - start
        temporary = path.with_name(f"{path.name}.json.{os.getpid()}.tmp")
        temporary.write_text(json.dumps(record | {"seconds": round(seconds, 3)} | changes) + "\n")
        os.replace(temporary, path.with_name(path.name + ".json"))

    write()
    with lock, open(path.with_name(path.name + ".log"), "a") as log:
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
        streams = {"stdout": log, "stderr": log, "stdin": subprocess.DEVNULL, "env": environment}
        streams["pass_fds"] = [lock.fileno()]  # so that the lock lives as long as the command
        for command in commands:
            look = {"on_look": lambda: time.monotonic() - written > WRITE_SECONDS and write()}
            while (status := run(command, guard, **look, **streams)) == 2 and IN_USE in last_line(path):
                if not guard.sleep(IN_USE_SECONDS):
                    break
            if status:
                break
        state = "stopped" if status in STOPS else "failed" if status else "done"
        write(state=state, status=status, line=last_line(path) if status else "")
    return status


def last_line(path: Path) -> str:
    """The last line of RECORD.log that is not empty."""
    lines = path.with_name(path.name + ".log").read_text(errors="replace").strip().splitlines()
    return lines[-1] if lines else ""


def main(arguments: list[str]) -> int:
    """See the top of the file."""
    if arguments[0] == "--guard":
        return run(arguments[2:], Guard(arguments[1]))
    return cell(Path(arguments[0]), Guard(arguments[1]), json.loads(arguments[2]))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
