"""Lattices for the direction of vectors with a gain for their length: a byte for the whole vector, or 3 bits for each block."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np

from catalyzer.errors import InvalidInput, integer
from catalyzer.lattice.product import ProductLattice
from catalyzer.lattice.spherical import SphericalLattice

if TYPE_CHECKING:
    import torch

Array = TypeVar("Array", np.ndarray, "torch.Tensor")

STEPS = 8  # of an octave; half of one moves a gain by 4.4%, which is small compared with the error of the direction
GAINS = (2.0 ** ((np.arange(256) - 128) / STEPS)).astype(np.float32)
LIMITS = (2.0 ** ((np.arange(255) - 127.5) / STEPS)).astype(np.float32)  # between one gain and the next
BLOCK_GAIN_BITS = 3
MIN_NORM = 1e-6  # of a nested block; in single precision its square is far from zero


class GainShapeLattice:
    """Gain-shape quantization: vectors of any norm as a point z of norm 1, the shape, times a gain g.

    A code is the code of the shape and a byte b for the gain g = 2^((b - 128) / 8), from 2^-16 to 2^15.875. The gain of a
    vector y is <y, z>, the length of its projection onto z, rounded; beyond the range it is the nearest end. Methods take NumPy
    arrays or torch tensors and return the same kind, on the same device.

    Args:
        shape: lattice that codes the direction.

    Attributes:
        dim: dimension of the vectors.
        bits: bits of a code, 8 more than those of the shape.
        code_size: bytes of a code.
        num_points: number of vectors that have a code.
        spheres: spheres of the shape.
        radii: radii of the shape.
        format: version of the shape's numbering.

    >>> lattice = GainShapeLattice(SphericalLattice(dim=24, radius_sq=79))
    >>> y = 3 * np.eye(24, dtype=np.float32)[:1]
    >>> lattice.code_size, lattice.encode(y)[0, -1].item(), round(lattice.decode(lattice.encode(y))[0, 0].item(), 1)
    (9, 139, 2.3)
    """

    def __init__(self, shape: SphericalLattice | ProductLattice) -> None:
        self.shape = shape
        self.dim, self.bits, self.code_size = shape.dim, shape.bits + 8, shape.code_size + 1
        self.num_points = shape.num_points * len(GAINS)
        self.spheres, self.radii, self.format = shape.spheres, shape.radii, shape.format

    def __repr__(self) -> str:
        return f"GainShapeLattice({self.shape!r})"

    def first(self, blocks: int) -> SphericalLattice | ProductLattice | GainShapeLattice:
        """The lattice of the first blocks; see `ProductLattice.first`. It has no gain, since the gain is that of all blocks."""
        first = self.shape.first(blocks)
        return self if first.dim == self.dim else first

    def encode(self, y: Array) -> Array:
        """The codes `(n, code_size)` uint8 of `(n, dim)` floating point vectors; errors as in `ProductLattice.encode`."""
        codes = self.shape.encode(y)
        z = self.shape.decode(codes)
        if isinstance(y, np.ndarray):
            gains = np.searchsorted(LIMITS, np.einsum("ij,ij->i", y, z)).astype(np.uint8)
            return np.concatenate([codes, gains[:, None]], axis=1)
        import torch

        limits = torch.from_numpy(LIMITS).to(y.device)
        gains_ = torch.bucketize((y.float() * z).sum(dim=1), limits).to(torch.uint8)
        return torch.cat([codes, gains_[:, None]], dim=1)

    def decode(self, codes: Array) -> Array:
        """The vectors of the codes, `(n, dim)` float32; errors as in `ProductLattice.decode`."""
        if codes.ndim != 2 or codes.shape[1] != self.code_size:
            raise InvalidInput(f"codes must be (n, {self.code_size}) uint8, got {tuple(codes.shape)} {codes.dtype}")
        return self.shape.decode(codes[:, :-1]) * self.gains(codes)[:, None]

    def gains(self, codes: Array) -> Array:
        """The gains of the codes, `(n,)` float32."""
        if isinstance(codes, np.ndarray):
            return GAINS[codes[:, -1]]
        import torch

        return torch.from_numpy(GAINS).to(codes.device)[codes[:, -1].long()]

    def check_codes(self, codes: np.ndarray, first_row: int = 0) -> None:
        """Raise `InvalidInput` for the first row that is not a code; see `SphericalLattice.check_codes`."""
        if codes.ndim != 2 or codes.shape[1] != self.code_size:
            raise InvalidInput(f"codes must be (n, {self.code_size}) uint8, got {codes.shape} {codes.dtype}")
        self.shape.check_codes(codes[:, :-1], first_row)


class GainShapeProduct:
    """A product of gain-shape quantizers: each block of coordinates is a point of its sphere times a gain of 3 bits.

    A `ProductLattice` gives a block of d coordinates a fixed norm, from which those of random vectors deviate by some
    1 / √(2d) of it. So the gain of a block is e^((b - 4) / (2√d)), with b from 0 to 7 in the three highest bits of the block's
    code. It is that of the projection of the block onto its point, rounded.

    Nested blocks have `norms` of their own, which are multiplied by the gains. The first of them has no gain, so that it is an
    ordinary code by itself.

    Args:
        shape: lattice that codes the blocks' directions.
        norms: norm of each nested block for a gain of 1; None for blocks that are not nested, with √(d / dim).

    Attributes:
        dim: dimension of the vectors.
        bits: bits of a code, 3 more than those of the shape for each block with a gain.
        code_size: bytes of a code.
        num_points: number of vectors that have a code.
        spheres: spheres of the shape.
        radii: radii of the shape.
        format: version of the shape's numbering.
        norms: the blocks' norms for a gain of 1, `(blocks,)` float64.
        nested: whether the first block has no gain.
        gain_bits: `(blocks,)` int64, bits of the gains.
        levels: `(blocks, 8)` float32, by which a gain of 0 to 7 multiplies the block of the shape's point.

    Raises:
        InvalidInput: norms that are not a number from 10⁻⁶ to 10⁶ for each block.

    >>> lattice = GainShapeProduct(ProductLattice([(28, 42)] * 2))
    >>> y = np.random.default_rng(0).normal(size=(1000, 56)).astype(np.float32) / 56**0.5
    >>> error = [((each.decode(each.encode(y)) - y) ** 2).sum(1).mean() for each in (lattice, lattice.shape)]
    >>> lattice.code_size, lattice.shape.code_size, bool(error[0] < 0.8 * error[1])
    (16, 16, True)
    """

    def __init__(self, shape: ProductLattice, norms: Sequence[float] | None = None) -> None:
        self.shape, self.nested, blocks = shape, norms is not None, len(shape.spheres)
        of_shape = np.sqrt([sphere.dim / shape.dim for sphere in shape.spheres])
        try:
            self.norms = of_shape if norms is None else np.array([*norms], np.float64)
        except (TypeError, ValueError):
            self.norms = np.empty(0)
        if self.norms.shape != (blocks,) or not ((self.norms > MIN_NORM) & (self.norms < 1 / MIN_NORM)).all():
            raise InvalidInput(
                f"norms must be a number from {MIN_NORM} to {1 / MIN_NORM:.0f} for each of {blocks} blocks, got {norms}"
            )
        self.gain_bits = np.full(blocks, BLOCK_GAIN_BITS)
        self.gain_bits[: self.nested] = 0
        gain_bits = int(self.gain_bits.sum())
        self.dim, self.bits, self.num_points = shape.dim, shape.bits + gain_bits, shape.num_points << gain_bits
        self.spheres, self.radii, self.format = shape.spheres, shape.radii, shape.format
        sizes = -(-(np.array([sphere.bits for sphere in shape.spheres]) + self.gain_bits) // 8)
        self.code_size = int(sizes.sum())
        # Which bytes of a code are those of the shape, and which have the gains.
        self.firsts = np.cumsum(sizes) - sizes
        self.ends = self.firsts + sizes - 1
        self._masks = ((1 << 8 - self.gain_bits) - 1).astype(np.uint8)  # of the shape's bits in the bytes with gains
        kept = [first + np.arange(sphere.code_size) for first, sphere in zip(self.firsts, shape.spheres, strict=True)]
        self._of_shape = np.concatenate(kept)
        self._dims = [sphere.dim for sphere in shape.spheres]
        dims = np.array(self._dims)[:, None]
        steps = np.arange(1 << BLOCK_GAIN_BITS) - (1 << BLOCK_GAIN_BITS - 1)
        norm, of_point = self.norms[:, None], of_shape[:, None]
        self.levels = (np.exp(steps / (2 * dims**0.5)) * norm / of_point).astype(np.float32)
        # Between one gain and the next: dot products with points of the shape.
        self._limits = (np.exp((steps[:-1] + 0.5) / (2 * dims**0.5)) * norm * of_point).astype(np.float32)
        self.levels[: self.nested] = norm[0] / of_point[0]
        self._limits[: self.nested] = np.inf

    def __repr__(self) -> str:
        return f"GainShapeProduct({self.shape!r})"

    def first(self, blocks: int) -> SphericalLattice | GainShapeProduct:
        """The lattice of the first blocks; see `ProductLattice.first`.

        Raises:
            InvalidInput: another number of blocks, or blocks that are not nested.
        """
        if integer("blocks", blocks, 1, len(self.spheres), "the number of blocks of a code") == len(self.spheres):
            return self
        if not self.nested:
            raise InvalidInput("the first blocks of these codes are no codes themselves; fit with catalyzer.nested=true")
        if blocks == 1:
            return self.spheres[0]
        return GainShapeProduct(ProductLattice(self.shape.blocks[:blocks]), self.norms[:blocks].tolist())

    def encode(self, y: Array) -> Array:
        """The codes `(n, code_size)` uint8 of `(n, dim)` floating point vectors; errors as in `ProductLattice.encode`."""
        shapes = self.shape.encode(y)
        products = y * self.shape.decode(shapes)
        if isinstance(products, np.ndarray):
            dots = np.add.reduceat(products, np.cumsum([0, *self._dims[:-1]]), axis=1)
            codes = np.zeros((len(y), self.code_size), np.uint8)
            codes[:, self._of_shape] = shapes
            codes[:, self.ends] |= (dots[:, :, None] > self._limits).sum(axis=2).astype(np.uint8) << 8 - BLOCK_GAIN_BITS
            return codes
        import torch

        limits, sums = torch.from_numpy(self._limits).to(y.device), [each.sum(dim=1) for each in products.split(self._dims, 1)]
        filled: Any = torch.zeros(len(y), self.code_size, dtype=torch.uint8, device=y.device)
        filled[:, self._of_shape] = shapes
        filled[:, self.ends] |= (torch.stack(sums, 1)[:, :, None] > limits).sum(dim=2).byte() << 8 - BLOCK_GAIN_BITS
        return filled

    def decode(self, codes: Array) -> Array:
        """The vectors of the codes, `(n, dim)` float32; errors as in `ProductLattice.decode`."""
        z, gains = self.shape.decode(self.shapes(codes)), self.gains(codes)
        if isinstance(codes, np.ndarray):
            return z * np.repeat(gains, self._dims, axis=1)
        import torch

        return z * gains.repeat_interleave(torch.tensor(self._dims, device=codes.device), dim=1)

    def shapes(self, codes: Array) -> Array:
        """The codes of the shape, `(n, shape.code_size)`, without gains.

        Raises:
            InvalidInput: codes of another shape or type.
        """
        if codes.ndim != 2 or codes.shape[1] != self.code_size:
            raise InvalidInput(f"codes must be (n, {self.code_size}) uint8, got {tuple(codes.shape)} {codes.dtype}")
        if isinstance(codes, np.ndarray):
            shapes = codes.copy()
            shapes[:, self.ends] &= self._masks
            return shapes[:, self._of_shape]
        import torch

        shapes = codes.clone()
        shapes[:, self.ends] &= torch.from_numpy(self._masks).to(codes.device)
        return shapes[:, self._of_shape]

    def gains(self, codes: Array) -> Array:
        """What multiplies the blocks of the shape's points, `(n, blocks)` float32."""
        blocks = np.arange(len(self._dims))
        if isinstance(codes, np.ndarray):
            return self.levels[blocks, codes[:, self.ends] >> 8 - BLOCK_GAIN_BITS]
        import torch

        return torch.from_numpy(self.levels).to(codes.device)[blocks, (codes[:, self.ends] >> 8 - BLOCK_GAIN_BITS).long()]

    def check_codes(self, codes: np.ndarray, first_row: int = 0) -> None:
        """Raise `InvalidInput` for the first row that is not a code; see `SphericalLattice.check_codes`."""
        if codes.dtype != np.uint8:
            raise InvalidInput(f"codes must be (n, {self.code_size}) uint8, got {codes.shape} {codes.dtype}")
        self.shape.check_codes(self.shapes(codes), first_row)
        alone = np.setdiff1d(self.ends, self._of_shape)  # bytes that have a gain and nothing else
        stray = (codes[:, alone] & (1 << 8 - BLOCK_GAIN_BITS) - 1).any(axis=1)
        if stray.any():
            raise InvalidInput(f"row {first_row + int(np.argmax(stray))} holds no code: bits are set that no code uses")
