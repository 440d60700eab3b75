"""Where data sets come from; the downloader, by answers of a server; files are whole, or not there."""

import hashlib
import io
import os
from http.client import BadStatusLine, HTTPResponse
from pathlib import Path
from unittest.mock import Mock
from urllib.error import URLError

import pytest
from helpers.commands import error_line, files

from amaml.errors import InputError
from data import download, sources
from data.files import cache_folder, replacing, temporary_name, write_atomically
from data.sources import SOURCES, Archive, Source

GOOD = bytes(range(256)) * 4000  # bytes: several chunks


@pytest.mark.parametrize("source", SOURCES.values(), ids=SOURCES)
def test_an_archive_ends_where_its_reader_looks_and_what_is_missing_is_named_with_what_to_do(source):
    for lost, what in ((None, f"{source.name} is not in /absent"), ("/absent/lost.csv", "/absent/lost.csv is missing")):
        message = str(source.missing(Path("/absent"), lost))
        assert message.startswith(f"{what}; expected there is ")
        assert "\n" not in message
        assert f"nothing was downloaded; its publisher is {source.page}" in message
        assert (f"experiment.sh download {source.name} --data-root /absent" in message) == bool(source.archives)
    assert bool(source.archives) != bool(source.why_no_archive)
    for archive in source.archives:
        assert archive.place in source.places
        assert archive.url.startswith("https://")
        algorithm, digest = archive.checksum.split(":")
        assert len(bytes.fromhex(digest)) == hashlib.new(algorithm).digest_size


def test_the_data_root_is_the_one_given_else_the_environments_and_the_cache_folder_the_users(monkeypatch):
    monkeypatch.setenv("HOME", "/home/me")
    monkeypatch.setenv(sources.VARIABLE, "~/sets")
    assert sources.JESTER.root("/given") == Path("/given")
    assert sources.JESTER.root(None) == sources.JESTER.root("") == Path("/home/me/sets")
    monkeypatch.setenv(sources.VARIABLE, "")
    with pytest.raises(InputError, match="^Jester is read from files: name their folder with --data-root or AMAML_D"):
        sources.JESTER.root(None)
    for given, folder in (("/cache", Path("/cache/amaml")), ("", Path("/home/me/.cache/amaml")), ("below/here", None)):
        monkeypatch.setenv("XDG_CACHE_HOME", given)
        assert cache_folder() == folder


@pytest.fixture
def offer(monkeypatch):
    """offer() answers for MovieLens100K's archive and lists the requests; fault: in place of an answer, or of fsync."""

    def offer(checksum: str = "", sent: int | None = None, sized: bool = True, refused=None, fault=None) -> list[str]:
        length = f"Content-Length: {len(GOOD)}\r\n" if sized else ""
        requests, head = [], f"HTTP/1.1 200 OK\r\n{length}\r\n".encode()

        def urlopen(url: str, timeout: float) -> HTTPResponse:
            requests.append(url)
            if refused:
                raise refused
            response = HTTPResponse(Mock(makefile=lambda mode: io.BytesIO(head + GOOD[:sent])))  # and then closed
            response.begin()
            return response

        monkeypatch.setattr("urllib.request.urlopen", urlopen)
        if fault:
            monkeypatch.setattr(os, "fsync", Mock(side_effect=fault))
        archive = Archive("https://there/a.zip", checksum or f"md5:{hashlib.md5(GOOD).hexdigest()}", "below/a.zip")
        source = Source("MovieLens100K", "https://page", ("below/a.zip",), (archive,))
        monkeypatch.setitem(SOURCES, "MovieLens100K", source)
        return requests

    return offer


def fetch(root: Path) -> int:
    return download.main(["MovieLens100K", "--data-root", str(root)])


@pytest.mark.parametrize("sized", [True, False])
def test_an_archive_is_fetched_once(offer, tmp_path, capsys, sized):
    root, requests = tmp_path / "new" / "root", offer(sized=sized)
    for _ in range(2):
        assert fetch(root) == 0
        assert capsys.readouterr().out == f"MovieLens100K: {root}/below/a.zip\n"
        assert files(root) == {"below/a.zip": GOOD}
    assert requests == ["https://there/a.zip"]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"checksum": "sha256:" + "0" * 64}, f"is {hashlib.sha256(GOOD).hexdigest()}, expected 0000"),
        ({"sent": 512_000}, "cut after 512000 of 1024000 bytes"),
        ({"sent": 512_000, "sized": False}, "the md5 of what came is"),
        ({"refused": URLError("no route")}, "https://there/a.zip: <urlopen error no route>"),
        ({"refused": BadStatusLine("nonsense")}, "nonsense"),
        ({"fault": OSError("no space left on device")}, "no space left on device"),
        ({"fault": KeyboardInterrupt()}, "stopped"),
    ],
)
def test_what_does_not_come_whole_is_told_in_a_line_and_not_kept(offer, tmp_path, capsys, changes, message):
    offer(**changes)
    assert fetch(tmp_path) == (130 if message == "stopped" else 2)
    line = error_line(capsys, "data.download")
    assert message in line
    assert "see https://page" in line or message == "stopped"
    assert files(tmp_path) == {}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["MovieLens10M", "--data-root", "x"], "did you mean 'MovieLens1M'"),
        (["MiniImageNet", "--data-root", "x"], "visit https://github.com/"),
        ([], "required: NAME"),
        (["Jester", "--root", "x"], "unrecognized arguments: --root"),
    ],
)
def test_mistakes_are_told_in_a_line(arguments, message, capsys):
    try:
        status = download.main(arguments)
    except SystemExit as ended:
        status = ended.code
    err = capsys.readouterr().err
    assert (status, err.count("\n"), message in err) == (2, 1, True), err


def test_writing_leaves_the_old_file_or_the_new_one(tmp_path, monkeypatch):
    path = tmp_path / "file"
    write_atomically(path, b"old")
    monkeypatch.setattr(os, "fsync", lambda file: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        write_atomically(path, b"new, but cut")
    assert path.read_bytes() == b"old"
    assert os.listdir(tmp_path) == ["file"]
    monkeypatch.undo()
    temporary_name(path).write_bytes(b"what a kill left, longer than what comes now")
    with open(path, "rb") as reader:
        write_atomically(path, b"new")
        assert reader.read() == b"old"  # the new file took the old one's place in one step
    assert path.read_bytes() == b"new"
    assert os.listdir(tmp_path) == ["file"]


def test_two_writers_of_one_file_do_not_meet(tmp_path):
    path = tmp_path / "file"
    with replacing(path) as one:
        one.write(b"one")
        write_atomically(path, b"the other")
        assert path.read_bytes() == b"the other"
    assert path.read_bytes() == b"one"
    with pytest.raises(NotADirectoryError):
        write_atomically(path / "below", b"content")
    assert os.listdir(tmp_path) == ["file"]
