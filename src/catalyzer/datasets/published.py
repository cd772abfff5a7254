"""BigANN and Deep1B from where they are published, over HTTP: of each file its first vectors, and no more than are needed.

What has come is kept as it came, below `unfinished`, until there is enough of it; so a cut connection or a kill costs nothing.
Then it is written in the dataset's own format, beside its place, and renamed.
"""

import contextlib
import gzip
import http.client
import json
import logging
import re
import time
import urllib.error
import urllib.request
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from catalyzer.datasets.files import UNFINISHED, bigann_layout, deep1b_layout
from catalyzer.errors import InvalidInput
from catalyzer.files.atomic import locked, write_atomically
from catalyzer.files.vectors import BLOCK, VectorFile, write_vecs
from catalyzer.progress import progress

log = logging.getLogger(__name__)

WAITS = (1, 2, 4, 8, 16)  # seconds before each further attempt; one that brings something starts them anew
TIMEOUT = 60  # seconds without a byte
CHUNK = 1 << 18
BUSY = (408, 425, 429, 500, 502, 503, 504)  # HTTP's answers that may be others in a moment

_DTYPES = {".bvecs": "u1", ".u8bin": "u1", ".fvecs": "<f4", ".fbin": "<f4"}


def fetch_published(
    name: str, root: Path, source: str, learn: str, base: str, queries: str, *, learn_size: int, base_size: int
) -> None:
    """Fetch what `root` lacks of a dataset's learn, base and query vectors; its ground truth is computed where it is read.

    Args:
        name: "bigann" or "deep1b".
        root: folder, made if it is not there; a file in it that has enough vectors is left alone.
        source: `http://` or `https://` address of the folder that has the following files.
        learn: name of the file there: fvecs, bvecs, fbin or u8bin, or one of them with .gz behind.
        base: likewise.
        queries: likewise; all of them are fetched.
        learn_size: how many learn vectors are needed, from the first on.
        base_size: how many base vectors, likewise.

    Raises:
        InvalidInput: a file that is not there, is too small, changes while it is fetched or is not what its name says; a server
            that cannot be reached, after some attempts; another process that fetches into `root`.
    """
    layout = bigann_layout(base_size) if name == "bigann" else deep1b_layout(base_size)
    root = root.expanduser()
    wanted = ((layout.queries, queries, None), (layout.learn, learn, learn_size), (layout.base, base, base_size))
    for file, published, _ in wanted:
        kind = Path(published.removesuffix(".gz")).suffix
        if _DTYPES.get(kind) != _DTYPES[Path(file).suffix]:
            fitting = ", ".join(suffix for suffix in _DTYPES if _DTYPES[suffix] == _DTYPES[Path(file).suffix])
            raise InvalidInput(f"{published} cannot become {file}; expected a file that ends in {fitting}, or in one with .gz")
    if not source.startswith(("http://", "https://")):
        raise InvalidInput(f"source={source}: expected an address that begins with http:// or https://")
    missing = []
    for file, published, size in wanted:
        target = root / file
        if target.is_file() and (size is None or len(VectorFile(target)) >= size):
            log.info("%s is there", target)
        else:
            missing.append((target, published, size))
    if not missing:
        return
    root.mkdir(parents=True, exist_ok=True)
    with locked(root / UNFINISHED):
        for target, published, size in missing:
            part = _Part(f"{source.rstrip('/')}/{published}", root / UNFINISHED / Path(published).name, size)
            part.fetch()
            write_vecs(target, part.blocks())
            part.remove()
            log.info("%s: %s vectors", target, f"{len(VectorFile(target)):,}")


class _Part:
    """The beginning of a published file, as it comes, in a file of its own.

    Attributes:
        rows: how many the published file has; None where only its end would say.
        need: bytes that are needed, of what is behind .gz; None as long as that is not known.
        have: bytes of these that are there.
        stored: bytes of the published file that are there.
    """

    def __init__(self, url: str, path: Path, size: int | None) -> None:
        kind = Path(path.name.removesuffix(".gz")).suffix
        self.url, self.path, self.size, self.gz = url, path, size, path.suffix == ".gz"
        self.journal = path.with_name(f"{path.name}.json")
        self.rows: int | None = None
        self.need: int | None = None
        self.have = self.stored = 0
        self.origin: dict[str, Any] = {}  # of the file that it is the beginning of: its address, bytes and version
        self.dtype, self.vecs, self.dim = np.dtype(_DTYPES[kind]), kind.endswith("vecs"), 0
        self._head, self._head_size = b"", 4 if self.vecs else 8
        self._inflate = zlib.decompressobj(wbits=31)

    @property
    def row_bytes(self) -> int:
        return self.dim * self.dtype.itemsize + (4 if self.vecs else 0)

    def fetch(self) -> None:
        """Have all that is needed, by as many requests as it takes."""
        try:
            self._take_up()
            self._request_until(lambda: self.dim > 0, lambda _: None)
        except InvalidInput:  # what has come is no use, and would be in the way when the place has been put right
            self.remove()
            raise
        if self.rows is not None and self.size is not None and self.size > self.rows:
            raise InvalidInput(f"{self.url} has {self.rows:,} vectors, and {self._asked()}")
        total = (self.need or self.origin["total"]) - self.have
        with progress(f"fetching {self.path.name}", total, "bytes") as advance:
            self._request_until(lambda: self.have == self.need, advance)

    def blocks(self) -> Iterator[np.ndarray]:
        """The vectors, some at a time."""
        assert self.need is not None
        row = np.dtype([("dim", "<i4"), ("x", self.dtype, (self.dim,))] if self.vecs else [("x", self.dtype, (self.dim,))])
        with gzip.open(self.path) if self.gz else self.path.open("rb") as file:
            left = self.need - len(file.read(0 if self.vecs else 8))
            while left:
                rows = np.frombuffer(file.read(min(left, BLOCK * row.itemsize)), row)
                left -= rows.nbytes
                if self.vecs and (rows["dim"] != self.dim).any():
                    raise InvalidInput(f"{self.url}: its rows differ in dimension, so it is not what its name says")
                yield rows["x"]

    def remove(self) -> None:
        """What has been written to its place is not needed here any more."""
        self.path.unlink(missing_ok=True)
        self.journal.unlink(missing_ok=True)
        with contextlib.suppress(OSError):  # there are others
            self.path.parent.rmdir()

    def _take_up(self) -> None:
        """Begin with what an earlier start has left of the same file."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        try:
            origin = json.loads(self.journal.read_bytes())
        except (FileNotFoundError, ValueError):
            origin = {}
        if not self.path.exists() or origin.get("url") != self.url:
            self.path.unlink(missing_ok=True)
            return
        self.origin = origin
        with self.path.open("rb") as file:
            while chunk := file.read(CHUNK):
                self._see(chunk)
        log.info("going on after %s bytes of %s", f"{self.stored:,}", self.url)

    def _request_until(self, done: Callable[[], bool], advance: Callable[[int], None]) -> None:
        attempt = 0
        while not done():
            before, reason = self.stored, "the connection was cut"
            try:
                self._request(done, advance)
            except urllib.error.HTTPError as error:
                reason = f"the server answers {error.code} {error.reason}"
                if error.code not in BUSY:
                    raise InvalidInput(f"{self.url}: {reason}; give another place by source=URL") from None
            except (OSError, http.client.HTTPException) as error:  # those of writing have become InvalidInput
                reason = str(getattr(error, "reason", error)) or type(error).__name__
            if done() or self.stored > before:
                attempt = 0
                continue
            if attempt == len(WAITS):
                raise InvalidInput(f"{self.url}: {reason}, {attempt + 1} times; what has come is kept, start again to go on")
            log.warning("%s: %s; trying again in %s s", self.url, reason, WAITS[attempt])
            time.sleep(WAITS[attempt])
            attempt += 1

    def _request(self, done: Callable[[], bool], advance: Callable[[int], None]) -> None:
        """Ask for what is missing, and take what comes until it is `done` or no more comes."""
        # How much of a compressed file will do is known only when it is there.
        end = None if self.gz else (self.need or self._head_size)
        wanted = f"bytes={self.stored}-{'' if end is None else end - 1}"
        request = urllib.request.Request(self.url, headers={"Range": wanted, "Accept-Encoding": "identity"})  # noqa: S310
        with urllib.request.urlopen(request, timeout=TIMEOUT) as response:  # noqa: S310
            skip = self._check(response)
            with self.path.open("ab") as file:
                while not done() and (chunk := response.read1(CHUNK)):
                    chunk, skip = chunk[skip:], max(0, skip - len(chunk))
                    if end is not None:
                        chunk = chunk[: end - self.stored]
                    try:
                        file.write(chunk)
                        file.flush()
                    except OSError as error:
                        raise InvalidInput(f"{self.path} cannot be written ({error.strerror}); start again to go on") from None
                    before = self.have
                    self._see(chunk)
                    advance(self.have - before)

    def _check(self, response: http.client.HTTPResponse) -> int:
        """How many bytes are to be passed over before those that were asked for."""
        skip = 0
        if response.status == 206:
            told = re.fullmatch(r"bytes (\d+)-\d+/(\d+)", response.headers.get("Content-Range", ""))
            if not told or int(told[1]) != self.stored:
                raise InvalidInput(f"{self.url}: the server sends other bytes than it was asked for; give another source=URL")
            total = int(told[2])
        else:  # the server knows no ranges and sends all
            length, skip = response.headers.get("Content-Length"), self.stored
            if length is None:
                raise InvalidInput(f"{self.url}: the server does not say how large the file is; give another source=URL")
            total = int(length)
        version = response.headers.get("ETag") or response.headers.get("Last-Modified")
        origin = {"url": self.url, "total": total, "version": version}
        if not self.origin:
            if total < self._head_size:
                raise InvalidInput(f"{self.url} has {total:,} bytes, too few for vectors")
            write_atomically(self.journal, lambda file: file.write(json.dumps(origin).encode()))
            self.origin = origin
        if origin != self.origin:
            raise InvalidInput(f"{self.url} is no longer the file that {self.path} is a part of; remove that, and start again")
        return skip

    def _see(self, chunk: bytes) -> None:
        """Count what has come, and learn from its first bytes how much is needed."""
        self.stored += len(chunk)
        content = self._inflated(chunk) if self.gz else chunk
        self.have += len(content)
        if not self.dim:
            self._head += content[: self._head_size - len(self._head)]
            if len(self._head) == self._head_size:
                self._read_head()
        ended = self.stored == self.origin["total"]
        if self.gz and self.need is None and ended and self._inflate.eof:
            self.need = self.have  # all rows were asked for, and now it is known how many there are
        if self.need is not None and self.have > self.need:
            self.have = self.need  # of what was compressed, more has come
        elif ended and self.have != self.need:
            raise InvalidInput(f"{self.url} ends after {self.have:,} bytes of vectors, and {self._asked()}")

    def _inflated(self, chunk: bytes) -> bytes:
        try:
            content = self._inflate.decompress(chunk)
            while self._inflate.eof and (rest := self._inflate.unused_data):  # a file may be several, one behind the other
                self._inflate = zlib.decompressobj(wbits=31)
                content += self._inflate.decompress(rest)
        except zlib.error:
            raise InvalidInput(f"{self.url} is not a whole gzip file; remove {self.path}, and start again") from None
        return content

    def _read_head(self) -> None:
        numbers = [int(number) for number in np.frombuffer(self._head, "<u4")]
        self.dim = numbers[-1]
        if not 1 <= self.dim <= 1 << 20:
            raise InvalidInput(f"{self.url}: its first row has dimension {self.dim:,}, so it is not what its name says")
        header = 0 if self.vecs else self._head_size
        self.rows = None if self.vecs else numbers[0]
        if not self.gz:  # then its size says how many there are
            there, rest = divmod(self.origin["total"] - header, self.row_bytes)
            self.rows = there if self.vecs else self.rows
            if rest or self.rows != there:
                raise InvalidInput(
                    f"{self.url}: its {self.origin['total']:,} bytes are not those of {self.rows:,} whole rows of dimension "
                    f"{self.dim}; give another place by source=URL"
                )
        rows = self.rows if self.size is None else self.size
        self.need = None if rows is None else header + rows * self.row_bytes

    def _asked(self) -> str:
        return (
            "all were asked for" if self.size is None else f"{self.size:,} are asked for; lower dataset.base_size or train_size"
        )
