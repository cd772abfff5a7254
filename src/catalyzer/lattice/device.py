"""The lattice in torch operations, for tensors on an accelerator: the same points and the same codes."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from catalyzer.errors import InvalidInput

if TYPE_CHECKING:
    from catalyzer.lattice.kernels import Tables

DOT_PRODUCTS = 1 << 26  # of vectors with atoms, held at a time in double precision
SIGN_BIT = -(1 << 63)  # flips the order of int64 into that of the uint64 with the same bits, since torch compares no uint64


class DeviceLattice:
    """The methods of `SphericalLattice` for tensors on one device, of which it makes one for each that it meets.

    Args:
        atoms: `(num_atoms, dim)` int16, those of the lattice.
        tables: its numbering.
        num_points: number of points, at most 2^64; torch has no wider integers.
        device: device of the tensors.

    >>> from catalyzer import SphericalLattice
    >>> lattice = SphericalLattice(dim=24, radius_sq=79)
    >>> device = DeviceLattice(lattice.atoms, lattice.tables, lattice.num_points, torch.device("cpu"))
    >>> y = torch.randn(100, 24)
    >>> bool((device.encode(y) == lattice.encode(y)).all())
    True
    """

    def __init__(self, atoms: np.ndarray, tables: Tables, num_points: int, device: torch.device) -> None:
        self.tables, self.num_points, self.device = tables, num_points, device
        self.code_size = -(-(num_points - 1).bit_length() // 8)
        self.atoms = torch.from_numpy(atoms).to(device)
        self.atoms_transposed = self.atoms.T.double()

        def words(x: np.ndarray) -> Tensor:
            return torch.from_numpy(x.view("<i8")).to(device)

        self.before, self.ways = words(tables.before) ^ SIGN_BIT, words(tables.ways)
        self.inverse = torch.from_numpy(tables.inverse).to(device)
        self.points = torch.from_numpy(tables.packed.view(np.int8)).reshape(-1, 4).to(device)
        self.start = torch.from_numpy(tables.start.astype("i8")).to(device)
        self.rank = torch.from_numpy(tables.rank.astype("i8")).to(device)

    def quantize(self, y: Tensor) -> Tensor:
        """See `SphericalLattice.quantize`."""
        finite = y.isfinite().all(dim=1)
        if not finite.all():
            row = int((~finite).int().argmax())
            raise InvalidInput(f"row {row:,} contains NaN or infinity; it has no nearest lattice point")
        return self._nearest(y)

    def nearest_vectors(self, y: Tensor, norm: float) -> Tensor:
        """See `SphericalLattice.nearest_vectors`; a row with NaN or infinity becomes NaN."""
        vectors = self._nearest(y).float() * float(np.float32(norm * self.tables.radius_sq**-0.5))
        return vectors.masked_fill(~y.isfinite().all(dim=1, keepdim=True), torch.nan)

    def _nearest(self, y: Tensor) -> Tensor:
        """`quantize` without a look at the values, which would wait for them; a row without a nearest point has any."""
        points = torch.empty(y.shape, dtype=torch.int16, device=self.device)
        rows = max(1, DOT_PRODUCTS // len(self.atoms))
        for first in range(0, len(y), rows):
            part = y[first : first + rows].double()
            magnitude, order = part.abs().sort(dim=1, descending=True, stable=True)
            best = (magnitude @ self.atoms_transposed).argmax(dim=1)
            sizes = torch.empty_like(points[first : first + rows]).scatter_(1, order, self.atoms[best])
            points[first : first + rows] = torch.where(part < 0, -sizes, sizes)
        return points

    def encode(self, y: Tensor) -> Tensor:
        """See `SphericalLattice.encode`."""
        tables = self.tables
        z = self.quantize(y).long()
        leaves = list(z.split(tables.width, dim=1))
        norms = [leaf.square().sum(dim=1) for leaf in leaves]
        ranks = []
        for t, leaf in enumerate(leaves):
            digits = torch.zeros_like(norms[t])
            for column in leaf.unbind(dim=1):
                digits = digits * (2 * tables.half + 1) + column + tables.half
            kind = tables.last_kind if t == len(leaves) - 1 else 0
            ranks.append(self.rank[kind * tables.rank_size + digits])
        # int64 wraps as uint64 does, so sums and products have the right bits.
        code, norm = ranks[-1], norms[-1]
        for t in range(len(leaves) - 2, -1, -1):
            product = ranks[t] * self.ways[self._row(t + 1, norm)]
            norm = norm + norms[t]
            code = code + product + (self.before[self._row(t, norm) * (tables.radius_sq + 2) + norms[t]] ^ SIGN_BIT)
        return code[:, None].contiguous().view(torch.uint8)[:, : self.code_size].contiguous()

    def decode(self, codes: Tensor, norm: float = 1.0) -> Tensor:
        """See `SphericalLattice.decode`."""
        tables, size = self.tables, self.code_size
        if codes.ndim != 2 or codes.shape[1] != size or codes.dtype != torch.uint8:
            raise InvalidInput(f"codes must be (n, {size}) uint8, got {tuple(codes.shape)} {codes.dtype}")
        code = torch.nn.functional.pad(codes, (0, 8 - size)).contiguous().view(torch.int64)[:, 0]
        last = self.num_points - 1
        beyond = (code ^ SIGN_BIT) > (last - (1 << 64) if last >> 63 else last) ^ SIGN_BIT
        if beyond.any():
            row = int(beyond.int().argmax())
            value = int.from_bytes(bytes(codes[row].tolist()), "little")
            raise InvalidInput(f"row {row:,} holds the code {value}, but codes of this lattice are below {self.num_points}")
        left = torch.full_like(code, tables.radius_sq)
        columns = []
        for t in range(tables.leaves - 1):
            first = self._row(t, left) * (tables.radius_sq + 2)
            s, above = torch.zeros_like(left), left + 1  # the sums before s are at most the code; those before `above` more
            for _ in range((tables.radius_sq + 1).bit_length()):
                middle = (s + above) // 2
                fits = self.before[first + middle] <= (code ^ SIGN_BIT)
                s, above = torch.where(fits, middle, s), torch.where(fits, above, middle)
            code = code - (self.before[first + s] ^ SIGN_BIT)
            left = left - s
            after = self._row(t + 1, left)
            count = self.ways[after]
            size_of_code = code.double() + (code < 0) * 2.0**64
            rank = (size_of_code * self.inverse[after]).long()
            code = code - rank * count
            short = (code ^ SIGN_BIT) >= (count ^ SIGN_BIT)
            rank, code = rank + short.long(), torch.where(short, code - count, code)
            columns.append(self.points[self.start[s] + rank, : tables.width])
        last_leaf = self.start[tables.last_kind * (tables.radius_sq + 2) + left] + code
        columns.append(self.points[tables.last_kind * tables.kind_size + last_leaf, : tables.last_width])
        return torch.cat(columns, dim=1).float() * float(np.float32(norm * tables.radius_sq**-0.5))

    def _row(self, t: int, norm: Tensor) -> Tensor:
        return 1 + (t - 1) * (self.tables.radius_sq + 1) + norm if t else torch.zeros_like(norm)
