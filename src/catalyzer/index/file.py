"""The file of an index, formats 1 and 2: docs/format.md has them byte by byte. Format 2 is that of an index with lists.

Nothing that a file says is believed before it is checked: sizes have to add up to the size of the file, the shapes of the
networks are those of their tensors, and nothing is unpickled.
"""

import hashlib
import json
import math
import os
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from torch import Tensor, nn

from catalyzer.codec import Codec
from catalyzer.errors import InvalidInput
from catalyzer.files.atomic import write_atomically
from catalyzer.index.lists import InvertedLists
from catalyzer.index.metric import Metric, MetricName
from catalyzer.lattice import SphericalLattice
from catalyzer.nn import Catalyzer, Decoder
from catalyzer.progress import progress
from catalyzer.quantizers import LatticeQuantizer

MAGIC = b"CATALYZR"
FORMAT = 2  # the latest; an index is written in the earliest that can hold it
HEADER_SIZE = 4096
ALIGNMENT = 64  # of each section, so that mapped arrays are aligned for any vector instruction
BLOCK_ROWS = 1 << 16  # ids and codes that one checksum is of
DIGEST_SIZE = 32
MAX_BITS = 128

MAX_ID = (1 << 63) - 1


@dataclass(frozen=True)
class Contents:
    """All that an index is at one moment.

    Attributes:
        codec: trained, its networks on the CPU and its quantizer a lattice.
        metric: fitted.
        bits: the limit that the lattice was chosen by.
        ids: `(n,)` int64, distinct.
        codes: `(n, code_size)` uint8; row i is that of `ids[i]`.
        last_id: the largest id that there is or has been, and no less than -1.
        lists: that ids and codes are sorted by, if there are any.
    """

    codec: Codec
    metric: Metric
    bits: int
    ids: np.ndarray
    codes: np.ndarray
    last_id: int = -1
    lists: InvertedLists | None = None

    @property
    def lattice(self) -> SphericalLattice:
        """The integer points that codes number."""
        assert isinstance(self.codec.quantizer, LatticeQuantizer)
        return self.codec.quantizer.lattice

    @property
    def d(self) -> int:
        """Dimension of the user's vectors."""
        return int(self.codec.transform.d_in) - self.metric.extra  # type: ignore[arg-type]


class _Part(BaseModel):
    model_config = ConfigDict(strict=True, extra="forbid", frozen=True, allow_inf_nan=False)


class _Checked(_Part):
    offset: int
    size: int = Field(ge=0)
    blake2b: str = Field(pattern="^[0-9a-f]{64}$")


class _Lists(_Checked):
    shape: tuple[Annotated[int, Field(ge=1)], Annotated[int, Field(ge=1)]]


class _Ids(_Part):
    offset: int
    shape: tuple[Annotated[int, Field(ge=0)]]


class _Codes(_Part):
    offset: int
    shape: tuple[int, Annotated[int, Field(ge=1, le=MAX_BITS // 8)]]


class _Header(_Part):
    metric: MetricName
    max_norm: float | None = Field(ge=0)
    d: int
    bits: int = Field(ge=1, le=MAX_BITS)
    radius_sq: int
    numbering: int
    latent_share: float = Field(ge=0, le=1)
    last_id: int = Field(ge=-1, le=MAX_ID)
    weights: _Checked
    checksums: _Checked
    lists: _Lists | None = None
    ids: _Ids
    codes: _Codes

    @property
    def sizes(self) -> tuple[int, ...]:
        """Of the sections before the codes, in bytes."""
        lists = 0 if self.lists is None else self.lists.size
        return self.weights.size, self.checksums.size, lists, 8 * self.ids.shape[0]

    @property
    def offsets(self) -> tuple[int, ...]:
        """Where the header says that the sections begin; lists that are not there begin where they would."""
        lists = self.ids.offset if self.lists is None else self.lists.offset
        return self.weights.offset, self.checksums.offset, lists, self.ids.offset, self.codes.offset


def write(path: Path, contents: Contents) -> None:
    """Write an index, whole or not at all.

    Raises:
        InvalidInput: the file cannot be written, as on a full disk; what was at `path` is still there then.
    """
    weights, lists = _weights(contents.codec), b""
    checksums = b"".join(_digest(contents, first) for first in range(0, len(contents.ids), BLOCK_ROWS))
    if contents.lists is not None:
        arrays = contents.lists.offsets.astype("<i8"), contents.lists.centroids.astype("<f4")
        lists = b"".join(array.tobytes() for array in arrays)
    offsets = _offsets(len(weights), len(checksums), len(lists), 8 * len(contents.ids))
    header = _Header(
        metric=contents.metric.name,
        max_norm=contents.metric.max_norm,
        d=contents.d,
        bits=contents.bits,
        radius_sq=contents.lattice.radius_sq,
        numbering=contents.lattice.format,
        latent_share=contents.codec.latent_share,
        last_id=contents.last_id,
        weights=_Checked(offset=offsets[0], size=len(weights), blake2b=_blake2b(weights).hex()),
        checksums=_Checked(offset=offsets[1], size=len(checksums), blake2b=_blake2b(checksums).hex()),
        lists=None
        if contents.lists is None
        else _Lists(offset=offsets[2], size=len(lists), blake2b=_blake2b(lists).hex(), shape=contents.lists.centroids.shape),
        ids=_Ids(offset=offsets[3], shape=contents.ids.shape),
        codes=_Codes(offset=offsets[4], shape=contents.codes.shape),
    )
    version = 1 if contents.lists is None else 2
    text = json.dumps(header.model_dump(exclude={"lists"} if version == 1 else None), indent=1)
    head = (MAGIC + struct.pack("<II", version, 0) + text.encode()).ljust(HEADER_SIZE - DIGEST_SIZE)
    sections = [weights], [checksums], [lists], _blocks(contents.ids), _blocks(contents.codes)

    def write_sections(file: Any) -> None:
        file.write(head + _blake2b(head))
        for offset, section in zip(offsets, sections, strict=True):
            file.write(bytes(offset - file.tell()))
            for part in section:
                file.write(part)

    try:
        write_atomically(path, write_sections)
    except OSError as error:
        raise InvalidInput(f"{path} cannot be written ({error.strerror or error}); what was there is unchanged") from None


def read(path: Path, mmap: bool) -> Contents:
    """Read an index that `write` wrote.

    Args:
        path: of the file.
        mmap: leave ids and codes in the file, as read-only memory maps, and believe them; else they are read and compared
            with their checksums.

    Raises:
        InvalidInput: no such file, not an index, of a later format, or damaged.
    """
    contents, checksums = _open(path, mmap)
    if not mmap:
        _check_blocks(path, contents, checksums)
    return contents


def verify(path: Path) -> Contents:
    """Compare all of an index with its checksums, and look at every id and code; returns it, memory-mapped.

    Raises:
        InvalidInput: what is wrong first.
    """
    contents, checksums = _open(path, mmap=True)
    _check_blocks(path, contents, checksums)
    try:
        for first in range(0, len(contents.codes), BLOCK_ROWS):
            contents.lattice.words(contents.codes[first : first + BLOCK_ROWS], first)
    except InvalidInput as error:
        raise _damaged(path, str(error)) from None
    if len(np.unique(contents.ids)) < len(contents.ids):
        raise _damaged(path, "it has an id twice")
    return contents


def weights_digest(codec: Codec) -> bytes:
    """BLAKE2b-256 of the networks: equal where vectors have the same codes."""
    return _blake2b(_weights(codec))


def _offsets(*sizes: int) -> tuple[int, ...]:
    """Where sections begin that are of these sizes, and where the one behind them does."""
    offsets = [HEADER_SIZE]
    for size in sizes:
        offsets.append(-(-(offsets[-1] + size) // ALIGNMENT) * ALIGNMENT)
    return tuple(offsets)


def _open(path: Path, mmap: bool) -> tuple[Contents, bytes]:
    if not path.is_file():
        raise InvalidInput(f"{path}: no such file; expected an index that CatalyzerIndex.save or `catalyzer fit` wrote")
    try:
        with path.open("rb") as file:
            size = os.fstat(file.fileno()).st_size
            header = _read_header(path, file.read(HEADER_SIZE))
            (n,) = header.ids.shape
            if (
                header.offsets != _offsets(*header.sizes)
                or header.checksums.size != DIGEST_SIZE * -(-n // BLOCK_ROWS)
                or header.codes.shape[0] != n
            ):
                raise _damaged(path, "its header contradicts itself")
            expected = header.codes.offset + n * header.codes.shape[1]
            if size != expected:
                raise _damaged(path, f"its header makes {expected:,} bytes, but it has {size:,}")

            weights = _read_section(path, file, header.weights, "weights")
            checksums = _read_section(path, file, header.checksums, "checksums")
            lists = None if header.lists is None else _read_lists(path, file, header.lists, n)
            for start, length, offset in zip(header.offsets, header.sizes, header.offsets[1:], strict=False):
                file.seek(start + length)
                if any(file.read(offset - start - length)):
                    raise _damaged(path, "there is something between its sections")
            networks = _networks(path, weights)
            contents = _build(path, header, networks, lists, *_arrays(path, file, header, mmap))
    except OSError as error:
        raise InvalidInput(f"{path} cannot be read: {error.strerror}") from None
    return contents, checksums


def _read_lists(path: Path, file: Any, section: _Lists, n: int) -> InvertedLists:
    content = _read_section(path, file, section, "lists")
    ivf, dim = section.shape
    if len(content) != 8 * (ivf + 1) + 4 * ivf * dim:
        raise _damaged(path, f"{ivf:,} lists are not what its {len(content):,} bytes of lists hold")
    offsets = np.frombuffer(content, "<i8", ivf + 1).astype(np.int64)
    centroids = np.frombuffer(content, "<f4", ivf * dim, 8 * (ivf + 1)).astype(np.float32).reshape(ivf, dim)
    # Offsets are compared and not subtracted, which could overflow. Centroids are means of points of norm 1; beyond 2 there
    # is damage, and NaN is not within.
    if offsets[0] != 0 or offsets[-1] != n or (offsets[1:] < offsets[:-1]).any() or not (np.abs(centroids) <= 2).all():
        raise _damaged(path, f"its lists are not a partition of {n:,} vectors")
    return InvertedLists(centroids, offsets)


def _read_header(path: Path, head: bytes) -> _Header:
    if head[: len(MAGIC)] != MAGIC:
        raise InvalidInput(f"{path} is not an index: it does not begin with {MAGIC.decode()}; `catalyzer fit` makes one")
    if len(head) < HEADER_SIZE:
        raise _damaged(path, f"it ends after {len(head):,} bytes")
    version, zero = struct.unpack_from("<II", head, len(MAGIC))
    if version > FORMAT:
        raise InvalidInput(f"{path} has format {version:,}, and this catalyzer reads up to {FORMAT}; install a newer one")
    if version < 1 or zero or _blake2b(head[:-DIGEST_SIZE]) != head[-DIGEST_SIZE:]:
        raise _damaged(path, "its header differs from its checksum")
    try:
        header = _Header.model_validate_json(head[len(MAGIC) + 8 : -DIGEST_SIZE])
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(map(str, first["loc"])) or "JSON"
        raise _damaged(path, f"its header is not of format {version} ({place}: {first['msg']})") from None
    if ("lists" in header.model_fields_set) != (version == 2) or (header.lists is None) != (version == 1):
        raise _damaged(path, f"its header is not of format {version}, which {'has' if version == 2 else 'knows no'} lists")
    return header


def _read_section(path: Path, file: Any, section: _Checked, name: str) -> bytes:
    file.seek(section.offset)
    content = file.read(section.size)
    if _blake2b(content).hex() != section.blake2b:
        raise _damaged(path, f"its {name} differ from their checksum")
    return content


def _arrays(path: Path, file: Any, header: _Header, mmap: bool) -> tuple[np.ndarray, np.ndarray]:
    arrays: list[np.ndarray] = []
    for section, dtype in ((header.ids, "<i8"), (header.codes, "u1")):
        shape = tuple(section.shape)
        count = int(np.prod(shape))
        if mmap and count:  # nothing cannot be mapped
            arrays.append(np.memmap(file, dtype, "r", section.offset, shape))
            continue
        file.seek(section.offset)
        array = np.fromfile(file, dtype, count)
        if len(array) < count:
            raise _damaged(path, "it became shorter while it was read")
        arrays.append(array.reshape(shape))
    return arrays[0], arrays[1]


def _networks(path: Path, weights: bytes) -> dict[str, nn.Module]:
    """The networks by name, built of their tensors alone."""
    from safetensors import SafetensorError
    from safetensors.torch import load

    try:
        tensors: dict[str, dict[str, Tensor]] = {}
        for key, tensor in load(weights).items():
            name, _, rest = key.partition(".")
            tensors.setdefault(name, {})[rest] = tensor
            counter = rest.endswith("num_batches_tracked")
            dtype = torch.int64 if counter else torch.float32
            # Of all ways to find what is not finite the sum is the fastest, and loading has little else to do.
            if tensor.dtype != dtype or not math.isfinite(tensor.sum()):
                raise ValueError(f"{key} is {tensor.dtype}, or not finite")
        if "catalyzer" not in tensors or not tensors.keys() <= {"catalyzer", "decoder", "query"}:
            raise ValueError(f"expected catalyzer, decoder and query, got {', '.join(sorted(tensors)) or 'none'}")
        networks: dict[str, nn.Module] = {}
        for name, state in tensors.items():
            hidden, d_in = state["layers.0.weight"].shape
            d_out = state["layers.6.weight"].shape[0]
            if min(hidden, d_in, d_out) < 1:
                raise ValueError(f"{name} maps {d_in} to {d_out} dimensions through {hidden}")
            with torch.device("meta"):  # the tensors are there already
                network = (Decoder if name == "decoder" else Catalyzer)(d_in, d_out, hidden)
            network.load_state_dict(state, assign=True)
            networks[name] = network.eval()
    except (SafetensorError, ValueError, KeyError, IndexError, RuntimeError) as error:
        raise _damaged(path, f"its weights are not the networks of an index: {str(error).splitlines()[0]}") from None
    return networks


def _build(
    path: Path,
    header: _Header,
    networks: dict[str, nn.Module],
    lists: InvertedLists | None,
    ids: np.ndarray,
    codes: np.ndarray,
) -> Contents:
    catalyzer, decoder, query = networks["catalyzer"], networks.get("decoder"), networks.get("query")
    assert isinstance(catalyzer, Catalyzer)
    assert decoder is None or isinstance(decoder, Decoder)
    assert query is None or isinstance(query, Catalyzer)
    try:
        quantizer = LatticeQuantizer(catalyzer.d_out, header.bits)
    except InvalidInput as error:
        raise _damaged(path, str(error)) from None
    contents = Contents(
        Codec(catalyzer, quantizer, decoder, latent_share=header.latent_share, query=query),
        Metric(header.metric, header.max_norm),
        header.bits,
        ids,
        codes,
        header.last_id,
        lists,
    )
    fits = (
        quantizer.lattice.radius_sq == header.radius_sq
        and quantizer.lattice.format == header.numbering
        and quantizer.code_size == codes.shape[1]
        and contents.d == header.d >= 1
        and (header.max_norm is not None) == (header.metric == "ip")
        and (decoder is None or (decoder.d_in, decoder.d_out) == (catalyzer.d_out, catalyzer.d_in))
        and (lists is None or lists.centroids.shape[1] == catalyzer.d_out)
        and (query is None or (query.d_in, query.d_out) == (catalyzer.d_in, catalyzer.d_out))
    )
    if not fits:
        raise _damaged(path, "its header and its networks do not belong together")
    return contents


def _check_blocks(path: Path, contents: Contents, checksums: bytes) -> None:
    n = len(contents.ids)
    with progress("verifying", n, "vectors") as advance:
        for first in range(0, n, BLOCK_ROWS):
            at = first // BLOCK_ROWS * DIGEST_SIZE
            last = min(first + BLOCK_ROWS, n)
            if _digest(contents, first) != checksums[at : at + DIGEST_SIZE]:
                raise _damaged(path, f"its vectors {first:,} to {last - 1:,} differ from their checksum")
            advance(last - first)


def _weights(codec: Codec) -> bytes:
    from safetensors.torch import save

    networks = {"catalyzer": codec.transform, "decoder": codec.decoder, "query": codec.query}
    return save({
        f"{name}.{key}": tensor.detach().contiguous()
        for name, network in networks.items()
        if network is not None
        for key, tensor in network.state_dict().items()
    })  # fmt: skip


def _digest(contents: Contents, first: int) -> bytes:
    rows = slice(first, first + BLOCK_ROWS)
    return _blake2b(*_blocks(contents.ids[rows]), *_blocks(contents.codes[rows]))


def _blocks(array: np.ndarray) -> Iterator[memoryview]:
    for first in range(0, len(array), BLOCK_ROWS):
        block = array[first : first + BLOCK_ROWS]
        yield np.ascontiguousarray(block, block.dtype.newbyteorder("<")).data


def _blake2b(*parts: bytes | memoryview) -> bytes:
    digest = hashlib.blake2b(digest_size=DIGEST_SIZE)
    for part in parts:
        digest.update(part)
    return digest.digest()


def _damaged(path: Path, reason: str) -> InvalidInput:
    return InvalidInput(f"{path} is damaged: {reason}; take a copy that is whole, or make it anew")
