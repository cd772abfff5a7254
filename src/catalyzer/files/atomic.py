"""Atomic writes, and one writer at a time."""

import contextlib
import errno
import os
import re
import secrets
import stat
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, BinaryIO

from filelock import FileLock, Timeout, lock_descriptor

from catalyzer.errors import CatalyzerError, InvalidInput, Unavailable

_POSIX = os.name == "posix"  # Windows renames and removes no open file


def write_atomically(path: Path, write: Callable[[Any], None]) -> None:
    """Write a binary file under a temporary name and rename it, so that a reader sees the old file or the new one.

    The new file gets the mode and, if the system allows it, the owner of the file that it replaces, else the mode of the umask.
    If `path` is a symbolic link, its target is replaced and the link stays. A hard link keeps the old content. Temporary files
    of killed writers of the same file are removed.

    Args:
        path: path of the file; its folder is made if it is missing.
        write: function that writes the content to the open file.

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
        _remove_abandoned(target)
        with _opened_and_locked(temporary) as file:
            _inherit(target, temporary)  # before there is anything to read
            write(file)
            file.flush()
            os.fsync(file.fileno())
            if not _POSIX:
                file.close()
            temporary.replace(target)  # still locked, so that nobody takes it for abandoned
    except BaseException as error:
        with contextlib.suppress(OSError):
            temporary.unlink()
        own = map(str, (target, temporary, *temporary.parents))  # errors that name another file are of what `write` reads
        if isinstance(error, OSError) and not isinstance(error, CatalyzerError) and error.filename in (None, *own):
            reason = error.strerror or error
            raise Unavailable(f"{path} cannot be written ({reason}); what was there is unchanged") from None
        raise
    if _POSIX:
        _sync(target.parent)


@contextlib.contextmanager
def locked(path: Path) -> Iterator[None]:
    """Lock `path` against other processes that would write it; the lock ends with the process, however that ends.

    The lock is on a file `<name>.lock` in the same folder, which is removed at the end. A symbolic link and its target share
    it. A thread that holds it may take it again.

    Raises:
        InvalidInput: there is no such folder.
        Unavailable: another process holds the lock, or the folder is read-only.
    """
    target = _target(path)
    lock = FileLock(target.with_name(f"{target.name}.lock"), blocking=False, is_singleton=True)
    try:
        if not target.parent.is_dir():  # filelock would make it
            raise InvalidInput(f"{path} cannot be written: there is no folder {target.parent}; create it first")
        lock.acquire()
    except Timeout:
        if not Path(lock.lock_file).exists():  # some file systems, such as /proc, refuse new files in a way that looks the same
            raise Unavailable(f"{path} cannot be written: {lock.lock_file} cannot be created") from None
        raise Unavailable(f"{path} is being written by another process; wait until it has ended") from None
    except OSError as error:
        raise Unavailable(f"{path} cannot be written: {lock.lock_file} cannot be created ({error.strerror})") from None
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


def _sync(folder: Path) -> None:
    """Make the new name of a file survive a power failure, if folders can be synchronized."""
    with contextlib.suppress(OSError):
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def _opened_and_locked(temporary: Path) -> BinaryIO:
    """A new file, with a lock on it that tells other writers of its target that this writer is alive."""
    while True:
        file = temporary.open("wb")
        if _POSIX:
            with contextlib.suppress(OSError):  # a file system that has no locks
                lock_descriptor(file.fileno())
            if not os.fstat(file.fileno()).st_nlink:  # another writer can have removed it before it was locked
                file.close()
                continue
        return file


def _remove_abandoned(target: Path) -> None:
    """Remove the temporary files of killed writers of `target`, whose locks are gone."""
    if not _POSIX:
        return
    name = re.compile(re.escape(f".{target.name}.") + "[0-9a-f]{16}")
    with contextlib.suppress(OSError), os.scandir(target.parent) as entries:  # some folders cannot be listed
        for left in [Path(entry.path) for entry in entries if name.fullmatch(entry.name)]:
            with contextlib.suppress(OSError), left.open("rb") as file:
                if lock_descriptor(file.fileno(), blocking=False):
                    left.unlink()


def _inherit(target: Path, temporary: Path) -> None:
    """Give a new file the mode and, if possible, the owner of the writable file that it will replace."""
    try:
        old = target.stat()
    except FileNotFoundError:
        return
    if not stat.S_ISREG(old.st_mode):
        raise OSError(os.strerror(errno.EISDIR) if stat.S_ISDIR(old.st_mode) else "it is a device or a pipe")
    if not os.access(target, os.W_OK, effective_ids=os.access in os.supports_effective_ids):
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))
    if _POSIX:
        for owner in ((old.st_uid, -1), (-1, old.st_gid)):
            with contextlib.suppress(PermissionError):
                os.chown(temporary, *owner)
    temporary.chmod(stat.S_IMODE(old.st_mode))
