"""How the program ends: its exit status, and one line where it did not do what was asked."""

import os
import sys
from collections.abc import Callable

from amaml.errors import Diverged, InputError
from experiment.processes import Lost
from experiment.stop import Stopped

CLOSED_PIPE = 141  # 128 + SIGPIPE, as of a program that writes into a pipe nobody reads


def status_of(program: Callable[[], int | None], quiet: bool = False) -> int:
    """Run it. 0 done (or what it returns), 2 a mistake in the input or a diverged run, 128 + signal after a stop,
    1 where another process of the run was lost; faults of ours are raised. quiet: another process says why it ends.

    torch's errors are told by their names, since a mistake may be found before torch is loaded.
    """

    def failed(reason: object, status: int) -> int:
        if not quiet:  # one line
            print(f"run.py: {' '.join(str(reason).split())}", file=sys.stderr, flush=True)
        return status

    status = None
    try:
        try:
            status = program()
        finally:
            sys.stdout.flush()
    except (InputError, Diverged) as error:
        return failed(error, 2)
    except Stopped as stopped:
        return failed(stopped, 128 + stopped.number)
    except KeyboardInterrupt:
        return failed("interrupted", 130)
    except BrokenPipeError:
        return pipe_closed()
    except Lost as lost:
        return failed(lost, 1)
    except (MemoryError, RuntimeError) as error:
        if _is_memory(error):
            return failed("out of memory; try a smaller --meta-batch, --width or --test-tasks, or another --method", 2)
        if "deterministic implementation" in str(error):
            return failed(f"{str(error).partition('.')[0]}; leave out --deterministic, or compute on the cpu", 2)
        raise
    return status or 0


def pipe_closed() -> int:
    """The exit status after a BrokenPipeError; Python, which empties its buffer at the end, meets no other."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return CLOSED_PIPE


def _is_memory(error: Exception) -> bool:
    return isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError" or "CPUAllocator" in str(error)
