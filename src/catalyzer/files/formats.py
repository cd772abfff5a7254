"""The formats that vectors come in: each read lazily, rows `start` to `stop` at a time. Only this module knows them.

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
from typing import IO, Any

import numpy as np

from catalyzer.errors import InvalidInput, MissingPackage, Unavailable, did_you_mean
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
        path: of the file or folder, with the array's name if one was given.
        shape: `(n,)` or `(n, d)`.
        dtype: that of what `read` returns.
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
        path: as a user types it, with the name of an array behind a colon where the file has several.

    Raises:
        InvalidInput: there is no such file or array, or it is empty, truncated or damaged.
        MissingPackage: what reads the format is not installed.
        Unavailable: the file cannot be read.
    """
    file, name = _split(path)
    if file.is_dir():
        return _Parts(path, file, name)
    ending = _ending(file)
    if ending not in EXTENSIONS:
        raise InvalidInput(f"{path}: expected a file ending in {', '.join(EXTENSIONS)}; rename or convert it")
    if not file.is_file():
        raise InvalidInput(f"{path}: no such file")
    try:
        if file.stat().st_size == 0:
            raise InvalidInput(f"{path}: the file is empty (0 bytes); expected vectors")
        if ending in _CONTAINERS:
            return _CONTAINERS[ending](path, file, name)
        if name is not None:
            raise InvalidInput(f"{path}: a {ending} file holds one array, without a name; leave :{name} out")
        return _PLAIN[ending](path, file)
    except OSError as error:
        if isinstance(error, Unavailable):
            raise
        if error.strerror is None:  # of a library: what it could not make sense of
            raise InvalidInput(f"{path}: it is damaged, or no {ending} file ({_first_line(error)})") from None
        raise Unavailable(f"{path} cannot be read: {error.strerror}") from None


def files_of(path: Path) -> list[Path]:
    """The files that there are of what a user names: one, or all parts of a folder; none where it is missing.

    >>> files_of(Path("missing.hdf5:train"))
    []
    """
    file, _ = _split(path)
    return _parts_of(file) if file.is_dir() else [file] if file.is_file() else []


def _split(path: Path) -> tuple[Path, str | None]:
    """A file or folder, and the name of the array in it if one is given."""
    head, colon, name = str(path).rpartition(":")
    if not colon or path.exists() or not (_ending(Path(head)) in EXTENSIONS or Path(head).is_dir()):
        return path, None
    return Path(head), name


def _ending(path: Path) -> str:
    ending = path.suffix.lower()
    return Path(path.stem).suffix.lower() + ending if ending == ".gz" else ending


def _first_line(error: BaseException) -> str:
    return (str(error).strip() or type(error).__name__).split("\n")[0]


# ---- files that are memory-mapped ---------------------------------------------------------------------------------


class _Mapped(Rows):
    """Rows that lie in a file as they are in memory.

    Args:
        path: what an error names.
        file: that is mapped.
        rows: the map, or a part of it.
        dimensions: `(n,)`, of a format that repeats the dimension with each row.
    """

    def __init__(self, path: Path, file: IO[bytes], rows: np.ndarray, dimensions: np.ndarray | None = None) -> None:
        self.path, self.shape, self.dtype = path, rows.shape, _readable(rows.dtype)
        self._file, self._rows, self._dimensions = file, rows, dimensions
        self._size = os.fstat(file.fileno()).st_size

    def read(self, start: int, stop: int) -> np.ndarray:
        if (size := os.fstat(self._file.fileno()).st_size) < self._size:  # reading behind a mapped file's end kills the process
            raise InvalidInput(
                f"{self.path} was shortened while it was read, from {self._size:,} to {size:,} bytes; start again when it is "
                "complete, and replace such files by a rename"
            )
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
    opened = file.open("rb")
    row = _vecs_row(path, _ending(file), opened.read(4), file.stat().st_size)
    rows = np.memmap(opened, row, "r")
    return _Mapped(path, opened, rows["x"], rows["dim"])


def _open_bin(path: Path, file: Path) -> Rows:
    opened = file.open("rb")
    offset, shape, dtype = _bin_header(path, _ending(file), opened.read(16), file.stat().st_size)
    return _Mapped(path, opened, np.memmap(opened, dtype, "r", offset=offset, shape=shape))


def _open_npy(path: Path, file: Path) -> Rows:
    opened = file.open("rb")
    if (start := opened.read(len(_NPY))) != _NPY:
        archive = start[:2] == b"PK"
        what = "an archive of several arrays, whose name ends in .npz" if archive else "not a .npy file, whatever its name"
        raise InvalidInput(f"{path}: {what}; save one array with numpy.save")
    try:
        rows = np.load(file, mmap_mode="r", allow_pickle=False)
    except (ValueError, TypeError, EOFError, OverflowError, MemoryError, *_UNPARSED) as error:
        raise _damaged_npy(path, error) from None
    size = file.stat().st_size
    if isinstance(rows, np.memmap) and rows.offset + rows.nbytes != size:
        raise InvalidInput(
            f"{path}: the header says {_rows(rows.shape)}, which end at byte {rows.offset + rows.nbytes:,}, but the file has "
            f"{size:,}; save one array in a file"
        )
    return _Mapped(path, opened, rows)


def _damaged_npy(path: Path, error: Exception) -> InvalidInput:
    return InvalidInput(f"{path}: its .npy header is damaged, or it holds objects ({_first_line(error)}); save it again")


def _rows(shape: tuple[int, ...]) -> str:
    return f"{shape[0]:,} rows of dimension {shape[1]}" if len(shape) == 2 else f"shape {shape}"


# ---- what is unpacked while it is read ----------------------------------------------------------------------------


class _Unpacked(Rows):
    """Rows that lie one behind the other in what a stream of bytes unpacks to.

    It is unpacked from the beginning again where what is asked for lies before what was read last.

    Args:
        path: what an error names.
        opened: opens the stream at its beginning.
        offset: where the rows begin, in bytes.
        row: type of a row, of a vecs file with its dimension.
        shape: of all rows.
    """

    def __init__(self, path: Path, opened: Callable[[], IO[bytes]], offset: int, row: np.dtype, shape: tuple[int, ...]) -> None:
        self.path, self.shape = path, shape
        self.dtype = _readable((row["x"] if row.names else row).base)
        self._open, self._offset, self._row = opened, offset, row
        self._stream, self._lock = opened(), threading.Lock()

    def read(self, start: int, stop: int) -> np.ndarray:
        with self._lock, _unpacking(self.path):
            at = self._offset + start * self._row.itemsize
            if self._stream.tell() > at:
                self._stream = self._open()
            while (left := at - self._stream.tell()) > 0 and self._stream.read(min(left, _CHUNK)):
                pass
            data = bytearray(self._stream.read((stop - start) * self._row.itemsize))
        if len(data) < (stop - start) * self._row.itemsize:
            raise InvalidInput(f"{self.path} was shortened while it was read; start again when it is complete")
        rows = np.frombuffer(data, self._row)
        if self._row.names:
            _check_dimensions(self.path, rows["dim"], self.shape[1], start)
            rows = rows["x"]
        return _read(np.ascontiguousarray(rows)).reshape(-1, *self.shape[1:])


@contextmanager
def _unpacking(path: Path) -> Iterator[None]:
    try:
        yield
    except (gzip.BadGzipFile, zipfile.BadZipFile, EOFError, zlib.error, NotImplementedError, RuntimeError) as error:
        raise InvalidInput(f"{path}: it is damaged, or not packed as its name says ({_first_line(error)})") from None


def _open_gz(path: Path, file: Path) -> Rows:
    def opened() -> IO[bytes]:
        return gzip.open(file, "rb")  # type: ignore[return-value]

    ending = Path(file.stem).suffix.lower()
    with _unpacking(path), file.open("rb") as packed, gzip.open(packed) as unpacked:
        stream: IO[bytes] = unpacked  # type: ignore[assignment]
        if ending == ".npy":
            offset, row, shape = _npy_header(path, stream)
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
    return _Unpacked(path, opened, offset, row, shape)


def _npy_header(path: Path, stream: IO[bytes]) -> tuple[int, np.dtype, tuple[int, ...]]:
    """Where the rows of a .npy file begin, the type of a row, and their shape."""
    try:
        version = np.lib.format.read_magic(stream)
        if version not in ((1, 0), (2, 0)):
            raise ValueError(f"version {version}")
        read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
        shape, by_columns, dtype = read(stream)
    except (ValueError, TypeError, OverflowError, *_UNPARSED) as error:
        raise _damaged_npy(path, error) from None
    if by_columns and len(shape) > 1:
        raise InvalidInput(f"{path}: the array is stored column by column; save numpy.ascontiguousarray of it")
    if dtype.hasobject or not shape:
        raise InvalidInput(f"{path}: expected numbers, got shape {shape} of {dtype}")
    return stream.tell(), np.dtype((dtype, shape[1:])), shape


def _open_npz(path: Path, file: Path, name: str | None) -> Rows:
    with _unpacking(path):
        archive = zipfile.ZipFile(file)
        members = [member.removesuffix(".npy") for member in archive.namelist() if member.endswith(".npy")]
        headers = {}
        for member in members:
            with archive.open(f"{member}.npy") as stream:
                headers[member] = _npy_header(path, stream)
    chosen = _chosen(path, name, {member: shape for member, (_, _, shape) in headers.items()})
    return _Unpacked(path, lambda: archive.open(f"{chosen}.npy"), *headers[chosen])


# ---- files of several arrays --------------------------------------------------------------------------------------


def _chosen(path: Path, name: str | None, shapes: dict[str, tuple[int, ...]], what: str = "arrays") -> str:
    """The name of the array that a user means: the one that is named, or the only one, or the only one of two dimensions."""
    if name is not None:
        for each in (name, name.strip("/")):
            if each in shapes:
                return each
    matrices = [each for each, shape in shapes.items() if len(shape) == 2]
    if name is None and len(matrices if len(shapes) > 1 else shapes) == 1:
        return next(iter(matrices or shapes))
    there = ", ".join(f"{each} {shape}" for each, shape in shapes.items()) or "none"
    if name is None:
        raise InvalidInput(f"{path}: name one of its {what} behind a colon, {path}:NAME; there are {there}")
    raise InvalidInput(f"{path}: there is no {name!r}{did_you_mean(name, shapes)}; its {what} are {there}")


def _import(module: str, package: str, extra: str, path: Path) -> Any:
    import importlib

    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] != package:
            raise
        raise MissingPackage(f'{path} is read by {package}, which is not installed: pip install "catalyzer[{extra}]"') from None


class _Sliced(Rows):
    """An array of a library that reads slices.

    Args:
        path: what an error names.
        slices: `slices[start:stop]` is something that `convert` makes an array of.
        shape: of all.
        dtype: of what `convert` makes.
        convert: to an array.
    """

    def __init__(
        self, path: Path, slices: Any, shape: tuple[int, ...], dtype: np.dtype, convert: Callable[[Any], np.ndarray]
    ) -> None:
        self.path, self.shape, self.dtype = path, shape, dtype
        self._slices, self._convert = slices, convert

    def read(self, start: int, stop: int) -> np.ndarray:
        try:
            return np.array(self._convert(self._slices[start:stop]), self.dtype, order="C")
        except (OSError, RuntimeError, ValueError) as error:
            raise InvalidInput(f"{self.path}: rows from {start:,} on cannot be read ({_first_line(error)})") from None


def _open_hdf5(path: Path, file: Path, name: str | None) -> Rows:
    h5py = _import("h5py", "h5py", "hdf5", path)
    arrays: dict[str, Any] = {}

    def note(member: str, item: Any) -> None:
        if isinstance(item, h5py.Dataset) and item.ndim:
            arrays[member] = item

    try:
        h5py.File(file, "r").visititems(note)
        shapes, dtypes = ({member: getattr(item, what) for member, item in arrays.items()} for what in ("shape", "dtype"))
    except (RuntimeError, KeyError, ValueError, TypeError) as error:
        raise InvalidInput(f"{path}: it is damaged, or no HDF5 file ({_first_line(error)})") from None
    chosen = _chosen(path, name, shapes)
    return _Sliced(path, arrays[chosen], shapes[chosen], dtypes[chosen].newbyteorder("="), np.asarray)


def _open_safetensors(path: Path, file: Path, name: str | None) -> Rows:
    import torch
    from safetensors import SafetensorError, safe_open

    try:
        opened = safe_open(file, "pt")
        shapes = {member: tuple(opened.get_slice(member).get_shape()) for member in opened.keys()}  # noqa: SIM118 - no dict
    except SafetensorError as error:
        raise InvalidInput(f"{path}: it is damaged, or no safetensors file ({_first_line(error)})") from None
    chosen = _chosen(path, name, {member: shape for member, shape in shapes.items() if shape}, "tensors")
    slices = opened.get_slice(chosen)

    def convert(tensor: torch.Tensor) -> np.ndarray:
        small = tensor.is_floating_point() and tensor.dtype not in (torch.float16, torch.float32, torch.float64)
        return (tensor.float() if small else tensor).numpy()  # NumPy does not know the others

    return _Sliced(path, slices, shapes[chosen], convert(slices[:0]).dtype, convert)


# ---- tables -------------------------------------------------------------------------------------------------------


class _Column(Rows):
    """A column of an Arrow table, numbers or lists of them.

    It is read forward; where what is asked for lies before what was read last, from there again.

    Args:
        path: what an error names.
        n: number of rows.
        kind: Arrow's type of the column.
        batches: arrays of consecutive rows, the first of which begins at or before a row, and where that is.
    """

    def __init__(self, path: Path, n: int, kind: Any, batches: Callable[[int], tuple[int, Iterator[Any]]]) -> None:
        self.path, self._batches, self._lock = path, batches, threading.Lock()
        self._first, self._rest = batches(0)
        self._held: Any = next(self._rest, None)  # begins at row `_first`
        self.shape = (n,)
        if _is_list(kind):
            self.shape = (n, 0 if self._held is None else len(self._held[0].as_py() or ()))
        self.dtype = np.dtype((kind.value_type if _is_list(kind) else kind).to_pandas_dtype())

    def read(self, start: int, stop: int) -> np.ndarray:
        out = np.empty((stop - start, *self.shape[1:]), self.dtype)
        with self._lock:
            if start < self._first or self._held is None:
                self._first, self._rest = self._batches(start)
                self._held = next(self._rest, None)
            at = start
            while at < stop:
                if self._held is None:
                    raise InvalidInput(f"{self.path} was shortened while it was read; start again when it is complete")
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
        from pyarrow import compute

        is_list = _is_list(part.type)
        values = part.flatten() if is_list else part
        if part.null_count or values.null_count:
            row = next(i for i, value in enumerate(part.to_pylist()) if value is None or (is_list and None in value))
            raise InvalidInput(f"{self.path}: row {first + row:,} has no value (null); fill or remove such rows")
        if is_list:
            _check_dimensions(self.path, compute.list_value_length(part).to_numpy(), self.shape[1], first)
        return values.to_numpy(zero_copy_only=False).reshape(-1, *self.shape[1:])


def _is_list(kind: Any) -> bool:
    return hasattr(kind, "value_type")


def _columns(path: Path, name: str | None, schema: Any, n: int) -> str:
    """The name of the column that a user means."""
    pa = _import("pyarrow", "pyarrow", "parquet", path)

    def is_number(kind: Any) -> bool:
        return pa.types.is_integer(kind) or pa.types.is_floating(kind)

    lists = {each.name for each in schema if _is_list(each.type) and is_number(each.type.value_type)}
    numbers = {each.name for each in schema if is_number(each.type)}
    # Without a name it is the only one of lists, as of other formats the only matrix.
    return _chosen(path, name, dict.fromkeys(lists, (n, 0)) | dict.fromkeys(numbers, (n,)), "columns of numbers")


def _open_parquet(path: Path, file: Path, name: str | None) -> Rows:
    parquet = _import("pyarrow.parquet", "pyarrow", "parquet", path)
    opened = _parsed(path, lambda: parquet.ParquetFile(file, memory_map=True))
    meta = opened.metadata
    column = _columns(path, name, opened.schema_arrow, meta.num_rows)
    starts = list(accumulate((meta.row_group(group).num_rows for group in range(meta.num_row_groups)), initial=0))

    def batches(row: int) -> tuple[int, Iterator[Any]]:
        group = max(0, int(np.searchsorted(starts[:-1], row, side="right")) - 1)
        found = opened.iter_batches(_BATCH, row_groups=range(group, meta.num_row_groups), columns=[column], use_threads=False)
        return starts[group], _each(path, (batch.column(0) for batch in found if len(batch)))

    return _Column(path, meta.num_rows, opened.schema_arrow.field(column).type, batches)


def _open_arrow(path: Path, file: Path, name: str | None) -> Rows:
    pa = _import("pyarrow", "pyarrow", "parquet", path)
    with file.open("rb") as head:
        is_file = head.read(6) == b"ARROW1"
    opened = _parsed(path, lambda: (pa.ipc.open_file if is_file else pa.ipc.open_stream)(pa.memory_map(str(file))))
    if is_file:
        sizes = _parsed(path, lambda: [opened.get_batch(i).num_rows for i in range(opened.num_record_batches)])
    else:
        stream = _parsed(path, lambda: list(opened))  # of what is not compressed these are views of the map
        sizes = [batch.num_rows for batch in stream]
    column, starts = _columns(path, name, opened.schema, sum(sizes)), list(accumulate(sizes, initial=0))

    def batches(row: int) -> tuple[int, Iterator[Any]]:
        first = max(0, int(np.searchsorted(starts[:-1], row, side="right")) - 1)
        numbers = (i for i in range(first, len(sizes)) if sizes[i])
        return starts[first], _each(path, ((opened.get_batch(i) if is_file else stream[i]).column(column) for i in numbers))

    return _Column(path, sum(sizes), opened.schema.field(column).type, batches)


def _parsed(path: Path, read: Callable[[], Any]) -> Any:
    import pyarrow as pa

    try:
        return read()
    except (pa.ArrowException, ValueError) as error:
        raise InvalidInput(f"{path}: it is damaged, or not the format of its name ({_first_line(error)})") from None


def _each(path: Path, arrays: Iterator[Any]) -> Iterator[Any]:
    end = object()
    while (array := _parsed(path, lambda: next(arrays, end))) is not end:
        yield array


# ---- folders ------------------------------------------------------------------------------------------------------


class _Parts(Rows):
    """The rows of all files in a folder, one behind the other; one file at a time is open."""

    def __init__(self, path: Path, folder: Path, name: str | None) -> None:
        self.path, self._name = path, name
        self._files, sizes = _parts_of(folder), []
        endings = {_ending(file) for file in self._files}
        if len(endings) != 1:
            found = f"got {', '.join(sorted(endings))}; move the others away" if endings else f"{path} has none"
            raise InvalidInput(f"{path}: expected a folder of vector files of one format; {found}")
        kinds: list[tuple[tuple[int, ...], np.dtype]] = []
        for number in range(len(self._files)):  # as many as there may be are not open at once
            rows = self._opened(number)
            sizes.append(len(rows))
            if len(rows):
                kinds.append((rows.shape[1:], rows.dtype))
                if kinds[-1] != kinds[0]:
                    raise InvalidInput(
                        f"{rows.path}: rows of {rows.dtype} and shape {rows.shape[1:]}, those of the files before it are of "
                        f"{kinds[0][1]} and shape {kinds[0][0]}; all must agree"
                    )
        row, self.dtype = kinds[0] if kinds else ((0,), np.dtype(np.float32))
        self._starts = list(accumulate(sizes, initial=0))
        self.shape = (self._starts[-1], *row)
        self._lock, self._number, self._part = threading.Lock(), len(self._files) - 1, rows

    def _opened(self, number: int) -> Rows:
        file = self._files[number]
        return open_rows(file if self._name is None else Path(f"{file}:{self._name}"))

    def read(self, start: int, stop: int) -> np.ndarray:
        out = np.empty((stop - start, *self.shape[1:]), self.dtype)
        with self._lock:
            for number, (first, end) in enumerate(zip(self._starts, self._starts[1:], strict=False)):
                low, high = max(start, first), min(stop, end)
                if low >= high:
                    continue
                if number != self._number:
                    self._number, self._part = number, self._opened(number)
                    if self._part.shape != (end - first, *self.shape[1:]):
                        raise InvalidInput(f"{self._part.path} has changed after {self.path} was opened; open it again")
                out[low - start : high - start] = self._part.read(low - first, high - first)
        return out


def _parts_of(folder: Path) -> list[Path]:
    """The vector files in a folder, in natural order, without those that Spark and others hide by a dot or an underscore."""
    files = [file for file in folder.iterdir() if file.name[0] not in "._" and file.is_file() and _ending(file) in EXTENSIONS]
    return sorted(files, key=lambda file: [int(text) if text.isdigit() else text for text in re.split(r"(\d+)", file.name)])


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
