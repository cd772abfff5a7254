"""`SphericalLattice`: the quantizer of section 4.2, whose codebook is all integer points of one norm."""

from __future__ import annotations

from functools import cached_property
from itertools import groupby
from typing import TYPE_CHECKING, TypeVar

import numpy as np

from catalyzer.errors import InvalidInput, Unavailable, integer
from catalyzer.lattice.counting import best_radius_sq, enumerate_atoms, num_points
from catalyzer.lattice.numbering import BUCKETS, FORMAT, Numbering, number

if TYPE_CHECKING:
    import torch

    from catalyzer.lattice.device import DeviceLattice
    from catalyzer.lattice.kernels import Atoms, Tables

Array = TypeVar("Array", np.ndarray, "torch.Tensor")

MAX_BITS = 128
ROOT_BITS = 15  # leading bits of a code that guide to its first leaf


class SphericalLattice:
    """The set S of integer points z with |z|² = radius_sq, its nearest points, and their numbering.

    Methods take NumPy arrays or torch tensors and return the same kind, on the same device. Inputs need not be normalized: the
    nearest point depends on the direction alone. Ties go to the lexicographically larger atom and, between equal magnitudes, to
    the lower coordinate; a zero (of either sign) counts as positive.

    Args:
        dim: dimension d, 2 to 128.
        radius_sq: squared norm r² of the points.

    Attributes:
        num_points: number of points, a Python integer.
        bits: bits of a code, `ceil(log2(num_points))`.
        code_size: bytes of a code, `ceil(bits / 8)`.
        format: version of the numbering; codes of one format mean the same points in all versions and on all devices.
        atoms: `(num_atoms, dim)` int16, the points that are non-negative and decreasing (Appendix B).
        spheres: the lattice itself, as a `ProductLattice` of one block.
        radii: `(1,)` float64, r.

    Raises:
        InvalidInput: no integer point has this norm, a code takes more than 128 bits, or the atoms or tables do not fit into
            memory.

    >>> lattice = SphericalLattice(dim=24, radius_sq=79)
    >>> lattice.num_points, lattice.bits, lattice.code_size, len(lattice.atoms)
    (17319684851070915840, 64, 8, 256)
    >>> small = SphericalLattice(dim=3, radius_sq=2)
    >>> y = np.array([[0.1, -3.0, 2.0]], dtype=np.float32)
    >>> small.quantize(y)
    array([[ 0, -1,  1]], dtype=int16)
    >>> int.from_bytes(small.encode(y)[0], "little") < small.num_points
    True
    >>> small.decode(small.encode(y))
    array([[ 0.        , -0.70710677,  0.70710677]], dtype=float32)
    """

    format = FORMAT

    def __init__(self, dim: int, radius_sq: int) -> None:
        self.num_points = num_points(dim, radius_sq)
        self.dim, self.radius_sq = int(dim), int(radius_sq)
        if self.num_points == 0:
            raise InvalidInput(f"no integer point of {dim} dimensions has the squared norm r² = {radius_sq}; choose another r²")
        self.bits = (self.num_points - 1).bit_length()
        self.code_size = -(-self.bits // 8)
        if self.bits > MAX_BITS:
            raise InvalidInput(
                f"dim {dim}, r² {radius_sq} needs codes of {self.bits} bits, more than the {MAX_BITS} that are supported; "
                "use a smaller r² or fewer dimensions"
            )
        self.atoms = enumerate_atoms(dim, radius_sq)
        self.numbering = number(self.dim, self.radius_sq)
        self.radii = np.array([self.radius_sq**0.5])
        self._devices: dict[torch.device, DeviceLattice] = {}

    @classmethod
    def for_bits(cls, dim: int, bits: int) -> SphericalLattice:
        """The lattice of the largest r² whose codes fit in `bits` bits.

        >>> SphericalLattice.for_bits(dim=24, bits=64)
        SphericalLattice(dim=24, radius_sq=79)
        """
        bits = integer("bits of a lattice", bits, 1, MAX_BITS)
        return cls(dim, best_radius_sq(dim, bits))

    def __repr__(self) -> str:
        return f"SphericalLattice(dim={self.dim}, radius_sq={self.radius_sq})"

    def __reduce__(self) -> tuple[type[SphericalLattice], tuple[int, int]]:
        return type(self), (self.dim, self.radius_sq)  # all else is computed from these, and compiled code does not travel

    @property
    def spheres(self) -> tuple[SphericalLattice, ...]:
        return (self,)

    def first(self, blocks: int) -> SphericalLattice:
        """The lattice itself, of one block; see `ProductLattice.first`."""
        integer("blocks", blocks, 1, 1, "the number of blocks of a code")
        return self

    def quantize(self, y: Array, out: Array | None = None) -> Array:
        """The integer point nearest to r·y/|y|: argmax of the dot product, equation 5.

        Args:
            y: `(n, dim)` floating point.
            out: array for the result, instead of a new one, which takes longer to allocate than to fill.

        Returns:
            `(n, dim)` int16, rows of squared norm `radius_sq`.

        Raises:
            InvalidInput: another shape, NaN or infinity in y, or an `out` of another shape or type.
        """
        if not isinstance(y, np.ndarray) and y.device.type != "cpu":
            points = self._on(y.device).quantize(self._checked(y))
            return points if out is None else out.copy_(points)
        from catalyzer.lattice import kernels

        vectors = self._checked(_as_numpy(y))
        result = _result(out, vectors.shape, np.dtype(np.int16))
        refuse_row(kernels.nearest(vectors, self._atoms, result))
        return _like(result, y) if out is None else out

    def nearest(self, y: np.ndarray, k: int) -> np.ndarray:
        """The k integer points nearest to r·y/|y|, nearest first.

        Args:
            y: `(n, dim)` floating point.
            k: number of points, at most `num_points`; memory and time grow with it.

        Returns:
            `(n, k, dim)` int16; ties in any order.

        Raises:
            InvalidInput: another shape, another k, or NaN or infinity in y.
            Unavailable: the points do not fit into memory.

        >>> SphericalLattice(dim=3, radius_sq=2).nearest(np.array([[0.1, -3.0, 2.0]]), k=2)
        array([[[ 0, -1,  1],
                [ 1, -1,  0]]], dtype=int16)
        """
        from catalyzer.lattice.near_kernels import nearest_many

        k = integer("k", k, 1, self.num_points, "the number of points")
        vectors = self._checked(y)
        try:
            points = np.empty((len(vectors), k, self.dim), np.int16)
        except (MemoryError, ValueError):  # more than NumPy can count
            raise Unavailable(f"{k:,} points for each of {len(vectors):,} vectors do not fit into memory; lower k") from None
        weights = np.random.default_rng(0).integers(1 << 64, size=self.dim, dtype=np.uint64)
        refuse_row(nearest_many(vectors, self._atoms, weights, k, points))
        return points

    def encode(self, y: Array) -> Array:
        """The codes of the points nearest to y.

        Args:
            y: `(n, dim)` floating point.

        Returns:
            `(n, code_size)` uint8: each row a little-endian integer in [0, num_points).

        Raises:
            InvalidInput: another shape, or NaN or infinity in y.
        """
        if not isinstance(y, np.ndarray) and y.device.type != "cpu":
            if self.bits > 64:  # more than torch's integers hold
                return self.encode(y.cpu()).to(y.device)
            return self._on(y.device).encode(self._checked(y))
        from catalyzer.lattice import kernels

        vectors = self._checked(_as_numpy(y))
        low = np.empty(len(vectors), "<u8")
        high = np.empty(len(vectors) if self.bits > 64 else 0, "<u8")
        refuse_row(kernels.encode(vectors, self._atoms, self.tables, low, high))
        bytes_ = low.view(np.uint8).reshape(-1, 8)
        if self.bits > 64:
            bytes_ = np.concatenate([bytes_, high.view(np.uint8).reshape(-1, 8)], axis=1)
        return _like(np.ascontiguousarray(bytes_[:, : self.code_size]), y)

    def vectors(self, z: Array, norm: float = 1.0) -> Array:
        """Integer points `(n, dim)` divided by r: `(n, dim)` float32, rows of norm 1, or of another."""
        scale = np.float32(norm * self.radius_sq**-0.5)  # as decoding multiplies by it
        return z.astype(np.float32) * scale if isinstance(z, np.ndarray) else z.float() * float(scale)

    def nearest_vectors(self, y: torch.Tensor, norm: float = 1.0) -> torch.Tensor:
        """`vectors` of `quantize`, for training: on an accelerator nothing waits for a value.

        Args:
            y: `(n, dim)` floating point.
            norm: of the vectors, where it is not 1.

        Returns:
            `(n, dim)` float32. On an accelerator a row of y with NaN or infinity becomes NaN, which a loss then shows.

        Raises:
            InvalidInput: another shape, or, on the CPU, NaN or infinity in y.

        >>> import torch
        >>> SphericalLattice(dim=2, radius_sq=1).nearest_vectors(torch.tensor([[0.6, 0.8]]))
        tensor([[0., 1.]])
        """
        if y.device.type == "cpu":
            return self.vectors(self.quantize(y), norm)
        return self._on(y.device).nearest_vectors(self._checked(y), norm)

    def decode(self, codes: Array, out: Array | None = None, norm: float = 1.0) -> Array:
        """The points of the codes, divided by r.

        Args:
            codes: `(n, code_size)` uint8.
            out: array for the result, instead of a new one, which takes longer to allocate than to fill.
            norm: norm of the vectors, by default 1.

        Returns:
            `(n, dim)` float32, rows of norm 1.

        Raises:
            InvalidInput: another shape or type, a code that is not below `num_points`, or an `out` that does not fit.
        """
        if not isinstance(codes, np.ndarray) and codes.device.type != "cpu":
            if self.bits > 64:
                vectors = self.decode(codes.cpu(), norm=norm).to(codes.device)
            else:
                vectors = self._on(codes.device).decode(codes, norm)
            return vectors if out is None else out.copy_(vectors)
        from catalyzer.lattice import kernels

        low, high = self.words(_as_numpy(codes))
        result = _result(out, (len(low), self.dim), np.dtype(np.float32))
        kernels.decode(low, high, self.tables, np.float32(norm * self.radius_sq**-0.5), result)
        return _like(result, codes) if out is None else out

    def check_codes(self, codes: np.ndarray, first_row: int = 0) -> None:
        """Raise `InvalidInput`, with the row's number, if a row of `(n, code_size)` uint8 is not a code.

        Args:
            codes: codes from any source.
            first_row: row number of the first code in an error.
        """
        self.words(codes, first_row)

    def words(self, codes: np.ndarray, first_row: int = 0) -> tuple[np.ndarray, np.ndarray]:
        """Codes as `(n,)` uint64 low and high words; high words have size 0 if 64 bits are enough.

        Args:
            codes: `(n, code_size)` uint8.
            first_row: row number of the first code in an error.

        Raises:
            InvalidInput: another shape or type, or a code that is not below `num_points`.
        """
        if codes.ndim != 2 or codes.shape[1] != self.code_size or codes.dtype != np.uint8:
            raise InvalidInput(f"codes must be (n, {self.code_size}) uint8, got {codes.shape} {codes.dtype}")
        size = 16 if self.bits > 64 else 8
        if self.code_size < size:
            codes = np.pad(codes, ((0, 0), (0, size - self.code_size)))
        words = np.ascontiguousarray(codes).view("<u8")
        low, high = words[:, 0], words[:, 1:].reshape(-1)
        row = self._first_beyond(low, high)
        if row >= 0:
            value = int.from_bytes(codes[row].tobytes(), "little")
            raise InvalidInput(
                f"row {first_row + row:,} holds the code {value}, but {self!r} has codes below {self.num_points}"
            )
        return np.require(low, requirements=["C", "W"]), np.require(high, requirements=["C", "W"])

    def _first_beyond(self, low: np.ndarray, high: np.ndarray) -> int:
        """The first row whose words are not a code, or -1."""
        last_low, last_high = np.uint64((self.num_points - 1) & (1 << 64) - 1), np.uint64((self.num_points - 1) >> 64)
        # The largest leading word tells in one pass whether to look closer.
        top, last_top = (high, last_high) if len(high) else (low, last_low)
        if top.max(initial=0) < last_top:
            return -1
        beyond = (high > last_high) | ((high == last_high) & (low > last_low)) if len(high) else low > last_low
        return int(np.argmax(beyond)) if beyond.any() else -1

    def _checked(self, y: Array) -> Array:
        if y.ndim != 2 or y.shape[1] != self.dim:
            raise InvalidInput(f"expected vectors of shape (n, {self.dim}), got {tuple(y.shape)}")
        if isinstance(y, np.ndarray):
            # One layout, contiguous and writable: numba compiles again for any other one.
            return np.require(y, np.float64 if y.dtype == np.float64 else np.float32, ["C", "W"])
        return y

    def _on(self, device: torch.device) -> DeviceLattice:
        from catalyzer.lattice.device import DeviceLattice

        if device not in self._devices:
            self._devices[device] = DeviceLattice(self.atoms, self.tables, self.num_points, device)
        return self._devices[device]

    @cached_property
    def _atoms(self) -> Atoms:
        from catalyzer.lattice.kernels import Atoms

        # An atom is decreasing: its levels are runs of a value, which is as often there as the run is long.
        runs = [[(value, len([*same])) for value, same in groupby(atom) if value] for atom in self.atoms.tolist()]
        by_levels = sorted(range(len(runs)), key=lambda a: (len(runs[a]) > 4, a))
        most = max(8, max(map(len, runs)))  # the loops take eight at a time
        padded = np.array([runs[a] + [(0, 0)] * (most - len(runs[a])) for a in by_levels])
        values, counts = padded[..., 0], padded[..., 1]
        return Atoms(
            step=(-np.diff(values, append=0)).astype(np.float32),
            end=(counts.cumsum(axis=1) - 1).astype(np.uint32),
            levels=np.array([len(runs[a]) for a in by_levels], np.uint32),
            pairs=sum(len(levels) <= 4 for levels in runs) // 2,
            order=np.argsort(by_levels).astype(np.uint32),
            network=_sorting_network(self.dim),
            # Sums of non-negative terms: each rounding costs at most 2^-24 of the result, and two results differ.
            tolerance=np.float32((self.dim + most + 4) * 2.0**-23),
        )

    @cached_property
    def tables(self) -> Tables:
        from catalyzer.lattice.kernels import Tables

        numbering: Numbering = self.numbering
        ways = numbering.ways[0].astype(float) + numbering.ways[1].astype(float) * 2.0**64
        inverse = (1 - 2.0**-50) / np.where(ways > 0, ways, np.inf)
        root_norm = np.repeat(np.arange(self.radius_sq + 1), np.diff(numbering.start[0]))
        root_start, root_shift, firsts = np.zeros(0, np.uint64), max(0, self.bits - ROOT_BITS), np.zeros(0, np.uint64)
        if len(numbering.widths) > 1 and not numbering.wide:
            left = self.radius_sq - root_norm
            rank = np.arange(len(root_norm)) - numbering.start[0][root_norm]
            root_start = numbering.before[0][0][root_norm] + rank.astype(np.uint64) * numbering.ways[0][1 + left]
            root_start = np.append(root_start, np.uint64(self.num_points))
            firsts = np.arange((self.num_points - 1 >> root_shift) + 1).astype(np.uint64) << np.uint64(root_shift)
        return Tables(
            radius_sq=self.radius_sq,
            width=numbering.widths[0],
            last_width=numbering.widths[-1],
            last_kind=len(numbering.points) - 1,
            leaves=len(numbering.widths),
            wide=numbering.wide,
            half=numbering.half,
            buckets=BUCKETS,
            kind_size=numbering.points.shape[1],
            rank_size=numbering.rank.shape[1],
            packed=numbering.points.reshape(-1, 4).view(np.uint32)[:, 0].copy(),
            start=numbering.start.ravel(),
            rank=numbering.rank.ravel(),
            ways=numbering.ways[0],
            ways_high=numbering.ways[1],
            before=numbering.before[0].ravel(),
            before_high=numbering.before[1].ravel(),
            guide=numbering.guide.ravel(),
            inverse=inverse,
            to_bucket=inverse * BUCKETS,
            root_start=root_start,
            root_guide=(np.searchsorted(root_start, firsts, side="right") - 1).astype(np.uint16),
            root_norm=(self.radius_sq - root_norm).astype(np.uint16),
            root_shift=root_shift,
        )


def refuse_row(row: int) -> None:
    """Raise `InvalidInput` for a row that has no nearest point; -1 is none."""
    if row >= 0:
        raise InvalidInput(f"row {row:,} contains NaN or infinity; it has no nearest lattice point")


def _sorting_network(n: int) -> np.ndarray:
    """Batcher's odd-even merge sort: the pairs (i, j), i < j, to compare and exchange, `(c, 2)` uint32."""
    pairs = []
    p = 1
    while p < n:
        k = p
        while k:
            for j in range(k % p, n - k, 2 * k):
                for i in range(min(k, n - j - k)):
                    if (i + j) // (2 * p) == (i + j + k) // (2 * p):
                        pairs.append((i + j, i + j + k))
            k //= 2
        p *= 2
    return np.array(pairs, np.uint32).reshape(-1, 2)


def _as_numpy(x: Array) -> np.ndarray:
    if isinstance(x, np.ndarray):
        return x
    x = x.detach()
    # NumPy has no bfloat16.
    return (x.float() if x.is_floating_point() and x.dtype.itemsize < 4 else x).numpy()


def _result(out: Array | None, shape: tuple[int, ...], dtype: np.dtype) -> np.ndarray:
    if out is None:
        return np.empty(shape, dtype)
    result = _as_numpy(out)
    if result.shape != shape or result.dtype != dtype or not result.flags.c_contiguous or not result.flags.writeable:
        raise InvalidInput(f"out must be {shape} {dtype}, contiguous and writable; got {result.shape} {result.dtype}")
    return result


def _like(result: np.ndarray, x: Array) -> Array:
    if isinstance(x, np.ndarray):
        return result
    import torch

    return torch.from_numpy(result)
