"""Several processes of the program on this machine, by torchrun: one line and one exit status for all of them."""

import logging
import signal
import sys
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError


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
        return _status(ended)
    except SignalException as stop:
        return 128 + stop.sigval
    finally:
        logging.disable(logging.NOTSET)
    return 0


def _status(ended: "ChildFailedError") -> int:
    _, first = ended.get_first_failure()
    leader = ended.failures.get(0)
    if leader is not None and leader.exitcode < 0:
        name = signal.Signals(-leader.exitcode).name
        print(f"run.py: the first process was killed by {name}; go on with --resume", file=sys.stderr)
    return first.exitcode if first.exitcode >= 0 else 128 - first.exitcode
