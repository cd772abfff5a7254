"""The formats of vector files, each read lazily, rows `start` to `stop` at a time. Only this module knows them.

| ending | what it is |
|---|---|
| `.fvecs`, `.bvecs`, `.ivecs` | those of http://corpus-texmex.irisa.fr: each row is an int32 dimension and its components |
| `.fbin`, `.u8bin`, `.i8bin`, `.hbin`, `.f16bin`, `.ibin` | of the billion-scale benchmarks: a header, then all rows |
| `.npy` | NumPy's |
| `.npz` | several arrays of NumPy |
| `.hdf5`, `.h5` | HDF5, as of ann-benchmarks; needs h5py |
| `.parquet` | Parquet; needs pyarrow |
| `.arrow`, `.feather` | Arrow, files and streams; needs pyarrow |
| `.safetensors` | safetensors |
| the above, but not `.npz`, with `.gz` behind it | unpacked while it is read |
| a folder | its files of one of these formats, one behind the other in natural order: `part-2` before `part-10` |

The header of a bin file is the number of rows and the dimension, two int32 or, as cuVS writes them, two int64. An array in
a file of several is named behind a colon, `glove.hdf5:train`; so is a column, `wiki.parquet:embedding`, also of a folder.
"""

import gzip
import os
import re
import threading
import tokenize
import zipfile
import zlib
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import accumulate
from pathlib import Path
from typing import IO, Any, NamedTuple

import numpy as np

from catalyzer.errors import CatalyzerError, InvalidInput, MissingPackage, Unavailable, did_you_mean
from catalyzer.progress import progress

_VECS = {".fvecs": np.float32, ".bvecs": np.uint8, ".ivecs": np.int32}
_BIN = {
    ".fbin": np.float32, ".u8bin": np.uint8, ".i8bin": np.int8, ".hbin": np.float16, ".f16bin": np.float16, ".ibin": np.int32,
}  # fmt: skip
_NPY = b"\x93NUMPY"  # how such a file begins
_UNPARSED = (SyntaxError, tokenize.TokenError, RecursionError)  # the header is Python's syntax
_BFLOAT16 = np.dtype("V2")  # as NumPy reads what ml_dtypes and JAX write
_CHUNK = 1 << 20  # bytes that are unpacked at a time
_BATCH = 1 << 14  # rows of a Parquet file that are decoded at a time


class Rows(ABC):
    """An array in a file, or in a folder of files: rows, each of one number or of `shape[1]` numbers.

    Attributes:
        path: path of the file or folder, with the array's name if one was given.
        shape: `(n,)` or `(n, d)`.
        dtype: dtype of the arrays that `read` returns.
    """

    path: Path
    shape: tuple[int, ...]
    dtype: np.dtype

    def __len__(self) -> int:
        return self.shape[0]

    @abstractmethod
    def read(self, start: int, stop: int) -> np.ndarray:
        """Rows `start` to `stop`, 0 ≤ start ≤ stop ≤ n, as an array of its own, C-contiguous.

        Raises:
            InvalidInput: the file has changed, or is damaged there.
        """


def open_rows(path: Path) -> Rows:
    """Open a file of vectors or of ids, or a folder of them.

    Args:
        path: path as typed by a user, followed by a colon and the name of an array if the file has several.

    Raises:
        InvalidInput: there is no such file or array, or it is empty, truncated or damaged.
        MissingPackage: what reads the format is not installed.
        Unavailable: the file cannot be read.
    """
    try:
        file, name = _split(path)
        if file.is_dir():
            return _Parts(path, file, name)
        ending = _ending(file)
        if ending not in EXTENSIONS:
            raise InvalidInput(f"{path}: expected a file ending in {', '.join(EXTENSIONS)}; rename or convert it")
        if not file.is_file():
            raise InvalidInput(f"{path}: no such file")
        if file.stat().st_size == 0:
            raise InvalidInput(f"{path}: the file is empty (0 bytes); expected vectors")
        if ending in _CONTAINERS:
            return _container(ending, path, file, name)
        if name is not None:
            raise InvalidInput(f"{path}: a {ending} file has one array without a name; leave out :{name}")
        return _PLAIN[ending](path, file)
    except OSError as error:
        if isinstance(error, Unavailable):
            raise
        if error.strerror is None:  # of a library: what it could not make sense of
            raise InvalidInput(f"{path}: it is damaged, or not a {ending} file ({_first_line(error)})") from None
        raise Unavailable(f"{path} cannot be read: {error.strerror}") from None


def _container(ending: str, path: Path, file: Path, name: str | None) -> Rows:
    try:
        return _CONTAINERS[ending](path, file, name)
    except (CatalyzerError, OSError):
        raise
    except Exception as error:  # libraries raise errors of any kind where bytes are not what they expect
        raise InvalidInput(f"{path}: it is damaged, or not a {ending} file ({_first_line(error)})") from None


def files_of(path: Path) -> list[Path]:
    """The existing files of a path as typed by a user: one, or all parts of a folder; none if it is missing.

    >>> files_of(Path("missing.hdf5:train"))
    []
    """
    file, _ = _split(path)
    return _parts_of(file) if file.is_dir() else [file] if file.is_file() else []


def _split(path: Path) -> tuple[Path, str | None]:
    """Split a path into file or folder and the name of the array, if one is given."""
    text = str(path)
    heads = [] if path.exists() else [Path(text[: colon.start()]) for colon in re.finditer(":", text)]
    fitting = [head for head in heads if _ending(head) in EXTENSIONS or head.is_dir()]
    if not fitting:
        return path, None
    head = next((head for head in fitting if head.exists()), fitting[-1])  # a name may have a colon too
    return head, text[len(str(head)) + 1 :]


def _ending(path: Path) -> str:
    ending = path.suffix.lower()
    return Path(path.stem).suffix.lower() + ending if ending == ".gz" else ending


def _first_line(error: BaseException) -> str:
    return (str(error).strip() or type(error).__name__).split("\n")[0]


# ---- files that are memory-mapped ---------------------------------------------------------------------------------


class _Opened:
    """A file that is kept open to detect changes."""

    def __init__(self, path: Path, file: Path) -> None:
        self.path, self.file = path, file.open("rb")
        self._at, self._there = file, os.fstat(self.file.fileno())
        self.size = self._there.st_size

    def check_size(self) -> None:
        """Raise `InvalidInput` if it was truncated: reading beyond the end of a mapped file would kill the process."""
        if (size := os.fstat(self.file.fileno()).st_size) < self.size:
            raise InvalidInput(
                f"{self.path} was truncated while it was read, from {self.size:,} to {size:,} bytes; start again when it is "
                "complete, and replace such files by a rename"
            )

    def check_place(self) -> None:
        """Raise `InvalidInput` if another file has replaced it, before it is opened again."""
        try:
            now = self._at.stat()
        except OSError:
            now = None
        names = ("st_dev", "st_ino", "st_size", "st_mtime_ns")
        if now is None or any(getattr(now, name) != getattr(self._there, name) for name in names):
            raise InvalidInput(f"{self.path} was removed or replaced while it was read; open it again")


class _Mapped(Rows):
    """Rows of a memory-mapped file.

    Args:
        opened: the file that is mapped.
        rows: the map, or a part of it.
        dimensions: `(n,)`, of a format that repeats the dimension with each row.
    """

    def __init__(self, opened: _Opened, rows: np.ndarray, dimensions: np.ndarray | None = None) -> None:
        self.path, self.shape, self.dtype = opened.path, rows.shape, _readable(rows.dtype)
        self._opened, self._rows, self._dimensions = opened, rows, dimensions

    def read(self, start: int, stop: int) -> np.ndarray:
        self._opened.check_size()
        if self._dimensions is not None:
            _check_dimensions(self.path, self._dimensions[start:stop], self.shape[1], start)
        return _read(np.array(self._rows[start:stop], order="C"))  # now, once, and independent of the file from here on


def _readable(dtype: np.dtype) -> np.dtype:
    return np.dtype(np.float32) if dtype == _BFLOAT16 else dtype


def _read(block: np.ndarray) -> np.ndarray:
    if block.dtype != _BFLOAT16:
        return block
    return (block.view(np.uint16).astype(np.uint32) << 16).view(np.float32)  # it is the upper half of a float32


def _check_dimensions(path: Path, dimensions: np.ndarray, d: int, first: int) -> None:
    wrong = np.flatnonzero(dimensions != d)
    if len(wrong):
        raise InvalidInput(
            f"{path}: row {first + int(wrong[0]):,} has dimension {int(dimensions[wrong[0]])}, the first row has {d}; "
            "all rows must agree"
        )


def _vecs_row(path: Path, ending: str, head: bytes, size: int) -> np.dtype:
    """The type of a row of a vecs file of `size` bytes that begins with `head`."""
    if size < 4:
        raise InvalidInput(f"{path}: {size} bytes are too few for the int32 dimension that starts each row")
    dim, dtype = int(np.frombuffer(head[:4], "<i4")[0]), np.dtype(_VECS[ending]).newbyteorder("<")
    if not 1 <= dim <= 1 << 20:
        raise InvalidInput(f"{path}: the first row's dimension is {dim}; this is not a {ending[1:]} file")
    row = np.dtype([("dim", "<i4"), ("x", dtype, (dim,))])
    if size % row.itemsize:
        raise InvalidInput(
            f"{path}: {size:,} bytes are not a whole number of rows of {row.itemsize} bytes (dimension {dim}); "
            f"the file is truncated after row {size // row.itemsize:,}, or its rows differ in dimension"
        )
    return row


def _bin_header(path: Path, ending: str, head: bytes, size: int) -> tuple[int, tuple[int, int], np.dtype]:
    """Where the rows of a bin file begin, their shape and type."""
    dtype = np.dtype(_BIN[ending]).newbyteorder("<")
    if size < 8:
        raise InvalidInput(f"{path}: {size} bytes are too few for the header (two int32: rows, dimension)")
    n, dim = (int(v) for v in np.frombuffer(head[:8], "<u4"))
    offset, expected = 8, 8 + n * dim * dtype.itemsize
    if size != expected and size >= 16:  # cuVS writes two int64
        wide_n, wide_dim = (int(v) for v in np.frombuffer(head[:16], "<u8"))
        if wide_n and wide_dim and size == 16 + wide_n * wide_dim * dtype.itemsize:
            n, dim, offset, expected = wide_n, wide_dim, 16, size
    if n == 0 or dim == 0:
        raise InvalidInput(f"{path}: the header says {n} rows of dimension {dim}; expected at least one of each")
    if size != expected:
        raise InvalidInput(
            f"{path}: the header says {n:,} rows of dimension {dim}, which make {expected:,} bytes, "
            f"but the file has {size:,}; fetch it again"
        )
    return offset, (n, dim), dtype


def _open_vecs(path: Path, file: Path) -> Rows:
    opened = _Opened(path, file)
    row = _vecs_row(path, _ending(file), opened.file.read(4), opened.size)
    rows = np.memmap(opened.file, row, "r")
    return _Mapped(opened, rows["x"], rows["dim"])


def _open_bin(path: Path, file: Path) -> Rows:
    opened = _Opened(path, file)
    offset, shape, dtype = _bin_header(path, _ending(file), opened.file.read(16), opened.size)
    return _Mapped(opened, np.memmap(opened.file, dtype, "r", offset=offset, shape=shape))


def _open_npy(path: Path, file: Path) -> Rows:
    opened = _Opened(path, file)
    if (start := opened.file.read(len(_NPY))) != _NPY:
        archive = start[:2] == b"PK"
        what = "an archive of several arrays, whose name ends in .npz" if archive else "not a .npy file, whatever its name"
        raise InvalidInput(f"{path}: {what}; save one array with numpy.save")
    try:
        rows = np.load(file, mmap_mode="r", allow_pickle=False)
    except (ValueError, TypeError, EOFError, OverflowError, MemoryError, *_UNPARSED) as error:
        raise _damaged_npy(path, error) from None
    if rows.ndim == 0:
        raise InvalidInput(f"{path}: expected rows of numbers, got one {rows.dtype}")
    if isinstance(rows, np.memmap) and rows.offset + rows.nbytes != opened.size:
        raise InvalidInput(
            f"{path}: the header says {_rows(rows.shape)}, which would end at byte {rows.offset + rows.nbytes:,}, but the file "
            f"has {opened.size:,} bytes; save one array in a file"
        )
    return _Mapped(opened, rows)


def _damaged_npy(path: Path, error: Exception) -> InvalidInput:
    said = _first_line(error)
    if said.startswith(("EOF", "mmap length")):
        return InvalidInput(f"{path}: the file ends before its array does; copy or save it again")
    return InvalidInput(f"{path}: its .npy header is damaged, or it holds objects ({said}); save it again")


def _rows(shape: tuple[int, ...]) -> str:
    return f"{shape[0]:,} rows of dimension {shape[1]}" if len(shape) == 2 else f"shape {shape}"


# ---- what is unpacked while it is read ----------------------------------------------------------------------------


class _Forward(Rows):
    """Rows that are read forward, by one reader at a time."""

    _pid = -1
    _lock: threading.Lock

    def _turn(self) -> threading.Lock:
        """The lock of this process: a fork shares the place in the file, and may copy a lock that nobody will release."""
        if self._pid != os.getpid():
            self._pid, self._lock = os.getpid(), threading.Lock()
            self._rewind()
        return self._lock

    @abstractmethod
    def _rewind(self) -> None:
        """Begin again with the next rows."""


class _Unpacked(_Forward):
    """Consecutive rows in a compressed stream of bytes.

    It is unpacked from the beginning again if requested rows are before those read last.

    Args:
        opened: the packed file.
        stream: opens what it unpacks to at its beginning.
        offset: beginning of the rows, in bytes.
        row: type of a row, of a vecs file with its dimension.
        shape: shape of all rows.
    """

    def __init__(
        self, opened: _Opened, stream: Callable[[], IO[bytes]], offset: int, row: np.dtype, shape: tuple[int, ...]
    ) -> None:
        self.path, self.shape = opened.path, shape
        self.dtype = _readable((row["x"] if row.names else row).base)
        self._opened, self._open, self._offset, self._row = opened, stream, offset, row
        self._stream: IO[bytes] | None = None

    def _rewind(self) -> None:
        self._stream = None

    def read(self, start: int, stop: int) -> np.ndarray:
        with self._turn(), _unpacking(self.path):
            at = self._offset + start * self._row.itemsize
            if self._stream is None or self._stream.tell() > at:
                self._opened.check_place()
                self._stream = self._open()
            self._opened.check_size()
            while (left := at - self._stream.tell()) > 0 and self._stream.read(min(left, _CHUNK)):
                pass
            data = bytearray(self._stream.read((stop - start) * self._row.itemsize))
        if len(data) < (stop - start) * self._row.itemsize:
            raise InvalidInput(f"{self.path} was truncated while it was read; start again when it is complete")
        rows = np.frombuffer(data, self._row)
        if self._row.names:
            _check_dimensions(self.path, rows["dim"], self.shape[1], start)
            rows = rows["x"]
        return _read(np.ascontiguousarray(rows)).reshape(-1, *self.shape[1:])


@contextmanager
def _unpacking(path: Path) -> Iterator[None]:
    try:
        yield
    except (OSError, zipfile.BadZipFile, EOFError, zlib.error, NotImplementedError, RuntimeError, OverflowError) as error:
        raise InvalidInput(f"{path}: it is damaged, or not compressed as its name says ({_first_line(error)})") from None


def _open_gz(path: Path, file: Path) -> Rows:
    def opened() -> IO[bytes]:
        return gzip.open(file, "rb")  # type: ignore[return-value]

    ending, held = Path(file.stem).suffix.lower(), _Opened(path, file)
    with _unpacking(path), file.open("rb") as packed, gzip.open(packed) as unpacked:
        stream: IO[bytes] = unpacked  # type: ignore[assignment]
        if ending == ".npy":
            header = _npy_header(path, stream)
            offset, row, shape = header.offset, header.row(path), header.shape
        else:
            head = stream.read(16)
        with progress(f"unpacking {file.name}", file.stat().st_size, "bytes") as advance:
            size, before = stream.tell(), 0
            while chunk := stream.read(_CHUNK):  # the end of the file does not tell the size of more than 4 GiB
                size += len(chunk)
                advance(packed.tell() - before)
                before = packed.tell()
    if ending in _VECS:
        offset, row = 0, _vecs_row(path, ending, head, size)
        shape = (size // row.itemsize, row["x"].shape[0])
    elif ending in _BIN:
        offset, shape, dtype = _bin_header(path, ending, head, size)
        row = np.dtype((dtype, shape[1:]))
    elif size != offset + shape[0] * row.itemsize:
        raise InvalidInput(f"{path}: the header says {_rows(shape)}, but there are {size:,} bytes; save it again")
    return _Unpacked(held, opened, offset, row, shape)


class _NpyHeader(NamedTuple):
    """What a .npy file says of its array, which begins at a byte."""

    offset: int
    shape: tuple[int, ...]
    by_columns: bool
    dtype: np.dtype

    def row(self, path: Path) -> np.dtype:
        """The type of a row; raises `InvalidInput` unless rows are numbers, one behind the other."""
        if self.by_columns and len(self.shape) > 1:
            raise InvalidInput(f"{path}: the array is stored column by column; save numpy.ascontiguousarray of it")
        if self.dtype.hasobject or self.dtype.names or not self.shape or 0 in self.shape[1:]:
            raise InvalidInput(f"{path}: expected numbers, got shape {self.shape} of {self.dtype}")
        return np.dtype((self.dtype, self.shape[1:]))


def _npy_header(path: Path, stream: IO[bytes]) -> _NpyHeader:
    try:
        version = np.lib.format.read_magic(stream)
        if version not in ((1, 0), (2, 0)):
            raise ValueError(f"version {version}")
        read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
        return _NpyHeader(-1, *read(stream))._replace(offset=stream.tell())
    except (ValueError, TypeError, OverflowError, *_UNPARSED) as error:
        raise _damaged_npy(path, error) from None


def _open_npz(path: Path, file: Path, name: str | None) -> Rows:
    held, headers = _Opened(path, file), {}
    with _unpacking(path), zipfile.ZipFile(file) as archive:
        for member in archive.namelist():
            if member.endswith(".npy"):
                with archive.open(member) as stream:
                    headers[member.removesuffix(".npy")] = _npy_header(path, stream)
    chosen = _chosen(path, name, {member: header.shape for member, header in headers.items() if header.shape})
    header = headers[chosen]
    return _Unpacked(held, lambda: zipfile.ZipFile(file).open(f"{chosen}.npy"), header.offset, header.row(path), header.shape)


# ---- files of several arrays --------------------------------------------------------------------------------------


def _chosen(path: Path, name: str | None, shapes: dict[str, tuple[Any, ...]], what: str = "arrays") -> str:
    """The name of the array to read: the given name, or the only array, or the only one of two dimensions."""
    if name is not None:
        for each in (name, name.strip("/")):
            if each in shapes:
                return each
    matrices = [each for each, shape in shapes.items() if len(shape) == 2]
    if name is None and len(matrices if len(shapes) > 1 else shapes) == 1:
        return next(iter(matrices or shapes))
    there = ", ".join(f"{each} ({', '.join(map(str, shape))})" for each, shape in shapes.items()) or "none"
    if name is None and not shapes:
        raise InvalidInput(f"{path}: there are no {what} in this file")
    if name is None:
        raise InvalidInput(f"{path}: name one of its {what} after a colon, {path}:NAME; there are {there}")
    raise InvalidInput(f"{path}: there is no {name!r}{did_you_mean(name, shapes)}; its {what} are {there}")


def _import(module: str, package: str, extra: str, path: Path) -> Any:
    import importlib

    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] != package:
            raise
        raise MissingPackage(f'{path} needs {package}, which is not installed: pip install "catalyzer[{extra}]"') from None


class _Sliced(Rows):
    """An array of a library that reads slices.

    Args:
        opened: the file that they come from.
        slices: `slices[start:stop]` is something that `convert` makes an array of.
        shape: shape of all rows.
        dtype: dtype of the output of `convert`.
        convert: function that converts a slice to an array.
    """

    def __init__(
        self, opened: _Opened, slices: Any, shape: tuple[int, ...], dtype: np.dtype, convert: Callable[[Any], np.ndarray]
    ) -> None:
        self.path, self.shape, self.dtype = opened.path, shape, dtype
        self._opened, self._slices, self._convert = opened, slices, convert

    def read(self, start: int, stop: int) -> np.ndarray:
        self._opened.check_size()
        try:
            return np.array(self._convert(self._slices[start:stop]), self.dtype, order="C")
        except (OSError, RuntimeError, ValueError, TypeError, MemoryError, OverflowError) as error:
            raise InvalidInput(f"{self.path}: rows from {start:,} on cannot be read ({_first_line(error)})") from None


def _open_hdf5(path: Path, file: Path, name: str | None) -> Rows:
    h5py = _import("h5py", "h5py", "hdf5", path)
    held, arrays = _Opened(path, file), {}

    def note(member: str, item: Any) -> None:
        if isinstance(item, h5py.Dataset) and item.ndim:
            arrays[member] = item

    try:
        opened = h5py.File(file, "r")
        opened.visititems(note)
        if name and isinstance(opened.get(name, getlink=True), h5py.SoftLink | h5py.HardLink):  # one that was visited already
            note(name.strip("/"), opened.get(name))
        shapes, dtypes = ({member: getattr(item, what) for member, item in arrays.items()} for what in ("shape", "dtype"))
    except (RuntimeError, KeyError, ValueError, TypeError) as error:
        raise InvalidInput(f"{path}: it is damaged, or not an HDF5 file ({_first_line(error)})") from None
    chosen = _chosen(path, name, shapes)
    return _Sliced(held, arrays[chosen], shapes[chosen], dtypes[chosen].newbyteorder("="), np.asarray)


def _open_safetensors(path: Path, file: Path, name: str | None) -> Rows:
    import torch
    from safetensors import SafetensorError, safe_open

    held = _Opened(path, file)
    try:
        opened = safe_open(file, "pt")
        shapes = {member: tuple(opened.get_slice(member).get_shape()) for member in opened.keys()}  # noqa: SIM118 - no dict
    except SafetensorError as error:
        raise InvalidInput(f"{path}: it is damaged, or not a safetensors file ({_first_line(error)})") from None
    chosen = _chosen(path, name, {member: shape for member, shape in shapes.items() if shape}, "tensors")
    slices = opened.get_slice(chosen)

    def convert(tensor: torch.Tensor) -> np.ndarray:
        small = tensor.is_floating_point() and tensor.dtype not in (torch.float16, torch.float32, torch.float64)
        return (tensor.float() if small else tensor).numpy()  # NumPy does not know the others

    return _Sliced(held, slices, shapes[chosen], convert(slices[:0]).dtype, convert)


# ---- tables -------------------------------------------------------------------------------------------------------


class _Column(_Forward):
    """A column of an Arrow table, numbers or lists of them.

    It is read forward; if requested rows are before those read last, it is opened again at these rows.

    Args:
        opened: the file.
        n: number of rows.
        kind: Arrow's type of the column.
        batches: arrays of consecutive rows, the first of which begins at or before a row, and where that is.
    """

    def __init__(self, opened: _Opened, n: int, kind: Any, batches: Callable[[int], tuple[int, Iterator[Any]]]) -> None:
        # Not when it is needed: a fork while another thread imports a module leaves that module's lock held in the child.
        from pyarrow import compute

        self._lengths = compute.list_value_length
        self.path, self._opened, self._batches, kind = opened.path, opened, batches, _storage(kind)
        self._rewind()
        self.dtype, self.shape = np.dtype((kind.value_type if _is_list(kind) else kind).to_pandas_dtype()), (n,)
        if _is_list(kind) and n:
            first = next(batches(0)[1])[0].as_py()
            if first is None:
                raise self._null(0)
            self.shape = (n, len(first))
        elif _is_list(kind):
            self.shape = (0, 0)

    def _rewind(self) -> None:
        self._first, self._rest, self._held = 0, iter(()), None  # an array that begins at row `_first`, and those behind it

    def read(self, start: int, stop: int) -> np.ndarray:
        out = np.empty((stop - start, *self.shape[1:]), self.dtype)
        with self._turn():
            self._opened.check_size()
            if start < self._first or self._held is None:
                self._first, self._rest = self._batches(start)
                self._held = next(self._rest, None)
            at = start
            while at < stop:
                if self._held is None:
                    raise InvalidInput(f"{self.path} was truncated while it was read; start again when it is complete")
                if self._first + len(self._held) <= at:
                    self._first += len(self._held)
                    self._held = next(self._rest, None)
                    continue
                part = self._held[at - self._first : stop - self._first]
                out[at - start : at - start + len(part)] = self._numbers(part, at)
                at += len(part)
        return out

    def _numbers(self, part: Any, first: int) -> np.ndarray:
        """What is in some rows, the first of them `first`."""
        part = getattr(part, "storage", part)
        is_list = _is_list(part.type)
        values = part.flatten() if is_list else part
        if part.null_count or values.null_count:
            raise self._null(
                first + next(i for i, value in enumerate(part.to_pylist()) if value is None or (is_list and None in value))
            )
        if is_list:
            _check_dimensions(self.path, self._lengths(part).to_numpy(), self.shape[1], first)
        return values.to_numpy(zero_copy_only=False).reshape(len(part), *self.shape[1:])

    def _null(self, row: int) -> InvalidInput:
        return InvalidInput(f"{self.path}: row {row:,} has no value (null); fill or remove such rows")


def _storage(kind: Any) -> Any:
    return getattr(kind, "storage_type", kind)  # of what extends a type, as tensors of one shape do


def _is_list(kind: Any) -> bool:
    from pyarrow import types

    return types.is_list(kind) or types.is_large_list(kind) or types.is_fixed_size_list(kind)


def _columns(path: Path, name: str | None, schema: Any, n: int) -> str:
    """The name of the column to read."""
    from pyarrow import types

    def is_number(kind: Any) -> bool:
        return types.is_integer(kind) or types.is_floating(kind)

    kinds = {each.name: _storage(each.type) for each in schema if schema.names.count(each.name) == 1}
    lists = {each for each, kind in kinds.items() if _is_list(kind) and is_number(kind.value_type)}
    numbers = {each for each, kind in kinds.items() if is_number(kind)}
    # Without a name it is the only one of lists, as of other formats the only matrix.
    shapes: dict[str, tuple[Any, ...]] = {each: (n, getattr(kinds[each], "list_size", "d")) for each in lists}
    if name is not None and name not in shapes.keys() | numbers and name in kinds:
        raise InvalidInput(f"{path}: column {name!r} holds {kinds[name]}; expected numbers or lists of numbers")
    return _chosen(path, name, shapes | dict.fromkeys(numbers, (n,)), "columns of numbers")


def _open_parquet(path: Path, file: Path, name: str | None) -> Rows:
    parquet, held = _import("pyarrow.parquet", "pyarrow", "parquet", path), _Opened(path, file)
    opened = _parsed(path, lambda: parquet.ParquetFile(file))
    meta = opened.metadata
    column = _columns(path, name, opened.schema_arrow, meta.num_rows)
    starts = list(accumulate((meta.row_group(group).num_rows for group in range(meta.num_row_groups)), initial=0))

    def batches(row: int) -> tuple[int, Iterator[Any]]:
        held.check_place()
        group = max(0, int(np.searchsorted(starts[:-1], row, side="right")) - 1)
        again = parquet.ParquetFile(file)  # a fork shares the other's place in the file
        found = again.iter_batches(_BATCH, row_groups=range(group, meta.num_row_groups), columns=[column], use_threads=False)
        return starts[group], _each(path, (batch.column(column) for batch in found if len(batch)))

    return _Column(held, meta.num_rows, opened.schema_arrow.field(column).type, batches)


def _open_arrow(path: Path, file: Path, name: str | None) -> Rows:
    ipc, held = _import("pyarrow.ipc", "pyarrow", "parquet", path), _Opened(path, file)
    opens = ipc.open_file if held.file.read(6) == b"ARROW1" else ipc.open_stream

    def all_batches() -> Iterator[Any]:
        with file.open("rb") as source:
            reader = _parsed(path, lambda: opens(source))
            numbers = range(reader.num_record_batches) if opens is ipc.open_file else None
            yield from _each(path, iter(reader) if numbers is None else (reader.get_batch(i) for i in numbers))

    n, schema = 0, None
    for batch in all_batches():
        n, schema = n + len(batch), batch.schema
    if schema is None:
        raise InvalidInput(f"{path}: it has no rows; expected vectors")
    column = _columns(path, name, schema, n)

    def arrays(_: int) -> tuple[int, Iterator[Any]]:
        held.check_place()
        return 0, (_valid(path, batch.column(column)) for batch in all_batches() if len(batch))

    return _Column(held, n, schema.field(column).type, arrays)


def _valid(path: Path, array: Any) -> Any:
    """The array, of which the offsets of lists are within its values: Arrow would end the process."""
    _parsed(path, lambda: array.validate(full=True))
    return array


def _parsed(path: Path, read: Callable[[], Any]) -> Any:
    import pyarrow as pa

    try:
        return read()
    except (pa.ArrowException, ValueError, OSError, TypeError, MemoryError, OverflowError) as error:
        raise InvalidInput(f"{path}: it is damaged, or not in the format of its name ({_first_line(error)})") from None


def _each(path: Path, items: Iterator[Any]) -> Iterator[Any]:
    end = object()
    while (item := _parsed(path, lambda: next(items, end))) is not end:
        yield item


# ---- folders ------------------------------------------------------------------------------------------------------


class _Parts(_Forward):
    """The rows of all files in a folder, in order; one file at a time is open."""

    def __init__(self, path: Path, folder: Path, name: str | None) -> None:
        self.path, self._name = path, name
        self._files, sizes = _parts_of(folder), []
        endings = {_ending(file) for file in self._files}
        if len(endings) != 1:
            found = f"got {', '.join(sorted(endings))}; move all but one format away" if endings else f"{path} has none"
            raise InvalidInput(f"{path}: expected a folder of vector files of one format; {found}")
        kinds: list[tuple[tuple[int, ...], np.dtype]] = []
        for number in range(len(self._files)):  # as many as there may be are not open at once
            rows = self._opened(number)
            sizes.append(len(rows))
            if len(rows):
                kinds.append((rows.shape[1:], rows.dtype))
                if kinds[-1] != kinds[0]:
                    raise InvalidInput(
                        f"{rows.path}: expected rows like those of the files before it, "
                        f"{kinds[0][1]} of shape {kinds[0][0]}; got {rows.dtype} of shape {rows.shape[1:]}"
                    )
        row, self.dtype = kinds[0] if kinds else ((0,), np.dtype(np.float32))
        self._starts = list(accumulate(sizes, initial=0))
        self.shape = (self._starts[-1], *row)
        self._part = rows
        self._rewind()

    def _rewind(self) -> None:
        self._number = -1  # no part is open

    def _opened(self, number: int) -> Rows:
        file = self._files[number]
        return open_rows(file if self._name is None else Path(f"{file}:{self._name}"))

    def read(self, start: int, stop: int) -> np.ndarray:
        out = np.empty((stop - start, *self.shape[1:]), self.dtype)
        with self._turn():
            for number, (first, end) in enumerate(zip(self._starts, self._starts[1:], strict=False)):
                low, high = max(start, first), min(stop, end)
                if low >= high:
                    continue
                if number != self._number:
                    self._number, self._part = number, self._opened(number)
                    if self._part.shape != (end - first, *self.shape[1:]):
                        raise InvalidInput(f"{self._part.path} has changed since {self.path} was opened; open it again")
                out[low - start : high - start] = self._part.read(low - first, high - first)
        return out


def _parts_of(folder: Path) -> list[Path]:
    """The vector files in a folder, in natural order, without those that Spark and others hide by a dot or underscore.

    Raises:
        InvalidInput: there are some in folders below it, which would be left out.
    """
    there = [file for file in folder.iterdir() if file.name[0] not in "._"]
    for each in there:
        if each.is_dir() and any(_ending(file) in EXTENSIONS for file in each.iterdir()):
            raise InvalidInput(
                f"{folder} has vector files in its subfolder {each.name}; give a folder without subfolders of vector files"
            )
    files = [file for file in there if not file.is_dir() and _ending(file) in EXTENSIONS]
    return sorted(files, key=lambda file: [int(text) if text.isdecimal() else text for text in re.split("([0-9]+)", file.name)])


_PLAIN: dict[str, Callable[[Path, Path], Rows]] = {
    **dict.fromkeys(_VECS, _open_vecs),
    **dict.fromkeys(_BIN, _open_bin),
    ".npy": _open_npy,
}
_PLAIN |= {f"{ending}.gz": _open_gz for ending in _PLAIN}
_CONTAINERS: dict[str, Callable[[Path, Path, str | None], Rows]] = {
    ".npz": _open_npz,
    ".hdf5": _open_hdf5,
    ".h5": _open_hdf5,
    ".safetensors": _open_safetensors,
    ".parquet": _open_parquet,
    ".arrow": _open_arrow,
    ".feather": _open_arrow,
}
EXTENSIONS = (*_PLAIN, *_CONTAINERS)
"""The endings of files that are read."""
