"""One door to every vector file: fvecs, bvecs, ivecs, fbin, u8bin, i8bin and npy, memory-mapped and checked as read.

The *vecs formats are those of http://corpus-texmex.irisa.fr (each row is an int32 dimension and its components), the
*bin formats those of the billion-scale benchmarks (two int32, the number of rows and the dimension, then all rows).
"""

import hashlib
import os
import tokenize
from collections.abc import Iterable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any, BinaryIO, Self, TypeVar

import numpy as np

from catalyzer.errors import InvalidInput, Unavailable, integer
from catalyzer.files.atomic import write_atomically
from catalyzer.files.paths import expanded
from catalyzer.progress import progress

BLOCK = 1 << 16  # rows a block: 32 MiB of 128 float32

LARGEST = 1e17  # component of a vector: a thousand squares of differences of such still fit float32

_VECS = {".fvecs": np.float32, ".bvecs": np.uint8, ".ivecs": np.int32}
_BIN = {".fbin": np.float32, ".u8bin": np.uint8, ".i8bin": np.int8}
_NPY = b"\x93NUMPY"  # how such a file begins
_UNPARSED = (SyntaxError, tokenize.TokenError, RecursionError)  # the header is Python's syntax
_BFLOAT16 = np.dtype("V2")  # as NumPy reads what ml_dtypes and JAX write
EXTENSIONS = (*_VECS, *_BIN, ".npy")


_File = TypeVar("_File", bound="VectorFile")


class VectorFile:
    """Vectors in a file, `(n, d)`, read only where sliced; a slice is an ndarray in the file's own dtype.

    Every slice is checked: row headers that disagree, NaN and infinity, and a file that has been shortened meanwhile raise
    `InvalidInput` with file and row number. A .npy file of bfloat16, which NumPy does not know, is read as float32.

    Args:
        path: a file whose extension is one of `EXTENSIONS`.
        limit: use only the first `limit` rows.
        finite: refuse NaN and infinity; else they are for the caller to find.

    Raises:
        InvalidInput: a file that is missing, empty, truncated, of a wrong extension, or whose header disagrees with
            its size.

    >>> import tempfile
    >>> path = Path(tempfile.mkdtemp()) / "x.npy"
    >>> np.save(path, np.eye(3, dtype=np.float32))
    >>> file = VectorFile(path)
    >>> file.shape, file[1:2], file[-1]
    ((3, 3), array([[0., 1., 0.]], dtype=float32), array([0., 0., 1.], dtype=float32))
    """

    def __init__(self, path: str | Path, limit: int | None = None, finite: bool = True) -> None:
        self.path, self.finite = expanded(path), finite
        extension = self.path.suffix.lower()
        if extension not in EXTENSIONS:
            raise InvalidInput(f"{self.path}: expected a file ending in {', '.join(EXTENSIONS)}; rename or convert it")
        if not self.path.is_file():
            raise InvalidInput(f"{self.path}: no such file")
        try:
            self._file = self.path.open("rb")
        except OSError as error:
            raise Unavailable(f"{self.path} cannot be read: {error.strerror}") from None
        self._size = self._bytes()
        if self._size == 0:
            raise InvalidInput(f"{self.path}: the file is empty (0 bytes); expected vectors")
        self._headers: np.ndarray | None = None
        if extension in _VECS:
            self._rows = self._map_vecs(np.dtype(_VECS[extension]))
        elif extension in _BIN:
            self._rows = self._map_bin(np.dtype(_BIN[extension]))
        else:
            self._rows = self._map_npy()
        if limit is not None:
            self._rows = self._rows[: integer("limit", limit, 0)]

    @property
    def shape(self) -> tuple[int, int]:
        """`(n, d)`: the number of rows in use and their dimension."""
        return self._rows.shape

    @property
    def dtype(self) -> np.dtype:
        """The components' type in the file, which slices keep; float32 for bfloat16."""
        return np.dtype(np.float32) if self._rows.dtype == _BFLOAT16 else self._rows.dtype

    def __len__(self) -> int:
        return len(self._rows)

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
        if (size := self._bytes()) < self._size:  # reading behind the end of a mapped file would kill the process
            raise InvalidInput(
                f"{self.path} was shortened while it was read, from {self._size:,} to {size:,} bytes; start again when it is "
                "complete, and replace such files by a rename"
            )
        if self._headers is not None:
            wrong = np.flatnonzero(self._headers[start:stop] != self.shape[1])
            if len(wrong):
                row = start + int(wrong[0])
                raise InvalidInput(
                    f"{self.path}: row {row:,} has dimension {int(self._headers[row])}, the first row has {self.shape[1]}; "
                    "all rows must agree"
                )
        block = np.array(self._rows[start:stop], order="C")  # read now, once, and independent of the file from here on
        if block.dtype == _BFLOAT16:  # the upper half of a float32
            block = (block.view(np.uint16).astype(np.uint32) << 16).view(np.float32)
        if self.finite and block.dtype.kind == "f":
            check_finite(block, str(self.path), start)
        return block

    def first(self, n: int) -> Self:
        """The same file with only its first n rows in use."""
        return _reopened(type(self), self.path, min(n, len(self)), self.finite)

    def unchecked(self) -> Self:
        """The same rows, of which NaN and infinity are for the caller to find."""
        return _reopened(type(self), self.path, len(self), False)

    def _bytes(self) -> int:
        return os.fstat(self._file.fileno()).st_size

    def _map_vecs(self, dtype: np.dtype) -> np.ndarray:
        size = self._size
        if size < 4:
            raise InvalidInput(f"{self.path}: {size} bytes are too few for the int32 dimension that starts each row")
        dim = int(np.frombuffer(self._file.read(4), "<i4")[0])
        if not 1 <= dim <= 1 << 20:
            raise InvalidInput(f"{self.path}: the first row's dimension is {dim}; this is not a {self.path.suffix[1:]} file")
        row_bytes = 4 + dim * dtype.itemsize
        if size % row_bytes:
            raise InvalidInput(
                f"{self.path}: {size:,} bytes are not a whole number of rows of {row_bytes} bytes (dimension {dim}); "
                f"the file is truncated after row {size // row_bytes:,}, or its rows differ in dimension"
            )
        rows = np.memmap(self._file, np.dtype([("dim", "<i4"), ("x", dtype.newbyteorder("<"), (dim,))]), "r")
        self._headers = rows["dim"]
        return rows["x"]

    def _map_bin(self, dtype: np.dtype) -> np.ndarray:
        size = self._size
        if size < 8:
            raise InvalidInput(f"{self.path}: {size} bytes are too few for the header (two int32: rows, dimension)")
        head = self._file.read(16)
        n, dim = (int(v) for v in np.frombuffer(head[:8], "<u4"))
        offset, expected = 8, 8 + n * dim * dtype.itemsize
        if size != expected and len(head) == 16:  # cuVS writes two int64
            wide_n, wide_dim = (int(v) for v in np.frombuffer(head, "<u8"))
            if wide_n and wide_dim and size == 16 + wide_n * wide_dim * dtype.itemsize:
                n, dim, offset, expected = wide_n, wide_dim, 16, size
        if n == 0 or dim == 0:
            raise InvalidInput(f"{self.path}: the header says {n} rows of dimension {dim}; expected at least one of each")
        if size != expected:
            raise InvalidInput(
                f"{self.path}: the header says {n:,} rows of dimension {dim}, which make {expected:,} bytes, "
                f"but the file has {size:,}; fetch it again"
            )
        return np.memmap(self._file, dtype.newbyteorder("<"), "r", offset=offset, shape=(n, dim))

    def _map_npy(self) -> np.ndarray:
        rows = map_npy(self.path)
        if rows.ndim != 2 or 0 in rows.shape:
            raise InvalidInput(
                f"{self.path}: expected an array of shape (rows, dimension), at least one of each; got {rows.shape}"
            )
        if rows.dtype.kind not in "fiu" and rows.dtype != _BFLOAT16:
            raise InvalidInput(f"{self.path}: expected numbers, got dtype {rows.dtype}")
        if isinstance(rows, np.memmap) and rows.offset + rows.nbytes != self._size:
            raise InvalidInput(
                f"{self.path}: the header says {len(rows):,} rows of dimension {rows.shape[1]}, which end at byte "
                f"{rows.offset + rows.nbytes:,}, but the file has {self._size:,}; save one array in a file"
            )
        return rows


def _reopened(cls: type[_File], path: Path, rows: int, finite: bool) -> _File:
    file = cls(path, rows, finite)
    if len(file) < rows:
        raise InvalidInput(f"{path} was shortened after it was opened: {rows:,} rows, now {len(file):,}; open it again")
    return file


Vectors = np.ndarray | VectorFile
"""`(n, d)` vectors, in memory or in a file; both have `shape`, `dtype`, `len` and slices that are ndarrays."""


def map_npy(path: Path) -> np.ndarray:
    """The array in a .npy file, memory-mapped, of any shape and type but objects.

    Raises:
        InvalidInput: not such a file.
    """
    with path.open("rb") as file:
        start = file.read(len(_NPY))
    if start != _NPY:
        what = "an archive of several arrays" if start[:2] == b"PK" else "not a .npy file, whatever its name"
        raise InvalidInput(f"{path}: {what}; save one array with numpy.save")
    try:
        return np.load(path, mmap_mode="r", allow_pickle=False)
    except (ValueError, TypeError, EOFError, OverflowError, MemoryError, *_UNPARSED) as error:
        raise InvalidInput(f"{path}: its .npy header is damaged, or it holds objects ({error}); save it again") from None


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
    if block.dtype.kind != "f" or not block.size or max(block.max(), -block.min()) <= LARGEST:
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
    """What to say of a vector with components above `LARGEST`."""
    return (
        f"row {row:,} holds numbers up to {np.abs(vector).max():.1g}, too large for float32 squares; remove it, or multiply "
        f"all vectors, queries too, by the same small number so that none is above {LARGEST:.0e}"
    )


def as_float32(block: np.ndarray) -> np.ndarray:
    """The same vectors as C-contiguous float32; no copy where they are that already."""
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
