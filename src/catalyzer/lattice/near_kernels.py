"""The k lattice points nearest to a vector, in order: a search from the best point of each atom downwards, compiled by numba.

With the vector's magnitudes in decreasing order, every point of an atom is a signed arrangement of its values. Two moves
make an arrangement worse: swapping neighbours of which the first is larger, and turning the last value negative. Every
arrangement is reached by such moves from the decreasing one, through better ones only (the weak order of the signed
permutations), so the best of those reached but not yet taken is always the next nearest.
"""

import numpy as np
from numba import prange

from catalyzer.lattice.compiler import kernel
from catalyzer.lattice.kernels import atom_dot, sort_magnitudes

TASK_ROWS = 256  # rows that one parallel task handles: its scratch memory is allocated once


@kernel()
def _known(values, keys, count, value, key):
    for i in range(count):
        if keys[i] == key:
            same = True
            for j in range(len(value)):
                same &= values[i, j] == value[j]
            if same:
                return True
    return False


@kernel()
def _best_atoms(prefix, atoms, k, best, scores):
    """Write the best k atoms and their dot products, the best first; returns how many there are."""
    count = 0
    for a in atoms.order:
        dot = atom_dot(a, atoms, prefix)
        if count == k and dot <= scores[k - 1]:
            continue
        count = min(count + 1, k)
        i = count - 1
        while i > 0 and scores[i - 1] < dot:
            best[i], scores[i] = best[i - 1], scores[i - 1]
            i -= 1
        best[i], scores[i] = a, dot
    return count


@kernel()
def _nearest_row(y, atoms, weights, k, scratch, points):
    """Write into points, `(k, dim)` int16, the points nearest to y; False where y has NaN or infinity."""
    dim = len(y)
    order, magnitude, prefix, best_atoms, values, scores, keys = scratch
    if not sort_magnitudes(y, order, magnitude, prefix):
        return False
    count = _best_atoms(prefix, atoms, k, best_atoms, scores)
    for i in range(count):
        a, keys[i] = best_atoms[i], np.uint64(0)
        value, level = np.int64(0), 0
        for j in range(atoms.levels[a]):
            value += np.int64(atoms.step[a, j])
        for j in range(dim):
            values[i, j] = value
            keys[i] += weights[j] * np.uint64(value)
            if level < atoms.levels[a] and j == atoms.end[a, level]:
                value -= np.int64(atoms.step[a, level])
                level += 1
    for taken in range(k):
        best = 0
        for i in range(1, count):
            if scores[i] > scores[best]:
                best = i
        for j in range(dim):
            value = values[best, j]
            points[taken, order[j]] = -value if y[order[j]] < 0 else value
        score, key = scores[best], keys[best]
        scores[best] = -np.inf  # taken, and kept so that it is not reached again
        for j in range(dim):
            u = values[best, j]
            v = values[best, j + 1] if j + 1 < dim else np.int16(-u)
            if u <= v:
                continue
            next_value, next_key = values[count], key
            next_value[:] = values[best]
            change = np.uint64(np.int64(u) - np.int64(v))
            next_value[j] = v
            next_key -= weights[j] * change
            if j + 1 < dim:
                next_value[j + 1] = u
                next_key += weights[j + 1] * change
            if not _known(values, keys, count, next_value, next_key):
                below = magnitude[j + 1] if j + 1 < dim else 0.0
                scores[count] = score - (magnitude[j] - below) * (np.float64(u) - np.float64(v))
                keys[count] = next_key
                count += 1
    return True


@kernel(parallel=lambda y, *_: len(y) > TASK_ROWS)
def nearest_many(y, atoms, weights, k, points):
    """The k points nearest to each row of y, nearest first, into `(n, k, dim)` int16.

    `weights` are `(dim,)` uint64, random, of the keys by which arrangements are told apart. Returns the first row with
    NaN or infinity, or -1.
    """
    n, dim = y.shape
    tasks = (n + TASK_ROWS - 1) // TASK_ROWS
    refused = np.full(tasks, -1)
    for task in prange(tasks):
        # The best points of k atoms, what is reached from each point taken, and one row to build the next in.
        most = k * (dim + 1) + 1
        scratch = (
            *(np.empty(dim, np.int64), np.empty(dim), np.empty(dim), np.empty(k, np.uint32)),
            *(np.empty((most, dim), np.int16), np.empty(most), np.empty(most, np.uint64)),
        )
        for row in range(task * TASK_ROWS, min(n, (task + 1) * TASK_ROWS)):
            found = _nearest_row(y[row], atoms, weights, k, scratch, points[row])
            if not found and refused[task] < 0:
                refused[task] = row
    for row in refused:
        if row >= 0:
            return row
    return -1
