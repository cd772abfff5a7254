"""Vectors in files of any format (`catalyzer.files.formats`): read lazily, and checked when read."""

import hashlib
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any, BinaryIO, Self, TypeVar

import numpy as np

from catalyzer.errors import InvalidInput, integer
from catalyzer.files.atomic import write_atomically
from catalyzer.files.formats import open_rows
from catalyzer.files.paths import expanded
from catalyzer.progress import progress

BLOCK = 1 << 16  # rows a block: 32 MiB of 128 float32

LARGEST = 1e17  # component of a vector: a thousand squares of differences of such still fit float32

_VECS = {".fvecs": np.float32, ".bvecs": np.uint8, ".ivecs": np.int32}  # that are written

_File = TypeVar("_File", bound="VectorFile")


class VectorFile:
    """Vectors in a file or a folder of files, `(n, d)`, read only where sliced; a slice is an ndarray in the file's own dtype.

    Every slice is checked: rows of different dimension, NaN, infinity, and a file truncated since it was opened raise
    `InvalidInput` with file and row number. bfloat16, which NumPy does not know, is read as float32.

    Args:
        path: path as in `catalyzer.files.formats`, such as "x.fvecs", "x.hdf5:train" or a folder of .npy files.
        limit: number of rows to use, from the first; None is all.
        finite: whether NaN and infinity are refused; if not, the caller has to check for them.

    Raises:
        InvalidInput: a file that is missing, empty, truncated, of a wrong extension, or whose header disagrees with
            its size; or an array that is no matrix of numbers.
        MissingPackage: what reads the format is not installed.

    >>> import tempfile
    >>> path = Path(tempfile.mkdtemp()) / "x.npy"
    >>> np.save(path, np.eye(3, dtype=np.float32))
    >>> file = VectorFile(path)
    >>> file.shape, file[1:2], file[-1]
    ((3, 3), array([[0., 1., 0.]], dtype=float32), array([0., 0., 1.], dtype=float32))
    """

    def __init__(self, path: str | Path, limit: int | None = None, finite: bool = True) -> None:
        self.path, self.finite = expanded(path), finite
        self._rows = open_rows(self.path)
        if len(self._rows.shape) != 2 or 0 in self._rows.shape:
            raise InvalidInput(
                f"{self.path}: expected an array of shape (rows, dimension), at least one of each; got {self._rows.shape}"
            )
        if self.dtype.kind not in "fiu":
            raise InvalidInput(f"{self.path}: expected numbers, got dtype {self.dtype}")
        self._n = len(self._rows) if limit is None else min(integer("limit", limit, 0), len(self._rows))

    @property
    def shape(self) -> tuple[int, int]:
        """`(n, d)`: the number of rows in use and their dimension."""
        return self._n, self._rows.shape[1]

    @property
    def dtype(self) -> np.dtype:
        """The components' type in the file, which slices keep; float32 for bfloat16."""
        return self._rows.dtype

    def __len__(self) -> int:
        return self._n

    def __reduce__(self) -> tuple[Any, tuple]:
        return _reopened, (type(self), self.path, len(self), self.finite)

    def __getitem__(self, rows: slice | int) -> np.ndarray:
        """Rows `start:stop` as a C-contiguous `(m, d)` ndarray in the file's dtype, checked; or one row, `(d,)`."""
        if not isinstance(rows, slice):
            row = range(len(self))[rows]  # which raises IndexError, and ends a loop over the rows
            return self[row : row + 1][0]
        start, stop, step = rows.indices(len(self))
        if step != 1:
            raise IndexError("a vector file is read by slices of step 1")
        block = self._rows.read(start, max(start, stop))
        if self.finite and block.dtype.kind == "f":
            check_finite(block, str(self.path), start)
        return block

    def first(self, n: int) -> Self:
        """The same file with only its first n rows in use."""
        return self._with(min(n, len(self)), self.finite)

    def unchecked(self) -> Self:
        """The same rows, without the check for NaN and infinity."""
        return self._with(len(self), False)

    def _with(self, n: int, finite: bool) -> Self:
        file = type(self).__new__(type(self))
        file.path, file._rows, file._n, file.finite = self.path, self._rows, n, finite
        return file


def _reopened(cls: type[_File], path: Path, rows: int, finite: bool) -> _File:
    file = cls(path, rows, finite)
    if len(file) < rows:
        raise InvalidInput(f"{path} was truncated after it was opened, from {rows:,} rows to {len(file):,}; open it again")
    return file


class MappedVectors:
    """A function's outputs for vectors, `(n, d)` float32, computed when they are sliced and not stored.

    Args:
        vectors: `(n, d_in)`, in memory or in a file.
        d: dimension of the outputs.
        function: takes `(m, d_in)` rows and the number of the first, and returns `(m, d)` float32. Slices raise what it raises.

    >>> x = np.array([[1, 2], [3, 4], [5, 6]], np.uint8)
    >>> doubled = MappedVectors(x, 2, lambda rows, first: np.float32(2) * rows)
    >>> doubled.shape, doubled[1:], doubled[0]
    ((3, 2), array([[ 6.,  8.], [10., 12.]], dtype=float32), array([2., 4.], dtype=float32))
    """

    dtype = np.dtype(np.float32)

    def __init__(self, vectors: "np.ndarray | VectorFile", d: int, function: Callable[[np.ndarray, int], np.ndarray]) -> None:
        self.vectors, self.shape, self.function = vectors, (len(vectors), d), function

    def __len__(self) -> int:
        return len(self.vectors)

    def __getitem__(self, rows: slice | int) -> np.ndarray:
        """Rows `start:stop` as a C-contiguous `(m, d)` ndarray; or one row, `(d,)`."""
        if not isinstance(rows, slice):
            row = range(len(self))[rows]
            return self[row : row + 1][0]
        start, stop, step = rows.indices(len(self))
        if step != 1:
            raise IndexError("mapped vectors are read by slices of step 1")
        out = np.empty((max(0, stop - start), self.shape[1]), np.float32)
        for first in range(start, stop, BLOCK):
            last = min(first + BLOCK, stop)
            out[first - start : last - start] = self.function(self.vectors[first:last], first)
        return out


Vectors = np.ndarray | VectorFile | MappedVectors
"""`(n, d)` vectors, in memory, in a file or mapped; all have `shape`, `dtype`, `len` and slices that are ndarrays."""


def open_vectors(path: str | Path, limit: int | None = None) -> VectorFile:
    """Open a vector file lazily; see `VectorFile`."""
    return VectorFile(path, limit)


def write_vecs(path: Path, blocks: Iterable[np.ndarray]) -> None:
    """Write `(m, d)` blocks, one after another, as a whole fvecs, bvecs or ivecs file, whichever `path` ends in.

    >>> import tempfile
    >>> path = Path(tempfile.mkdtemp()) / "x.bvecs"
    >>> write_vecs(path, [np.zeros((2, 3)), np.ones((1, 3))])
    >>> open_vectors(path)[1:3].tolist()
    [[0, 0, 0], [1, 1, 1]]
    """
    dtype = np.dtype(_VECS[path.suffix]).newbyteorder("<")

    def write(file: BinaryIO) -> None:
        for block in blocks:
            rows = np.empty(len(block), [("dim", "<i4"), ("x", dtype, block.shape[1:])])
            rows["dim"], rows["x"] = block.shape[1], block
            file.write(rows.data)

    write_atomically(path, write)


def write_npy(path: Path, array: np.ndarray) -> None:
    """Write an array as a whole .npy file."""
    # NumPy itself, given a file, would say of a full disk no more than how many items it has written.
    write_atomically(path, lambda file: np.save(SimpleNamespace(write=file.write), array, allow_pickle=False))


def check_finite(block: np.ndarray, name: str, first_row: int = 0) -> None:
    """Raise `InvalidInput`, with the row's number, if a component of `block` is NaN, infinite or more than `LARGEST`."""
    # Without a temporary, and NaN is not below anything; the rows are looked at only where something is wrong.
    if block.dtype.kind != "f" or not block.size or max(float(block.max()), -float(block.min())) <= LARGEST:
        return
    bad = np.flatnonzero(~np.isfinite(block).all(axis=1))
    if len(bad):
        raise InvalidInput(
            f"{name}: row {first_row + int(bad[0]):,} contains NaN or infinity ({len(bad):,} such rows among "
            f"{first_row:,} to {first_row + len(block) - 1:,}); remove them"
        )
    row = int(np.flatnonzero((np.abs(block) > LARGEST).any(axis=1))[0])
    raise InvalidInput(f"{name}: {too_large(block[row], first_row + row)}")


def too_large(vector: np.ndarray, row: int) -> str:
    """Text of an error about a vector with components above `LARGEST`."""
    return (
        f"row {row:,} contains numbers up to {np.abs(vector).max():.1g}, too large for float32 squares; remove it, or multiply "
        f"all vectors, queries too, by the same small number so that none is above {LARGEST:.0e}"
    )


def as_float32(block: np.ndarray) -> np.ndarray:
    """The same vectors as C-contiguous float32; without a copy if they already are."""
    return np.ascontiguousarray(block, dtype=np.float32)


def float_blocks(vectors: Vectors, description: str | None, size: int = BLOCK) -> Iterator[np.ndarray]:
    """`vectors` as float32 blocks of `size` rows, showing progress under `description` if there is one."""
    with progress(description, len(vectors), "vectors") as advance:
        for start in range(0, len(vectors), size):
            block = as_float32(vectors[start : start + size])
            yield block
            advance(len(block))


def fingerprint(vectors: Vectors, description: str = "checking vectors") -> str:
    """A hash of the vectors' shape, type and content; reads, and so checks, every row once.

    >>> fingerprint(np.eye(2)) == fingerprint(np.eye(2).copy()) != fingerprint(np.eye(2, dtype=np.float32))
    True
    """
    digest = hashlib.blake2b(repr((vectors.shape, vectors.dtype.str)).encode(), digest_size=16)
    with progress(description, len(vectors), "vectors") as advance:
        for start in range(0, len(vectors), BLOCK):
            block = np.ascontiguousarray(vectors[start : start + BLOCK])
            digest.update(block.data)
            advance(len(block))
    return digest.hexdigest()
