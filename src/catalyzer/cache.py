"""Files that are whole or not there and have one writer at a time, and arrays that are worth computing once."""

import contextlib
import hashlib
import logging
import os
import socket
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from catalyzer.errors import InvalidInput

log = logging.getLogger(__name__)


def write_atomically(path: Path, write: Callable[[Any], None]) -> None:
    """Write a binary file beside `path` and rename it: whoever looks sees the old file, or the new one, never a half.

    >>> import tempfile
    >>> target = Path(tempfile.mkdtemp()) / "a.bin"
    >>> write_atomically(target, lambda file: file.write(b"whole"))
    >>> target.read_bytes()
    b'whole'
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, beside = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, "wb") as file:
            write(file)
            file.flush()
            os.fsync(file.fileno())
        Path(beside).chmod(0o666 & ~_umask())  # mkstemp makes private files; results are for everyone the umask allows
        Path(beside).replace(path)
    except BaseException as error:
        if isinstance(error, OSError) and error.errno is not None and error.filename is None:
            error.filename = str(path)  # a full disk says which file it was that did not fit
        Path(beside).unlink(missing_ok=True)
        raise


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


@contextlib.contextmanager
def locked(path: Path) -> Iterator[None]:
    """Hold `path` against other processes that would write it too; the lock ends with the process, however that ends.

    The lock is on a file beside, `<name>.lock`, that says who holds it and is removed at the end.

    Raises:
        InvalidInput: another process holds it, or there is no folder to write to.
    """
    beside = path.parent / f"{path.name}.lock"
    try:
        lock = _lock(path, beside)
    except OSError as error:
        raise InvalidInput(f"{path} cannot be written: {beside} cannot be made ({error.strerror})") from None
    try:
        yield
    finally:
        beside.unlink(missing_ok=True)
        os.close(lock)


def _lock(path: Path, beside: Path) -> int:
    import fcntl  # not there on Windows, where all but the command line works

    while True:
        lock = os.open(beside, os.O_RDWR | os.O_CREAT, 0o666)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            holder = os.read(lock, 200).decode(errors="replace").strip() or "another process"
            os.close(lock)
            raise InvalidInput(f"{path} is being written by {holder}; wait until that has ended") from None
        if os.fstat(lock).st_nlink:
            with contextlib.suppress(OSError):  # a full disk has no room for who holds it, and the lock holds without
                os.truncate(lock, 0)
                os.write(lock, f"process {os.getpid()} on {socket.gethostname()}".encode())
            return lock
        os.close(lock)  # who held it before has removed the file between our opening and locking it


class ArrayCache:
    """A folder of `.npy` files, one for each thing computed; two processes may compute the same at once.

    >>> import tempfile
    >>> cache = ArrayCache(tempfile.mkdtemp())
    >>> cache.get("squares", ("up to", 4), lambda: np.arange(4) ** 2)
    array([0, 1, 4, 9])
    >>> cache.get("squares", ("up to", 4), lambda: None)  # not computed again
    array([0, 1, 4, 9])
    """

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder).expanduser()

    def has(self, name: str, key: tuple) -> bool:
        """Whether `get` would find the array."""
        return self._path(name, key).exists()

    def _path(self, name: str, key: tuple) -> Path:
        digest = hashlib.blake2b(repr(key).encode(), digest_size=12).hexdigest()
        return self.folder / f"{name}-{digest}.npy"

    def get(self, name: str, key: tuple, compute: Callable[[], np.ndarray]) -> np.ndarray:
        """The array kept under `name` and `key` (whatever decides its content); `compute` makes it if it is not there."""
        path = self._path(name, key)
        if path.exists():
            try:
                return np.load(path, allow_pickle=False)
            except (ValueError, EOFError):  # damaged from outside, since we only ever rename whole files into place
                log.warning("%s cannot be read; it is computed again", path)
        array = compute()
        write_atomically(path, lambda file: np.save(file, array, allow_pickle=False))
        return array
