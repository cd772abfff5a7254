"""A cache of computed arrays, in files."""

import hashlib
import logging
import os
from collections.abc import Callable
from pathlib import Path

import numpy as np

from catalyzer.errors import InvalidInput, Unavailable
from catalyzer.files.paths import expanded
from catalyzer.files.vectors import write_npy

log = logging.getLogger(__name__)


class ArrayCache:
    """A folder of `.npy` files, one for each computed array; two processes may compute the same one at once.

    An unreadable array is computed again, and one that cannot be written, as on a full disk, stays in memory. Both are warnings
    and not errors, since a cache only saves time.

    Args:
        folder: folder of the files, made with the first array; None keeps arrays in memory, as long as the cache exists.

    Raises:
        InvalidInput: `folder` is a file, or below one.

    >>> import tempfile
    >>> cache = ArrayCache(tempfile.mkdtemp())
    >>> cache.get("squares", ("up to", 4), lambda: np.arange(4) ** 2)
    array([0, 1, 4, 9])
    >>> cache.get("squares", ("up to", 4), lambda: None)  # not computed again
    array([0, 1, 4, 9])
    """

    def __init__(self, folder: str | Path | None = None) -> None:
        self.folder = None if folder is None else expanded(folder)
        if self.folder is not None:
            there = next(place for place in (self.folder, *self.folder.parents) if os.access(place, os.F_OK))
            if not there.is_dir():
                raise InvalidInput(f"{self.folder} cannot be a folder, since {there} is a file; give another folder")
        self._arrays: dict[str, np.ndarray] = {}

    def has(self, name: str, key: tuple) -> bool:
        """Whether `get` would find the array."""
        file = _file_name(name, key)
        return file in self._arrays or (self.folder is not None and os.access(self.folder / file, os.R_OK))

    def get(self, name: str, key: tuple, compute: Callable[[], np.ndarray]) -> np.ndarray:
        """The array stored under `name` and `key` (all that its content depends on); `compute` makes a missing one."""
        file = _file_name(name, key)
        if file in self._arrays:
            return self._arrays[file]
        if self.folder is None:
            return self._arrays.setdefault(file, compute())
        path = self.folder / file
        try:
            with path.open("rb") as kept:
                return np.lib.format.read_array(kept, allow_pickle=False)
        except FileNotFoundError:
            pass
        except Exception as error:  # damaged from outside, since we only ever rename whole files into place; NumPy parses what
            # is left of a header as Python, and fails in many ways
            log.warning("%s cannot be read, so it is computed again (%s)", path, " ".join(str(error).split()))
        array = compute()
        try:
            write_npy(path, array)
        except Unavailable as error:
            log.warning(
                "%s; this run uses the array anyway, and the next one computes it again; make room, or give another cache=",
                error,
            )
            self._arrays[file] = array
        return array


def _file_name(name: str, key: tuple) -> str:
    return f"{name}-{hashlib.blake2b(repr(key).encode(), digest_size=12).hexdigest()}.npy"
