"""The spherical lattice quantizer of section 4.2: no codebook, nothing to fit."""

import numpy as np

from catalyzer import scan
from catalyzer.errors import InvalidInput, integer
from catalyzer.lattice import SphericalLattice
from catalyzer.nn import StraightThrough
from catalyzer.quantizers.base import Quantizer

MOST_ATOMS = 50_000
"""Of a lattice that is chosen for somebody: to compare a vector with so many takes a core some 20 µs."""

MOST_BITS = {24: 86, 28: 98, 32: 108, 40: 128}
"""For dimensions that are proposed, the most bits whose lattice has no more than `MOST_ATOMS` atoms."""


class LatticeQuantizer(Quantizer):
    """Codes a vector's direction as the nearest integer point of a sphere.

    Args:
        dim: dimension of the vectors.
        bits: upper limit for the bits of a code.
        radius_sq: squared radius r²; None takes the largest whose codes fit in `bits`.

    Raises:
        InvalidInput: no point has this norm, or its codes take more than `bits` bits.

    >>> quantizer = LatticeQuantizer(dim=24, bits=64)
    >>> quantizer.lattice, quantizer.code_size
    (SphericalLattice(dim=24, radius_sq=79), 8)
    """

    label = "lattice"

    def __init__(self, dim: int, bits: int = 64, radius_sq: int | None = None) -> None:
        integer("bits", bits, 1)
        self.lattice = SphericalLattice.for_bits(dim, bits) if radius_sq is None else SphericalLattice(dim, radius_sq)
        self.dim, self.bits, self.radius_sq = dim, self.lattice.bits, self.lattice.radius_sq
        if self.bits > bits:
            raise InvalidInput(
                f"the lattice of dim {dim}, r² {radius_sq} needs {self.bits} bits, which do not fit in bits = {bits}; "
                f"raise bits, or leave radius_sq null for the largest r² that fits"
            )

    @classmethod
    def default_dim(cls, bits: int) -> int:
        """24, as the paper, while the lattice of so many bits has no more than `MOST_ATOMS` atoms there; more bits take more.

        >>> [LatticeQuantizer.default_dim(bits) for bits in (32, 64, 96, 128)]
        [24, 24, 28, 40]
        """
        return next((dim for dim, most in MOST_BITS.items() if bits <= most), 40)

    def straight_through(self) -> StraightThrough:
        return StraightThrough(self.lattice)

    def nearest(self, x: np.ndarray, k: int) -> np.ndarray:
        return self.lattice.nearest(x, k).astype(np.float32) / np.float32(self.lattice.radius_sq**0.5)

    def encode(self, x: np.ndarray) -> np.ndarray:
        return self.lattice.encode(x)

    def decode(self, codes: np.ndarray) -> np.ndarray:
        return self.lattice.decode(codes)

    def search(self, queries: np.ndarray, codes: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
        return scan.search(self.lattice, queries, codes, k)

    def search_part(self, queries: np.ndarray, codes: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
        return scan.search_part(self.lattice, queries, codes, k)

    def search_lists(
        self, queries: np.ndarray, codes: np.ndarray, offsets: np.ndarray, probed: np.ndarray, k: int
    ) -> tuple[np.ndarray, np.ndarray]:
        return scan.search_lists(self.lattice, queries, codes, offsets, probed, k)

    def check_codes(self, codes: np.ndarray, first_row: int = 0) -> None:
        self.lattice.words(codes, first_row)
