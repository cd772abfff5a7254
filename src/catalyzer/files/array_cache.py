"""Arrays that are worth computing once, in files."""

import hashlib
import logging
from collections.abc import Callable
from pathlib import Path

import numpy as np

from catalyzer.files.atomic import write_atomically

log = logging.getLogger(__name__)


class ArrayCache:
    """A folder of `.npy` files, one for each thing computed; two processes may compute the same at once.

    Args:
        folder: made when the first array is kept; None keeps arrays in memory, as long as the cache lives.

    >>> import tempfile
    >>> cache = ArrayCache(tempfile.mkdtemp())
    >>> cache.get("squares", ("up to", 4), lambda: np.arange(4) ** 2)
    array([0, 1, 4, 9])
    >>> cache.get("squares", ("up to", 4), lambda: None)  # not computed again
    array([0, 1, 4, 9])
    """

    def __init__(self, folder: str | Path | None = None) -> None:
        self.folder = None if folder is None else Path(folder).expanduser()
        self._arrays: dict[str, np.ndarray] = {}

    def has(self, name: str, key: tuple) -> bool:
        """Whether `get` would find the array."""
        file = _file_name(name, key)
        return file in self._arrays if self.folder is None else (self.folder / file).exists()

    def get(self, name: str, key: tuple, compute: Callable[[], np.ndarray]) -> np.ndarray:
        """The array kept under `name` and `key` (whatever decides its content); `compute` makes it if it is not there."""
        file = _file_name(name, key)
        if self.folder is None:
            if file not in self._arrays:
                self._arrays[file] = compute()
            return self._arrays[file]
        path = self.folder / file
        if path.exists():
            try:
                return np.load(path, allow_pickle=False)
            except (ValueError, EOFError):  # damaged from outside, since we only ever rename whole files into place
                log.warning("%s cannot be read; it is computed again", path)
        array = compute()
        write_atomically(path, lambda file: np.save(file, array, allow_pickle=False))
        return array


def _file_name(name: str, key: tuple) -> str:
    return f"{name}-{hashlib.blake2b(repr(key).encode(), digest_size=12).hexdigest()}.npy"
