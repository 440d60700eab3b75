"""Files are whole or not there, also when two processes write one; the cache folder follows the environment."""

import os
from pathlib import Path

import pytest

from data.files import cache_folder, replacing, temporary_name, write_atomically


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_writing_leaves_the_old_file_or_the_new_one(tmp_path, monkeypatch):
    path = tmp_path / "file"
    write_atomically(path, b"old")
    monkeypatch.setattr(os, "fsync", lambda file: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        write_atomically(path, b"new, but cut")
    assert path.read_bytes() == b"old"
    assert names(tmp_path) == ["file"]
    monkeypatch.undo()
    temporary_name(path).write_bytes(b"what a kill left, longer than what comes now")
    with open(path, "rb") as reader:
        write_atomically(path, b"new")
        assert reader.read() == b"old"  # the new file took the old one's place in one step
    assert path.read_bytes() == b"new"
    assert names(tmp_path) == ["file"]


def test_two_writers_of_one_file_do_not_meet(tmp_path):
    path = tmp_path / "file"
    with replacing(path) as one:
        one.write(b"one")
        write_atomically(path, b"the other")
        assert path.read_bytes() == b"the other"
    assert path.read_bytes() == b"one"
    with pytest.raises(NotADirectoryError):
        write_atomically(path / "below", b"content")
    assert names(tmp_path) == ["file"]


def test_the_cache_folder_is_the_users(monkeypatch):
    monkeypatch.setenv("HOME", "/home/me")
    for given, folder in (("/cache", Path("/cache/amaml")), ("", Path("/home/me/.cache/amaml")), ("below/here", None)):
        monkeypatch.setenv("XDG_CACHE_HOME", given)
        assert cache_folder() == folder
