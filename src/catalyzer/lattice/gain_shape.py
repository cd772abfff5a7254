"""`GainShapeLattice`: a lattice for the direction of vectors, and a byte for their length."""

from __future__ import annotations

from typing import TYPE_CHECKING, TypeVar

import numpy as np

from catalyzer.errors import InvalidInput
from catalyzer.lattice.product import ProductLattice
from catalyzer.lattice.spherical import SphericalLattice

if TYPE_CHECKING:
    import torch

Array = TypeVar("Array", np.ndarray, "torch.Tensor")

STEPS = 8  # of an octave; half of one moves a gain by 4.4%, which is small compared with the error of the direction
GAINS = (2.0 ** ((np.arange(256) - 128) / STEPS)).astype(np.float32)
LIMITS = (2.0 ** ((np.arange(255) - 127.5) / STEPS)).astype(np.float32)  # between one gain and the next


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
