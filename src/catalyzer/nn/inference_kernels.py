"""The loops of `catalyzer.nn.inference`: between matrix products of whole numbers, and instead of them.

No two operations are contracted and no sum is reordered, so that a row alone and a row among others have the same bits.
"""

import numpy as np
from numba import prange

from catalyzer.lattice.compiler import kernel

F = np.float32
U = np.uint64
TO_WHOLE = F(1.5 * 2**23)  # added and taken away, it rounds to the nearest whole number, ties to even
LANES = 32
TILE = 64  # outputs of a layer whose sums stay in registers
ROWS = 64  # rows of a parallel task


@kernel()
def _largest(y):
    """The largest magnitude in a row."""
    lanes = np.zeros(LANES, F)  # a single maximum would wait for each comparison
    for first in range(U(0), U(len(y) - len(y) % LANES), U(LANES)):
        for lane in range(U(LANES)):
            value = abs(y[first + lane])
            lanes[lane] = value if value > lanes[lane] else lanes[lane]
    most = F(0)
    for lane in range(LANES):
        most = max(most, lanes[lane])
    for i in range(len(y) - len(y) % LANES, len(y)):
        most = max(most, abs(y[i]))
    return most


@kernel()
def _quantize(y, levels, q):
    """Write y, in steps of which its largest magnitude has `levels`, into q; returns the step."""
    most = _largest(y)
    if most == F(0):
        q[:] = 0
        return F(0)
    inverse = levels / most
    for i in range(U(len(y))):
        q[i] = np.int8(np.int32((y[i] * inverse + TO_WHOLE) - TO_WHOLE))
    return most / levels


@kernel()
def _hidden(sums, step, layer_steps, bias, norm, carried, y):
    """What a hidden layer makes of its sums: units, bias, ReLU; of a residual network before it the sum of all, normalized."""
    for j in range(U(len(bias))):
        y[j] = F(sums[j]) * step * layer_steps[j] + bias[j]
    for j in range(U(len(carried))):
        carried[j] += y[j]
        y[j] = carried[j] * norm[0, j] + norm[1, j]
    for j in range(U(len(bias))):
        y[j] = max(y[j], F(0))


@kernel()
def _normalize(y, ends):
    """Give each block of y, up to its end, its share of the squared norm 1."""
    first = 0
    for end in ends:
        total = 0.0
        for j in range(first, end):
            total += np.float64(y[j]) * np.float64(y[j])
        inverse = F(np.sqrt((end - first) / len(y)) / max(np.sqrt(total), 1e-12))
        for j in range(U(first), U(end)):
            y[j] = y[j] * inverse
        first = end


@kernel()
def _outputs(sums, step, layer_steps, bias, scale, shift, ends, out):
    """What the last layer makes of its sums: units, bias; then blocks with these `ends` normalized, or `scale` and `shift`."""
    for j in range(U(len(bias))):
        out[j] = F(sums[j]) * step * layer_steps[j] + bias[j]
    if len(ends):
        _normalize(out, ends)
    else:
        for j in range(U(len(bias))):
            out[j] = out[j] * scale + shift[j]


@kernel()
def _centred(x, mean, inverse_scale, y):
    for i in range(U(len(x))):
        y[i] = (x[i] - mean[i]) * inverse_scale


@kernel(parallel=lambda x, *_: len(x) > ROWS)
def quantize_inputs(x, mean, inverse_scale, levels, q, steps):
    """Centre and scale `(n, d)` float32 rows, and write them into `(n, ≥ d)` int8 with a step for each row."""
    n, d = x.shape
    for task in prange((n + ROWS - 1) // ROWS):
        y = np.empty(d, F)
        for row in range(task * ROWS, min(n, (task + 1) * ROWS)):
            _centred(x[row], mean, inverse_scale, y)
            steps[row] = _quantize(y, levels, q[row])


@kernel(parallel=lambda sums, *_: len(sums) > ROWS)
def quantize_hidden(sums, steps, layer_steps, bias, norm, carried, levels, q, new_steps):
    """Inputs of the next layer, `(n, ≥ width)` int8 and `(n,)` steps, of `(n, ≥ width)` sums of a hidden one.

    A residual network adds up its hidden layers in `carried`, `(n, width)`; `(n, 0)` for others.
    """
    n, width = len(sums), len(bias)
    for task in prange((n + ROWS - 1) // ROWS):
        y = np.empty(width, F)
        for row in range(task * ROWS, min(n, (task + 1) * ROWS)):
            _hidden(sums[row], steps[row], layer_steps, bias, norm, carried[row], y)
            new_steps[row] = _quantize(y, levels, q[row])


@kernel(parallel=lambda sums, *_: len(sums) > ROWS)
def write_outputs(sums, steps, layer_steps, bias, scale, shift, ends, out):
    """The network's outputs, `(n, d_out)` float32, of `(n, ≥ d_out)` sums of the last layer."""
    n = len(sums)
    for task in prange((n + ROWS - 1) // ROWS):
        for row in range(task * ROWS, min(n, (task + 1) * ROWS)):
            _outputs(sums[row], steps[row], layer_steps, bias, scale, shift, ends, out[row])


@kernel(parallel=lambda x, *_: len(x) > ROWS)
def map_affine(x, matrix, offset, ends, out):
    """`(n, d_out)` float32: x times `matrix`, `(d_in, d_out)`, plus `offset`; blocks with these `ends` are normalized."""
    n, d = x.shape
    for task in prange((n + ROWS - 1) // ROWS):
        for row in range(task * ROWS, min(n, (task + 1) * ROWS)):
            y = out[row]
            y[:] = offset
            for i in range(U(d)):
                for j in range(U(len(offset))):
                    y[j] += x[row, i] * matrix[i, j]
            _normalize(y, ends)


@kernel(fastmath={"contract"})
def _products(q, weights, sums):
    """Sums of one row, whole numbers below 2^24 in float32, so exact in any order; `weights` is `(tiles, d, TILE)` int8."""
    at, values, n = np.zeros(len(q) + 8, np.uint64), np.zeros(len(q) + 8, F), 0
    for i in range(U(len(q))):  # ReLU leaves half of them
        at[n], values[n] = i, F(q[i])
        n += q[i] != 0
    values[n : n + 8] = F(0)
    for tile in range(U(len(weights))):
        part, rows = sums[tile * U(TILE) : (tile + U(1)) * U(TILE)], weights[tile]
        part[:] = F(0)
        for k in range(U(0), U(n), U(8)):
            a0, a1, a2, a3 = values[k], values[k + U(1)], values[k + U(2)], values[k + U(3)]
            a4, a5, a6, a7 = values[k + U(4)], values[k + U(5)], values[k + U(6)], values[k + U(7)]
            i0, i1, i2, i3 = at[k], at[k + U(1)], at[k + U(2)], at[k + U(3)]
            i4, i5, i6, i7 = at[k + U(4)], at[k + U(5)], at[k + U(6)], at[k + U(7)]
            for j in range(U(TILE)):
                low = (a0 * F(rows[i0, j]) + a1 * F(rows[i1, j])) + (a2 * F(rows[i2, j]) + a3 * F(rows[i3, j]))
                high = (a4 * F(rows[i4, j]) + a5 * F(rows[i5, j])) + (a6 * F(rows[i6, j]) + a7 * F(rows[i7, j]))
                part[j] += low + high


@kernel()
def map_row(x, mean, inverse_scale, levels, layers, scale, shift, ends, out):
    """The whole network for one row: `layers` has tiles of weights, steps, bias and norm of each."""
    y, q = np.empty(len(x), F), np.empty(len(x), np.int8)
    _centred(x, mean, inverse_scale, y)
    step = _quantize(y, levels[0], q)
    carried = np.zeros(layers[0][3].shape[1], F)
    for at in range(len(layers) - 1):
        weights, layer_steps, bias, norm = layers[at]
        sums, y = np.empty(len(weights) * TILE, F), np.empty(len(bias), F)
        _products(q, weights, sums)
        _hidden(sums, step, layer_steps, bias, norm, carried, y)
        q = np.empty(len(bias), np.int8)
        step = _quantize(y, levels[at + 1], q)
    weights, layer_steps, bias, _ = layers[-1]
    sums = np.empty(len(weights) * TILE, F)
    _products(q, weights, sums)
    _outputs(sums, step, layer_steps, bias, scale, shift, ends, out)
