"""`SphericalLattice`: the quantizer of section 4.2, whose codebook is all integer points of one norm."""

from __future__ import annotations

from typing import TYPE_CHECKING, TypeVar

import numpy as np

from catalyzer.errors import InvalidInput
from catalyzer.lattice.counting import best_radius_sq, enumerate_atoms, num_points

if TYPE_CHECKING:
    import torch

Array = TypeVar("Array", np.ndarray, "torch.Tensor")

MAX_BITS = 64


class SphericalLattice:
    """The set S of integer points z with |z|² = radius_sq, its nearest points, and their numbering.

    Every method takes NumPy arrays or torch tensors and gives back the same kind, on the same device. Inputs need not
    be normalized: the nearest point depends on the direction alone. Ties go to the lexicographically larger atom and,
    between equal magnitudes, to the lower coordinate; a zero (of either sign) counts as positive.

    Args:
        dim: dimension d, 2 to 128.
        radius_sq: squared norm r² of the points.

    Attributes:
        num_points: how many points there are, a Python integer.
        bits: bits of a code, `ceil(log2(num_points))`.
        code_size: bytes of a code, `ceil(bits / 8)`.
        atoms: `(num_atoms, dim)` int16, the points that are non-negative and decreasing (Appendix B).

    Raises:
        InvalidInput: no integer point has this norm, a code takes more than 64 bits, or there are too many atoms.

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
        self._tabulate()

    @classmethod
    def for_bits(cls, dim: int, bits: int) -> SphericalLattice:
        """The lattice of the largest r² whose codes fit in `bits` bits.

        >>> SphericalLattice.for_bits(dim=24, bits=64)
        SphericalLattice(dim=24, radius_sq=79)
        """
        return cls(dim, best_radius_sq(dim, bits))

    def __repr__(self) -> str:
        return f"SphericalLattice(dim={self.dim}, radius_sq={self.radius_sq})"

    def quantize(self, y: Array) -> Array:
        """The integer point nearest to r·y/|y|: argmax of the dot product, equation 5.

        Args:
            y: `(n, dim)` floating point.

        Returns:
            `(n, dim)` int16, rows of squared norm `radius_sq`.

        Raises:
            InvalidInput: another shape, or NaN or infinity in y.
        """
        from catalyzer.lattice import kernels

        vectors = self._checked(y)
        points = np.empty(vectors.shape, np.int16)
        kernels.nearest(vectors, self._step, self._end, self._levels, self._value, self._count, points)
        return _like(points, y)

    def encode(self, y: Array) -> Array:
        """The codes of the points nearest to y.

        Args:
            y: `(n, dim)` floating point.

        Returns:
            `(n, code_size)` uint8: each row a little-endian integer in [0, num_points).

        Raises:
            InvalidInput: another shape, or NaN or infinity in y.
        """
        from catalyzer.lattice import kernels

        vectors = self._checked(y)
        codes = np.empty(len(vectors), "<u8")
        kernels.encode(
            vectors, self._step, self._end, self._levels, self._value, self._count, self._offset, self._binomial, codes
        )
        return _like(np.ascontiguousarray(codes.view(np.uint8).reshape(-1, 8)[:, : self.code_size]), y)

    def decode(self, codes: Array) -> Array:
        """The points of the codes, divided by r.

        Args:
            codes: `(n, code_size)` uint8.

        Returns:
            `(n, dim)` float32, rows of norm 1.

        Raises:
            InvalidInput: another shape or type, or a code that is not below `num_points`.
        """
        from catalyzer.lattice import kernels

        packed = _as_numpy(codes)
        if packed.ndim != 2 or packed.shape[1] != self.code_size or packed.dtype != np.uint8:
            raise InvalidInput(f"codes must be (n, {self.code_size}) uint8, got {packed.shape} {packed.dtype}")
        padded = np.zeros((len(packed), 8), np.uint8)
        padded[:, : self.code_size] = packed
        numbers = padded.view("<u8")[:, 0]
        beyond = np.flatnonzero(numbers > np.uint64(self.num_points - 1))
        if len(beyond):
            raise InvalidInput(
                f"row {beyond[0]:,} holds the code {numbers[beyond[0]]}, but {self!r} has codes below {self.num_points}"
            )
        vectors = np.empty((len(numbers), self.dim), np.float32)
        scale = np.float32(self.radius_sq**-0.5)
        kernels.decode(numbers, scale, self._levels, self._value, self._count, self._offset, self._binomial, vectors)
        return _like(vectors, codes)

    def _checked(self, y: Array) -> np.ndarray:
        vectors = _as_numpy(y)
        if vectors.ndim != 2 or vectors.shape[1] != self.dim:
            raise InvalidInput(f"expected vectors of shape (n, {self.dim}), got {vectors.shape}")
        if vectors.dtype != np.float64:
            vectors = np.ascontiguousarray(vectors, np.float32)
        finite = np.isfinite(vectors).all(axis=1)
        if not finite.all():
            raise InvalidInput(f"row {int(np.argmin(finite)):,} contains NaN or infinity; it has no nearest lattice point")
        return vectors

    def _tabulate(self) -> None:
        # The tables that `kernels` explains: runs of equal values for each atom, first code of each, binomials.
        runs = [[(v, int((atom == v).sum())) for v in sorted(set(atom.tolist()) - {0}, reverse=True)] for atom in self.atoms]
        shape = (len(runs), max(map(len, runs)))
        self._levels = np.array([len(levels) for levels in runs], np.int64)
        self._value = np.zeros(shape, np.int16)
        self._count = np.zeros(shape, np.int64)
        for a, levels in enumerate(runs):
            for j, (value, count) in enumerate(levels):
                self._value[a, j], self._count[a, j] = value, count
        self._end = np.cumsum(self._count, axis=1)
        # Summation by parts: the dot product with a decreasing atom is a sum over levels of (value - next value) times
        # the sum of all magnitudes up to the level's end.
        below = np.concatenate([self._value[:, 1:], np.zeros((len(runs), 1), np.int16)], axis=1)
        self._step = (self._value - below).astype(np.float64)

        pascal = [[0] * (self.dim + 1) for _ in range(self.dim + 1)]
        for n in range(self.dim + 1):
            pascal[n][0] = 1
            for k in range(1, n + 1):
                pascal[n][k] = pascal[n - 1][k - 1] + pascal[n - 1][k]
        # Entries beyond 64 bits belong to combinations that no atom of a lattice of 64 bits has.
        self._binomial = np.array([[min(c, 2**64 - 1) for c in row] for row in pascal], np.uint64)

        first, starts = 0, []
        for levels in runs:
            starts.append(first)
            free, size = self.dim, 1
            for _, count in levels:
                size *= pascal[free][count] << count
                free -= count
            first += size
        assert first == self.num_points, "the atoms' arrangements and signs must make up all points"
        self._offset = np.array(starts, np.uint64)


def _as_numpy(x: Array) -> np.ndarray:
    return x if isinstance(x, np.ndarray) else x.detach().cpu().numpy()


def _like(result: np.ndarray, x: Array) -> Array:
    if isinstance(x, np.ndarray):
        return result
    import torch

    return torch.from_numpy(result).to(x.device)
