"""How the wheel and the sdist are built: by setuptools, but for an sdist that holds what git keeps, tests and all.

setuptools takes further files by a MANIFEST.in beside pyproject.toml alone.
"""

import io
import subprocess
import tarfile
import tempfile
from pathlib import Path

from setuptools.build_meta import *  # noqa: F403
from setuptools.build_meta import prepare_metadata_for_build_wheel


def build_sdist(sdist_directory: str, config_settings: dict | None = None) -> str:
    """amaml-VERSION.tar.gz of the files that git keeps, or of all in an unpacked sdist; returns its name."""
    with tempfile.TemporaryDirectory() as folder:
        info = Path(prepare_metadata_for_build_wheel(folder)).stem
        metadata = Path(folder, f"{info}.dist-info", "METADATA").read_bytes()
    with tarfile.open(Path(sdist_directory, f"{info}.tar.gz"), "w:gz", format=tarfile.PAX_FORMAT) as archive:
        for name in _files():
            archive.add(name, f"{info}/{name}", recursive=False)
        entry = tarfile.TarInfo(f"{info}/PKG-INFO")
        entry.size = len(metadata)
        archive.addfile(entry, io.BytesIO(metadata))
    return f"{info}.tar.gz"


def _files() -> list[str]:
    if Path(".git").exists():
        return subprocess.run(["git", "ls-files"], capture_output=True, text=True, check=True).stdout.splitlines()
    return [str(path) for path in sorted(Path().rglob("*")) if path.is_file() and path.name != "PKG-INFO"]
