"""python -m data.download NAME [--data-root DIR]: fetch a data set from its publisher into the data root.

Any Python >= 3.11 will do, also before the set-up. A file appears under its own name only when it is whole: an archive
is fetched into a temporary folder in the data root, its checksum compared, its members unpacked there, and each is then
moved to its place.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import stat
import sys
import tempfile
import urllib.request
import zipfile
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.client import HTTPException
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import NoReturn

from amaml.errors import InputError, unknown
from data import sources
from data.sources import SOURCES, Archive

TIMEOUT = 30.0  # seconds without a byte
CHUNK = 1 << 18


class DownloadError(RuntimeError):
    """An archive could not be fetched, is not the expected one or cannot be unpacked safely."""


def download(name: str, root: Path) -> list[Path]:
    """Fetch what is missing of a data set; returns the files or folders that are now there.

    Raises InputError for a data set without archives, DownloadError where an archive cannot be had or written.
    """
    source = SOURCES[name]
    if not source.archives:
        raise InputError(
            f"{name} cannot be downloaded: {source.why_no_archive}; visit {source.page} and put the files "
            f"in {root / source.places[0]}"
        )
    for archive in source.archives:
        if not (root / archive.target).exists():
            try:
                _fetch(archive, root)
            except DownloadError as fault:
                raise DownloadError(f"{archive.url}: {fault}; nothing was kept; see {source.page}") from fault
    return [root / archive.target for archive in source.archives]


def _fetch(archive: Archive, root: Path) -> None:
    """One archive, all of it or nothing."""
    try:
        root.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=".download-", dir=root) as folder:
            file = Path(folder, "archive")
            _receive(archive, file)
            if archive.unpack:
                fetched = _unpack(file, Path(folder, "members"))
            else:
                fetched = {archive.target.removeprefix(archive.folder + "/"): file}
            moves = {root / archive.folder / place: path for place, path in fetched.items()}
            target = root / archive.target
            if target not in moves:
                raise DownloadError(f"the archive holds no {archive.target}")
            for final in sorted(moves, key=lambda place: place == target):  # the sign that all is there comes last
                final.parent.mkdir(parents=True, exist_ok=True)
                os.replace(moves[final], final)
    except (OSError, HTTPException) as fault:  # no network, a refusal, a time-out, a full disk, no permission
        raise DownloadError(_line(fault)) from fault


def _receive(archive: Archive, file: Path) -> None:
    """Fetch into a file; raises DownloadError where the connection is cut or the checksum is another."""
    algorithm, expected = archive.checksum.split(":")
    digest = hashlib.new(algorithm)
    with urllib.request.urlopen(archive.url, timeout=TIMEOUT) as response, open(file, "wb") as out:
        length = response.length  # None where the server does not say
        received = 0
        with _progress(PurePosixPath(archive.target).parts[0], length) as count:
            while chunk := response.read(CHUNK):
                out.write(chunk)
                digest.update(chunk)
                received += len(chunk)
                count(len(chunk))
    if length is not None and received < length:
        raise DownloadError(f"the connection was cut after {received} of {length} bytes")
    if digest.hexdigest() != expected:
        raise DownloadError(f"the {algorithm} of what came is {digest.hexdigest()}, expected {expected}")


@contextmanager
def _progress(name: str, total: int | None) -> Iterator[Callable[[int], object]]:
    """A function that counts bytes on a bar, or on none where tqdm is not installed yet."""
    try:
        from tqdm import tqdm
    except ImportError:
        yield lambda count: None
        return
    with tqdm(desc=name, total=total, unit="B", unit_scale=True, disable=None) as bar:
        yield bar.update


def _unpack(file: Path, folder: Path) -> dict[str, Path]:
    """Unpack a zip archive into a folder: its member files by name. Nothing is written before every name is safe."""
    try:
        with zipfile.ZipFile(file) as archive:
            members = [member for member in archive.infolist() if not member.is_dir()]
            for member in members:
                _check(member)
            return {member.filename: Path(archive.extract(member, folder)) for member in members}
    except (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError, RuntimeError) as fault:
        if isinstance(fault, DownloadError):
            raise
        raise DownloadError(f"the archive is damaged: {_line(fault)}") from fault


def _check(member: zipfile.ZipInfo) -> None:
    """Raise DownloadError for a member that would land outside the folder, under any system's rules, or is a link."""
    name = member.orig_filename
    windows = PureWindowsPath(name)
    outside = "\0" in name or windows.drive or windows.root or ".." in windows.parts or not windows.parts
    kind = stat.S_IFMT(member.external_attr >> 16)
    if outside or kind not in (0, stat.S_IFREG):
        raise DownloadError(f"the archive's member {name!r} is a link or leads out of the folder; it was not unpacked")


def _line(fault: BaseException) -> str:
    return " ".join(str(fault).split()) or type(fault).__name__


class _Parser(argparse.ArgumentParser):
    """Reports a mistake as an InputError, in one line."""

    def error(self, message: str) -> NoReturn:
        raise InputError(f"{message} (data sets: {', '.join(SOURCES)}); see --help")


def main(arguments: list[str]) -> int:
    """Exit status: 0 the files are there, 2 they are not (one line says why), 130 interrupted."""
    parser = _Parser(prog="python -m data.download", description="Fetch a data set from its publisher.")
    parser.add_argument("name", help=", ".join(SOURCES))
    parser.add_argument("--data-root", metavar="DIR", help=f"folder of the data files (default ${sources.VARIABLE})")
    try:
        given = parser.parse_args(arguments)
        if given.name not in SOURCES:
            raise unknown("data set", given.name, SOURCES)
        for path in download(given.name, sources.data_root(given.name, given.data_root)):
            print(f"{given.name}: {path}")
    except (InputError, DownloadError) as fault:
        print(f"data.download: {fault}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("data.download: stopped; nothing was kept", file=sys.stderr)
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
