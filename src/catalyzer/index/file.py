"""The file of an index, a safetensors file; docs/format.md describes it.

Nothing in a file is trusted before it is checked: the safetensors library checks the structure, a digest and checksums check
the content, and nothing is unpickled.
"""

import hashlib
import json
import math
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any, BinaryIO

import numpy as np
import torch
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from torch import Tensor

from catalyzer.codec import Codec
from catalyzer.errors import DamagedFile, InvalidInput, Unavailable, UntrustedPart
from catalyzer.files.atomic import write_atomically
from catalyzer.index.contents import MAX_ID, Contents, Validation, check_sizes
from catalyzer.index.lists import InvertedLists
from catalyzer.metric import Metric, MetricName
from catalyzer.nn import Transform
from catalyzer.nn.storage import restored, tensors
from catalyzer.parts import Trust, describe
from catalyzer.progress import progress
from catalyzer.quantizers import LatticeQuantizer, Quantizer

FORMAT_NAME, FORMAT_VERSION = "catalyzer.index/", "1"
ALIGNMENT = 64  # bytes; the first tensor begins at a multiple of it
BLOCK_ROWS = 1 << 16  # ids and codes that one checksum covers
DIGEST_SIZE = 32  # bytes

# The larger come first in a file, so that each tensor is aligned without gaps, which safetensors does not allow. NumPy has no
# bfloat16: its bits are those of a uint16.
_CODES = (("I64", "<i8"), ("F64", "<f8"), ("F32", "<f4"), ("BF16", "<u2"), ("U8", "u1"), ("BOOL", "?"))
_DTYPES = {name: np.dtype(code) for name, code in _CODES}
_ROWS = ("ids", "codes")  # which have checksums of their own


class _Strict(BaseModel):
    model_config = ConfigDict(strict=True, extra="forbid", frozen=True, allow_inf_nan=False)


class _Parts(_Strict):
    transform: dict[str, Any]
    quantizer: dict[str, Any]
    decoder: dict[str, Any] | None
    query: dict[str, Any] | None


class _Validation(_Strict):
    recall: dict[int, Annotated[float, Field(ge=0, le=1)]]
    base: int = Field(ge=1)
    queries: int = Field(ge=1)
    rerank: int = Field(ge=0)


class _Index(_Strict):
    metric: MetricName
    max_norm: float | None = Field(ge=0)
    d: int
    bits: int
    numbering: int | None
    latent_share: float = Field(ge=0, le=1)
    refine: int = Field(ge=1)
    steps: int = Field(default=0, ge=0)
    last_id: int = Field(ge=-1, le=MAX_ID)
    parts: _Parts
    validation: _Validation | None = None
    origin: str | None = None


def write(path: Path, contents: Contents) -> str:
    """Write an index atomically.

    Returns:
        The digest in its header, which covers all its content: ids and codes by their checksums.

    Raises:
        InvalidInput: a part that cannot be stored in a file; see `catalyzer.parts.describe`.
        Unavailable: the file cannot be written, as on a full disk; the old file then stays.
    """
    codec = contents.codec
    header = _Index(
        metric=contents.metric.name,
        max_norm=contents.metric.max_norm,
        d=contents.d,
        bits=codec.quantizer.bits,
        numbering=_numbering(codec.quantizer),
        latent_share=codec.latent_share,
        refine=codec.refine,
        steps=codec.steps,
        last_id=contents.last_id,
        parts=_Parts(**{name: None if part is None else describe(part) for name, part in codec.parts.items()}),  # type: ignore[arg-type]
        validation=None if contents.validation is None else _Validation(**vars(contents.validation)),
        origin=contents.origin,
    )
    # What came later is left out where it says nothing, so that older files stay as they are.
    index = header.model_dump_json(exclude={name for name in ("steps", "validation", "origin") if not getattr(header, name)})
    checksums = np.frombuffer(b"".join(_checksum(contents, at) for at in range(0, len(contents.ids), BLOCK_ROWS)), np.uint8)
    arrays = {"ids": contents.ids, "codes": contents.codes, "checksums": checksums.reshape(-1, DIGEST_SIZE)}
    if contents.lists is not None:
        arrays |= {"lists.offsets": contents.lists.offsets, "lists.centroids": contents.lists.centroids}
    for name, part in codec.parts.items():
        for key, tensor in tensors(part, f"{name}.").items() if part is not None else ():  # type: ignore[arg-type]
            if tensor.dtype not in (torch.int64, torch.float64, torch.float32, torch.uint8, torch.bool):
                raise InvalidInput(f"{key} is {tensor.dtype}, a type that an index cannot store; convert it to float32")
            arrays[key] = _halved(tensor) if contents.origin is not None else tensor.numpy()
    dtypes = {dtype: name for name, dtype in _DTYPES.items()}
    layout = _layout({name: (dtypes[array.dtype.newbyteorder("<")], array.shape) for name, array in arrays.items()})
    digest = _digest(index, layout, arrays)

    def write_tensors(file: BinaryIO) -> None:
        file.write(_header(index, digest, layout))
        for name in layout:
            file.write(_bytes(arrays[name]))

    write_atomically(path, write_tensors)
    return digest


def _halved(tensor: Tensor) -> np.ndarray:
    """The bits of a matrix in bfloat16 where it loses nothing by it, as those of pretrained maps; else the tensor."""
    half = tensor.bfloat16()
    if tensor.dtype != torch.float32 or tensor.ndim != 2 or not torch.equal(half.float(), tensor):
        return tensor.numpy()
    return half.view(torch.uint16).numpy()


def digest_of(path: Path) -> str | None:
    """The digest in the header of an index; None if there is no readable index."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, "np") as header:
            return (header.metadata() or {}).get("blake2b")
    except (OSError, SafetensorError):
        return None


def is_foreign(path: Path) -> bool:
    """Whether there is a file with some content, and it does not begin as an index does."""
    return path.is_file() and path.stat().st_size > 0 and not _begins_as_index(path)


def _begins_as_index(path: Path) -> bool:
    with path.open("rb") as file:
        return FORMAT_NAME.encode() in file.read(8 + ALIGNMENT)


def read(path: Path, mmap: bool, trust: Trust = ()) -> Contents:
    """Read an index that `write` wrote.

    Args:
        path: path of the file.
        mmap: whether ids and codes stay in the file, as read-only memory maps, and are not compared with their checksums.
        trust: modules whose classes the file may name; see `catalyzer.parts.find_class`.

    Raises:
        InvalidInput: no such file, not an index, or one of a later format.
        DamagedFile: it is truncated, differs from its checksums or contradicts itself.
        UntrustedPart: it names a class of a module that is not in `trust`.
    """
    return read_with_digest(path, mmap, trust)[0]


def read_with_digest(path: Path, mmap: bool, trust: Trust = ()) -> tuple[Contents, str]:
    """`read`, and the digest in the header."""
    contents, checksums, digest = _open(path, mmap, trust)
    if not mmap:
        _check_blocks(path, contents, checksums)
    return contents, digest


def verify(path: Path, trust: Trust = ()) -> Contents:
    """Compare everything in an index with its checksums, and check every id and code; returns it memory-mapped.

    Raises:
        DamagedFile: says what is wrong first; other errors as `read`.
    """
    contents, checksums, _ = _open(path, True, trust)
    _check_blocks(path, contents, checksums)
    try:
        for first in range(0, len(contents.codes), BLOCK_ROWS):
            contents.codec.quantizer.check_codes(contents.codes[first : first + BLOCK_ROWS], first)
    except InvalidInput as error:
        raise _damaged(path, str(error)) from None
    if len(np.unique(contents.ids)) < len(contents.ids):
        raise _damaged(path, "an id occurs twice")
    return contents


def _layout(given: Mapping[str, tuple[str, tuple[int, ...]]]) -> dict[str, dict[str, Any]]:
    """The header's entries of tensors, by name, in the order of the file; of each, dtype and shape are given."""
    layout, end = {}, 0
    for name in sorted(given, key=lambda name: ([*_DTYPES].index(given[name][0]), name)):
        dtype, shape = given[name]
        start, end = end, end + math.prod(shape) * _DTYPES[dtype].itemsize
        layout[name] = {"dtype": dtype, "shape": list(shape), "data_offsets": [start, end]}
    return layout


def _header(index: str, digest: str, layout: Mapping[str, Any]) -> bytes:
    metadata = {"format": FORMAT_NAME + FORMAT_VERSION, "index": index, "blake2b": digest}
    text = _json({"__metadata__": metadata, **layout})
    text = text.ljust(len(text) + -(8 + len(text)) % ALIGNMENT)
    return len(text).to_bytes(8, "little") + text


def _digest(index: str, layout: Mapping[str, Any], arrays: Mapping[str, np.ndarray]) -> str:
    digest = hashlib.blake2b(index.encode() + _json(layout), digest_size=DIGEST_SIZE)
    for name in layout:
        if name not in _ROWS:
            digest.update(_bytes(arrays[name]))
    return digest.hexdigest()


def _json(value: Any) -> bytes:
    return json.dumps(value, separators=(",", ":")).encode()


def _bytes(array: np.ndarray) -> memoryview:
    return np.ascontiguousarray(array, array.dtype.newbyteorder("<")).reshape(-1).data


def _checksum(contents: Contents, first: int) -> bytes:
    digest = hashlib.blake2b(digest_size=DIGEST_SIZE)
    for array in (contents.ids, contents.codes):
        digest.update(_bytes(array[first : first + BLOCK_ROWS]))
    return digest.digest()


def _check_blocks(path: Path, contents: Contents, checksums: np.ndarray) -> None:
    n = len(contents.ids)
    with progress("verifying", n, "vectors") as advance:
        for first, expected in zip(range(0, n, BLOCK_ROWS), checksums, strict=True):
            last = min(first + BLOCK_ROWS, n)
            if _checksum(contents, first) != expected.tobytes():
                raise _damaged(path, f"its vectors {first:,} to {last - 1:,} do not match their checksum")
            advance(last - first)


def _numbering(quantizer: Quantizer) -> int | None:
    return quantizer.lattice.format if isinstance(quantizer, LatticeQuantizer) else None


def _open(path: Path, mmap: bool, trust: Trust) -> tuple[Contents, np.ndarray, str]:
    """The contents, the checksums of ids and codes, and the digest in the header."""
    from safetensors import SafetensorError

    if not path.is_file():
        there = "not a file" if path.exists() else "no such file"
        raise InvalidInput(f"{path}: {there}; expected an index that CatalyzerIndex.save or `catalyzer fit` wrote")
    try:
        with _opened(path) as (file, header):
            index, layout, begin = _read_header(path, file, header)
            arrays = {name: _read_array(file, begin, entry, mmap and name in _ROWS) for name, entry in layout.items()}
            digest = _digest(index, layout, arrays)
            if header.metadata()["blake2b"] != digest:
                raise _damaged(path, "its parts do not match their checksum")
    except SafetensorError as error:
        raise (_damaged(path, str(error)) if _begins_as_index(path) else _foreign(path)) from None
    except OSError as error:
        raise Unavailable(f"{path} cannot be read ({error.strerror or error})") from None
    try:
        return _build(_Index.model_validate_json(index), arrays, trust), arrays["checksums"], digest
    except ValidationError as error:
        first = error.errors()[0]
        raise _damaged(path, f"{'.'.join(map(str, first['loc'])) or 'JSON'}: {first['msg']}") from None
    except (ValueError, RuntimeError, MemoryError) as error:
        if isinstance(error, UntrustedPart):
            raise
        raise _damaged(path, str(error).splitlines()[0]) from None


@contextmanager
def _opened(path: Path) -> Iterator[tuple[BinaryIO, Any]]:
    """The file, and what safetensors reads of it; of one file, also while another process replaces it."""
    from safetensors import safe_open

    while True:
        with path.open("rb") as file, safe_open(path, "np") as header:
            if os.path.samestat(os.fstat(file.fileno()), path.stat()):
                yield file, header
                return


def _read_header(path: Path, file: BinaryIO, header: Any) -> tuple[str, dict[str, Any], int]:
    """The `index` text, the layout, and where the tensors begin; safetensors has checked that they fill the file."""
    metadata = header.metadata() or {}
    if not (name := metadata.get("format", "")).startswith(FORMAT_NAME):
        raise _foreign(path)
    if (version := name.removeprefix(FORMAT_NAME)) != FORMAT_VERSION:
        raise InvalidInput(
            f"{path} has format {version[:9]!r}, but this version of catalyzer reads {FORMAT_VERSION}; install a newer version"
        )
    slices = {name: header.get_slice(name) for name in header.keys()}  # noqa: SIM118 (it is no dict)
    given = {name: (each.get_dtype(), tuple(each.get_shape())) for name, each in slices.items()}
    if not metadata.keys() >= {"index", "blake2b"} or not {dtype for dtype, _ in given.values()} <= _DTYPES.keys():
        raise _damaged(path, "its header is not that of an index")
    layout = _layout(given)
    expected = _header(metadata["index"], metadata["blake2b"], layout)
    if file.read(len(expected)) != expected:
        raise _damaged(path, "its header is not in the form that an index has")
    return metadata["index"], layout, len(expected)


def _read_array(file: BinaryIO, begin: int, entry: dict[str, Any], mmap: bool) -> np.ndarray:
    dtype, shape, start = _DTYPES[entry["dtype"]], tuple(entry["shape"]), begin + entry["data_offsets"][0]
    if mmap and math.prod(shape):  # nothing cannot be mapped
        return np.memmap(file, dtype, "r", start, shape)
    file.seek(start)
    return np.fromfile(file, dtype, math.prod(shape)).reshape(shape)


@torch.inference_mode(False)  # a caller may be in that mode, whose tensors no gradient passes, and `steps` follow gradients
def _build(index: _Index, arrays: Mapping[str, np.ndarray], trust: Trust) -> Contents:
    """The contents; a `ValueError` or `RuntimeError` says what is wrong."""
    states: dict[str, dict[str, Tensor]] = {name: {} for name, made in index.parts if made is not None}
    for key, array in arrays.items():
        part, _, name = key.partition(".")
        if key not in (*_ROWS, "checksums", "lists.offsets", "lists.centroids"):
            if part not in states:
                raise ValueError(f"{key} belongs to no part")
            if array.dtype == _DTYPES["BF16"]:
                array = torch.from_numpy(array).view(torch.bfloat16).float().numpy()
            states[part][name] = torch.from_numpy(array)
        # Of all ways to find what is not finite the sum is the fastest, and loading has little else to do.
        if array.dtype.kind == "f" and not math.isfinite(torch.from_numpy(array).sum()):
            raise ValueError(f"{key} is not finite")
    ids, codes = (_array(arrays, name, dtype, ndim) for name, dtype, ndim in (("ids", "i8", 1), ("codes", "u1", 2)))
    if _array(arrays, "checksums", "u1", 2).shape != (-(-len(ids) // BLOCK_ROWS), DIGEST_SIZE):
        raise ValueError("the number of checksums is not the number of blocks of ids")
    parts = index.parts
    transform = _made(Transform, parts.transform, states["transform"], trust)
    check_sizes(transform.d_out, codes.shape[1])
    if index.bits > 8 * codes.shape[1]:
        raise ValueError(f"{index.bits} bits do not fit in codes of {codes.shape[1]} bytes")
    quantizer = _made(Quantizer, parts.quantizer, states["quantizer"], trust, dim=transform.d_out, bits=index.bits)
    decoder = None if parts.decoder is None else _made(Transform, parts.decoder, states["decoder"], trust)
    query = None if parts.query is None else _made(Transform, parts.query, states["query"], trust)
    codec = Codec(
        transform,
        quantizer,
        decoder,
        steps=index.steps,
        refine=index.refine,
        latent_share=index.latent_share,
        query=query,
    )
    metric = Metric(index.metric, index.max_norm)
    validation = None if index.validation is None else Validation(**dict(index.validation))
    contents = Contents(codec, metric, ids, codes, index.last_id, _lists(arrays, len(ids)), validation, index.origin)
    if (index.d, index.bits, index.numbering) != (contents.d, quantizer.bits, _numbering(quantizer)):
        raise ValueError("d, bits or numbering contradict its parts")
    return contents


def _array(arrays: Mapping[str, np.ndarray], name: str, dtype: str, ndim: int) -> np.ndarray:
    array = arrays.get(name)
    if array is None or (array.dtype, array.ndim) != (np.dtype(f"<{dtype}"), ndim):
        raise ValueError(f"{name} is missing, or has another type or shape")
    return array


def _made(kind: Any, description: dict[str, Any], state: dict[str, Tensor], trust: Trust, **expected: int) -> Any:
    """The part with what it has learned; one of this package is made only if its arguments are as expected."""
    is_ours = str(description.get("class")).startswith("catalyzer.")
    arguments = description.get("arguments")
    if is_ours and isinstance(arguments, dict) and any(arguments.get(name, value) != value for name, value in expected.items()):
        raise ValueError(f"its quantizer is not one of {expected}")
    return restored(description, kind, state, trust)


def _lists(arrays: Mapping[str, np.ndarray], n: int) -> InvertedLists | None:
    if "lists.offsets" not in arrays and "lists.centroids" not in arrays:
        return None
    offsets, centroids = _array(arrays, "lists.offsets", "i8", 1), _array(arrays, "lists.centroids", "f4", 2)
    # Offsets are compared and not subtracted, which could overflow.
    whole = len(offsets) == len(centroids) + 1 > 1 and offsets[0] == 0 and offsets[-1] == n
    if not whole or (offsets[1:] < offsets[:-1]).any():
        raise ValueError(f"its lists are not a partition of {n:,} vectors")
    return InvertedLists(centroids, offsets)


def _foreign(path: Path) -> InvalidInput:
    return InvalidInput(f"{path} is not an index; make one with `catalyzer fit` or CatalyzerIndex.save")


def _damaged(path: Path, reason: str) -> DamagedFile:
    return DamagedFile(f"{path} is damaged: {reason}; restore a copy, or build the index again")
