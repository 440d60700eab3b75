"""Files that appear whole or not at all, and the user's folder for those that can be made again."""

import contextlib
import os
import secrets
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from amaml.errors import InputError


class Damaged(InputError):
    """A file is there, and holds something else than it should."""


@contextlib.contextmanager
def readable(what: object, *faults: type[Exception], remedy: str = "fetch it again") -> Iterator[None]:
    """Turns what a damaged file raises into a Damaged."""
    try:
        yield
    except faults as fault:
        raise Damaged(f"cannot read {what}: {fault}; {remedy}") from fault


def temporary_name(path: Path) -> Path:
    """Under what name write_atomically writes; a kill may leave it behind, and the next write takes it again."""
    return path.with_name(path.name + ".tmp")


def write_atomically(path: Path, content: bytes) -> None:
    """Write a file that one process alone writes; a kill leaves the old content or the new one. Raises OSError."""
    with replacing(path, temporary_name(path)) as file:
        file.write(content)


@contextlib.contextmanager
def replacing(path: Path, temporary: Path | None = None) -> Iterator[BinaryIO]:
    """A file to write to, which takes the place of path when the block ends and is removed if the block fails.

    Until then it is called temporary, by default a new name beside path, so that several processes may write the same
    path at once: the last one stays. Raises OSError.
    """
    temporary = temporary or path.with_name(f"{path.name}.{secrets.token_hex(4)}.tmp")
    try:
        with open(temporary, "w+b") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)


def cache_folder() -> Path | None:
    """$XDG_CACHE_HOME/amaml, by default ~/.cache/amaml; None for a user without a home."""
    home = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")
    return Path(home, "amaml") if os.path.isabs(home) else None
