"""The loops of the lattice, compiled by numba when first used and cached on disk.

Layout. An atom is a few runs of equal values: `level_value[a, j]` is the j-th largest distinct positive value of atom
a and `level_count[a, j]` how often it occurs, for j below `num_levels[a]`; the rest of its coordinates is zero.
A code is `offset[a] + (rank << signs) + sign_bits`: `signs` is the number of nonzero coordinates, bit i of `sign_bits`
says that the i-th nonzero coordinate is negative, and `rank` numbers the arrangements of the values, level by level in
mixed radix, each level a combination of the positions that larger values left free (combinatorial number system:
positions p_1 < p_2 < ... have rank C(p_1, 1) + C(p_2, 2) + ...).
"""

import numpy as np
from numba import njit, prange

# numba turns uint64 mixed with int64 into float64, hence constants and casts of the right type throughout.
U = np.uint64
ROWS = 256  # rows that one parallel task handles


@njit(cache=True, nogil=True, inline="always")
def _nearest_row(y, level_step, level_end, num_levels, level_value, level_count, order, magnitude, prefix, z):
    """Write into z the integer point nearest to y; return its atom."""
    dim = len(y)
    for i in range(dim):  # insertion sort by decreasing magnitude, stable: equal magnitudes keep their order
        value = abs(np.float64(y[i]))
        j = i
        while j > 0 and magnitude[j - 1] < value:
            magnitude[j] = magnitude[j - 1]
            order[j] = order[j - 1]
            j -= 1
        magnitude[j] = value
        order[j] = i
    total = 0.0
    for i in range(dim):
        total += magnitude[i]
        prefix[i] = total

    best, best_dot = 0, -1.0
    for a in range(len(num_levels)):
        dot = 0.0
        for j in range(num_levels[a]):
            dot += level_step[a, j] * prefix[level_end[a, j] - 1]
        if dot > best_dot:
            best, best_dot = a, dot

    i = 0
    for j in range(num_levels[best]):
        for _ in range(level_count[best, j]):
            value = level_value[best, j]
            z[order[i]] = -value if y[order[i]] < 0 else value
            i += 1
    while i < dim:
        z[order[i]] = 0
        i += 1
    return best


@njit(cache=True, nogil=True, inline="always")
def _code_of_row(z, a, num_levels, level_value, level_count, offset, binomial):
    dim = len(z)
    sign_bits, signs = U(0), 0
    for i in range(dim):
        if z[i] != 0:
            if z[i] < 0:
                sign_bits |= U(1) << U(signs)
            signs += 1
    rank, free = U(0), dim
    for j in range(num_levels[a]):
        value, count = level_value[a, j], level_count[a, j]
        combination, taken, position = U(0), 0, 0
        for i in range(dim):
            size = abs(z[i])
            if size == value:
                taken += 1
                combination += binomial[position, taken]
            if size <= value:  # free: not taken by a larger value
                position += 1
        rank = rank * binomial[free, count] + combination
        free -= count
    return offset[a] + (rank << U(signs)) + sign_bits


@njit(cache=True, nogil=True, parallel=True)
def nearest(y, level_step, level_end, num_levels, level_value, level_count, points):
    n, dim = y.shape
    for block in prange((n + ROWS - 1) // ROWS):
        order = np.empty(dim, np.int64)
        magnitude = np.empty(dim, np.float64)
        prefix = np.empty(dim, np.float64)
        for row in range(block * ROWS, min(n, (block + 1) * ROWS)):
            _nearest_row(
                y[row], level_step, level_end, num_levels, level_value, level_count, order, magnitude, prefix, points[row]
            )


@njit(cache=True, nogil=True, parallel=True)
def encode(y, level_step, level_end, num_levels, level_value, level_count, offset, binomial, codes):
    n, dim = y.shape
    for block in prange((n + ROWS - 1) // ROWS):
        order = np.empty(dim, np.int64)
        magnitude = np.empty(dim, np.float64)
        prefix = np.empty(dim, np.float64)
        z = np.empty(dim, np.int16)
        for row in range(block * ROWS, min(n, (block + 1) * ROWS)):
            a = _nearest_row(y[row], level_step, level_end, num_levels, level_value, level_count, order, magnitude, prefix, z)
            codes[row] = _code_of_row(z, a, num_levels, level_value, level_count, offset, binomial)


@njit(cache=True, nogil=True, parallel=True)
def decode(codes, scale, num_levels, level_value, level_count, offset, binomial, vectors):
    n, dim = vectors.shape
    for block in prange((n + ROWS - 1) // ROWS):
        free_positions = np.empty(dim, np.int64)
        combinations = np.empty(dim, np.uint64)
        z = np.empty(dim, np.int16)
        for row in range(block * ROWS, min(n, (block + 1) * ROWS)):
            a = np.searchsorted(offset, codes[row], side="right") - 1
            signs = 0
            for j in range(num_levels[a]):
                signs += level_count[a, j]
            remainder = codes[row] - offset[a]
            sign_bits = remainder & ((U(1) << U(signs)) - U(1)) if signs < 64 else remainder
            rank = remainder >> U(signs) if signs < 64 else U(0)

            free = dim - signs  # the radices come off in reverse: last level first
            for back in range(num_levels[a]):
                j = num_levels[a] - 1 - back
                free += level_count[a, j]
                radix = binomial[free, level_count[a, j]]
                combinations[j] = rank % radix
                rank //= radix

            for i in range(dim):
                free_positions[i] = i
                z[i] = 0
            free = dim
            for j in range(num_levels[a]):
                combination, position = combinations[j], free
                for taken in range(level_count[a, j], 0, -1):
                    position -= 1
                    while binomial[position, taken] > combination:
                        position -= 1
                    combination -= binomial[position, taken]
                    z[free_positions[position]] = level_value[a, j]
                kept = 0
                for i in range(free):
                    if z[free_positions[i]] == 0:
                        free_positions[kept] = free_positions[i]
                        kept += 1
                free = kept

            sign = U(0)
            for i in range(dim):
                value = np.float32(z[i]) * scale
                if z[i] != 0:
                    if (sign_bits >> sign) & U(1):
                        value = -value
                    sign += U(1)
                vectors[row, i] = value
