"""Fetching from a server of our own on this machine that cuts connections, knows no ranges, lies about sizes, or is away."""

import gzip
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest

from catalyzer import open_vectors
from catalyzer.datasets import fetch_published, published
from catalyzer.errors import DamagedFile, InvalidInput, Unavailable
from tests.helpers import Server, bvecs, clustered, serving, u8bin

LEARN, BASE, QUERIES = clustered(4000, 32, 0), clustered(3000, 32, 1), clustered(20, 32, 2)


@pytest.fixture
def server() -> Iterator[Server]:
    with serving() as server:
        server.files = {"learn.u8bin": u8bin(LEARN), "base.u8bin": u8bin(BASE), "q.u8bin": u8bin(QUERIES)}
        yield server


@pytest.fixture(autouse=True)
def _impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(published, "ATTEMPTS", 3)
    monkeypatch.setattr(published, "RETRIES", published.RETRIES.new(total=2, backoff_factor=0.001))
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
        with pytest.raises(
            Unavailable, match="the connection was lost 3 times; the downloaded part is kept; start again to resume"
        ):
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
    ("harm", "kind", "words"),
    [
        (lambda server: server.files.pop("base.u8bin"), InvalidInput, "404 Client Error: Not Found for url: http"),
        (lambda server: server.answers.extend([200] * 6 + [400]), InvalidInput, "400 Client Error: Bad Request"),
        (lambda server: setattr(server, "size_off_by", 5), DamagedFile, "are not a whole number of rows of dimension 32"),
        (lambda server: server.files.update({"base.u8bin": u8bin(BASE[:999])}), InvalidInput, "has 999 vectors, and 1,000 are"),
        (lambda server: server.files.update({"base.u8bin": b"abc"}), DamagedFile, "has 3 bytes, too few for a file of vectors"),
        (
            lambda server: server.files.update({"base.u8bin": b"<html>not found</html>"}),
            DamagedFile,
            "it does not have the format of its name",
        ),
        (lambda server: server.answers.extend([503] * 3), Unavailable, "503 Server Error: Service Unavailable"),
        (lambda server: setattr(server, "cut_after", 0), Unavailable, "the connection was lost 3 times"),
    ],
)
def test_what_cannot_be_fetched_is_one_sentence(
    harm: Callable[[Server], object], kind: type[Exception], words: str, server: Server, tmp_path: Path
) -> None:
    harm(server)
    with pytest.raises(kind, match=words) as raised:
        fetch(server, tmp_path)
    assert "\n" not in str(raised.value)
    assert not (tmp_path / "bigann_base.bvecs").exists()
    server.files["base.u8bin"] = u8bin(BASE)  # it has been put right
    server.size_off_by, server.cut_after, server.answers = 0, None, []
    fetch(server, tmp_path)
    check(tmp_path)


def test_compressed_files_that_end_too_early(server: Server, tmp_path: Path) -> None:
    names = ("learn.u8bin", "base.bvecs.gz", "q.u8bin")
    whole = gzip.compress(bvecs(BASE[:999]))
    for content, kind, words in (
        (whole, InvalidInput, "has 999 vectors, and 1,000 are asked for; lower dataset.base_size"),
        (whole[:-100], DamagedFile, "base.bvecs.gz is not a complete gzip file"),
        (b"<html>not found</html>", DamagedFile, "base.bvecs.gz is not a complete gzip file"),
        (gzip.compress(bvecs(BASE)[:-1]), DamagedFile, "base.bvecs.gz ends within a row"),
        (gzip.compress(bvecs(BASE[:500]) + bvecs(BASE[:720, :31])), DamagedFile, "its rows differ in dimension"),
    ):
        server.files["base.bvecs.gz"] = content
        base_size = 3000 if kind is DamagedFile else 1000
        with pytest.raises(kind, match=words):
            fetch_published("bigann", tmp_path, server.url, *names, learn_size=1500, base_size=base_size)


def test_a_server_that_is_away(tmp_path: Path) -> None:
    with Server() as server:
        pass
    with pytest.raises(Unavailable, match=r"q\.u8bin cannot be reached: .*Connection refused; the downloaded part is kept"):
        fetch(server, tmp_path)


def test_versions_of_a_file_are_not_mixed(server: Server, tmp_path: Path) -> None:
    server.cut_after = 20_011
    server.answers = [200] * 4 + [400]  # asked for its size, the beginning, and twice for the rest
    server.files["q.u8bin"] = u8bin(clustered(2000, 32, 2))
    with pytest.raises(InvalidInput, match="400 Client Error"):
        fetch(server, tmp_path)
    (kept,) = (tmp_path / "unfinished").iterdir()
    assert kept.stat().st_size == 8 + 2 * 20_011
    server.cut_after = None
    server.files["q.u8bin"] = u8bin(QUERIES)
    fetch(server, tmp_path)
    check(tmp_path)

    server.changes_to["base.u8bin"] = u8bin(BASE[::-1])
    with pytest.raises(Unavailable, match=r"base\.u8bin has changed"):
        fetch(server, tmp_path, base_size=1100)


def test_other_than_http_and_kinds_that_do_not_fit(tmp_path: Path) -> None:
    sizes = {"learn_size": 1, "base_size": 1}
    with pytest.raises(InvalidInput, match="expected an address that begins with http"):
        fetch_published("bigann", tmp_path, "ftp://h/", "l.bvecs", "b.bvecs", "q.bvecs", **sizes)
    with pytest.raises(
        InvalidInput, match=r"b.fbin cannot become bigann_base.bvecs; expected a file that ends in .bvecs, .u8bin"
    ):
        fetch_published("bigann", tmp_path, "http://h/", "l.bvecs", "b.fbin", "q.bvecs", **sizes)
    assert not [*tmp_path.iterdir()]


def test_a_killed_fetch_is_resumed(server: Server, tmp_path: Path) -> None:
    server.wait = 0.1
    code = (
        "from pathlib import Path; from catalyzer.datasets import fetch_published\n"
        f"fetch_published('bigann', Path({str(tmp_path)!r}), {server.url!r}, 'learn.u8bin', 'base.u8bin', 'q.u8bin', "
        "learn_size=1500, base_size=1000)"
    )
    with subprocess.Popen([sys.executable, "-c", code]) as process:
        kept: list[Path] = []
        while not kept or kept[0].stat().st_size <= 10_000:
            assert process.poll() is None
            time.sleep(0.01)
            kept = [*(tmp_path / "unfinished").glob("*.learn.u8bin")]
        with pytest.raises(Unavailable, match="unfinished is being written by another process; wait until it has ended"):
            fetch(server, tmp_path)
        process.kill()
    server.wait, before = 0.0, kept[0].stat().st_size
    server.asked.clear()
    fetch(server, tmp_path)
    assert server.asked[0] == ("learn.u8bin", f"bytes={before}-{8 + 1500 * 32 - 1}")
    check(tmp_path)
