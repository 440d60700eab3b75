"""A stop that was asked for, by Ctrl-C or SIGTERM, is met where nothing is lost."""

import signal
from collections.abc import Iterator
from contextlib import contextmanager


class Stopped(BaseException):
    """The run was asked to stop and has written its checkpoint; the signal's number is kept.

    Like KeyboardInterrupt it can come anywhere, and is none of the errors that a library of ours or others handles.
    """

    def __init__(self, number: int, message: str) -> None:
        super().__init__(message)
        self.number = number


class StopRequest:
    """Turns Ctrl-C and SIGTERM into a request that the loop meets between two updates; a second Ctrl-C is at once."""

    number: int | None = None
    immediate = False

    @contextmanager
    def at_once(self) -> Iterator[None]:
        """Within this context the first request is met at once, by Stopped: nothing that counts is half done."""
        if self.number is not None:
            raise Stopped(self.number, "")
        self.immediate = True
        try:
            yield
        finally:
            self.immediate = False

    def __enter__(self) -> "StopRequest":
        self.previous = {n: signal.signal(n, self._note) for n in (signal.SIGINT, signal.SIGTERM)}
        return self

    def __exit__(self, *exception: object) -> None:
        for number, handler in self.previous.items():
            signal.signal(number, handler)

    def _note(self, number: int, frame: object) -> None:
        if self.number is not None:
            raise KeyboardInterrupt
        self.number = number
        if self.immediate:
            raise Stopped(number, "")

    def agree(self, number: int) -> None:
        """All processes know of the signal."""
        self.number = number

    def check(self, update: int) -> None:
        """Raise Stopped if a stop was asked for; the checkpoint of this update must be on disk."""
        if self.number is not None:
            raise Stopped(self.number, f"stopped after update {update}; go on with --resume")
