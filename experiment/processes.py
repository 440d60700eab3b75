"""One run in several processes, started by torchrun: each solves some chunks of a batch, all learn from every chunk.

The processes run the same program and differ in nothing but which chunks they solve, and in that the first alone
writes and prints. Chunk i goes to process i mod world. What was found is gathered and folded in the order of the
chunks, never added up on the way, so that the bits do not depend on the number of processes.

All exchanges begin alike: every process tells what it has, or the fault it met, or the stop that it was asked for. So
one that fails anywhere takes part in the next exchange of the others by its fault, and all end for the same reason.
"""

import contextlib
import os
import pickle
import signal
import warnings
from collections.abc import Callable, Iterator
from dataclasses import replace
from datetime import timedelta
from itertools import chain
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar

from amaml.errors import InputError
from experiment.stop import Stopped, StopRequest

if TYPE_CHECKING:
    import torch
    from torch import Tensor

T, Part = TypeVar("T"), TypeVar("Part")

SILENCE = timedelta(minutes=30)  # after which a process that is there but does not answer is given up


class Lost(RuntimeError):
    """Another process of the run has ended, or does not answer."""


class AgreedStop(StopRequest):
    """A stop that is asked for in any process and met by all at the same update, when they have told each other."""

    agreed = False

    def at_once(self) -> contextlib.AbstractContextManager[None]:
        """Nothing: an exchange must not be left by one process alone."""
        return contextlib.nullcontext()

    def while_solving(self) -> contextlib.AbstractContextManager[None]:
        """Within this context, between two exchanges, the first request is met at once, by Stopped."""
        return super().at_once()

    def agree(self, number: int) -> None:
        """As StopRequest's; the next check meets it."""
        super().agree(number)
        self.agreed = True

    def check(self, update: int) -> None:
        """As StopRequest's, once all processes know."""
        if self.agreed:
            super().check(update)

    def __exit__(self, *exception: object) -> None:
        super().__exit__(*exception)
        if exception[0] is not None:  # torchrun ends the others as soon as one has ended; let them say why
            for number in self.previous:
                signal.signal(number, signal.SIG_IGN)


class Told(NamedTuple):
    """What one process tells the others: content, or a fault with its place in the order of the chunks, or a signal."""

    content: Any = None
    fault: Exception | None = None
    place: int = -1
    stop: int | None = None


class Group:
    """The processes of a run, as one of them sees them: rank, from 0, of world. Alone where there is one."""

    def __init__(self, rank: int = 0, world: int = 1) -> None:
        self.rank, self.world, self.first = rank, world, rank == 0
        self.stop = AgreedStop() if world > 1 else StopRequest()
        self._known: BaseException | None = None  # the last fault that all processes know of
        self._wait = False  # for the others at the end

    def each(self, solve: Callable[[Part], T], parts: list[Part]) -> list[T]:
        """solve of every part, in their order, each in one of the processes; raises the first part's fault in all."""
        if self.world == 1:
            return [solve(part) for part in parts]
        results, fault = [], None
        try:
            with self.stop.while_solving():
                for part in parts[self.rank :: self.world]:
                    results.append(solve(part))
        except Stopped:
            pass  # the others are told
        except Exception as error:
            fault = error
        place = self.rank + len(results) * self.world
        parted = [_parted(result) for result in results]
        bare, tensors = [one for one, _ in parted], [tensor for _, some in parted for tensor in some]
        forms = [[Form(len(t), t.dtype, t.device.type) for t in some] for _, some in parted]
        told = self._exchange(Told((bare, forms), fault, place))
        flat = self._tensors([list(chain.from_iterable(forms)) for _, forms in told], tensors)
        found = [_read(*content, received) for content, received in zip(told, flat, strict=True)]
        return [found[i % self.world][i // self.world] for i in range(len(parts))]

    def of_first(self, function: Callable[[], T]) -> T:
        """What function returns in the first process, in all of them; a fault in it is raised in all."""
        content, fault = _attempt(function) if self.first else (None, None)
        return self._exchange(Told(content, fault))[0]

    def together(self, function: Callable[[], T]) -> T:
        """What function returns in this process; a fault in any of them is raised in all."""
        content, fault = _attempt(function)
        self._exchange(Told(None, fault, self.rank))
        return content

    def run(self, program: Callable[["Group"], T]) -> T:
        """The program, in each of the processes; a fault that the others do not know of is told to them."""
        try:
            return program(self)
        except Exception as fault:
            if self.world > 1 and not isinstance(fault, Lost):
                self._wait = True
                if not any(link is self._known for link in _causes(fault)):
                    with contextlib.suppress(Exception):
                        self._exchange(Told(fault=fault))
            raise

    def leave(self) -> None:
        """End after the others have said why they do: torchrun ends those that are left."""
        if self._wait:
            with contextlib.suppress(Lost):
                self._gather(Told())

    def _exchange(self, mine: Told) -> list[Any]:
        """The contents of all processes; raises, in all alike, Stopped where one was asked to stop, or the fault."""
        told = self._gather(mine._replace(fault=_sendable(mine.fault), stop=self.stop.number))
        stops = [one.stop for one in told if one.stop is not None]
        if stops:
            self.stop.agree(stops[0])
            self._known = Stopped(stops[0], "")
            raise self._known
        faults = [one for one in told if one.fault is not None]
        if faults:
            at = min(faults, key=lambda one: one.place)
            self._known = mine.fault if mine.fault is not None and at.place == mine.place else at.fault
            raise self._known
        return [one.content for one in told]

    def _gather(self, mine: Told) -> list[Told]:
        if self.world == 1:
            return [mine]
        from torch import distributed

        told = [None] * self.world
        with _noticed():
            distributed.all_gather_object(told, mine)
        return told

    def _tensors(self, forms: "list[list[Form]]", mine: "list[Tensor]") -> "list[Tensor]":
        """The tensors of every process, those of one as one flat tensor, which may end with zeros."""
        import torch
        from torch import distributed

        kinds = {(form.dtype, form.device) for some in forms for form in some}
        if not kinds:
            return [torch.empty(0)] * self.world
        ((dtype, device),) = kinds  # of theta
        longest = max(sum(form.size for form in some) for some in forms)
        sent = torch.zeros(longest, dtype=dtype, device=device)
        if mine:
            own = torch.cat(mine)
            sent[: len(own)] = own
        received = [torch.empty_like(sent) for _ in range(self.world)]
        with _noticed():
            distributed.all_gather(received, sent)
        return received


class Form(NamedTuple):
    """What is known of a flat tensor before it comes."""

    size: int
    dtype: "torch.dtype"
    device: str


@contextlib.contextmanager
def joined() -> Iterator[Group]:
    """This process's place among those that torchrun has started; alone where it has started none, or one."""
    world = int(os.environ.get("WORLD_SIZE", "1"))
    if world == 1:
        yield Group()
        return
    import torch
    from torch import distributed

    if torch.cuda.is_available():
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]) % torch.cuda.device_count())
    backend = "cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo"
    attempt = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")
    with _noticed():
        store, rank, _ = next(distributed.rendezvous("env://", timeout=SILENCE))
        store = distributed.PrefixStore(f"attempt {attempt}", store)  # that of the last attempt holds its addresses
        distributed.init_process_group(backend, store=store, rank=rank, world_size=world, timeout=SILENCE)
    group = Group(distributed.get_rank(), world)
    if not group.first:
        warnings.simplefilter("ignore")  # the first process warns of the same
    try:
        yield group
    finally:
        group.leave()
        distributed.destroy_process_group()


def check_device(device: str, group: Group) -> None:
    """Raise InputError unless every process of this machine can have a device of its own."""
    if group.world == 1 or device == "cpu":
        return
    import torch

    here, there = int(os.environ.get("LOCAL_WORLD_SIZE", group.world)), torch.cuda.device_count()
    if device != "cuda":
        raise InputError(f"--device {device} is one device for {here} processes; choose --device cuda, one for each")
    if here > there:
        raise InputError(f"{here} processes need a GPU each, this machine has {there}; choose --processes {there}")


@contextlib.contextmanager
def _noticed() -> Iterator[None]:
    """An exchange that fails for another process's sake raises Lost."""
    try:
        yield
    except RuntimeError as fault:
        raise Lost(
            "another process of this run has ended, or has not answered for "
            f"{SILENCE.total_seconds() / 60:g} minutes; go on with --resume"
        ) from fault


def _parted(result: Any) -> "tuple[Any, list[Tensor]]":
    """A result without its tensors, and these."""
    from amaml.learner import MetaGradient

    if not isinstance(result, MetaGradient):
        return result, []
    known = result.observation and result.observation.known
    tensors = [result.value, result.query_loss, *([known.direction] if known else [])]
    return _with(result, [None] * len(tensors)), tensors


def _read(bare: list[Any], forms: list[list[Form]], flat: "Tensor") -> list[Any]:
    """The results that _parted has taken apart."""
    sizes = [form.size for some in forms for form in some]
    tensors = iter(flat[: sum(sizes)].split(sizes))
    pairs = zip(bare, forms, strict=True)
    return [_with(one, [next(tensors) for _ in some]) if some else one for one, some in pairs]


def _with(result: Any, tensors: "list[Tensor | None]") -> Any:
    """A meta-gradient with other tensors in the places of those that _parted takes."""
    value, query_loss, *direction = tensors
    seen = result.observation
    if direction:
        seen = seen._replace(known=seen.known._replace(direction=direction[0]))
    return replace(result, value=value, query_loss=query_loss, observation=seen)


def _attempt(function: Callable[[], T]) -> tuple[T | None, Exception | None]:
    try:
        return function(), None
    except Exception as fault:
        return None, fault


def _sendable(fault: Exception | None) -> Exception | None:
    """A fault as another process can read it."""
    try:
        pickle.loads(pickle.dumps(fault))
    except Exception:
        return RuntimeError(f"{type(fault).__name__}: {fault}")
    return fault


def _causes(fault: BaseException | None) -> Iterator[BaseException]:
    while fault is not None:
        yield fault
        fault = fault.__cause__ or fault.__context__
