"""Atomic writes, and one writer at a time."""

import contextlib
import os
import secrets
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from catalyzer.errors import InvalidInput, Unavailable


def write_atomically(path: Path, write: Callable[[Any], None]) -> None:
    """Write a binary file under a temporary name and rename it, so that a reader sees the old file or the new one.

    Where `path` is a symbolic link, its target is replaced and the link stays.

    Args:
        path: its folder is made if it is missing.
        write: writes the content to the open file that it gets.

    Raises:
        Unavailable: the file or its folder cannot be written, as on a full disk; the old file is still there then.

    >>> import tempfile
    >>> target = Path(tempfile.mkdtemp()) / "a.bin"
    >>> write_atomically(target, lambda file: file.write(b"content"))
    >>> target.read_bytes()
    b'content'
    """
    target = _target(path)
    temporary = target.with_name(f".{target.name}.{secrets.token_hex(8)}")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with temporary.open("xb") as file:
            write(file)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(target)
    except BaseException as error:
        with contextlib.suppress(OSError):
            temporary.unlink()
        own = map(str, (temporary, *temporary.parents))  # errors that name another file are of what `write` reads
        if isinstance(error, OSError) and error.errno and (error.filename is None or error.filename in own):
            raise Unavailable(f"{path} cannot be written ({error.strerror}); what was there is unchanged") from None
        raise


@contextlib.contextmanager
def locked(path: Path) -> Iterator[None]:
    """Hold `path` against other processes that would write it too; the lock ends with the process, however that ends.

    The lock is on a file `<name>.lock` in the same folder, which is removed at the end. A symbolic link and its target
    share it. Whoever holds it may take it again, in the same thread.

    Raises:
        InvalidInput: there is no such folder.
        Unavailable: another process holds the lock, or the folder is read-only.
    """
    target = _target(path)
    lock = FileLock(target.with_name(f"{target.name}.lock"), blocking=False, is_singleton=True)
    try:
        if not target.parent.is_dir():  # filelock would make it
            raise InvalidInput(f"{path} cannot be written: there is no folder {target.parent}; make it first")
        lock.acquire()
    except Timeout:
        raise Unavailable(f"{path} is being written by another process; wait until that has ended") from None
    except OSError as error:
        raise Unavailable(f"{path} cannot be written: {lock.lock_file} cannot be made ({error.strerror})") from None
    try:
        yield
    finally:
        if lock.lock_counter == 1:
            with contextlib.suppress(OSError):  # Windows removes no open file
                Path(lock.lock_file).unlink()  # while it is held: filelock takes no lock on a file that has lost its name
        lock.release()


def _target(path: Path) -> Path:
    # Unlike Path.resolve, realpath also takes a link that leads to itself.
    return Path(os.path.realpath(path))
