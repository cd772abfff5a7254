"""BigANN and Deep1B over HTTP: the first vectors of each published file, and no more than are needed.

Downloaded bytes are stored unchanged in the folder `unfinished`, so that an interrupted download resumes where it stopped. They
are converted to the dataset's own format during the download.
"""

import contextlib
import gzip
import hashlib
import io
import logging
import re
import shutil
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import requests
from requests.adapters import HTTPAdapter
from urllib3.exceptions import HTTPError, MaxRetryError, ProtocolError
from urllib3.util import Retry

from catalyzer.datasets.files import UNFINISHED, bigann_layout, deep1b_layout
from catalyzer.errors import DamagedFile, InvalidInput, Unavailable
from catalyzer.files.atomic import locked
from catalyzer.files.paths import expanded
from catalyzer.files.vectors import BLOCK, VectorFile, write_vecs
from catalyzer.progress import progress

log = logging.getLogger(__name__)

ATTEMPTS = 6
RETRIES = Retry(ATTEMPTS - 1, backoff_factor=1, status_forcelist=(408, 425, 429, 500, 502, 503, 504), raise_on_status=False)
TIMEOUT = 60  # seconds without a byte
MAX_DIM = 1 << 20  # of a file that is believed to hold vectors
CHUNK = 1 << 18  # bytes that are read from a connection at a time
KEPT = "the downloaded part is kept; start again to resume"

_DTYPES = {".bvecs": "u1", ".u8bin": "u1", ".fvecs": "<f4", ".fbin": "<f4"}


def fetch_published(
    name: str, root: Path, source: str, learn: str, base: str, queries: str, *, learn_size: int, base_size: int
) -> None:
    """Download the learn, base and query vectors that `root` lacks; ground truth is computed when the dataset is read.

    Args:
        name: "bigann" or "deep1b".
        root: folder of the dataset, made if it is missing; a file in it that has enough vectors is left alone.
        source: `http://` or `https://` address of the folder that has the following files.
        learn: name of the file of learn vectors: fvecs, bvecs, fbin or u8bin, or one of them with `.gz` at the end.
        base: name of the file of base vectors.
        queries: name of the file of queries, all of which are downloaded.
        learn_size: number of learn vectors, from the first.
        base_size: number of base vectors, from the first.

    Raises:
        InvalidInput: an address that has no such file, or a file with fewer vectors than are needed.
        DamagedFile: a file that is not what its name says.
        Unavailable: a server that cannot be reached or is busy, after several attempts, or whose file changes meanwhile; a
            full disk; another process that fetches into `root`.
    """
    layout = bigann_layout(base_size) if name == "bigann" else deep1b_layout(base_size)
    root = expanded(root)
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
            log.info("%s already exists", target)
        else:
            missing.append((target, published, size))
    if not missing:
        return
    unfinished = root / UNFINISHED
    unfinished.mkdir(parents=True, exist_ok=True)
    with locked(unfinished), requests.Session() as session:
        session.headers["Accept-Encoding"] = "identity"
        for scheme in ("http://", "https://"):
            session.mount(scheme, HTTPAdapter(max_retries=RETRIES))
        for leftover in unfinished.glob(".*"):  # of a conversion that was interrupted
            leftover.unlink()
        for target, published, size in missing:
            with _Download(session, f"{source.rstrip('/')}/{published}", unfinished) as download:
                write_vecs(unfinished / target.name, _vectors(download, size))
            (unfinished / target.name).replace(target)
            download.path.unlink()
            log.info("%s: %s vectors", target, f"{len(VectorFile(target)):,}")
        shutil.rmtree(unfinished)


def _vectors(download: "_Download", size: int | None) -> Iterator[np.ndarray]:
    """The first `size` vectors of a published file, or all, in blocks `(m, d)` of the file's own dtype."""
    name, url = Path(download.url).name, download.url
    kind, gz = Path(name.removesuffix(".gz")).suffix, name.endswith(".gz")
    dtype, vecs = np.dtype(_DTYPES[kind]), kind.endswith("vecs")
    file = gzip.GzipFile(fileobj=download) if gz else io.BufferedReader(download, CHUNK)

    def read(count: int) -> bytes:
        try:
            return file.read(count)
        except (gzip.BadGzipFile, EOFError, zlib.error):
            raise DamagedFile(f"{url} is not a complete gzip file") from None

    def too_few(rows: int) -> InvalidInput:
        return InvalidInput(f"{url} has {rows:,} vectors, and {size:,} are asked for; lower dataset.base_size or train_size")

    # In vecs each row begins with its dimension; bin begins with the number of rows and the dimension of all.
    head_size = 4 if vecs else 8
    if not gz:
        download.end = head_size
    head = read(head_size)
    if len(head) < head_size:
        raise DamagedFile(f"{url} has {download.total:,} bytes, too few for a file of vectors")
    *rows, dim = np.frombuffer(head, "<u4").tolist()
    if not 1 <= dim <= MAX_DIM:
        raise DamagedFile(f"{url}: its first row has dimension {dim:,}, so it does not have the format of its name")
    row = np.dtype([("dim", "<i4"), ("x", dtype, (dim,))] if vecs else [("x", dtype, (dim,))])
    start = 0 if vecs else head_size  # of the first row
    if not gz:
        there, rest = divmod(download.total - start, row.itemsize)
        if rest or not there or rows not in ([], [there]):
            raise DamagedFile(f"{url}: its {download.total:,} bytes are not a whole number of rows of dimension {dim}")
        rows = [there]
    if rows and size is not None and size > rows[0]:
        raise too_few(rows[0])
    needed = size or (rows[0] if rows else None)  # None: all, and only the end of the file says how many that is
    if needed and not gz:
        download.end = start + needed * row.itemsize

    done, begun = 0, head[start:]
    with progress(f"fetching {name}" if needed else None, needed or 0, "vectors") as advance:
        while done != needed:
            wanted = min(BLOCK, needed - done) if needed else BLOCK
            content = begun + read(wanted * row.itemsize - len(begun))
            begun = b""
            if len(content) % row.itemsize:
                raise DamagedFile(f"{url} ends within a row")
            block = np.frombuffer(content, row)
            if vecs and (block["dim"] != dim).any():
                raise DamagedFile(f"{url}: its rows differ in dimension, so it does not have the format of its name")
            yield block["x"]
            advance(len(block))
            done += len(block)
            if len(block) < wanted and needed:
                raise too_few(done)
            if len(block) < wanted:
                return


class _Download(io.RawIOBase):
    """The published file at `url`, read from its beginning; what arrives is kept in a file in `folder`.

    Attributes:
        path: path of that file; its name depends on the published file's version, so that no two are mixed.
        total: bytes of the published file.
        end: bytes that are needed.
    """

    def __init__(self, session: requests.Session, url: str, folder: Path) -> None:
        self._session, self.url = session, url
        self._response: requests.Response | None = None
        self._skip = 0  # bytes that the response begins with and that are there already
        self._files = contextlib.ExitStack()
        headers = self._ask("HEAD").headers
        if not headers.get("Content-Length", "").isdecimal():
            raise Unavailable(f"{url}: the server does not report the size of the file; give another server with source=URL")
        self.total = self.end = int(headers["Content-Length"])
        self._version = headers.get("ETag", headers.get("Last-Modified"))
        digest = hashlib.blake2b(repr((url, self.total, self._version)).encode(), digest_size=8).hexdigest()
        self.path = folder / f"{digest}.{Path(url).name}"
        self._append = self._files.enter_context(self.path.open("ab", buffering=0))
        self._kept = self._files.enter_context(self.path.open("rb", buffering=0))
        self._stored = self.path.stat().st_size
        if self._stored:
            log.info("resuming after %s bytes of %s", f"{self._stored:,}", url)

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        return self._kept.readinto(buffer) or (self._fetch() and self._kept.readinto(buffer))

    def close(self) -> None:
        if self._response is not None:
            self._response.close()
        self._files.close()
        super().close()

    def _fetch(self) -> bool:
        """Append what arrives next; whether any more was needed."""
        retries = RETRIES
        while self._stored < min(self.end, self.total):
            try:
                if self._response is None:
                    self._response = self._resume()
                chunk = self._response.raw.read1(CHUNK)
                if not chunk:
                    raise ProtocolError("fewer bytes than requested")
            except HTTPError as error:
                self._response = None
                try:
                    retries = retries.increment("GET", self.url, error=error)
                except MaxRetryError:
                    raise Unavailable(f"{self.url}: the connection was lost {ATTEMPTS} times; {KEPT}") from None
                log.warning("%s: the connection was lost; trying again", self.url)
                retries.sleep()
                continue
            skipped = min(self._skip, len(chunk))
            self._skip -= skipped
            if chunk := chunk[skipped:][: self.end - self._stored]:
                try:
                    self._stored += self._append.write(chunk)
                except OSError as error:
                    raise Unavailable(f"{self.path} cannot be written ({error.strerror}); {KEPT}") from None
                if self._stored == self.end:  # the next request begins there
                    self._response.close()
                    self._response = None
                return True
        return False

    def _resume(self) -> requests.Response:
        """An answer with the bytes from `_stored` to `end`, of which the first `_skip` are there already."""
        response = self._ask("GET", Range=f"bytes={self._stored}-{self.end - 1}")
        headers = response.headers
        if response.status_code == 206:
            self._skip, told = 0, headers.get("Content-Range", "")
        else:  # the server knows no ranges and sends all
            self._skip, told = self._stored, f"bytes {self._stored}-{self.end - 1}/{headers.get('Content-Length')}"
        version = headers.get("ETag", headers.get("Last-Modified"))
        if version != self._version or not re.fullmatch(rf"bytes {self._stored}-\d+/{self.total}", told):
            raise Unavailable(f"{self.url} has changed, or its server sends other bytes than requested; start again")
        return response

    def _ask(self, method: str, **headers: str) -> requests.Response:
        try:
            response = self._session.request(method, self.url, headers=headers, stream=True, timeout=TIMEOUT)
            response.raise_for_status()
        except requests.RequestException as error:
            status = None if error.response is None else error.response.status_code
            if status in RETRIES.status_forcelist:
                raise Unavailable(f"{error}, {ATTEMPTS} times; {KEPT}") from None
            if status or isinstance(error, ValueError):  # a ValueError is what requests raises for an address that is none
                raise InvalidInput(f"{error}; give another server with source=URL") from None
            reason: BaseException = error
            while reason.__context__:  # the innermost error says what happened
                reason = reason.__context__
            raise Unavailable(f"{self.url} cannot be reached: {reason}; {KEPT}") from None
        return response
