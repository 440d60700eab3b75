"""The downloader, against a server on 127.0.0.1: what arrives is whole and checked, or nothing is left behind."""

import hashlib
import io
import stat
import subprocess
import sys
import threading
import zipfile
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from amaml.errors import InputError
from data import download, rating_files, sources
from data.sources import SOURCES, Archive, Source

RATINGS = b"1\t10\t5\t881250949\n2\t11\t3\t881250950\n"


def zipped(members: dict[str, bytes], mode: int = stat.S_IFREG | 0o644) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in members.items():
            member = zipfile.ZipInfo(name)
            member.external_attr = mode << 16
            archive.writestr(member, content)
    return buffer.getvalue()


GOOD = zipped({"ml-100k/": b"", "ml-100k/README": b"read me", "ml-100k/u.data": RATINGS, "ml-100k/a/b": b"deep"})


MD5 = "md5:" + hashlib.md5(GOOD).hexdigest()


class Handler(BaseHTTPRequestHandler):
    """Serves the server's files: path -> (body, bytes to send before the connection is closed)."""

    def do_GET(self) -> None:
        self.server.requests.append(self.path)
        if self.path not in self.server.files:
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
    """offer(body) puts MovieLens100K's archive on the server, and returns the arguments that fetch it."""

    def offer(body: bytes, checksum: str | None = None, sent: int | None = None, path: str = "/a.zip", **changes):
        server.files[path] = (body, sent)
        checksum = checksum or "md5:" + hashlib.md5(body).hexdigest()
        url = f"http://127.0.0.1:{server.server_port}{path}"
        archive = Archive(**{"url": url, "checksum": checksum, "folder": "", "target": "ml-100k/u.data"} | changes)
        monkeypatch.setitem(SOURCES, "MovieLens100K", Source("https://page", ("ml-100k/u.data",), (archive,)))

    return offer


def fetch(root: Path) -> int:
    return download.main(["MovieLens100K", "--data-root", str(root)])


def files(root: Path) -> dict[str, bytes]:
    return {str(path.relative_to(root)): path.read_bytes() for path in root.rglob("*") if path.is_file()}


def refused(root: Path, capsys) -> str:
    """The one line of a failed fetch, which leaves nothing in the root."""
    before = files(root)
    assert fetch(root) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.count("\n") == 1
    assert err.startswith("data.download: ")
    assert files(root) == before
    assert [path.name for path in root.glob(".*")] == []
    return err


@pytest.mark.parametrize("path", ["/a.zip", "/unsized.zip"])
def test_a_good_archive_is_unpacked(offer, tmp_path, capsys, path):
    root = tmp_path / "new" / "root"
    offer(GOOD, path=path)
    assert fetch(root) == 0
    assert files(root) == {"ml-100k/README": b"read me", "ml-100k/u.data": RATINGS, "ml-100k/a/b": b"deep"}
    assert list(root.glob(".*")) == []
    out, err = capsys.readouterr()
    assert out == f"MovieLens100K: {root / 'ml-100k/u.data'}\n"
    assert err == ""
    assert rating_files.read("MovieLens100K", str(root)).shape == (2, 2)


def test_a_bare_python_fetches(tmp_path, server):
    """Before the set-up, without any package: python -S sees none."""
    server.files["/a.zip"] = (GOOD, None)
    program = f"""
import sys
from data import download, sources
archive = sources.Archive({f"http://127.0.0.1:{server.server_port}/a.zip"!r}, {MD5!r}, "", "ml-100k/u.data")
sources.SOURCES["MovieLens100K"] = sources.Source("https://page", ("ml-100k/u.data",), (archive,))
sys.exit(download.main(["MovieLens100K", "--data-root", {str(tmp_path)!r}]))
"""
    root = Path(download.__file__).parents[1]
    ended = subprocess.run([sys.executable, "-S", "-c", program], cwd=root, capture_output=True, text=True)
    assert ended.stderr == ""
    assert ended.stdout == f"MovieLens100K: {tmp_path / 'ml-100k/u.data'}\n"
    assert (tmp_path / "ml-100k/u.data").read_bytes() == RATINGS


def test_what_is_there_is_not_fetched_again(offer, server, tmp_path):
    offer(GOOD)
    assert [fetch(tmp_path), fetch(tmp_path)] == [0, 0]
    assert server.requests == ["/a.zip"]


def test_an_archive_into_a_folder(offer, tmp_path):
    offer(zipped({"matrix.xls": b"x"}), folder="jester", target="jester/matrix.xls")
    assert fetch(tmp_path) == 0
    assert files(tmp_path) == {"jester/matrix.xls": b"x"}


def test_an_archive_that_stays_whole(offer, tmp_path):
    offer(GOOD, folder="omniglot", target="omniglot/images.zip", unpack=False)
    assert fetch(tmp_path) == 0
    assert files(tmp_path) == {"omniglot/images.zip": GOOD}


def test_a_wrong_checksum(offer, tmp_path, capsys):
    offer(GOOD, checksum="sha256:" + "0" * 64)
    line = refused(tmp_path, capsys)
    assert "expected 0000" in line
    assert hashlib.sha256(GOOD).hexdigest() in line


@pytest.mark.parametrize("path", ["/a.zip", "/unsized.zip"])
def test_a_cut_connection(offer, tmp_path, capsys, path):
    offer(GOOD, sent=len(GOOD) // 2, path=path)
    line = refused(tmp_path, capsys)
    if path == "/a.zip":
        assert f"cut after {len(GOOD) // 2} of {len(GOOD)} bytes" in line


@pytest.mark.parametrize(
    "name",
    [
        "../outside",
        "ml-100k/../../outside",
        "/outside",
        "C:\\outside",
        "..\\outside",
        "\\outside",
        "ml-100k\\..\\..\\o",
    ],
)
def test_a_member_outside_the_root(offer, tmp_path, capsys, name):
    root = tmp_path / "root"
    root.mkdir()
    offer(zipped({"ml-100k/u.data": RATINGS, name: b"slipped"}))
    assert "leads out of the folder" in refused(root, capsys)
    assert files(tmp_path) == {}


def test_a_link(offer, tmp_path, capsys):
    offer(zipped({"ml-100k/u.data": b"/etc/hostname"}, mode=stat.S_IFLNK | 0o777))
    assert "is a link" in refused(tmp_path, capsys)


def test_other_archives_are_refused(offer, tmp_path, capsys):
    offer(b"<html>moved</html>")
    assert "damaged" in refused(tmp_path, capsys)
    damaged = GOOD.replace(zlib_of(GOOD, "ml-100k/u.data"), b"\xff" * 8)
    offer(damaged)
    assert "damaged" in refused(tmp_path, capsys)
    offer(zipped({"ml-1m/ratings.dat": RATINGS}))
    assert "holds no ml-100k/u.data" in refused(tmp_path, capsys)


def zlib_of(archive: bytes, name: str) -> bytes:
    """The first bytes of a member's compressed content."""
    start = archive.index(name.encode()) + len(name)
    return archive[start : start + 8]


def test_a_file_that_is_not_there(offer, server, tmp_path, capsys):
    offer(GOOD)
    server.files.clear()
    line = refused(tmp_path, capsys)
    assert "404" in line
    assert "see https://page" in line


def test_no_network(offer, server, tmp_path, capsys):
    offer(GOOD, url="http://127.0.0.1:9/a.zip")
    assert "http://127.0.0.1:9/a.zip: " in refused(tmp_path, capsys)


def test_a_root_that_cannot_be_written(offer, tmp_path, capsys):
    offer(GOOD)
    (tmp_path / "file").write_text("")
    assert fetch(tmp_path / "file") == 2
    assert capsys.readouterr().err.count("\n") == 1


def test_a_full_disk(offer, tmp_path, capsys, monkeypatch):
    offer(GOOD)

    def full(*arguments):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(zipfile.ZipFile, "extract", full)
    assert "No space left" in refused(tmp_path, capsys)


def test_an_interrupt_leaves_nothing(offer, tmp_path, capsys, monkeypatch):
    offer(GOOD)

    def interrupt(*arguments):
        raise KeyboardInterrupt

    monkeypatch.setattr(download, "_unpack", interrupt)
    assert fetch(tmp_path) == 130
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["MovieLens10M", "--data-root", "x"], "did you mean 'MovieLens1M'"),
        (["MiniImageNet", "--data-root", "x"], "visit https://github.com/"),
        (["CIFARFS", "--data-root", "x"], "visit https://github.com/bertinetto/r2d2"),
        ([], "required: name"),
        (["Jester"], "--data-root or AMAML_DATA"),
        (["Jester", "--root", "x"], "unrecognized arguments: --root"),
    ],
)
def test_mistakes(arguments, message, capsys, monkeypatch):
    monkeypatch.delenv(sources.VARIABLE, raising=False)
    assert download.main(arguments) == 2
    err = capsys.readouterr().err
    assert message in err
    assert err.count("\n") == 1


def test_errors_of_the_library_functions(tmp_path):
    with pytest.raises(InputError, match="cannot be downloaded"):
        download.download("CIFARFS", tmp_path)
