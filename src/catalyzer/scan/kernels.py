"""The loops of the scan: k nearest codes by asymmetric distance, for many queries and for one.

Distances are |q|² + 1 - 2 q·z / r in double precision, with z the integer point: exact but for the last rounding. For a
product of spheres, each block has an r. Single precision only decides which codes are worth that, with room for its own
rounding.
"""

import numpy as np
from numba import prange

from catalyzer.lattice.compiler import kernel
from catalyzer.lattice.kernels import DECODE_TILE, TASK_ROWS, F, U, decode_tile, split_first_leaf, split_leaf

SCAN_TILE = 256  # codes whose coordinates stay in the first-level cache while many queries meet them
ONE_THREAD_CODES = 1 << 14  # that one thread scans for one query sooner than several
ONE_QUERY_TASK = 4096  # codes of one parallel task of the scan for one query
ONE_QUERY_TILE = 256  # codes that it splits together, leaf by leaf
NEAREST_TASK = 16  # queries of a task of `nearest_columns`
PAIR_TASK, PAIR_LANES = 1 << 10, 32  # pairs of a task of `pair_distances`, and sums that are kept beside each other


@kernel(fastmath={"contract"})
def exact_distance(query, point, stride, ends, radii, square):
    """Squared distance of a query of squared norm `square` to a lattice point, whose integers stand `stride` apart.

    Block b is the coordinates up to `ends[b]`, int64, which `radii[b]`, float64, divides.
    """
    distance = square + 1.0
    i = U(0)
    for block in range(len(ends)):
        dot = 0.0
        while i < U(ends[block]):
            dot += np.float64(query[i]) * np.float64(point[i * stride])
            i += U(1)
        distance -= 2.0 * dot / radii[block]
    return max(0.0, distance)


@kernel()
def exact_distances(query, points, ends, radii, square):
    """`exact_distance` to each row of `points`, float64."""
    distances = np.empty(len(points))
    for row in range(len(points)):
        distances[row] = exact_distance(query, points[row], U(1), ends, radii, square)
    return distances


@kernel()
def _to_columns(coordinates, rows, tables, columns, first, at):
    """Write decoded `coordinates`, `(at least rows, 4 · leaves)` int8, into the columns from `at` on, rows `first` and more."""
    for leaf in range(U(tables.leaves)):
        width = U(tables.width if leaf < U(tables.leaves - 1) else tables.last_width)
        for j in range(width):
            for row in range(rows):
                columns[first + leaf * U(tables.width) + j, at + row] = F(coordinates[row, U(4) * leaf + j])


@kernel(parallel=lambda codes, *_: len(codes) > TASK_ROWS)
def decode_columns(codes, codes_high, tables, columns, first_row):
    """The integer points of codes, in the columns of `columns`, `(at least first_row + dim, at least n)` float32."""
    n = len(codes)
    for task in prange((n + TASK_ROWS - 1) // TASK_ROWS):
        scratch, packed = np.empty((3, DECODE_TILE), np.uint64), np.empty((DECODE_TILE, tables.leaves), np.uint32)
        coordinates = packed.view(np.int8)
        for first in range(task * TASK_ROWS, min(n, (task + 1) * TASK_ROWS), DECODE_TILE):
            rows = U(min(DECODE_TILE, n - first))
            decode_tile(codes, codes_high, U(first), rows, tables, scratch, packed)
            _to_columns(coordinates, rows, tables, columns, U(first_row), U(first))


@kernel(parallel=lambda codes, *_: len(codes) > TASK_ROWS)
def decode_tiles(codes, codes_high, starts, tables, tiles, first_row):
    """`decode_columns` of codes `starts[t]` to `starts[t + 1]`, at most SCAN_TILE, for each `tiles[t]`."""
    for t in prange(len(starts) - 1):
        scratch, packed = np.empty((3, DECODE_TILE), np.uint64), np.empty((DECODE_TILE, tables.leaves), np.uint32)
        coordinates = packed.view(np.int8)
        for first in range(starts[t], starts[t + 1], DECODE_TILE):
            rows = U(min(DECODE_TILE, starts[t + 1] - first))
            decode_tile(codes, codes_high, U(first), rows, tables, scratch, packed)
            _to_columns(coordinates, rows, tables, tiles[t], U(first_row), U(first - starts[t]))


@kernel()
def _replace_root(distances, ids, distance, name):
    """Put (distance, name) in the place of the root of a heap whose parents are not before their children."""
    at, size = 0, len(distances)
    while True:
        child = 2 * at + 1
        if child >= size:
            break
        right = child + 1
        if right < size and (
            distances[right] > distances[child] or (distances[right] == distances[child] and ids[right] > ids[child])
        ):
            child = right
        if distances[child] < distance or (distances[child] == distance and ids[child] < name):
            break
        distances[at], ids[at] = distances[child], ids[child]
        at = child
    distances[at], ids[at] = distance, name


@kernel()
def sort_heaps(distances, ids):
    """Sort each row of heaps by distance, ties by id, the nearest first."""
    for row in range(len(ids)):
        near, names = distances[row], ids[row]
        for end in range(len(names) - 1, 0, -1):
            distance, name = near[end], names[end]
            near[end], names[end] = near[0], names[0]
            _replace_root(near[:end], names[:end], distance, name)


@kernel(fastmath={"contract"})
def _products(queries, i, j, tile, dots):
    """Dot products of queries i and j with the SCAN_TILE columns of `tile`, whose rows are a multiple of 8."""
    dots[:] = F(0)
    for k in range(U(0), U(len(tile)), U(8)):
        # Eight coordinates of two queries a turn: enough arithmetic for each load, few enough operands to vectorize.
        k1, k2, k3, k4, k5, k6, k7 = k + U(1), k + U(2), k + U(3), k + U(4), k + U(5), k + U(6), k + U(7)
        a0, a1, a2, a3 = queries[i, k], queries[i, k1], queries[i, k2], queries[i, k3]
        a4, a5, a6, a7 = queries[i, k4], queries[i, k5], queries[i, k6], queries[i, k7]
        b0, b1, b2, b3 = queries[j, k], queries[j, k1], queries[j, k2], queries[j, k3]
        b4, b5, b6, b7 = queries[j, k4], queries[j, k5], queries[j, k6], queries[j, k7]
        for c in range(U(SCAN_TILE)):
            x0, x1, x2, x3 = tile[k, c], tile[k1, c], tile[k2, c], tile[k3, c]
            x4, x5, x6, x7 = tile[k4, c], tile[k5, c], tile[k6, c], tile[k7, c]
            a = dots[0, c] + (((a0 * x0 + a1 * x1) + (a2 * x2 + a3 * x3)) + ((a4 * x4 + a5 * x5) + (a6 * x6 + a7 * x7)))
            b = dots[1, c] + (((b0 * x0 + b1 * x1) + (b2 * x2 + b3 * x3)) + ((b4 * x4 + b5 * x5) + (b6 * x6 + b7 * x7)))
            dots[0, c] = a
            dots[1, c] = b


# Inlined by numba itself: as a call it would make the scan an eighth slower.
@kernel(inline="always")
def _update(heap, heap_ids, dots, n, first_id, query, tile, ends, radii, square, slack):
    """Put those of the first n columns of `tile` into a query's heap that are nearer than its root, by their dot products."""
    limit = F((square + 1.0 - heap[0]) / 2 - slack)
    hits = 0
    for c in range(U(SCAN_TILE)):
        hits += dots[c] >= limit
    if hits:
        for c in range(U(n)):
            if dots[c] >= limit:
                distance = exact_distance(query, tile.ravel()[c:], U(tile.shape[1]), ends, radii, square)
                if distance < heap[0]:
                    _replace_root(heap, heap_ids, distance, np.int64(first_id) + np.int64(c))
                    limit = F((square + 1.0 - heap[0]) / 2 - slack)


@kernel(parallel=lambda *args: len(args[7]) > args[9])  # more queries than a task takes
def scan_many(columns, n, first_id, ends, radii, queries, scaled, squares, slacks, task_size, distances, ids):
    """Update the heaps of the k best of each query with n decoded codes.

    Args:
        columns: `(dim padded to a multiple of 8, n padded to a multiple of SCAN_TILE)` float32, integer points.
        n: codes in `columns`.
        first_id: id of the first.
        ends: see `exact_distance`, like `radii`.
        radii: of the blocks.
        queries: `(nq, dim)` float32.
        scaled: `(nq padded to even, padded dim)` float32, each block of them divided by its radius.
        squares: `(nq,)` float64 squared norms of the queries.
        slacks: `(nq,)` float64 bounds for the error of single precision.
        task_size: queries of one parallel task, even.
        distances: `(nq, k)` float64 heaps, the farthest first.
        ids: `(nq, k)` int64, theirs.
    """
    nq, depth = len(squares), U(len(columns))
    for task in prange((nq + task_size - 1) // task_size):
        tile, dots = np.empty((depth, SCAN_TILE), F), np.empty((2, SCAN_TILE), F)
        for first in range(U(0), U(n), U(SCAN_TILE)):
            for k in range(depth):
                for c in range(U(SCAN_TILE)):
                    tile[k, c] = columns[k, first + c]
            for i in range(U(task * task_size), U(min(nq, (task + 1) * task_size)), U(2)):
                _products(scaled, i, i + U(1), tile, dots)
                for j in range(U(2)):
                    if i + j < U(nq):
                        left, name = min(SCAN_TILE, n - np.int64(first)), first_id + np.int64(first)
                        q, square, slack = queries[i + j], squares[i + j], slacks[i + j]
                        _update(distances[i + j], ids[i + j], dots[j], left, name, q, tile, ends, radii, square, slack)


@kernel()
def queries_by_list(probed, starts, queries):
    """Which queries probe each list: those of list l are `queries[starts[l] : starts[l + 1]]`, ascending.

    Args:
        probed: `(nq, nprobe)` int64, the lists of each query.
        starts: `(lists + 1,)` int64 zeros, to be filled in.
        queries: `(nq · nprobe,)` int64, to be filled in.
    """
    for place in probed.ravel():
        starts[place + 1] += 1
    for place in range(1, len(starts)):
        starts[place] += starts[place - 1]
    at = starts.copy()
    for query in range(len(probed)):
        for place in probed[query]:
            queries[at[place]] = query
            at[place] += 1


@kernel(parallel=lambda *args: len(args[10]) > args[12])  # more queries than a task takes
def scan_lists(
    tiles, firsts, sizes, lists, starts, probing, ends, radii, queries, scaled, squares, slacks, task_size, distances, ids
):
    """Update the heaps of the k best of each query with the tiles of the lists that it probes.

    Args:
        tiles: `(at least t, dim padded to a multiple of 8, SCAN_TILE)` float32, integer points of one list each.
        firsts: `(t,)` int64, id of the first code of each, ascending.
        sizes: `(t,)` int64, codes of each.
        lists: `(t,)` int64, whose codes these are.
        starts: as `queries_by_list` makes them; `probing` are its queries.
        ends: see `exact_distance`, like `radii`.
        radii: of the blocks.
        queries: `(nq, dim)` float32.
        scaled: as for `scan_many`.
        squares: `(nq,)` float64 squared norms of the queries.
        slacks: `(nq,)` float64 bounds for the error of single precision.
        task_size: queries of one parallel task.
        distances: `(nq, k)` float64 heaps, the farthest first.
        ids: `(nq, k)` int64, theirs.
    """
    nq = len(squares)
    for task in prange((nq + task_size - 1) // task_size):
        dots = np.empty((2, SCAN_TILE), F)
        for t in range(len(firsts)):
            tile = tiles[t]
            among = probing[starts[lists[t]] : starts[lists[t] + 1]]
            last = np.searchsorted(among, min(nq, (task + 1) * task_size))
            for at in range(np.searchsorted(among, task * task_size), last, 2):
                # The last one goes together with itself where there is no other.
                _products(scaled, U(among[at]), U(among[min(at + 1, last - 1)]), tile, dots)
                for j in range(min(2, last - at)):
                    i = among[at + j]
                    q, square, slack = queries[i], squares[i], slacks[i]
                    _update(distances[i], ids[i], dots[j], sizes[t], firsts[t], q, tile, ends, radii, square, slack)


@kernel()
def leaf_products(query, points, products):
    """Dot products of a query's leaves, `(leaves, 4)`, with all `points`, `(p, 4)` int8: `(leaves, p)` float32."""
    for t in range(len(query)):
        a, b, c, d = query[t, 0], query[t, 1], query[t, 2], query[t, 3]
        for p in range(U(len(points))):
            products[t, p] = a * F(points[p, 0]) + b * F(points[p, 1]) + c * F(points[p, 2]) + d * F(points[p, 3])


@kernel(parallel=lambda codes, *_: len(codes) > ONE_THREAD_CODES)
def scan_one(codes, tables, products, rest, limit):
    """Collect the codes whose dot product with one query may reach `limit`; for codes of one word and at least two leaves.

    A code is split leaf by leaf, and given up as soon as what is left of its norm cannot lift it to the limit.

    Args:
        codes: `(n,)` uint64.
        tables: of the lattice.
        products: `(leaves, kinds · p)` float32, dot products of the query's leaves with all points of leaves.
        rest: `(leaves, r² + 1)` float32, the most that the leaves after t can add when they have the norm R.
        limit: dot product.

    Returns:
        Rows of the codes, int64, ascending.
    """
    n, leaves = len(codes), U(tables.leaves)
    tasks = (n + ONE_QUERY_TASK - 1) // ONE_QUERY_TASK
    found, found_in = np.empty(n + 1, np.int64), np.empty(tasks, np.int64)
    for task in prange(tasks):
        code, norm = np.empty(ONE_QUERY_TILE, np.uint64), np.empty(ONE_QUERY_TILE, np.uint64)
        dot, row = np.empty(ONE_QUERY_TILE, F), np.empty(ONE_QUERY_TILE, np.uint64)
        start = U(task * ONE_QUERY_TASK)
        out = start
        for first in range(start, U(min(n, (task + 1) * ONE_QUERY_TASK)), U(ONE_QUERY_TILE)):
            alive = min(U(ONE_QUERY_TILE), U(n) - first)
            kept = U(0)
            for i in range(alive):
                leaf, left, left_norm = split_first_leaf(codes[first + i], tables)
                total = products[0, leaf]
                # Written whether it is kept or not: a branch here would be mispredicted half of the time.
                code[kept], norm[kept], dot[kept], row[kept] = left, left_norm, total, first + i
                kept += U(total + rest[0, left_norm] >= limit)
            for t in range(U(1), leaves - U(1)):
                alive, kept = kept, U(0)
                for i in range(alive):
                    leaf, left, left_norm = split_leaf(t, code[i], norm[i], tables)
                    total = dot[i] + products[t, leaf]
                    code[kept], norm[kept], dot[kept], row[kept] = left, left_norm, total, row[i]
                    kept += U(total + rest[t, left_norm] >= limit)
            alive = kept
            t = leaves - U(1)
            for i in range(alive):
                leaf = U(tables.last_kind * tables.kind_size) + code[i]
                leaf += U(tables.start[U(tables.last_kind * (tables.radius_sq + 2)) + norm[i]])
                found[out] = np.int64(row[i])
                out += U(dot[i] + products[t, leaf] >= limit)
        found_in[task] = np.int64(out - start)
    kept = 0
    for task in range(tasks):
        for i in range(found_in[task]):
            found[kept] = found[task * ONE_QUERY_TASK + i]
            kept += 1
    return found[:kept].copy()


@kernel(inline="always")
def _leaf_product(leaves, t, points, leaf):
    low = leaves[t, 0] * F(points[leaf, 0]) + leaves[t, 1] * F(points[leaf, 1])
    return low + (leaves[t, 2] * F(points[leaf, 2]) + leaves[t, 3] * F(points[leaf, 3]))


@kernel(parallel=lambda codes, *_: len(codes) > ONE_THREAD_CODES)
def measure_codes(codes, words, masks, lasts, at, shift, levels, shares, norms):
    """Write the squared norms of the points of a product's codes into `norms`, `(n,)` float32.

    Args:
        codes: `(n, code_size)` uint8.
        words: `(n, blocks)` uint64, the code of each block and what its mask removes.
        masks: `(blocks,)` uint64.
        lasts: `(blocks,)` uint64, the largest code of each block.
        at: `(blocks,)` int64, the byte whose bits above `shift` number the block's gain.
        shift: bits of that byte that are not the gain's.
        levels: `(blocks, gains)` float32.
        shares: `(blocks,)` float32, squared norms of the blocks' points without gains.

    Returns:
        The first row that holds no code, or -1.
    """
    n, blocks = len(codes), U(len(masks))
    tasks = (n + ONE_QUERY_TASK - 1) // ONE_QUERY_TASK
    refused = np.full(tasks, -1)
    for task in prange(tasks):
        for i in range(U(task * ONE_QUERY_TASK), U(min(n, (task + 1) * ONE_QUERY_TASK))):
            norm, bad = F(0), False
            for block in range(blocks):
                bad |= (words[i, block] & masks[block]) > lasts[block]
                gain = levels[block, U(codes[i, at[block]]) >> U(shift)]
                norm += shares[block] * (gain * gain)
            norms[i] = norm
            if bad and refused[task] < 0:
                refused[task] = np.int64(i)
    for row in refused:
        if row >= 0:
            return row
    return -1


@kernel(inline="always")
def _add_leaf(sums, points, query, n):
    """Add the dot products of a leaf of the query, `(4,)` float32, with n `points`, uint32 of four int8 each."""
    a, b, c, d = query[0], query[1], query[2], query[3]
    for i in range(n):
        point = np.int32(points[i])
        low = a * F(np.int32(point << 24) >> 24) + b * F(np.int32(point << 16) >> 24)
        sums[i] += low + (c * F(np.int32(point << 8) >> 24) + d * F(point >> 24))


@kernel(parallel=lambda rows, *_: len(rows) > ONE_THREAD_CODES)
def scan_block(rows, dots, codes, words, mask, at, shift, levels, tables, leaves, rest, in_middle, at_end, kept, sums):
    """`scan_one` for a block of a product: add its dot products, and keep the codes whose sums reach a limit of their own.

    Limits are compared in the middle of the block and at its end: to see whether a code can be dropped takes time as well.

    Args:
        rows: `(m,)` int64, which codes, ascending.
        dots: `(m,)` float32, their dot products in the blocks before.
        codes: `(n, code_size)` uint8.
        words: `(n,)` uint64, the codes of this block and what `mask` removes.
        mask: uint64.
        at: see `measure_codes`, like `shift`.
        levels: `(gains,)` float32, by which the block's points are multiplied.
        tables: of the block's sphere.
        leaves: as `prepare_query` makes them of the query's block.
        rest: `(r² + 1,)` float32, the most that the second half of the leaves adds to a point without gain, by its norm.
        in_middle: `(m,)` float32, limits of the sums of half of the leaves, rounded up, with `rest`.
        at_end: `(m,)` float32, limits of the sums of all.
        kept: `(m,)` int64, to be filled in: the places in `rows` of those that are kept, ascending.
        sums: `(m,)` float32, to be filled in: their dot products, those of this block included.

    Returns:
        How many are kept.
    """
    n, last = len(rows), U(tables.leaves - 1)
    middle = U((tables.leaves + 1) // 2)
    tasks = (n + ONE_QUERY_TASK - 1) // ONE_QUERY_TASK
    kept_in = np.zeros(tasks, np.int64)
    for task in prange(tasks):
        code, norm = np.empty(ONE_QUERY_TILE, np.uint64), np.empty(ONE_QUERY_TILE, np.uint64)
        place, point = np.empty(ONE_QUERY_TILE, np.uint64), np.empty(ONE_QUERY_TILE, np.uint32)
        dot, gain, own = np.empty(ONE_QUERY_TILE, F), np.empty(ONE_QUERY_TILE, F), np.empty(ONE_QUERY_TILE, F)
        start = U(task * ONE_QUERY_TASK)
        end, out = U(min(n, (task + 1) * ONE_QUERY_TASK)), start
        for first in range(start, end, U(ONE_QUERY_TILE)):
            alive = min(U(ONE_QUERY_TILE), end - first)
            for i in range(alive):
                place[i] = first + i
                row = U(rows[first + i])
                leaf, code[i], norm[i] = split_first_leaf(words[row] & mask, tables)
                point[i], own[i] = tables.packed[leaf], F(0)
                dot[i], gain[i] = dots[first + i], levels[U(codes[row, at]) >> U(shift)]
            _add_leaf(own, point, leaves[0], alive)
            for t in range(U(1), last):
                if t == middle:
                    here = U(0)
                    for i in range(alive):
                        code[here], norm[here], place[here] = code[i], norm[i], place[i]
                        dot[here], gain[here], own[here] = dot[i], gain[i], own[i]
                        here += U(dot[i] + gain[i] * (own[i] + rest[norm[i]]) >= in_middle[place[i]])
                    alive = here
                for i in range(alive):
                    leaf, code[i], norm[i] = split_leaf(t, code[i], norm[i], tables)
                    point[i] = tables.packed[leaf]
                _add_leaf(own, point, leaves[t], alive)
            for i in range(alive):
                leaf = U(tables.last_kind * tables.kind_size) + code[i]
                leaf += U(tables.start[U(tables.last_kind * (tables.radius_sq + 2)) + norm[i]])
                point[i] = tables.packed[leaf]
            _add_leaf(own, point, leaves[last], alive)
            for i in range(alive):
                total = dot[i] + gain[i] * own[i]
                kept[out], sums[out] = np.int64(place[i]), total
                out += U(total >= at_end[place[i]])
        kept_in[task] = np.int64(out - start)
    kept_all = 0
    for task in range(tasks):
        for i in range(kept_in[task]):
            kept[kept_all], sums[kept_all] = kept[task * ONE_QUERY_TASK + i], sums[task * ONE_QUERY_TASK + i]
            kept_all += 1
    return kept_all


@kernel(parallel=lambda *args: len(args[2]) > NEAREST_TASK)  # more queries than a task takes
def nearest_columns(columns, halves, queries, distances, ids):
    """Fill each query's heap with the nearest of few points; the same bits for a query alone and among others.

    Args:
        columns: `(dim padded to a multiple of 8, n padded to a multiple of SCAN_TILE)` float32, the points.
        halves: `(n padded,)` float32, half of their squared norms, inf where there is none.
        queries: `(nq, padded dim)` float32.
        distances: `(nq, m)` float64 heaps of inf, the farthest first, for half of |point|² less the dot product.
        ids: `(nq, m)` int64, theirs.
    """
    nq = len(queries)
    for task in prange((nq + NEAREST_TASK - 1) // NEAREST_TASK):
        scores = np.empty(SCAN_TILE, F)
        for i in range(task * NEAREST_TASK, min(nq, (task + 1) * NEAREST_TASK)):
            q = queries[i]
            for first in range(U(0), U(columns.shape[1]), U(SCAN_TILE)):
                for c in range(U(SCAN_TILE)):
                    scores[c] = halves[first + c]
                for k in range(U(0), U(len(columns)), U(4)):
                    k1, k2, k3 = k + U(1), k + U(2), k + U(3)
                    a0, a1, a2, a3 = q[k], q[k1], q[k2], q[k3]
                    for c in range(U(SCAN_TILE)):
                        x0, x1, x2, x3 = (
                            columns[k, first + c],
                            columns[k1, first + c],
                            columns[k2, first + c],
                            columns[k3, first + c],
                        )
                        scores[c] -= (a0 * x0 + a1 * x1) + (a2 * x2 + a3 * x3)
                limit, hits = F(distances[i, 0]), 0
                for c in range(U(SCAN_TILE)):
                    hits += scores[c] < limit
                if hits:
                    for c in range(U(SCAN_TILE)):
                        if scores[c] < distances[i, 0]:
                            _replace_root(distances[i], ids[i], np.float64(scores[c]), np.int64(first + c))


@kernel(parallel=lambda *args: len(args[2]) > PAIR_TASK)
def pair_distances(queries, decoded, at, place, distances):
    """Squared distances of queries `at` to decoded vectors `place`, pair by pair: `(pairs,)` float32."""
    n, d = len(at), queries.shape[1]
    for task in prange((n + PAIR_TASK - 1) // PAIR_TASK):
        lanes = np.empty(PAIR_LANES, F)
        for pair in range(task * PAIR_TASK, min(n, (task + 1) * PAIR_TASK)):
            x, y = queries[at[pair]], decoded[place[pair]]
            lanes[:] = F(0)
            for first in range(U(0), U(d - d % PAIR_LANES), U(PAIR_LANES)):
                for lane in range(U(PAIR_LANES)):
                    difference = x[first + lane] - y[first + lane]
                    lanes[lane] += difference * difference
            total = F(0)
            for i in range(d - d % PAIR_LANES, d):
                difference = x[i] - y[i]
                total += difference * difference
            for lane in range(PAIR_LANES):
                total += lanes[lane]
            distances[pair] = total


@kernel()
def measure_queries(queries, squares, slacks):
    """Squared norms of queries, `(nq,)` float64, and what single precision may be off by in their dot products with points."""
    for i in range(len(queries)):
        total = 0.0
        for x in queries[i]:
            total += np.float64(x) * np.float64(x)
        squares[i] = total
        slacks[i] = (queries.shape[1] + 16) * 2.0**-23 * (np.sqrt(total) + 1)


@kernel()
def prepare_query(query, tables, scale, leaves, rest):
    """Split a query into leaves, `(leaves, 4)` float32 times `scale`, and bound what is behind each.

    Args:
        query: `(dim,)` float32.
        tables: of the lattice.
        scale: 1 / r.
        leaves: to be filled in.
        rest: `(leaves, r² + 1)` float32, to be filled in: the most that the leaves after t can add when they have the norm R.
    """
    dim, width = len(query), tables.width
    leaves[:] = F(0)
    for i in range(dim):
        t = min(i // width, tables.leaves - 1)
        leaves[t, i - t * width] = query[i] * scale
    left, at = 0.0, dim
    for t in range(tables.leaves - 1, -1, -1):
        for norm in range(tables.radius_sq + 1):
            rest[t, norm] = F(np.sqrt(left * norm / tables.radius_sq))
        while at > t * width:
            at -= 1
            left += np.float64(query[at]) * np.float64(query[at])


@kernel()
def _exact_distance_of_code(query, code, tables, points, square, r):
    """`exact_distance` to the point of a code of one word."""
    dim, width, last = U(len(query)), U(tables.width), U(tables.leaves - 1)
    leaf, code, norm = split_first_leaf(code, tables)
    dot = 0.0
    for t in range(U(tables.leaves)):
        if t == last:
            leaf = U(tables.last_kind * tables.kind_size) + code
            leaf += U(tables.start[U(tables.last_kind * (tables.radius_sq + 2)) + norm])
        elif t > U(0):
            leaf, code, norm = split_leaf(t, code, norm, tables)
        first = t * width
        for j in range(dim - first if t == last else width):
            dot += np.float64(query[first + j]) * np.float64(points[leaf, j])
    return max(0.0, square + 1.0 - 2.0 * dot / r)


@kernel(fastmath={"contract"})
def scan_runs(codes, firsts, ends, names, tables, points, leaves, rest, query, last_code, square, slack, r, distances, ids):
    """Update the heap of one query with runs of codes of one word and at least two leaves, as `scan_one` does.

    Args:
        codes: `(n,)` uint64.
        firsts: `(runs,)` int64, where each run begins; the one that may hold the nearest should come first.
        ends: `(runs,)` int64.
        names: `(runs,)` int64, id of each run's first code; the following codes have the following ids.
        tables: of the lattice.
        points: `(kinds · p, 4)` int8, its leaves.
        leaves: as `prepare_query` makes them, like `rest`.
        query: `(dim,)` float32.
        last_code: the largest that there is.
        square: the query's squared norm.
        slack: bound for the error of single precision.
        r: the points' norm.
        distances: `(k,)` float64 heap, the farthest first.
        ids: `(k,)` int64, theirs.

    Returns:
        The first row that holds no code, or -1.
    """
    code, norm = np.empty(ONE_QUERY_TILE, np.uint64), np.empty(ONE_QUERY_TILE, np.uint64)
    dot, row = np.empty(ONE_QUERY_TILE, F), np.empty(ONE_QUERY_TILE, np.uint64)
    last = U(tables.leaves - 1)
    limit = F((square + 1.0 - distances[0]) / 2 - slack)
    for run in range(len(firsts)):
        for first in range(U(firsts[run]), U(ends[run]), U(ONE_QUERY_TILE)):
            alive = min(U(ONE_QUERY_TILE), U(ends[run]) - first)
            largest = U(0)
            for i in range(alive):
                largest = max(largest, codes[first + i])
            if largest > last_code:
                for i in range(alive):
                    if codes[first + i] > last_code:
                        return np.int64(first + i)
            kept = U(0)
            for i in range(alive):
                leaf, left, left_norm = split_first_leaf(codes[first + i], tables)
                total = _leaf_product(leaves, U(0), points, leaf)
                code[kept], norm[kept], dot[kept], row[kept] = left, left_norm, total, first + i
                kept += U(total + rest[0, left_norm] >= limit)
            for t in range(U(1), last):
                alive, kept = kept, U(0)
                for i in range(alive):
                    leaf, left, left_norm = split_leaf(t, code[i], norm[i], tables)
                    total = dot[i] + _leaf_product(leaves, t, points, leaf)
                    code[kept], norm[kept], dot[kept], row[kept] = left, left_norm, total, row[i]
                    kept += U(total + rest[t, left_norm] >= limit)
            for i in range(kept):
                leaf = U(tables.last_kind * tables.kind_size) + code[i]
                leaf += U(tables.start[U(tables.last_kind * (tables.radius_sq + 2)) + norm[i]])
                if dot[i] + _leaf_product(leaves, last, points, leaf) >= limit:
                    distance = _exact_distance_of_code(query, codes[row[i]], tables, points, square, r)
                    name = names[run] + np.int64(row[i]) - firsts[run]
                    if distance < distances[0] or (distance == distances[0] and name < ids[0]):
                        _replace_root(distances, ids, distance, name)
                        limit = F((square + 1.0 - distances[0]) / 2 - slack)
    return -1
