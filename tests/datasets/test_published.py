"""Fetching from a server of our own on this machine that cuts connections, knows no ranges, lies about sizes, or is away."""

import contextlib
import gzip
import re
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest

from catalyzer import open_vectors
from catalyzer.errors import InvalidInput, Unavailable
from catalyzer.datasets import fetch_published, published
from tests.conftest import ROOT, Command, clustered
from tests.commands.test_commands import refused

LEARN, BASE, QUERIES = clustered(4000, 32, 0), clustered(3000, 32, 1), clustered(20, 32, 2)


def u8bin(x: np.ndarray) -> bytes:
    """Also fbin, of float32."""
    return np.array(x.shape, "<i4").tobytes() + x.tobytes()


def bvecs(x: np.ndarray) -> bytes:
    return b"".join(np.int32(x.shape[1]).tobytes() + row.tobytes() for row in x)


class Server(ThreadingHTTPServer):
    """Serves what is in `files`, as badly as the other attributes say, and keeps what was asked and how much was sent."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.files: dict[str, bytes] = {}
        self.cut_after: int | None = None  # bytes of each answer
        self.ranges = True
        self.size_off_by = 0
        self.wait = 0.0  # seconds before each 4 KiB
        self.answers: list[int] = []  # codes instead of files, one for each request
        self.asked: list[tuple[str, str]] = []
        self.sent = 0

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}/data"


class Handler(BaseHTTPRequestHandler):
    server: Server

    def do_GET(self) -> None:
        server, wanted = self.server, self.headers["Range"]
        name = self.path.removeprefix("/data/")
        server.asked.append((name, wanted))
        code = server.answers.pop(0) if server.answers else 200 if name in server.files else 404
        if code != 200:
            self.send_error(code)
            return
        content = server.files[name]
        first, last = re.fullmatch(r"bytes=(\d+)-(\d*)", wanted).groups()  # type: ignore[union-attr]
        total = len(content) + server.size_off_by
        if server.ranges:
            body = content[int(first) : int(last) + 1 if last else None]
            self.send_response(206)
            self.send_header("Content-Range", f"bytes {first}-{int(first) + len(body) - 1}/{total}")
        else:
            body = content
            self.send_response(200)
        self.send_header("Content-Length", str(len(body) if server.ranges else total))
        self.send_header("ETag", f'"{hash(content)}"')
        self.end_headers()
        body = body[: server.cut_after]
        try:
            for start in range(0, len(body), 4096):
                time.sleep(server.wait)
                self.wfile.write(body[start : start + 4096])
                server.sent += len(body[start : start + 4096])
        except OSError:  # who asked has seen enough
            pass

    def log_message(self, *_: object) -> None:
        pass


@contextlib.contextmanager
def serving() -> Iterator[Server]:
    with Server() as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.02,))
        thread.start()
        yield server
        server.shutdown()
        thread.join()


@pytest.fixture
def server() -> Iterator[Server]:
    with serving() as server:
        server.files = {"learn.u8bin": u8bin(LEARN), "base.u8bin": u8bin(BASE), "q.u8bin": u8bin(QUERIES)}
        yield server


@pytest.fixture(autouse=True)
def _impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(published, "WAITS", (0.01, 0.01))
    monkeypatch.setattr(published, "TIMEOUT", 2)


def fetch(server: Server, root: Path, kind: str = "u8bin", base_size: int = 1000) -> None:
    names = (f"learn.{kind}", f"base.{kind}", f"q.{kind}")
    fetch_published("bigann", root, server.url, *names, learn_size=1500, base_size=base_size)


def check(root: Path, base_size: int = 1000) -> None:
    for name, x in (("learn", LEARN[:1500]), ("base", BASE[:base_size]), ("query", QUERIES)):
        np.testing.assert_array_equal(open_vectors(root / f"bigann_{name}.bvecs")[:], x)
    assert {path.name for path in root.iterdir()} == {f"bigann_{name}.bvecs" for name in ("learn", "base", "query")}


def test_only_what_is_needed_is_fetched_once(server: Server, tmp_path: Path) -> None:
    fetch(server, tmp_path)
    check(tmp_path)
    assert server.sent == 2520 * 32 + 3 * 8
    assert ("base.u8bin", f"bytes=8-{8 + 1000 * 32 - 1}") in server.asked
    server.asked.clear()
    fetch(server, tmp_path)
    fetch(server, tmp_path, base_size=900)
    assert server.asked == []
    fetch(server, tmp_path, base_size=1100)  # the base only
    check(tmp_path, 1100)
    assert {name for name, _ in server.asked} == {"base.u8bin"}


@pytest.mark.parametrize("kind", ["u8bin", "bvecs", "u8bin.gz", "bvecs.gz"])
@pytest.mark.parametrize("ranges", [True, False])
@pytest.mark.parametrize("cut_after", [None, 20_011])
def test_every_kind_from_every_kind_of_server(
    kind: str, ranges: bool, cut_after: int | None, server: Server, tmp_path: Path
) -> None:
    files = {"learn": LEARN, "base": BASE, "q": QUERIES}
    as_bytes = bvecs if kind.startswith("bvecs") else u8bin
    for name, x in files.items():
        content = as_bytes(x)
        half = len(content) // 2
        whole = gzip.compress(content[:half]) + gzip.compress(content[half:])  # several files in one are one
        server.files[f"{name}.{kind}"] = whole if kind.endswith(".gz") else content
    server.ranges, server.cut_after = ranges, cut_after
    if cut_after and not ranges:  # it would never come further than the first cut
        with pytest.raises(InvalidInput, match=r"the connection was cut, 3 times; what has come is kept, start again to go on"):
            fetch(server, tmp_path, kind)
        server.cut_after = None
    fetch(server, tmp_path, kind)
    check(tmp_path)


def test_of_a_compressed_file_only_the_beginning_is_fetched(server: Server, tmp_path: Path) -> None:
    x = np.random.default_rng(0).integers(0, 256, (200_000, 32), np.uint8)
    server.files["base.u8bin.gz"], server.wait = gzip.compress(u8bin(x), 1), 0.001
    names = ("learn.u8bin", "base.u8bin.gz", "q.u8bin")
    fetch_published("bigann", tmp_path, server.url, *names, learn_size=10, base_size=20_000)
    np.testing.assert_array_equal(open_vectors(tmp_path / "bigann_base.bvecs")[:], x[:20_000])
    assert server.sent < len(server.files["base.u8bin.gz"]) / 2


def test_deep1b_from_fbin(server: Server, tmp_path: Path) -> None:
    for name, x in {"learn": LEARN, "base": BASE, "q": QUERIES}.items():
        server.files[f"{name}.fbin"] = u8bin(x.astype(np.float32))
    names = ("learn.fbin", "base.fbin", "q.fbin")
    fetch_published("deep1b", tmp_path, server.url, *names, learn_size=10, base_size=3000)
    for name, x in (("learn", LEARN[:10]), ("base", BASE), ("deep1B_queries", QUERIES)):
        np.testing.assert_array_equal(open_vectors(tmp_path / f"{name}.fvecs")[:], x.astype(np.float32))


def test_a_busy_server_is_asked_again(server: Server, tmp_path: Path) -> None:
    server.answers = [503, 429]
    fetch(server, tmp_path)
    check(tmp_path)


@pytest.mark.parametrize(
    ("harm", "words"),
    [
        (lambda server: server.files.pop("base.u8bin"), "base.u8bin: the server answers 404 Not Found; give another place"),
        (lambda server: setattr(server, "size_off_by", 5), "are not those of 20 whole rows of dimension 32"),
        (lambda server: server.files.update({"base.u8bin": u8bin(BASE[:999])}), "has 999 vectors, and 1,000 are asked for"),
        (lambda server: server.files.update({"base.u8bin": b"abc"}), "has 3 bytes, too few for vectors"),
        (lambda server: server.files.update({"base.u8bin": b"<html>not found</html>"}), "so it is not what its name says"),
        (lambda server: server.answers.extend([503] * 3), "the server answers 503 Service Unavailable, 3 times"),
        (lambda server: setattr(server, "cut_after", 0), "the connection was cut, 3 times"),
    ],
)
def test_what_cannot_be_fetched_is_one_sentence(harm, words: str, server: Server, tmp_path: Path) -> None:
    harm(server)
    with pytest.raises(InvalidInput, match=re.escape(words)):
        fetch(server, tmp_path)
    assert not (tmp_path / "bigann_base.bvecs").exists()
    server.files["base.u8bin"] = u8bin(BASE)  # it has been put right
    server.size_off_by, server.cut_after, server.answers = 0, None, []
    if "999" in words:  # its beginning is good, and is kept; but it is another file now
        (tmp_path / "unfinished" / "base.u8bin").unlink()
    fetch(server, tmp_path)
    check(tmp_path)


def test_a_file_that_changes_on_the_way_is_refused(server: Server, tmp_path: Path) -> None:
    server.cut_after = 100
    server.answers = [200] * 6 + [400]
    with pytest.raises(InvalidInput, match="400 Bad Request"):
        fetch(server, tmp_path)
    server.cut_after, name = None, server.asked[-1][0]
    server.files[name] = server.files[name][:-1] + b"x"
    with pytest.raises(InvalidInput, match=r"is no longer the file that .* is a part of; remove that, and start again"):
        fetch(server, tmp_path)


def test_other_than_http_and_kinds_that_do_not_fit(tmp_path: Path) -> None:
    sizes = {"learn_size": 1, "base_size": 1}
    with pytest.raises(InvalidInput, match="expected an address that begins with http"):
        fetch_published("bigann", tmp_path, "ftp://h/", "l.bvecs", "b.bvecs", "q.bvecs", **sizes)
    with pytest.raises(
        InvalidInput, match=r"b.fbin cannot become bigann_base.bvecs; expected a file that ends in .bvecs, .u8bin"
    ):
        fetch_published("bigann", tmp_path, "http://h/", "l.bvecs", "b.fbin", "q.bvecs", **sizes)
    assert not [*tmp_path.iterdir()]


def test_a_killed_start_is_gone_on_with(server: Server, prepare: Command, environment: dict[str, str], tmp_path: Path) -> None:
    root = tmp_path / "bigann"
    arguments = [
        "dataset=bigann", f"dataset.root={root}", "dataset.base_size=1_000", f"source={server.url}", "learn=learn.u8bin",
        "base=base.u8bin", "queries=q.u8bin", "dataset.train_size=1_000", "dataset.validation_base_size=400",
        "dataset.validation_queries_size=100",
    ]  # fmt: skip
    server.wait = 0.1
    process = subprocess.Popen(
        [sys.executable, str(ROOT / "src" / "prepare.py"), *arguments], cwd=tmp_path, env=environment, stderr=subprocess.DEVNULL
    )
    half = root / "unfinished" / "learn.u8bin"
    while not (half.exists() and half.stat().st_size > 10_000):
        assert process.poll() is None
        time.sleep(0.01)
    with pytest.raises(Unavailable, match="unfinished is being written by another process; wait until that has"):
        fetch(server, root)
    process.kill()
    process.wait()
    server.wait, before = 0.0, half.stat().st_size
    server.asked.clear()
    assert f"going on after {before:,} bytes of {server.url}/learn.u8bin" in prepare(*arguments).stderr
    assert server.asked[0] == ("learn.u8bin", f"bytes={before}-{8 + 1500 * 32 - 1}")
    check(root)
    error = prepare(*arguments, f"dataset.root={tmp_path / 'other'}", "source=ftp://h", expect=2)
    refused(error, "source=ftp://h: expected an address that begins with http:// or https://")
