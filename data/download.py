"""python -m data.download NAME [--data-root DIR]: fetch a data set from its publisher into the data root.

An archive stays as it was published, the readers take it whole. It appears under its own name when all of it has come
and its checksum is right.
"""

import argparse
import hashlib
import shutil
import sys
import urllib.request
from http.client import HTTPException
from pathlib import Path

from tqdm import tqdm

from amaml.errors import InputError, unknown
from data.files import replacing
from data.sources import SOURCES, VARIABLE, Archive

TIMEOUT = 30.0  # seconds without a byte


def download(name: str, data_root: str | None) -> list[Path]:
    """Fetch the archives of a data set that are missing; returns where they all are.

    Raises InputError for a data set without archives, and where one cannot be had or written or is not the expected
    one; then nothing of it is kept.
    """
    if name not in SOURCES:
        raise unknown("data set", name, SOURCES)
    source, root = SOURCES[name], SOURCES[name].root(data_root)
    if not source.archives:
        remedy = f"visit {source.page} and put the files in {root / source.places[0]}"
        raise InputError(f"{name} cannot be downloaded: {source.why_no_archive}; {remedy}")
    for archive in source.archives:
        if not (root / archive.place).exists():
            try:
                _fetch(archive, root / archive.place)
            except (OSError, HTTPException) as fault:  # no network, a time-out, a full disk, another file
                reason = " ".join(str(fault).split()) or type(fault).__name__
                raise InputError(f"{archive.url}: {reason}; nothing was kept; see {source.page}") from fault
    return [root / archive.place for archive in source.archives]


def _fetch(archive: Archive, path: Path) -> None:
    """One archive, all of it or nothing; raises OSError or HTTPException."""
    algorithm, expected = archive.checksum.split(":")
    path.parent.mkdir(parents=True, exist_ok=True)
    with urllib.request.urlopen(archive.url, timeout=TIMEOUT) as response, replacing(path) as file:
        total = response.length  # None where the server does not say; of what is to come, as it is read
        with tqdm.wrapattr(response, "read", total, desc=path.name, disable=None) as body:
            shutil.copyfileobj(body, file)
        if response.length:
            raise OSError(f"the connection was cut after {total - response.length} of {total} bytes")
        file.seek(0)
        found = hashlib.file_digest(file, algorithm).hexdigest()
        if found != expected:
            raise OSError(f"the {algorithm} of what came is {found}, expected {expected}")


def main(arguments: list[str]) -> int:
    """Exit status: 0 the files are there, 2 they are not (one line says why), 130 interrupted."""
    parser = argparse.ArgumentParser(prog="data.download", usage=argparse.SUPPRESS, description=__doc__)
    parser.add_argument("name", metavar="NAME", help=", ".join(SOURCES))
    parser.add_argument("--data-root", metavar="DIR", help=f"folder of the data files (default ${VARIABLE})")
    given = parser.parse_args(arguments)
    try:
        for path in download(given.name, given.data_root):
            print(f"{given.name}: {path}")
    except InputError as fault:
        print(f"data.download: {fault}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("data.download: stopped; nothing was kept", file=sys.stderr)
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
