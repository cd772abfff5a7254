"""Arrays that are worth computing once, kept in a folder under a name made of their content key."""

import hashlib
import logging
import os
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

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
