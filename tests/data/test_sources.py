"""Where data sets come from and where they are looked for."""

import hashlib
from pathlib import Path

import pytest

from amaml.errors import InputError
from data import sources
from data.sources import SOURCES


def test_every_source():
    """Every archive ends where its reader looks, over an encrypted connection, with a checksum of the right length."""
    for name, source in SOURCES.items():
        assert bool(source.archives) != bool(source.why_no_archive)
        for archive in source.archives:
            assert archive.target in source.places
            assert archive.url.startswith("https://")
            algorithm, digest = archive.checksum.split(":")
            assert len(bytes.fromhex(digest)) == hashlib.new(algorithm).digest_size, name


def test_the_data_root_is_the_one_given_else_the_environments(monkeypatch):
    monkeypatch.setenv("HOME", "/home/me")
    monkeypatch.setenv(sources.VARIABLE, "~/sets")
    assert sources.data_root("Jester", "/given") == Path("/given")
    assert sources.data_root("Jester", None) == sources.data_root("Jester", "") == Path("/home/me/sets")
    for unset in ("", None):
        monkeypatch.setenv(sources.VARIABLE, unset) if unset == "" else monkeypatch.delenv(sources.VARIABLE)
        with pytest.raises(
            InputError, match="^Jester is read from files: name their folder with --data-root or AMAML_"
        ):
            sources.data_root("Jester", None)


@pytest.mark.parametrize("name", SOURCES)
def test_what_is_missing_is_named_with_what_to_do(name):
    source, root = SOURCES[name], Path("/root")
    whole, file = (str(sources.missing(name, root, lost)) for lost in (None, "/root/lost.csv"))
    assert whole.startswith(f"{name} is not in /root; expected there is ")
    assert file.startswith("/root/lost.csv is missing; expected there is ")
    for message in (whole, file):
        assert "\n" not in message
        assert f"nothing was downloaded; its publisher is {source.page}" in message
        assert (f"python -m data.download {name} --data-root /root" in message) == bool(source.archives)


def test_the_first_place_that_is_a_file_is_read(tmp_path):
    with pytest.raises(InputError, match="MovieLens100K is not in"):
        sources.find("MovieLens100K", tmp_path)
    (tmp_path / "ml-100k").mkdir()
    (tmp_path / "ml-100k.zip").touch()
    assert sources.find("MovieLens100K", tmp_path) == tmp_path / "ml-100k.zip"
    (tmp_path / "ml-100k" / "u.data").touch()
    assert sources.find("MovieLens100K", tmp_path) == tmp_path / "ml-100k" / "u.data"
