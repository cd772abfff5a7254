"""`ProductLattice`: a sphere for each block of coordinates, for codes of any size.

Adjacent equal blocks are rows of one array, so one call of a sphere's method computes them all.
"""

from __future__ import annotations

import math
import textwrap
from collections.abc import Iterable, Sequence
from functools import cache, cached_property
from itertools import groupby
from typing import TYPE_CHECKING, NamedTuple, TypeVar

import numpy as np

from catalyzer.errors import InvalidInput, Unavailable, integer
from catalyzer.lattice.counting import MAX_DIM as MAX_BLOCK_DIM
from catalyzer.lattice.counting import best_radius_sq, check_sphere, num_atoms, num_points
from catalyzer.lattice.numbering import FORMAT
from catalyzer.lattice.spherical import SphericalLattice, refuse_row

if TYPE_CHECKING:
    import torch

Array = TypeVar("Array", np.ndarray, "torch.Tensor")

MAX_DIM, MAX_BITS = 4096, 4096
BLOCK_BITS = 64  # of a block that is chosen: one machine word, which the loops are fastest with
BLOCK_ATOMS = 2_500  # of a block that is chosen, at most; encoding takes time for each
FILLED = 0.9  # share of its bits with which a lattice is content
NEAREST_ROWS = 1 << 12  # vectors whose nearest points are found together


class _Run(NamedTuple):
    """Consecutive blocks with the same sphere."""

    sphere: SphericalLattice
    repeats: int
    columns: slice
    bytes: slice


class ProductLattice:
    """A product of spheres: vectors are cut into blocks, and each block is quantized to an integer point of its own sphere.

    A code concatenates the codes of the blocks, each in whole bytes. A decoded vector has norm 1, and a block of d coordinates
    has the share d / dim of its squared norm. Like those of `SphericalLattice`, methods take NumPy arrays or torch tensors and
    return the same kind, on the same device.

    Args:
        blocks: dimension and squared radius of each block's sphere.

    Attributes:
        dim: dimension of the vectors, at most 4,096.
        num_points: number of points, a Python integer.
        bits: bits of a code, those of its blocks together; at most 4,096.
        code_size: bytes of a code.
        spheres: the `SphericalLattice` of each block.
        radii: `(blocks,)` float64, the divisors of the blocks' integer points.
        format: version of the spheres' numbering.

    Raises:
        InvalidInput: no blocks, an invalid sphere, or too many dimensions or bits.

    >>> lattice = ProductLattice([(32, 36)] * 4)
    >>> lattice.dim, lattice.bits, lattice.code_size
    (128, 256, 32)
    >>> y = np.random.default_rng(0).normal(size=(5, 128)).astype(np.float32)
    >>> z = lattice.decode(lattice.encode(y))
    >>> z.shape, bool(np.allclose(np.linalg.norm(z, axis=1), 1))
    ((5, 128), True)
    """

    format = FORMAT

    def __init__(self, blocks: Iterable[Sequence[int]]) -> None:
        try:
            pairs = [(dim, radius_sq) for dim, radius_sq in blocks]
        except (TypeError, ValueError):
            pairs = []
        if not pairs:
            given = textwrap.shorten(repr(blocks), 60)
            raise InvalidInput(f"blocks must be pairs of a dimension and a squared radius, one for each sphere; got {given}")
        self.spheres = tuple(_sphere(*check_sphere(dim, radius_sq)) for dim, radius_sq in pairs)
        self.blocks = tuple((sphere.dim, sphere.radius_sq) for sphere in self.spheres)
        self.dim = integer("dimensions of a product lattice", sum(dim for dim, _ in self.blocks), 2, MAX_DIM)
        self.bits = integer("bits of a product lattice", sum(sphere.bits for sphere in self.spheres), 1, MAX_BITS)
        self.num_points = math.prod(sphere.num_points for sphere in self.spheres)
        self.code_size = sum(sphere.code_size for sphere in self.spheres)
        self.radii = np.array([(sphere.radius_sq * self.dim / sphere.dim) ** 0.5 for sphere in self.spheres])

    @classmethod
    def for_bits(cls, dim: int, bits: int, blocks: int | None = None, reserved: int = 0) -> ProductLattice:
        """A lattice whose codes fit in `bits` bits, with blocks as equal as whole bytes allow.

        Args:
            dim: 2 to 4,096.
            bits: 8 to 4,096.
            blocks: number of blocks; by default the fewest with one machine word and few atoms per block.
            reserved: bits of each block's code that are left free.

        Raises:
            InvalidInput: numbers out of range, more blocks than dimensions or bytes allow, or too few bits for the dimension.

        >>> ProductLattice.for_bits(dim=128, bits=256).blocks
        ((32, 36), (32, 36), (32, 36), (32, 36))
        >>> ProductLattice.for_bits(dim=60, bits=160).blocks
        ((21, 72), (21, 72), (18, 66))
        """
        dim = integer("dimensions of a product lattice", dim, 2, MAX_DIM)
        bits = integer("bits of a product lattice", bits, 8, MAX_BITS)
        most = min(dim // 2, bits // 8)  # of two dimensions and a byte each
        if blocks is not None:
            return cls(_cut(dim, bits, integer("blocks", blocks, 1, most, f"for {dim} dimensions and {bits} bits"), reserved))
        best: list[tuple[int, int]] = []
        filled = 0
        for count in range(max(-(-bits // BLOCK_BITS), -(-dim // MAX_BLOCK_DIM)), most + 1):
            try:
                cut = _cut(dim, bits, count, reserved)
            except InvalidInput:
                continue
            size = sum((_num_points(*block) - 1).bit_length() + reserved for block in cut)
            if size > filled and max(_num_atoms(*block) for block in set(cut)) <= BLOCK_ATOMS:
                best, filled = cut, size
            if filled >= FILLED * bits:
                break
        if not best:
            few = bits * MAX_BLOCK_DIM < 8 * dim + BLOCK_BITS
            raise InvalidInput(
                f"{bits} bits are too {'few' if few else 'many'} for {dim} dimensions: a block has 2 to {MAX_BLOCK_DIM} "
                f"dimensions and 1 to {BLOCK_BITS // 8} bytes"
            )
        return cls(best)

    def __repr__(self) -> str:
        runs = ", ".join(f"{run.repeats} x ({run.sphere.dim}, {run.sphere.radius_sq})" for run in self._runs)
        return f"ProductLattice({runs})"

    def __reduce__(self) -> tuple[type[ProductLattice], tuple[tuple[tuple[int, int], ...]]]:
        return type(self), (self.blocks,)  # all else is computed from these, and compiled code does not travel

    @cached_property
    def _runs(self) -> list[_Run]:
        runs, column, byte = [], 0, 0
        for sphere, same in groupby(self.spheres):
            count = len([*same])
            columns, size = count * sphere.dim, count * sphere.code_size
            runs.append(_Run(sphere, count, slice(column, column + columns), slice(byte, byte + size)))
            column, byte = column + columns, byte + size
        return runs

    def first(self, blocks: int) -> SphericalLattice | ProductLattice:
        """The lattice of the first blocks, whose codes are the first `code_size` bytes of these codes.

        Raises:
            InvalidInput: no blocks, or more than there are.

        >>> ProductLattice([(32, 36)] * 4).first(2)
        ProductLattice(2 x (32, 36))
        """
        blocks = integer("blocks", blocks, 1, len(self.blocks), "the number of blocks of a code")
        return self if blocks == len(self.blocks) else self.spheres[0] if blocks == 1 else ProductLattice(self.blocks[:blocks])

    def quantize(self, y: Array) -> Array:
        """The integer points nearest to each block's direction.

        Args:
            y: `(n, dim)` floating point.

        Returns:
            `(n, dim)` int16; block b has the squared norm of its sphere.

        Raises:
            InvalidInput: another shape, or NaN or infinity in y.
        """
        return self._each(y, "quantize")

    def vectors(self, z: Array) -> Array:
        """Integer points `(n, dim)` as vectors of norm 1, float32: each block divided by its radius."""
        parts = [
            run.sphere.vectors(z[:, run.columns].reshape(-1, run.sphere.dim), self._norm(run.sphere)) for run in self._runs
        ]
        return self._joined(parts, len(z))

    def nearest_vectors(self, y: torch.Tensor) -> torch.Tensor:
        """`vectors` of `quantize`, for training; see `SphericalLattice.nearest_vectors`, here block by block."""
        if y.device.type == "cpu":
            return self.vectors(self.quantize(y))
        self._check(y)
        parts = [
            run.sphere.nearest_vectors(y[:, run.columns].reshape(-1, run.sphere.dim), self._norm(run.sphere))
            for run in self._runs
        ]
        return self._joined(parts, len(y))

    def nearest(self, y: np.ndarray, k: int) -> np.ndarray:
        """The k points nearest to each vector, nearest first: combinations of the nearest points of its blocks.

        Args:
            y: `(n, dim)` floating point.
            k: number of points, at most `num_points`; memory and time grow with it.

        Returns:
            `(n, k, dim)` int16; ties in any order.

        Raises:
            InvalidInput: another shape, another k, or NaN or infinity in y.
            Unavailable: the points do not fit into memory.

        >>> ProductLattice([(2, 1), (2, 1)]).nearest(np.array([[3.0, 1.0, 0.5, -2.0]]), k=2).tolist()
        [[[1, 0, 0, -1], [1, 0, 1, 0]]]
        """
        self._check(y)
        _check_finite(y)
        k = integer("k", k, 1, self.num_points, "the number of points")
        try:
            points = np.empty((len(y), k, self.dim), np.int16)
        except (MemoryError, ValueError):  # more than NumPy can count
            raise Unavailable(f"{k:,} points for each of {len(y):,} vectors do not fit into memory; lower k") from None
        for first in range(0, len(y), NEAREST_ROWS):
            points[first : first + NEAREST_ROWS] = self._nearest(y[first : first + NEAREST_ROWS], k)
        return points

    def _nearest(self, y: np.ndarray, k: int) -> np.ndarray:
        # The i-th best so far and the j-th best of the next block are among the k best together only if (i+1)(j+1) <= k.
        rows = np.arange(len(y))[:, None]
        points, products, column = np.empty((len(y), 1, 0), np.int16), np.zeros((len(y), 1)), 0
        for sphere, radius in zip(self.spheres, self.radii, strict=True):
            part = np.ascontiguousarray(y[:, column : column + sphere.dim])
            column += sphere.dim
            near = sphere.nearest(part, min(k, sphere.num_points))
            more = np.einsum("nd,nkd->nk", part.astype(np.float64), near.astype(np.float64)) / radius
            i, j = np.indices((points.shape[1], near.shape[1])).reshape(2, -1)
            i, j = (each[(i + 1) * (j + 1) <= k] for each in (i, j))
            sums = products[:, i] + more[:, j]
            best = np.argsort(-sums, axis=1, kind="stable")[:, :k]
            points = np.concatenate([points[rows, i[best]], near[rows, j[best]]], axis=2)
            products = sums[rows, best]
        return points

    def encode(self, y: Array) -> Array:
        """The codes of the points nearest to y.

        Args:
            y: `(n, dim)` floating point.

        Returns:
            `(n, code_size)` uint8: the blocks' codes, each a little-endian integer.

        Raises:
            InvalidInput: another shape, or NaN or infinity in y.
        """
        return self._each(y, "encode")

    def decode(self, codes: Array) -> Array:
        """The points of the codes, `(n, dim)` float32 of norm 1.

        Args:
            codes: `(n, code_size)` uint8.

        Raises:
            InvalidInput: another shape or type, or an invalid code.
        """
        if codes.ndim != 2 or codes.shape[1] != self.code_size:
            raise InvalidInput(f"codes must be (n, {self.code_size}) uint8, got {tuple(codes.shape)} {codes.dtype}")
        try:
            parts = [
                run.sphere.decode(codes[:, run.bytes].reshape(-1, run.sphere.code_size), norm=self._norm(run.sphere))
                for run in self._runs
            ]
        except InvalidInput:
            self.check_codes(codes if isinstance(codes, np.ndarray) else codes.cpu().numpy())  # which knows the row
            raise
        return self._joined(parts, len(codes))

    def check_codes(self, codes: np.ndarray, first_row: int = 0) -> None:
        """Raise `InvalidInput` for the first row that is not a code; see `SphericalLattice.check_codes`."""
        if codes.ndim != 2 or codes.shape[1] != self.code_size or codes.dtype != np.uint8:
            raise InvalidInput(f"codes must be (n, {self.code_size}) uint8, got {codes.shape} {codes.dtype}")
        byte, refused = 0, [(len(codes), "")]
        for block, sphere in enumerate(self.spheres):
            part = codes[:, byte : byte + sphere.code_size]
            byte += sphere.code_size
            try:
                sphere.words(part)
            except InvalidInput:
                values = [int.from_bytes(row.tobytes(), "little") for row in part]
                row = next(row for row, value in enumerate(values) if value >= sphere.num_points)
                refused.append((row, f"{values[row]} in block {block}, but {sphere!r} has codes below {sphere.num_points}"))
        row, what = min(refused)
        if what:
            raise InvalidInput(f"row {first_row + row:,} holds the code {what}")

    def _norm(self, sphere: SphericalLattice) -> float:
        """The norm of a block in a vector of norm 1."""
        return (sphere.dim / self.dim) ** 0.5

    def _check(self, y: Array) -> None:
        if y.ndim != 2 or y.shape[1] != self.dim:
            raise InvalidInput(f"expected vectors of shape (n, {self.dim}), got {tuple(y.shape)}")

    def _each(self, y: Array, method: str) -> Array:
        """What a method of the spheres makes of their blocks, joined again."""
        self._check(y)
        try:
            parts = [getattr(run.sphere, method)(y[:, run.columns].reshape(-1, run.sphere.dim)) for run in self._runs]
        except InvalidInput:  # which names the row of a block
            _check_finite(y if isinstance(y, np.ndarray) else y.detach().cpu().float().numpy())
            raise
        return self._joined(parts, len(y))

    def _joined(self, parts: list[Array], n: int) -> Array:
        """What runs of blocks were turned into, `(n · repeats, width)` each, side by side."""
        each = [part.reshape(n, run.repeats * part.shape[1]) for run, part in zip(self._runs, parts, strict=True)]
        if len(each) == 1:
            return each[0]
        if isinstance(each[0], np.ndarray):
            return np.concatenate(each, axis=1)
        import torch

        return torch.cat(each, dim=1)


def _cut(dim: int, bits: int, count: int, reserved: int) -> list[tuple[int, int]]:
    """A number of blocks of about equal bytes, some bits of which are reserved, with dimensions in proportion to the bits.

    Equal blocks are adjacent, the largest first, so that they are coded together. Bits that fill no byte belong to one block.
    """
    small, larger = divmod(bits // 8, count)
    shares = [*[8 * (small + 1)] * larger, 8 * small + bits % 8, *[8 * small] * (count - larger - 1)]
    ends = np.round(dim * np.cumsum(shares) / bits).astype(int)
    widths = np.diff(ends, prepend=0).tolist()
    if max(widths) > MAX_BLOCK_DIM:
        widths = [dim // count + (block < dim % count) for block in range(count)]
    blocks = sorted(zip(shares, widths, strict=True), reverse=True)
    return [(width, _radius_sq(width, share - reserved)) for share, width in blocks]


def _radius_sq(dim: int, bits: int) -> int:
    """`best_radius_sq`, computed once for each pair."""
    found = _radius_or_refusal(dim, bits)
    if isinstance(found, str):
        raise InvalidInput(found)
    return found


@cache
def _radius_or_refusal(dim: int, bits: int) -> int | str:
    # What is raised is not cached, and it takes the longest to find out that no radius is large enough.
    try:
        return best_radius_sq(dim, bits)
    except InvalidInput as error:
        return str(error)


def _check_finite(y: np.ndarray) -> None:
    finite = np.isfinite(y).all(axis=1)
    refuse_row(-1 if finite.all() else int(np.argmin(finite)))


_num_points, _num_atoms = cache(num_points), cache(num_atoms)
_sphere = cache(SphericalLattice)  # equal blocks share their tables
