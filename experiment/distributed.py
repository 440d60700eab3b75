"""One run in several processes, started by torchrun: each solves some chunks of a batch, all learn from every chunk.

The processes run the same program and differ in nothing but which chunks they solve, and in that the first alone
writes and prints. Chunk i goes to process i mod world. Whole results are gathered and folded in the order of the
chunks, never added up on the way, so that the bits do not depend on the number of processes. With them every exchange
carries faults and requests to stop: all processes raise the same.
"""

import contextlib
import io
import os
import signal
import threading
import warnings
from collections.abc import Callable, Iterator
from datetime import timedelta
from typing import Any, TypeVar

import torch
from torch import distributed

T, Part = TypeVar("T"), TypeVar("Part")

SILENCE = timedelta(minutes=30)  # after which a process that is there but does not answer is given up


class Lost(RuntimeError):
    """Another process of the run has ended, or does not answer."""


class Stopped(BaseException):
    """The run was asked to stop by a signal, whose number is kept.

    Like KeyboardInterrupt it can come anywhere, and is none of the errors that a library of ours or others handles.
    """

    def __init__(self, number: int, message: str = "stopped") -> None:
        super().__init__(message)
        self.number = number


class StopRequest:
    """Turns Ctrl-C and SIGTERM into a request, met where nothing is lost; alone, a second Ctrl-C is met at once.

    In a thread other than the main one, to which Python gives no signals, there are no requests.
    """

    def __init__(self, alone: bool = True) -> None:
        self.alone, self.number = alone, None

    def __enter__(self) -> "StopRequest":
        main = threading.current_thread() is threading.main_thread()
        numbers = (signal.SIGINT, signal.SIGTERM) if main else ()
        self._previous = {number: signal.signal(number, self._note) for number in numbers}
        return self

    def __exit__(self, *exception: object) -> None:
        ended = exception[0] is not None and not self.alone  # torchrun ends the others then; let them say why
        for number, handler in self._previous.items():
            signal.signal(number, signal.SIG_IGN if ended else handler)

    def _note(self, number: int, frame: object) -> None:
        if self.number is not None and self.alone and number == signal.SIGINT:
            raise KeyboardInterrupt
        self.number = number

    def check(self) -> None:
        """Raise Stopped if this process was asked to stop."""
        if self.number is not None:
            raise Stopped(self.number)


class Group:
    """The processes of a run, as one of them sees them: rank, from 0, of world. Alone where there is one."""

    def __init__(self, rank: int = 0, world: int = 1) -> None:
        self.rank, self.world, self.first = rank, world, rank == 0
        self.stop = StopRequest(alone=world == 1)

    def map_chunks(self, solve: Callable[[Part], T], parts: list[Part]) -> list[T]:
        """solve of every part, in their order, each in one of the processes; raises the first part's fault in all."""
        mine, found = [], []
        try:
            for part in parts[self.rank :: self.world]:
                mine.append(solve(part))
        except Exception as fault:
            mine.append(fault)
        except Stopped:
            pass  # the others are told
        of_all = self._gather(mine)  # of a process that met a fault, the results up to that one
        for i in range(len(parts)):
            found.append(of_all[i % self.world][i // self.world])
            if isinstance(found[-1], Exception):
                raise found[-1]
        return found

    def of_first(self, function: Callable[[], T]) -> T:
        """What function returns in the first process, in all of them; a fault in it is raised in all."""
        return self.map_chunks(lambda _: function(), [None])[0]

    def together(self, function: Callable[[], T]) -> T:
        """What function returns in this process; a fault in any of them is raised in all."""
        made = []
        self.map_chunks(lambda _: made.append(function()), list(range(self.world)))
        return made[0]

    def _gather(self, mine: T) -> list[T]:
        """What every process has, in their order; raises Stopped in all, at once, where one was asked to stop."""
        sent = self.stop.number, mine
        received = [sent] if self.world == 1 else self.exchange(sent)
        for number, _ in received:
            if number is not None:
                raise Stopped(number)
        return [content for _, content in received]

    def exchange(self, mine: Any) -> list[Any]:
        """mine of every process, its tensors on this process's own device."""
        buffer, received = io.BytesIO(), [None] * self.world
        torch.save(mine, buffer)
        with _noticed():
            distributed.all_gather_object(received, buffer.getvalue())
        here = {"map_location": lambda storage, location: storage if location == "cpu" else storage.cuda()}
        return [torch.load(io.BytesIO(sent), **here, weights_only=False) for sent in received]


@contextlib.contextmanager
def joined() -> Iterator[Group]:
    """This process's place among those that torchrun has started; alone where it has started none, or one."""
    world = int(os.environ.get("WORLD_SIZE", "1"))
    if world == 1:
        yield Group()
        return
    if torch.cuda.is_available():
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]) % torch.cuda.device_count())
    backend = "cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo"
    attempt = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")
    with _noticed():
        store, rank, _ = next(distributed.rendezvous("env://", timeout=SILENCE))
        store = distributed.PrefixStore(f"attempt {attempt}", store)  # that of the last attempt holds its addresses
        distributed.init_process_group(backend, store=store, rank=rank, world_size=world, timeout=SILENCE)
    if rank > 0:
        warnings.simplefilter("ignore")  # the first process warns of the same
    try:
        yield Group(rank, world)
    finally:
        distributed.destroy_process_group()


@contextlib.contextmanager
def _noticed() -> Iterator[None]:
    """An exchange that fails for another process's sake raises Lost."""
    try:
        yield
    except RuntimeError as fault:
        reason = f"has ended, or has not answered for {SILENCE.total_seconds() / 60:g} minutes"
        raise Lost(f"another process of this run {reason}; go on with --resume") from fault
