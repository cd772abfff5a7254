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
