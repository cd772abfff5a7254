"""The scan of a product's codes for one query: block by block, while a code may still be among the nearest.

What a code's first coordinates say of the others depends on the vectors. In general, a dot product is at most the product of
the norms, which rules out little. If query and vectors were rotated at random, all coordinates are alike. Let a point x have
the dot product s with the query q, and let some coordinates have the share f of |q|². Their dot product is then f s on average,
with the variance f (1 - f) (|q|² |x|² - s²) / (d - 1), since the rest of x has a random direction at right angles to q. A code
is dropped if it is `DEVIATIONS` below what the limit of the search asks for. Gao and Long, "High-dimensional approximate
nearest neighbor search" (SIGMOD 2023), do so for vectors without codes.
"""

from __future__ import annotations

from functools import lru_cache
from typing import NamedTuple

import numpy as np

from catalyzer.lattice import GainShapeLattice, GainShapeProduct, SphericalLattice
from catalyzer.lattice.gain_shape import BLOCK_GAIN_BITS, GAINS
from catalyzer.progress import progress
from catalyzer.scan.searching import BLOCK_CODES, Lattice, amplify, augmented_queries, blocks_of, has_gains, measured

DEVIATIONS = 4.5  # standard ones; beyond it are 3 in a million of a normal distribution
PROMISING = 1 << 6  # codes with large sums in the first block, whose distances give a limit for the others


def search_blocks(
    lattice: Lattice,
    query: np.ndarray,
    codes: np.ndarray,
    firsts: np.ndarray,
    ends: np.ndarray,
    k: int,
    rotated: bool,
    description: str | None = None,
) -> tuple[np.ndarray, np.ndarray]:
    """`catalyzer.scan.searching.search_part` for one query, in some rows of codes whose blocks have at least two leaves.

    Args:
        lattice: lattice of the codes.
        query: `(dim,)` float32.
        codes: `(n, code_size)` uint8.
        firsts: `(runs,)` int64, first row of each run of codes.
        ends: `(runs,)` int64, the row after its last.
        k: neighbours.
        rotated: see `catalyzer.scan.searching.search`.
        description: text of the progress display; None shows none.

    Returns:
        `(1, k)` float64 distances and `(1, k)` int64 rows; inf and -1 at the end if there are fewer codes.

    Raises:
        InvalidInput: an invalid code.
    """
    layout, plan = _layout(lattice), _Plan(lattice, query, rotated)
    distances, ids = np.full(k, np.inf), np.full(k, -1)
    runs = [(int(first), int(end)) for first, end in zip(firsts, ends, strict=True) if first < end]
    total = sum(end - first for first, end in runs)
    with progress(description, total, "codes") as advance:
        while runs:
            at, names = _taken(runs, BLOCK_CODES)
            part = _Part(layout, np.asarray(codes[at]))
            refused = part.measure()
            if refused >= 0:
                lattice.check_codes(part.codes[refused : refused + 1], int(names[refused]))  # which raises
            rows, dots = np.arange(len(names)), np.zeros(len(names), np.float32)
            for stage in plan.stages:
                rows, dots = part.scan(stage, rows, dots, *plan.limits(stage, part.norms[rows], distances[-1]))
                if distances[-1] == np.inf and len(rows) > max(PROMISING, 2 * k):
                    # The codes with the largest sums give the limit for all others.
                    first = dots >= np.partition(dots, -max(PROMISING, 2 * k))[-max(PROMISING, 2 * k)]
                    near, found = plan.distances(part, rows[first]), names[rows[first]]
                    distances, ids = _best(np.append(distances, near), np.append(ids, found), k)
                    rows, dots = rows[~first], dots[~first]
                    may_be_near = dots >= plan.limits(stage, part.norms[rows], distances[-1])[1]
                    rows, dots = rows[may_be_near], dots[may_be_near]
            near, found = plan.distances(part, rows), names[rows]
            distances, ids = _best(np.append(distances, near), np.append(ids, found), k)
            advance(len(names))
    return distances[None], ids[None]


def _best(distances: np.ndarray, ids: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
    best = np.lexsort((np.where(ids < 0, np.iinfo(np.int64).max, ids), distances))[:k]
    return distances[best], ids[best]


class _Stage(NamedTuple):
    """A block in the order of the scan.

    Attributes:
        block: its number in a code.
        sphere: its sphere.
        leaves: see `catalyzer.scan.kernels.prepare_query`.
        rest: see `catalyzer.scan.kernels.scan_block`.
        in_middle: share of the query's squared norm in the blocks before and in the first half of this one.
        at_end: the same with all of this one.
        behind: the largest dot product of the blocks after this one with points of norm 1.
    """

    block: int
    sphere: SphericalLattice
    leaves: np.ndarray
    rest: np.ndarray
    in_middle: float
    at_end: float
    behind: float


class _Plan:
    """What a query asks of codes: the blocks, those first that can add the most, and the limits of their sums."""

    def __init__(self, lattice: Lattice, query: np.ndarray, rotated: bool) -> None:
        from catalyzer.scan.kernels import prepare_query

        self.lattice, self.rotated, self.square = lattice, rotated, float(measured(query[None])[0][0])
        (self.augmented,), _, self.ends, self.radii = augmented_queries(lattice, query[None])
        blocks, shares = [*blocks_of(lattice)], [sphere.dim / lattice.dim for sphere in lattice.spheres]
        halves = np.add.reduceat(query.astype(np.float64) ** 2, _halves(lattice)).reshape(-1, 2).tolist()
        energies = [first + second for first, second in halves]
        most = [(energy * share) ** 0.5 for energy, share in zip(energies, shares, strict=True)]
        order = sorted(range(len(blocks)), key=lambda block: -most[block])
        self.stages, before, whole = [], 0.0, sum(energies) or 1.0
        # A block of a point has the norm of the lattice, or one near it, and not that of the query. A point in the query's
        # direction then has the share most[b] / sum(most) of the dot product in block b; the smaller share is the limit.
        fixed_before, fixed = 0.0, sum(most) or 1.0
        for place, block in enumerate(order):
            (sphere, column, _), radius = blocks[block], float(self.radii[block])
            leaves = np.empty((sphere.tables.leaves, 4), np.float32)
            rest = np.empty((sphere.tables.leaves, sphere.radius_sq + 1), np.float32)
            prepare_query(query[column : column + sphere.dim], sphere.tables, np.float32(1 / radius), leaves, rest)
            # Of a point with the block's norm.
            behind_middle = rest[_middle(sphere) - 1] * np.float32(0 if rotated else sphere.radius_sq**0.5 / radius)
            later = order[place + 1 :]
            # Where blocks have gains of their own, the later ones may have all of the norm.
            share = 1.0 if isinstance(lattice, GainShapeProduct) else sum(shares[each] for each in later)
            behind = (sum(energies[each] for each in later) * share) ** 0.5
            half = halves[block][0] / (energies[block] or 1.0) * most[block]
            in_middle = min(1.0, (before + halves[block][0]) / whole, (fixed_before + half) / fixed)
            fixed_before += most[block]
            at_end = min(1.0, (before + energies[block]) / whole, fixed_before / fixed)
            self.stages.append(_Stage(block, sphere, leaves, behind_middle, in_middle, at_end if later else 1.0, behind))
            before += energies[block]

    def limits(self, stage: _Stage, norms: np.ndarray, farthest: float) -> tuple[np.ndarray, np.ndarray]:
        """What the sums of codes must reach in the middle of a stage's block and at its end, `(n,)` float32 each.

        Args:
            stage: one of `stages`.
            norms: `(n,)` float32, squared norms of the codes' points.
            farthest: squared distance below which codes are wanted.
        """
        if farthest == np.inf:
            return (np.full(len(norms), -np.inf, np.float32),) * 2
        dim, largest = self.lattice.dim, float(norms.max(initial=1))
        slack = (dim + 17) * 2.0**-23 * ((self.square * largest) ** 0.5 + largest + 1)  # for single precision
        least = np.float32((self.square - farthest) / 2 - slack) + norms / 2
        if not self.rotated:
            limit = least - np.float32(stage.behind) * np.sqrt(norms)
            return limit, limit
        # Larger dot products than the least have a larger mean, and a smaller variance unless they are negative.
        spread = np.maximum(np.float32(self.square) * norms - np.maximum(least, 0) ** 2, 0)
        spread = np.sqrt(spread / np.float32(dim - 1))
        in_middle, at_end = (
            np.float32(share) * least - np.float32(DEVIATIONS * (share * (1 - share)) ** 0.5) * spread
            for share in (stage.in_middle, stage.at_end)
        )
        return in_middle, at_end

    def distances(self, part: _Part, rows: np.ndarray) -> np.ndarray:
        """Squared distances to the points of some codes, `(n,)` float64."""
        from catalyzer.lattice.kernels import decode
        from catalyzer.scan.kernels import exact_distances

        points = np.empty((len(rows), len(self.augmented)), np.float32)
        for block, (sphere, column, _) in enumerate(blocks_of(self.lattice)):
            own = np.empty((len(rows), sphere.dim), np.float32)
            words = part.words[rows, block] & part.layout.masks[block]
            decode(words, np.empty(0, np.uint64), sphere.tables, np.float32(1), own)
            points[:, column : column + sphere.dim] = own
        if has_gains(self.lattice):
            amplify(self.lattice, points.T, self.lattice.gains(part.codes[rows]))
        return exact_distances(self.augmented, points, self.ends, self.radii, self.square)


def _middle(sphere: SphericalLattice) -> int:
    """How many leaves are in the first half of a block."""
    return (sphere.tables.leaves + 1) // 2


@lru_cache(maxsize=16)
def _halves(lattice: Lattice) -> np.ndarray:
    """The first coordinate of each half of each block."""
    return np.array(
        [[column, column + _middle(sphere) * sphere.tables.width] for sphere, column, _ in blocks_of(lattice)]
    ).ravel()


class _Layout(NamedTuple):
    """Where the parts of a product's codes are, for each block; see `catalyzer.scan.kernels.measure_codes`.

    Attributes:
        firsts: where the bytes of the block's word begin.
        sizes: how many there are.
    """

    firsts: np.ndarray
    sizes: np.ndarray
    masks: np.ndarray
    lasts: np.ndarray
    at: np.ndarray
    shift: int
    levels: np.ndarray
    shares: np.ndarray


@lru_cache(maxsize=16)  # a query in few codes would spend some of its time here
def _layout(lattice: Lattice) -> _Layout:
    spheres = lattice.spheres
    sizes = np.array([sphere.code_size for sphere in spheres])
    firsts, bits = np.cumsum(sizes) - sizes, 8 * sizes
    at, shift, levels = sizes * 0, 8, np.ones((len(spheres), 1), np.float32)  # no bits of a byte
    if isinstance(lattice, GainShapeProduct):
        firsts, at, shift, levels = lattice.firsts, lattice.ends, 8 - BLOCK_GAIN_BITS, lattice.levels
        bits = bits - lattice.gain_bits * (at < firsts + sizes)
    elif isinstance(lattice, GainShapeLattice):
        at, shift, levels = sizes * 0 + lattice.code_size - 1, 0, np.tile(GAINS, (len(spheres), 1))
    return _Layout(
        firsts=firsts,
        sizes=sizes,
        masks=np.array([(1 << each) - 1 for each in bits.tolist()], np.uint64),
        lasts=np.array([sphere.num_points - 1 for sphere in spheres], np.uint64),
        at=at,
        shift=shift,
        levels=levels,
        shares=np.array([sphere.dim / lattice.dim for sphere in spheres], np.float32),
    )


class _Part:
    """Some of the codes, `(n, code_size)` uint8, and the words of their blocks, `(n, blocks)` uint64."""

    def __init__(self, layout: _Layout, codes: np.ndarray) -> None:
        self.layout, self.codes, self.norms = layout, codes, np.empty(len(codes), np.float32)
        if (layout.sizes == 8).all() and codes.shape[1] == 8 * len(layout.sizes) and codes.flags.c_contiguous:
            self.words = codes.view("<u8")
            if self.words.flags.aligned:
                return
        padded = np.zeros((len(codes), len(layout.sizes), 8), np.uint8)
        for block, (first, size) in enumerate(zip(layout.firsts.tolist(), layout.sizes.tolist(), strict=True)):
            padded[:, block, :size] = codes[:, first : first + size]
        self.words = padded.view("<u8")[:, :, 0]

    def measure(self) -> int:
        """Compute `norms`, the squared norms of the points; the first row that holds no code, or -1."""
        from catalyzer.scan.kernels import measure_codes

        to = self.layout
        return measure_codes(self.codes, self.words, to.masks, to.lasts, to.at, to.shift, to.levels, to.shares, self.norms)

    def scan(
        self, stage: _Stage, rows: np.ndarray, dots: np.ndarray, in_middle: np.ndarray, at_end: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray]:
        """Those of the rows whose sums reach both limits, and their sums with the block's dot products."""
        from catalyzer.scan.kernels import scan_block

        kept, sums, to, block = np.empty(len(rows), np.int64), np.empty(len(rows), np.float32), self.layout, stage.block
        n = scan_block(
            *(rows, dots, self.codes, self.words[:, block], to.masks[block], to.at[block], to.shift, to.levels[block]),
            *(stage.sphere.tables, stage.leaves, stage.rest, in_middle, at_end, kept, sums),
        )
        return rows[kept[:n]], sums[:n]


def _taken(runs: list[tuple[int, int]], size: int) -> tuple[slice | np.ndarray, np.ndarray]:
    """At most `size` rows off the front of runs, which get shorter: what takes them from codes, and their numbers."""
    parts = []
    while size and runs:
        first, end = runs[0]
        stop = min(end, first + size)
        parts.append(np.arange(first, stop))
        size -= stop - first
        runs[:1] = [(stop, end)] if stop < end else []
    rows = np.concatenate(parts)
    return (slice(int(rows[0]), int(rows[-1]) + 1) if len(parts) == 1 else rows), rows
