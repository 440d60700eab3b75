"""Where data sets come from; the downloader, against a server on 127.0.0.1: what arrives is whole, or not there."""

import hashlib
import os
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from amaml.errors import InputError
from data import download, sources
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


def test_the_data_root_is_the_one_given_else_the_environments(monkeypatch):
    monkeypatch.setenv("HOME", "/home/me")
    monkeypatch.setenv(sources.VARIABLE, "~/sets")
    assert sources.JESTER.root("/given") == Path("/given")
    assert sources.JESTER.root(None) == sources.JESTER.root("") == Path("/home/me/sets")
    monkeypatch.setenv(sources.VARIABLE, "")
    with pytest.raises(
        InputError, match="^Jester is read from files: name their folder with --data-root or AMAML_DATA"
    ):
        sources.JESTER.root(None)


def test_the_first_place_that_is_a_file_is_read(tmp_path):
    with pytest.raises(InputError, match="MovieLens100K is not in .* expected there is one of ml-100k/u.data, u.data"):
        sources.MOVIELENS_100K.find(str(tmp_path))
    (tmp_path / "ml-100k").mkdir()
    for place in ("ml-100k.zip", "ml-100k/u.data"):
        (tmp_path / place).touch()
        assert sources.MOVIELENS_100K.find(str(tmp_path)) == tmp_path / place


class Handler(BaseHTTPRequestHandler):
    """Serves the server's files: path -> (body, bytes to send before the connection is closed)."""

    def do_GET(self) -> None:
        self.server.requests.append(self.path)
        if self.path == "/none":
            self.send_error(404)
            return
        body, sent = self.server.files[self.path]
        self.send_response(200)
        if not self.path.startswith("/unsized"):
            self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body[:sent])

    def log_message(self, *arguments) -> None:
        """Nothing in the tests' output."""


@pytest.fixture
def server(monkeypatch):
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        server.files, server.requests = {}, []
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield server
        server.shutdown()
        thread.join()


@pytest.fixture
def offer(server, monkeypatch):
    """offer() puts MovieLens100K's archive on the server; fault: what happens when it is written."""

    def offer(checksum: str = "", sent: int | None = None, path: str = "/a.zip", url: str = "", fault=None):
        server.files[path] = (GOOD, sent)
        checksum = checksum or "md5:" + hashlib.md5(GOOD).hexdigest()
        archive = Archive(url or f"http://127.0.0.1:{server.server_port}{path}", checksum, "below/a.zip")
        if fault:
            monkeypatch.setattr(os, "fsync", lambda file: (_ for _ in ()).throw(fault))
        source = Source("MovieLens100K", "https://page", ("below/a.zip",), (archive,))
        monkeypatch.setitem(SOURCES, "MovieLens100K", source)

    return offer


def fetch(root: Path) -> int:
    return download.main(["MovieLens100K", "--data-root", str(root)])


def files(root: Path) -> dict[str, bytes]:
    return {str(path.relative_to(root)): path.read_bytes() for path in root.rglob("*") if path.is_file()}


@pytest.mark.parametrize("path", ["/a.zip", "/unsized.zip"])
def test_an_archive_is_fetched_once(offer, server, tmp_path, capsys, path):
    root = tmp_path / "new" / "root"
    offer(path=path)
    for _ in range(2):
        assert fetch(root) == 0
        assert capsys.readouterr().out == f"MovieLens100K: {root}/below/a.zip\n"
        assert files(root) == {"below/a.zip": GOOD}
    assert server.requests == [path]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"checksum": "sha256:" + "0" * 64}, f"is {hashlib.sha256(GOOD).hexdigest()}, expected 0000"),
        ({"sent": 512_000}, "cut after 512000 of 1024000 bytes"),
        ({"sent": 512_000, "path": "/unsized.zip"}, "the md5 of what came is"),
        ({"url": "http://127.0.0.1:9/a.zip"}, "http://127.0.0.1:9/a.zip: "),
        ({"path": "/none"}, "404"),
        ({"fault": OSError("no space left on device")}, "no space left on device"),
        ({"fault": KeyboardInterrupt()}, "stopped"),
    ],
)
def test_what_does_not_come_whole_is_told_in_a_line_and_not_kept(offer, tmp_path, capsys, changes, message):
    offer(**changes)
    assert fetch(tmp_path) == (130 if message == "stopped" else 2)
    out, err = capsys.readouterr()
    assert (out, err.count("\n")) == ("", 1)
    assert err.startswith("data.download: ")
    assert message in err
    assert "see https://page" in err or message == "stopped"
    assert files(tmp_path) == {}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["MovieLens10M", "--data-root", "x"], "did you mean 'MovieLens1M'"),
        (["MiniImageNet", "--data-root", "x"], "visit https://github.com/"),
        (["CIFARFS", "--data-root", "x"], "visit https://github.com/bertinetto/r2d2"),
        ([], "required: NAME"),
        (["Jester"], "--data-root or AMAML_DATA"),
        (["Jester", "--root", "x"], "unrecognized arguments: --root"),
    ],
)
def test_mistakes_are_told_in_a_line(arguments, message, capsys, monkeypatch):
    monkeypatch.delenv(sources.VARIABLE, raising=False)
    try:
        status = download.main(arguments)
    except SystemExit as ended:
        status = ended.code
    err = capsys.readouterr().err
    assert status == 2
    assert message in err
    assert err.count("\n") == 1
