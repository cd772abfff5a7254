"""The loops of the lattice on a CPU, compiled by numba when first used; `docs/lattice.md` explains them.

A nearest point is found for `LANES` vectors at a time: arrays are laid out coordinate by coordinate, so that each inner
loop does the same to all lanes and becomes SIMD instructions. It is computed in single precision; lanes where that
leaves a doubt (two atoms closer than rounding, equal magnitudes on the two sides of a level, extreme norms, NaN) are
done again by `_nearest_row` in double precision, which alone defines ties.
"""

from typing import NamedTuple

import numpy as np
from numba import prange

from catalyzer.lattice.compiler import kernel

# numba turns uint64 mixed with int64 into float64, hence constants and casts of the right type throughout. Indices are
# unsigned, since signed ones could be negative and cost a test each.
U = np.uint64
F = np.float32
LANES = 128  # vectors whose nearest points are found together
TASK_ROWS = 1024  # rows that one parallel task handles: its scratch memory is allocated once
DECODE_TILE = 128  # codes that are decoded together, leaf by leaf, so that the processor overlaps their look-ups
MAX_SUM, MIN_SUM = F(1e30), F(1e-30)  # sums of magnitudes that single precision handles


class Atoms(NamedTuple):
    """The atoms as runs of equal values, those of at most four positive values first.

    By partial summation, the dot product of an atom with decreasing magnitudes is a sum over its levels (its distinct
    positive values) of the step down to the next level times the sum of the magnitudes up to the level's end.

    Attributes:
        step: `(num_atoms, m)` float32, each level's value minus the next; 0 beyond the last. m is at least 8.
        end: `(num_atoms, m)` uint32, each level's last coordinate in the sorted order.
        levels: `(num_atoms,)` uint32.
        pairs: the first 2·pairs atoms have at most four levels.
        order: `(num_atoms,)` uint32, the atoms in decreasing lexicographic order.
        network: `(comparators, 2)` uint32, a sorting network.
        tolerance: relative difference of two dot products beyond which single precision tells them apart.
    """

    step: np.ndarray
    end: np.ndarray
    levels: np.ndarray
    pairs: int
    order: np.ndarray
    network: np.ndarray
    tolerance: np.float32


class Tables(NamedTuple):
    """`catalyzer.lattice.numbering.Numbering` for the loops: flat arrays, and reciprocals instead of divisors.

    Attributes:
        radius_sq: r².
        width: coordinates of a leaf; `last_width` of the last, whose kind is `last_kind`.
        leaves: how many there are.
        wide: before that many leaves, what is left of a code may need two words.
        half: see `Numbering`, like the rest.
        packed: `(kinds · p,)` uint32, the leaves' points as four int8 each; `kind_size` is p.
        inverse: reciprocals of the ways, rounded down: quotients are never too large, and at most 1 too small.
        to_bucket: number of buckets times that.
        root_start: `(p + 1,)` uint64, the first code of each leaf in first place; empty unless one word is enough.
        root_guide: uint16, the last of them that starts at or before each multiple of 2^`root_shift`.
        root_norm: `(p,)` uint16, what each leaves of the squared norm.
    """

    radius_sq: int
    width: int
    last_width: int
    last_kind: int
    leaves: int
    wide: int
    half: int
    buckets: int
    kind_size: int
    rank_size: int
    packed: np.ndarray
    start: np.ndarray
    rank: np.ndarray
    ways: np.ndarray
    ways_high: np.ndarray
    before: np.ndarray
    before_high: np.ndarray
    guide: np.ndarray
    inverse: np.ndarray
    to_bucket: np.ndarray
    root_start: np.ndarray
    root_guide: np.ndarray
    root_norm: np.ndarray
    root_shift: int


# ---- nearest point ------------------------------------------------------------------------------------------------


@kernel()
def sort_magnitudes(y, order, magnitude, prefix):
    """Write y's magnitudes in decreasing order, their coordinates and their sums; False where y has NaN or infinity."""
    for i in range(len(y)):  # insertion sort, stable: equal magnitudes keep their order
        value = abs(np.float64(y[i]))
        if not value < np.inf:
            return False
        j = i
        while j > 0 and magnitude[j - 1] < value:
            magnitude[j] = magnitude[j - 1]
            order[j] = order[j - 1]
            j -= 1
        magnitude[j] = value
        order[j] = i
    total = 0.0
    for i in range(len(y)):
        total += magnitude[i]
        prefix[i] = total
    return True


@kernel(inline="always")
def atom_dot(a, atoms, prefix):
    """The dot product of an atom with decreasing magnitudes, given their sums, in double precision."""
    dot = 0.0
    for j in range(atoms.levels[a]):
        dot += atoms.step[a, j] * prefix[atoms.end[a, j]]
    return dot


@kernel()
def _nearest_row(y, atoms, order, magnitude, prefix, z, lane):
    """Write into z[:, lane] the point nearest to y, in double precision; False where y has NaN or infinity."""
    dim = len(y)
    if not sort_magnitudes(y, order, magnitude, prefix):
        return False
    best, best_dot = np.uint32(0), -1.0
    for a in atoms.order:
        dot = atom_dot(a, atoms, prefix)
        if dot > best_dot:
            best, best_dot = a, dot

    value = 0
    for j in range(atoms.levels[best]):
        value += np.int32(atoms.step[best, j])
    level = 0
    for i in range(dim):
        z[order[i], lane] = -value if y[order[i]] < 0 else value
        if level < atoms.levels[best] and i == atoms.end[best, level]:
            value -= np.int32(atoms.step[best, level])
            level += 1
    return True


@kernel(fastmath={"contract"})
def _best_atoms(prefix, atoms, state):
    """For each lane the best dot product, the second best and the best's atom, given sums of the largest magnitudes.

    They go to the first rows of `state`, `(4, LANES)`; an atom's number is exact in single precision.
    """
    step, end = atoms.step, atoms.end
    state[:2] = F(-1)
    state[2:] = F(0)
    for pair in range(U(atoms.pairs)):
        # Two atoms a turn halve the traffic to and from `state`; more operands would end vectorization.
        a, b = U(2) * pair, U(2) * pair + U(1)
        a0, a1, a2, a3 = step[a, 0], step[a, 1], step[a, 2], step[a, 3]
        b0, b1, b2, b3 = step[b, 0], step[b, 1], step[b, 2], step[b, 3]
        i0, i1, i2, i3 = end[a, 0], end[a, 1], end[a, 2], end[a, 3]
        j0, j1, j2, j3 = end[b, 0], end[b, 1], end[b, 2], end[b, 3]
        name_a, name_b = F(a), F(b)
        for lane in range(U(LANES)):
            best, second, arg = state[0, lane], state[1, lane], state[2, lane]
            d = a0 * prefix[i0, lane] + a1 * prefix[i1, lane] + a2 * prefix[i2, lane] + a3 * prefix[i3, lane]
            low = d if d < best else best
            second = low if low > second else second
            arg = name_a if d > best else arg
            best = d if d > best else best
            d = b0 * prefix[j0, lane] + b1 * prefix[j1, lane] + b2 * prefix[j2, lane] + b3 * prefix[j3, lane]
            low = d if d < best else best
            state[1, lane] = low if low > second else second
            state[2, lane] = name_b if d > best else arg
            state[0, lane] = d if d > best else best
    for a in range(U(2 * atoms.pairs), U(len(step))):
        levels = U(atoms.levels[a])
        a0, a1, a2, a3 = step[a, 0], step[a, 1], step[a, 2], step[a, 3]
        b0, b1, b2, b3 = step[a, 4], step[a, 5], step[a, 6], step[a, 7]
        i0, i1, i2, i3 = end[a, 0], end[a, 1], end[a, 2], end[a, 3]
        j0, j1, j2, j3 = end[a, 4], end[a, 5], end[a, 6], end[a, 7]
        if levels > U(8):
            state[3] = F(0)
            for j in range(U(8), levels):
                for lane in range(U(LANES)):
                    state[3, lane] += step[a, j] * prefix[end[a, j], lane]
        name_a = F(a)
        for lane in range(U(LANES)):
            best, second, arg = state[0, lane], state[1, lane], state[2, lane]
            d = a0 * prefix[i0, lane] + a1 * prefix[i1, lane] + a2 * prefix[i2, lane] + a3 * prefix[i3, lane]
            d += b0 * prefix[j0, lane] + b1 * prefix[j1, lane] + b2 * prefix[j2, lane] + b3 * prefix[j3, lane]
            d += state[3, lane]
            low = d if d < best else best
            state[1, lane] = low if low > second else second
            state[2, lane] = name_a if d > best else arg
            state[0, lane] = d if d > best else best
        if levels > U(8):
            state[3] = F(0)


@kernel()
def _scratch(dim, most):
    """What `_nearest_lanes` works in, allocated once for many calls."""
    lanes, levels = (dim, LANES), (most, LANES)
    return (
        *(np.empty(lanes, F), np.empty(lanes, F), np.empty(lanes, F)),
        *(np.empty(levels, F), np.empty(levels, F), np.empty((4, LANES), F)),
        *(np.empty(LANES, np.bool_), np.empty(dim), np.empty(dim), np.empty(dim, np.int64)),
    )


@kernel()
def _nearest_lanes(y, first, lanes, atoms, scratch, z):
    """Write into z, `(dim, LANES)` int32, the points nearest to rows first to first + lanes of y.

    Returns the first row with NaN or infinity, or -1.
    """
    dim, most = U(y.shape[1]), U(atoms.step.shape[1])
    signed, magnitude, prefix, threshold, step, state, doubtful, row_magnitude, row_prefix, order = scratch
    for lane in range(U(lanes)):
        for i in range(dim):
            signed[i, lane] = y[U(first) + lane, i]
    for i in range(dim):
        for lane in range(U(lanes), U(LANES)):
            signed[i, lane] = F(1)
    for i in range(dim):
        for lane in range(U(LANES)):
            magnitude[i, lane] = abs(signed[i, lane])
    for c in range(U(len(atoms.network))):
        i, j = atoms.network[c, 0], atoms.network[c, 1]
        for lane in range(U(LANES)):
            p, q = magnitude[i, lane], magnitude[j, lane]
            magnitude[i, lane] = p if p > q else q
            magnitude[j, lane] = q if p > q else p
    for lane in range(U(LANES)):
        prefix[0, lane] = magnitude[0, lane]
    for i in range(U(1), dim):
        for lane in range(U(LANES)):
            prefix[i, lane] = prefix[i - U(1), lane] + magnitude[i, lane]
    _best_atoms(prefix, atoms, state)

    # A coordinate has the value of the level whose magnitudes reach down to its own: no permutation is applied.
    deepest = np.uint32(0)
    doubts = 0
    for lane in range(U(LANES)):
        a = U(state[2, lane])
        best, second, total = state[0, lane], state[1, lane], prefix[dim - U(1), lane]
        doubt = not (best - second > atoms.tolerance * best and total < MAX_SUM and total > MIN_SUM)
        levels = atoms.levels[a]
        for j in range(U(levels)):
            e = U(atoms.end[a, j])
            value = magnitude[e, lane]
            threshold[j, lane] = value
            step[j, lane] = atoms.step[a, j]
            if e + U(1) < dim:
                doubt |= magnitude[e + U(1), lane] == value
        for j in range(U(levels), most):
            threshold[j, lane] = np.inf
            step[j, lane] = F(0)
        deepest = max(deepest, levels)
        doubtful[lane] = doubt
        doubts += doubt
    for i in range(dim):
        for lane in range(U(LANES)):
            value, y_i = F(0), abs(signed[i, lane])
            for j in range(4):
                value += step[j, lane] if y_i >= threshold[j, lane] else F(0)
            z[i, lane] = np.int32(value)
    for j in range(U(4), U(deepest)):
        for i in range(dim):
            for lane in range(U(LANES)):
                z[i, lane] += np.int32(step[j, lane]) if abs(signed[i, lane]) >= threshold[j, lane] else np.int32(0)
    for i in range(dim):
        for lane in range(U(LANES)):
            z[i, lane] = -z[i, lane] if signed[i, lane] < F(0) else z[i, lane]

    if doubts:
        for lane in range(lanes):
            if doubtful[lane] and not _nearest_row(y[first + lane], atoms, order, row_magnitude, row_prefix, z, lane):
                return first + lane
    return -1


@kernel(parallel=lambda y, *_: len(y) > TASK_ROWS)
def nearest(y, atoms, points):
    """The points nearest to y, `(n, dim)` int16; returns the first row with NaN or infinity, or -1."""
    n, dim = y.shape
    tasks = (n + TASK_ROWS - 1) // TASK_ROWS
    refused = np.full(tasks, -1)
    for task in prange(tasks):
        scratch, z = _scratch(dim, atoms.step.shape[1]), np.empty((dim, LANES), np.int32)
        for first in range(task * TASK_ROWS, min(n, (task + 1) * TASK_ROWS), LANES):
            lanes = min(LANES, n - first)
            row = _nearest_lanes(y, first, lanes, atoms, scratch, z)
            if row >= 0 and refused[task] < 0:
                refused[task] = row
            for lane in range(U(lanes)):
                for i in range(U(dim)):
                    points[U(first) + lane, i] = z[i, lane]
    for row in refused:
        if row >= 0:
            return row
    return -1


# ---- codes --------------------------------------------------------------------------------------------------------


@kernel(inline="always")
def _row(t, norm, radius_sq):
    return U(1) + (t - U(1)) * U(radius_sq + 1) + norm if t else U(0)


@kernel()
def _times(low, high, factor):
    """(low, high) · factor modulo 2^128, for a factor below 2^32."""
    mask = U(0xFFFFFFFF)
    bottom = (low & mask) * factor
    middle = (low >> U(32)) * factor + (bottom >> U(32))
    return (middle << U(32)) | (bottom & mask), high * factor + (middle >> U(32))


@kernel(parallel=lambda y, *_: len(y) > TASK_ROWS)
def encode(y, atoms, tables, codes, codes_high):
    """The codes of the points nearest to y: `(n,)` uint64 words; `codes_high` may be empty where one word is enough."""
    n, dim = y.shape
    tasks = (n + TASK_ROWS - 1) // TASK_ROWS
    refused = np.full(tasks, -1)
    leaves, width, side = U(tables.leaves), U(tables.width), np.int32(2 * tables.half + 1)
    for task in prange(tasks):
        scratch, z = _scratch(dim, atoms.step.shape[1]), np.empty((dim, LANES), np.int32)
        digits = np.empty((leaves, LANES), np.int32)
        norms = np.empty((leaves, LANES), np.int32)
        for first in range(task * TASK_ROWS, min(n, (task + 1) * TASK_ROWS), LANES):
            lanes = min(LANES, n - first)
            row = _nearest_lanes(y, first, lanes, atoms, scratch, z)
            if row >= 0:
                if refused[task] < 0:
                    refused[task] = row
                continue
            digits[:] = np.int32(0)
            norms[:] = np.int32(0)
            for i in range(U(dim)):
                t = i // width
                for lane in range(U(LANES)):
                    value = z[i, lane]
                    digits[t, lane] = digits[t, lane] * side + (value + np.int32(tables.half))
                    norms[t, lane] += value * value
            for lane in range(U(lanes)):
                t = leaves - U(1)
                norm = U(norms[t, lane])
                low = U(tables.rank[U(tables.last_kind * tables.rank_size) + U(digits[t, lane])])
                high = U(0)
                while t > U(0):
                    t -= U(1)
                    s = U(norms[t, lane])
                    rank = U(tables.rank[U(digits[t, lane])])
                    after = _row(t + U(1), norm, tables.radius_sq)
                    norm += s
                    at = _row(t, norm, tables.radius_sq) * U(tables.radius_sq + 2) + s
                    if t >= U(tables.wide):
                        low += tables.before[at] + rank * tables.ways[after]
                    else:
                        product, product_high = _times(tables.ways[after], tables.ways_high[after], rank)
                        low += product
                        high += product_high + U(low < product)
                        low += tables.before[at]
                        high += tables.before_high[at] + U(low < tables.before[at])
                codes[U(first) + lane] = low
                if tables.wide:
                    codes_high[U(first) + lane] = high
    for row in refused:
        if row >= 0:
            return row
    return -1


@kernel()
def _less(low, high, than, than_high):
    return high < than_high or (high == than_high and low < than)


@kernel()
def _split_leaf_wide(t, low, high, norm, tables):
    """Split leaf t off a code of two words: its index among the leaves, and what is left of the code and the norm."""
    row = _row(t, norm, tables.radius_sq)
    value = np.float64(high) * 18446744073709551616.0 + np.float64(low)
    s = U(tables.guide[row * U(tables.buckets) + U(value * tables.to_bucket[row])])
    at = row * U(tables.radius_sq + 2) + s
    while not _less(low, high, tables.before[at + U(1)], tables.before_high[at + U(1)]):
        at += U(1)
        s += U(1)
    high -= tables.before_high[at] + U(low < tables.before[at])
    low -= tables.before[at]
    norm -= s
    after = _row(t + U(1), norm, tables.radius_sq)
    count, count_high = tables.ways[after], tables.ways_high[after]
    value = np.float64(high) * 18446744073709551616.0 + np.float64(low)
    rank = U(value * tables.inverse[after])
    product, product_high = _times(count, count_high, rank)
    high -= product_high + U(low < product)
    low -= product
    if not _less(low, high, count, count_high):
        rank += U(1)
        high -= count_high + U(low < count)
        low -= count
    return U(tables.start[s]) + rank, low, high, norm


@kernel(inline="always")
def split_leaf(t, code, norm, tables):
    """`_split_leaf_wide` for codes of one word."""
    row = _row(t, norm, tables.radius_sq)
    first = row * U(tables.radius_sq + 2)
    at = first + U(tables.guide[row * U(tables.buckets) + U(np.float64(code) * tables.to_bucket[row])])
    # The first step is often needed and as often not: as arithmetic it costs less than as a mispredicted branch.
    at += U(tables.before[at + U(1)] <= code)
    while tables.before[at + U(1)] <= code:
        at += U(1)
    s = at - first
    norm -= s
    code -= tables.before[at]
    after = _row(t + U(1), norm, tables.radius_sq)
    count = tables.ways[after]
    rank = U(np.float64(code) * tables.inverse[after])
    code -= rank * count
    if code >= count:
        rank += U(1)
        code -= count
    return U(tables.start[s]) + rank, code, norm


@kernel(inline="always")
def split_first_leaf(code, tables):
    """`split_leaf` for the first one: the norm before it is always r², so a table of first codes spares the division."""
    leaf = U(tables.root_guide[code >> U(tables.root_shift)])
    while tables.root_start[leaf + U(1)] <= code:
        leaf += U(1)
    return leaf, code - tables.root_start[leaf], U(tables.root_norm[leaf])


@kernel()
def decode_tile(codes, codes_high, first, rows, tables, scratch, packed):
    """Decode codes first to first + rows into `packed`, `(at least rows, leaves)` uint32: four int8 coordinates a leaf."""
    leaves = U(tables.leaves)
    low, high, norm = scratch[0], scratch[1], scratch[2]
    for i in range(rows):
        low[i] = codes[first + i]
        norm[i] = U(tables.radius_sq)
    if tables.wide:
        for i in range(rows):
            high[i] = codes_high[first + i]
    for t in range(leaves - U(1)):
        if t < U(tables.wide):
            for i in range(rows):
                leaf, low[i], high[i], norm[i] = _split_leaf_wide(t, low[i], high[i], norm[i], tables)
                packed[i, t] = tables.packed[leaf]
        elif t == U(0):
            for i in range(rows):
                leaf, low[i], norm[i] = split_first_leaf(low[i], tables)
                packed[i, t] = tables.packed[leaf]
        else:
            for i in range(rows):
                leaf, low[i], norm[i] = split_leaf(t, low[i], norm[i], tables)
                packed[i, t] = tables.packed[leaf]
    for i in range(rows):
        start = tables.start[U(tables.last_kind * (tables.radius_sq + 2)) + norm[i]]
        packed[i, leaves - U(1)] = tables.packed[U(tables.last_kind * tables.kind_size) + U(start) + low[i]]


@kernel(parallel=lambda codes, *_: len(codes) > TASK_ROWS)
def decode(codes, codes_high, tables, scale, vectors):
    """The vectors, `(n, dim)` float32, of codes in words; `codes_high` may be empty where one word is enough.

    Points are multiplied by `scale`, float32.
    """
    n, dim = vectors.shape
    for task in prange((n + TASK_ROWS - 1) // TASK_ROWS):
        scratch, packed = np.empty((3, DECODE_TILE), np.uint64), np.empty((DECODE_TILE, tables.leaves), np.uint32)
        coordinates = packed.view(np.int8)
        for first in range(task * TASK_ROWS, min(n, (task + 1) * TASK_ROWS), DECODE_TILE):
            rows = min(DECODE_TILE, n - first)
            decode_tile(codes, codes_high, U(first), U(rows), tables, scratch, packed)
            if dim == coordinates.shape[1]:  # nothing is padded: one loop over all, in SIMD instructions
                flat, out = coordinates.ravel(), vectors[first : first + rows].ravel()
                for j in range(U(rows * dim)):
                    out[j] = F(flat[j]) * scale
            else:
                for i in range(U(rows)):
                    for j in range(U(dim)):
                        leaf = min(j // U(tables.width), U(tables.leaves - 1))
                        at = U(4) * leaf + (j - leaf * U(tables.width))
                        vectors[U(first) + i, j] = F(coordinates[i, at]) * scale
