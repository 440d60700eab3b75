"""How the program ends: its exit status, and one line where it did not do what was asked."""

import os
import sys
from collections.abc import Callable

from amaml.errors import Diverged, InputError
from amaml.experiment.stop import Stopped

CLOSED_PIPE = 141  # 128 + SIGPIPE, as of a program that writes into a pipe nobody reads


def status_of(program: Callable[[], None]) -> int:
    """Run it. 0 done, 2 a mistake in the input or a diverged run, 128 + signal after a stop; faults of ours are raised.

    torch's errors are told by their names, since a mistake may be found before torch is loaded.
    """
    try:
        try:
            program()
        finally:
            sys.stdout.flush()
    except (InputError, Diverged) as error:
        return _failed(error, 2)
    except Stopped as stopped:
        return _failed(stopped, 128 + stopped.number)
    except KeyboardInterrupt:
        return _failed("interrupted", 130)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # nor at the end, when Python empties its buffer
        return CLOSED_PIPE
    except (MemoryError, RuntimeError) as error:
        if _is_memory(error):
            return _failed("out of memory; try a smaller --meta-batch, --width or --test-tasks, or another --method", 2)
        if "deterministic implementation" in str(error):
            return _failed(f"{str(error).partition('.')[0]}; leave out --deterministic, or compute on the cpu", 2)
        raise
    return 0


def _is_memory(error: Exception) -> bool:
    return isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError" or "CPUAllocator" in str(error)


def _failed(reason: object, status: int) -> int:
    """Say why the program ends, in one line."""
    print(f"run.py: {' '.join(str(reason).split())}", file=sys.stderr)
    return status
