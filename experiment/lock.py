"""One process at a time in a folder, by a lock that the system gives back when the process ends, however it does."""

import errno
import fcntl
import os
import platform
from pathlib import Path

from amaml.errors import InputError

NAME = "lock"  # of the file; one that a killed process leaves behind locks nothing
READ_ONLY = (errno.EACCES, errno.EPERM, errno.EROFS)  # a folder that cannot be written to needs no lock


class Lock:
    """The lock of a folder, held from take to release."""

    def __init__(self, folder: Path) -> None:
        self.path = folder / NAME
        self._descriptor: int | None = None

    def take(self) -> None:
        """Hold the lock, if the folder exists; raises InputError where another process holds it, with its number."""
        while self._descriptor is None and self.path.parent.is_dir():
            try:
                descriptor = os.open(self.path, os.O_RDWR | os.O_CREAT, 0o666)
            except OSError as fault:
                if fault.errno in READ_ONLY:
                    return
                raise
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                holder = os.read(descriptor, 1000).decode() or "another process"
                os.close(descriptor)
                raise InputError(
                    f"{self.path.parent} is in use by {holder}; wait for its end, or choose another --out"
                ) from None
            if self._is_there(descriptor):
                self._descriptor = descriptor
                os.ftruncate(descriptor, 0)
                os.write(descriptor, f"process {os.getpid()} on {platform.node()}".encode())
            else:
                os.close(descriptor)  # its holder has removed the file since it was opened

    def release(self) -> None:
        """Remove the file and let others in."""
        if self._descriptor is not None:
            if self._is_there(self._descriptor):
                self.path.unlink()
            os.close(self._descriptor)
            self._descriptor = None

    def _is_there(self, descriptor: int) -> bool:
        """Whether the open file is the one that others find under its name."""
        try:
            return os.path.samestat(os.fstat(descriptor), os.stat(self.path))
        except FileNotFoundError:
            return False
