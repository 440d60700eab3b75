"""How the program starts several processes of itself, by torchrun, and how it ends: a status and one line."""

import logging
import os
import signal
import sys
from contextlib import AbstractContextManager
from pathlib import Path

import torch

from amaml.errors import Diverged, InputError
from experiment.distributed import Lost, Stopped

CLOSED_PIPE = 141  # 128 + SIGPIPE, as of a program that writes into a pipe nobody reads


class Ending(AbstractContextManager["Ending"]):
    """A context that turns what ends a program into its exit status, and into one line where that is not 0.

    0 done, 2 a mistake in the input or a diverged run, 128 + signal after a stop, 1 where another process of the run
    was lost; faults of ours are raised. quiet: another process says why it ends; interrupted: what is said of Ctrl-C.
    """

    status, quiet = 0, False

    def __init__(self, program: str = "run.py", interrupted: str = "interrupted") -> None:
        self.program, self.interrupted = program, interrupted

    def __exit__(self, kind: type | None, fault: BaseException | None, traceback: object) -> bool:
        try:
            sys.stdout.flush()
        except BrokenPipeError as closed:
            fault = closed
        status, line = self._reason(fault)
        if status is None:
            return False
        self.status = status or self.status
        if line and not self.quiet:
            print(f"{self.program}: {' '.join(line.split())}", file=sys.stderr, flush=True)
        return True

    def _reason(self, fault: BaseException | None) -> tuple[int | None, str]:
        """The exit status that a fault means, None for one of ours, and what is said of it."""
        text = str(fault)
        match fault:
            case None:
                return 0, ""
            case InputError() | Diverged():
                return 2, text
            case Stopped():
                return 128 + fault.number, text
            case KeyboardInterrupt():
                return 128 + signal.SIGINT, self.interrupted
            case Lost():
                return 1, text
            case BrokenPipeError():  # Python, which empties its buffer at the end, is to meet no other
                os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
                return CLOSED_PIPE, ""
        if isinstance(fault, MemoryError | torch.OutOfMemoryError) or "CPUAllocator" in text:
            return 2, "out of memory; try a smaller --meta-batch, --width or --test-tasks, or another --method"
        if "deterministic implementation" in text:
            return 2, f"{text.partition('.')[0]}; leave out --deterministic, or compute on the cpu"
        return None, text


def launch(processes: int, program: Path, arguments: list[str]) -> int:
    """torchrun --standalone --nproc-per-node PROCESSES PROGRAM ARGUMENTS; the exit status of the first that failed.

    A process has one thread, unless OMP_NUM_THREADS says otherwise, as always under torchrun. What torchrun itself
    has to say is left out: the first process says why a run ends, or this one where the first was killed.
    """
    from torch.distributed import run as torchrun
    from torch.distributed.elastic.multiprocessing.api import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError

    command = ["--standalone", "--nproc-per-node", str(processes), str(program), *arguments]
    logging.disable()
    try:
        torchrun.run(torchrun.parse_args(command))
    except ChildFailedError as ended:
        leader, (_, first) = ended.failures.get(0), ended.get_first_failure()
        if leader is not None and leader.exitcode < 0:
            name = signal.Signals(-leader.exitcode).name
            print(f"run.py: the first process was killed by {name}; go on with --resume", file=sys.stderr)
        return first.exitcode if first.exitcode >= 0 else 128 - first.exitcode
    except SignalException as stop:
        return 128 + stop.sigval
    finally:
        logging.disable(logging.NOTSET)
    return 0
