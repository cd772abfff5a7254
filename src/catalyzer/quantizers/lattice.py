"""The spherical lattice quantizer of section 4.2, and products of spheres: no codebook, nothing to fit."""

from collections.abc import Iterable, Sequence
from copy import copy
from typing import Literal

import numpy as np

from catalyzer import scan
from catalyzer.errors import InvalidInput, integer
from catalyzer.lattice import GainShapeLattice, GainShapeProduct, ProductLattice, SphericalLattice
from catalyzer.lattice.counting import MAX_DIM, best_radius_sq
from catalyzer.lattice.gain_shape import BLOCK_GAIN_BITS
from catalyzer.lattice.product import BLOCK_BITS
from catalyzer.nn import StraightThrough
from catalyzer.quantizers.base import Quantizer

MOST_ATOMS = 10_000
"""Limit for lattices that are chosen automatically: encoding a vector with 10,000 atoms takes 5 µs of a core."""


class LatticeQuantizer(Quantizer):
    """Codes a vector's direction as the nearest integer point of a sphere; with more than 64 bits, block by block.

    Args:
        dim: dimension of the vectors.
        bits: upper limit for the bits of a code.
        radius_sq: squared radius r² of one sphere; None takes the largest whose codes fit in `bits` and that has at most
            10,000 atoms, which matters in fewer than 18 dimensions.
        blocks: number of spheres, or the dimension and squared radius of each; None takes one up to 64 bits and 128 dimensions,
            or if `radius_sq` is given, and otherwise the number of `ProductLattice.for_bits`.
        gain: True codes the norm of a vector in 8 of the bits, see `GainShapeLattice`. "blocks" codes the norms of its blocks
            in 3 bits each, see `GainShapeProduct`. None is False.
        norms: norms of nested blocks, for gain="blocks"; None is for blocks that are not nested.

    Raises:
        InvalidInput: no point has this norm, codes take more than `bits` bits, blocks that do not fit, or another gain.

    >>> quantizer = LatticeQuantizer(dim=24, bits=64)
    >>> quantizer.lattice, quantizer.code_size
    (SphericalLattice(dim=24, radius_sq=79), 8)
    >>> LatticeQuantizer(dim=128, bits=256).lattice
    ProductLattice(4 x (32, 36))
    >>> LatticeQuantizer(dim=24, bits=72, gain=True).lattice
    GainShapeLattice(SphericalLattice(dim=24, radius_sq=79))
    >>> LatticeQuantizer(dim=112, bits=256, gain="blocks").lattice
    GainShapeProduct(ProductLattice(4 x (28, 42)))
    """

    label = "lattice"
    rotated = False

    def __init__(
        self,
        dim: int,
        bits: int = 64,
        radius_sq: int | None = None,
        blocks: int | Sequence[Sequence[int]] | None = None,
        gain: bool | Literal["blocks"] | None = None,
        norms: Sequence[float] | None = None,
    ) -> None:
        dim = integer("dim", dim, 1)
        integer("bits", bits, 9 if gain else 1)
        if radius_sq is not None and blocks is not None:
            raise InvalidInput(
                f"radius_sq = {radius_sq} is for one sphere, and blocks = {blocks} for several; give only one of them"
            )
        if gain not in (None, False, True, "blocks"):
            raise InvalidInput(f'gain must be True, False or "blocks", got {gain!r}')
        if norms is not None and gain != "blocks":
            raise InvalidInput(f'norms are for gain="blocks", and gain is {gain}; leave norms out')
        if gain == "blocks":
            self._take(GainShapeProduct(_product(dim, bits, radius_sq, blocks, norms is not None), norms))
        else:
            shape = _shape(dim, bits - 8 if gain else bits, radius_sq, blocks)
            self._take(GainShapeLattice(shape) if gain else shape)
        if self.dim != dim:
            raise InvalidInput(f"{self.lattice!r} has {self.dim} dimensions, and the vectors {dim}; give blocks for as many")
        if self.bits > bits:
            raise InvalidInput(
                f"{self.lattice!r} needs {self.bits} bits, which do not fit in bits = {bits}; "
                f"raise bits, or leave radius_sq and blocks null for what fits"
            )

    def _take(self, lattice: scan.Lattice) -> None:
        by_blocks = isinstance(lattice, GainShapeProduct)
        self.lattice, self.gain = lattice, None
        if by_blocks:
            self.gain = "blocks"
        elif isinstance(lattice, GainShapeLattice):
            self.gain = True
        self.dim, self.bits = lattice.dim, lattice.bits
        # What is kept in files says which lattice it is, also where a later version would choose another.
        self.norms = lattice.norms.tolist() if isinstance(lattice, GainShapeProduct) and lattice.nested else None
        single = len(lattice.spheres) == 1 and not by_blocks
        self.radius_sq = lattice.spheres[0].radius_sq if single else None
        self.blocks = None if single else [[sphere.dim, sphere.radius_sq] for sphere in lattice.spheres]

    @classmethod
    def default_dim(cls, bits: int) -> int:
        """24 up to 64 bits, as in the paper; then 40 for each block of 64 bits, and 32 if there are more than four blocks.

        >>> [LatticeQuantizer.default_dim(bits) for bits in (32, 64, 128, 256, 512)]
        [24, 24, 80, 160, 256]
        """
        blocks = -(-bits // BLOCK_BITS)
        return 24 if blocks == 1 else (40 if blocks <= 4 else 32) * blocks

    @property
    def code_size(self) -> int:
        return self.lattice.code_size

    @property
    def spheres(self) -> tuple[int, ...]:
        return tuple(sphere.dim for sphere in self.lattice.spheres)

    def first(self, blocks: int) -> "LatticeQuantizer":
        part = copy(self)
        part._take(self.lattice.first(blocks))
        return part

    def of_rotated(self) -> "LatticeQuantizer":
        other = copy(self)
        other.rotated = True
        return other

    def straight_through(self) -> StraightThrough:
        if isinstance(self.lattice, GainShapeLattice | GainShapeProduct):
            raise InvalidInput("a gain codes the norm of vectors, and a network makes all of norm 1; use gain=false")
        return StraightThrough(self.lattice)

    def nearest(self, x: np.ndarray, k: int) -> np.ndarray:
        shape = self.lattice.shape if isinstance(self.lattice, GainShapeLattice | GainShapeProduct) else self.lattice
        near = shape.nearest(x, k)
        points = shape.vectors(near.reshape(-1, self.dim)).reshape(near.shape)
        if not self.gain:
            return points
        widths = self.spheres if self.gain == "blocks" else (self.dim,)
        starts, shares = np.cumsum([0, *widths[:-1]]), np.array(widths) / self.dim
        gains = np.add.reduceat(x[:, None] * points, starts, axis=2) / shares
        if isinstance(self.lattice, GainShapeProduct) and self.lattice.nested:
            gains[:, :, 0] = self.lattice.levels[0, 0]
        return points * np.repeat(gains, widths, axis=2).astype(np.float32)

    def encode(self, x: np.ndarray) -> np.ndarray:
        return self.lattice.encode(x)

    def decode(self, codes: np.ndarray) -> np.ndarray:
        return self.lattice.decode(codes)

    def search(self, queries: np.ndarray, codes: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
        return scan.search(self.lattice, queries, codes, k, self.rotated)

    def search_part(self, queries: np.ndarray, codes: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
        return scan.search_part(self.lattice, queries, codes, k, self.rotated)

    def search_lists(
        self, queries: np.ndarray, codes: np.ndarray, offsets: np.ndarray, probed: np.ndarray, k: int
    ) -> tuple[np.ndarray, np.ndarray]:
        return scan.search_lists(self.lattice, queries, codes, offsets, probed, k, self.rotated)

    def check_codes(self, codes: np.ndarray, first_row: int = 0) -> None:
        self.lattice.check_codes(codes, first_row)


def _shape(
    dim: int, bits: int, radius_sq: int | None, blocks: int | Sequence[Sequence[int]] | None
) -> SphericalLattice | ProductLattice:
    if radius_sq is not None:
        return SphericalLattice(dim, radius_sq)
    if blocks is None:
        if bits > BLOCK_BITS or dim > MAX_DIM:
            return ProductLattice.for_bits(dim, bits)
        return SphericalLattice(dim, best_radius_sq(dim, bits, MOST_ATOMS))
    lattice = ProductLattice(blocks) if isinstance(blocks, Iterable) else ProductLattice.for_bits(dim, bits, blocks)
    return lattice if len(lattice.spheres) > 1 else lattice.spheres[0]


def _product(
    dim: int, bits: int, radius_sq: int | None, blocks: int | Sequence[Sequence[int]] | None, nested: bool
) -> ProductLattice:
    """The shape of codes whose blocks have gains, all of them or, nested, all but the first."""
    if radius_sq is not None:
        return ProductLattice([(dim, radius_sq)])
    if isinstance(blocks, Iterable):
        return ProductLattice(blocks)
    lattice = ProductLattice.for_bits(dim, bits, blocks, BLOCK_GAIN_BITS)
    if not nested:
        return lattice
    (first, _), *others = lattice.blocks
    left = bits - sum(sphere.bits + BLOCK_GAIN_BITS for sphere in lattice.spheres[1:])
    return ProductLattice([(first, best_radius_sq(first, min(left, 8 * lattice.spheres[0].code_size))), *others])
