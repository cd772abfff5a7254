"""The numbering of the points: which integer in [0, num_points) is whose code.

**Format 1.** Cut the coordinates of a point z into leaves of w consecutive ones (the last leaf has what is left), where w
is the largest of 4, 3, 2 for which at most 2^16 integer points of w dimensions have a squared norm of at most r².
Number the leaves of equal squared norm in lexicographic order: that is a leaf's rank. With L(s) leaves of squared norm
s, and C_t(R) ways to fill leaf t and those after it with the squared norm R in all, the code of z from leaf t on, given
its squared norm R from there on, is

    code_t(z) = sum over s' < s of L(s') C_{t+1}(R - s')  +  rank C_{t+1}(R - s)  +  code_{t+1}(z),

where s is leaf t's squared norm; of the last leaf it is the rank. In words: points are ordered by the norm of their
first leaf, then by its rank, then by the norm of the second, and so on. Everything in it is a table look-up, a
multiplication and an addition; decoding divides instead, and the quotient, a rank, has 16 bits at most.
"""

from dataclasses import dataclass
from functools import reduce
from math import isqrt

import numpy as np

from catalyzer.errors import InvalidInput

FORMAT = 1
"""Version of the numbering above. Codes of one format are the same bytes for ever; another numbering is another format."""

MAX_LEAF_WIDTH = 4
MAX_LEAF_POINTS = 1 << 16
MAX_TABLE_BYTES = 1 << 28
BUCKETS = 64  # of the guide that finds a leaf's norm from the leading bits of what is left of the code

WORD = (1 << 64) - 1


@dataclass(frozen=True)
class Numbering:
    """The tables of format 1 for one sphere; T is the number of leaves. Numbers beyond 64 bits are in two words.

    A *row* is a pair (t, R): row 0 for the whole point, row 1 + (t - 1)(r² + 1) + R for t ≥ 1.

    Attributes:
        widths: coordinates of each leaf.
        points: `(kinds, p, 4)` int8, the leaves by squared norm and then in lexicographic order, zeros where a leaf has
            fewer coordinates. There is a second kind where the last leaf is shorter than the others.
        start: `(kinds, r² + 2)` uint32, where in `points` those of each squared norm start.
        rank: `(kinds, side^w)` uint16, a leaf's rank by its coordinates, as digits to the base `side` from -half on.
        half: the largest coordinate, `isqrt(r²)`; `side` is 2·half + 1.
        ways: `(2, rows)` uint64, C_t(R), low words first.
        before: `(2, rows of t < T - 1, r² + 2)` uint64, the first sum of the formula for each s, low words first.
        guide: `(rows of t < T - 1, BUCKETS)` uint16, the least s for codes of each BUCKETS-th of [0, C_t(R)).
        wide: before that many leaves, what is left of the code may need two words.
    """

    widths: tuple[int, ...]
    points: np.ndarray
    start: np.ndarray
    rank: np.ndarray
    half: int
    ways: np.ndarray
    before: np.ndarray
    guide: np.ndarray
    wide: int


def leaf_width(dim: int, radius_sq: int) -> int:
    """w of format 1.

    >>> leaf_width(24, 79), leaf_width(24, 200), leaf_width(2, 10_000)
    (4, 3, 2)
    """
    return next(
        w for w in range(min(dim, MAX_LEAF_WIDTH), 0, -1) if w <= 2 or _leaf_counts(w, radius_sq).sum() <= MAX_LEAF_POINTS
    )


def number(dim: int, radius_sq: int) -> Numbering:
    """Build the tables.

    Raises:
        InvalidInput: they would take more than `MAX_TABLE_BYTES`.
    """
    width = leaf_width(dim, radius_sq)
    widths = (width,) * ((dim - 1) // width) + ((dim - 1) % width + 1,)
    leaves, norms = len(widths), radius_sq + 1
    rows = 1 + (leaves - 1) * norms
    size = (1 + max(0, leaves - 2) * norms) * (norms + 1) * 16
    if size > MAX_TABLE_BYTES:
        raise InvalidInput(
            f"dim {dim}, r² {radius_sq} needs tables of {size / 2**20:,.0f} MiB, more than the {MAX_TABLE_BYTES >> 20} that "
            "are supported; use a smaller r²"
        )

    tables = [_leaf_tables(w, radius_sq) for w in sorted(set(widths), reverse=True)]
    points = np.zeros((len(tables), len(tables[0][0]), MAX_LEAF_WIDTH), np.int8)
    rank = np.zeros((len(tables), len(tables[0][2])), np.uint16)
    for kind, (leaf_points, _, leaf_rank) in enumerate(tables):
        points[kind, : len(leaf_points), : leaf_points.shape[1]] = leaf_points
        rank[kind, : len(leaf_rank)] = leaf_rank
    start = np.stack([start for _, start, _ in tables]).astype(np.uint32)
    sizes = np.diff(start).astype(object)

    # From the last leaf to the first: C_t(R) and the sums before each s, in Python's integers.
    first_row = [0] + [1 + t * norms for t in range(leaves - 1)]
    ways = np.zeros((2, rows), np.uint64)
    before = np.zeros((2, rows - norms if leaves > 1 else 0, norms + 1), np.uint64)
    guide = np.zeros((before.shape[1], BUCKETS), np.uint16)
    after, wide = sizes[-1], 0
    for t in range(leaves - 1, -1, -1):
        counts = np.zeros(norms, object)
        wanted = np.arange(norms) if t else np.array([radius_sq])
        for row, norm in enumerate(wanted, first_row[t]):
            if t == leaves - 1:
                counts[norm] = sizes[-1][norm]
            else:
                sums = np.concatenate([[0], np.cumsum(sizes[0][: norm + 1] * after[norm::-1])]).astype(object)
                counts[norm] = sums[-1]
                before[:, row, : norm + 2] = _words(sums)
                before[:, row, norm + 2 :] = WORD
                # A bucket's least code, with room for the rounding of the division that finds the bucket.
                codes = (np.arange(BUCKETS) - 1e-6) / BUCKETS * float(sums[-1])
                guide[row] = np.clip(np.searchsorted(sums.astype(float), codes, side="right") - 1, 0, norm)
        ways[:, first_row[t] : first_row[t] + len(wanted)] = _words(counts[wanted])
        after = counts
        # Only norms that the leaves before can leave over ever come up; others may have any number of points.
        possible = reduce(_reachable, [sizes[0]] * t, np.arange(norms) == radius_sq)
        if max(counts[possible], default=0) > WORD:
            wide = max(wide, t + 1)
    return Numbering(
        widths=widths,
        points=points,
        start=start,
        rank=rank,
        half=isqrt(radius_sq),
        ways=ways,
        before=before,
        guide=guide,
        wide=wide,
    )


def _leaf_counts(width: int, radius_sq: int) -> np.ndarray:
    counts = np.zeros(radius_sq + 1, np.int64)
    counts[0] = 1
    for _ in range(width):  # one coordinate more, which has few squares: shifts take less time than a convolution
        before = counts.copy()
        for square in (np.arange(1, isqrt(radius_sq) + 1) ** 2).tolist():
            counts[square:] += 2 * before[:-square]
    return counts


def _leaf_tables(width: int, radius_sq: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    # Points by norm, then in lexicographic order, which is the order that the grid has and a stable sort keeps.
    half = isqrt(radius_sq)
    axis = np.arange(-half, half + 1)
    squared = reduce(lambda sums, _: np.add.outer(sums, axis**2), range(width - 1), axis**2).ravel()
    inside = np.flatnonzero(squared <= radius_sq)
    at = inside[np.argsort(squared[inside], kind="stable")]
    digits = np.stack(np.unravel_index(at, (2 * half + 1,) * width), axis=1)
    start = np.searchsorted(squared[at], np.arange(radius_sq + 2))
    rank = np.zeros(len(squared), np.uint16)
    rank[at] = np.arange(len(at)) - start[squared[at]]
    return (digits - half).astype(np.int8), start, rank


def _words(numbers: np.ndarray) -> np.ndarray:
    """Python integers as `(2, n)` uint64, low words first."""
    return np.array([numbers & WORD, numbers >> 64 & WORD]).astype(np.uint64)


def _reachable(possible: np.ndarray, sizes: np.ndarray) -> np.ndarray:
    left = np.zeros_like(possible)
    for taken in np.flatnonzero(sizes):
        left[: len(left) - taken] |= possible[taken:]
    return left
