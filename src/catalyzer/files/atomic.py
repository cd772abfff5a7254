"""Atomic writes, and one writer at a time."""

import contextlib
import os
import socket
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from catalyzer.errors import InvalidInput


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
