"""The scan of lattice codes: the k nearest by asymmetric distance, in memory that does not grow with the codes.

Many queries: a block of codes is decoded once and compared with all queries, tile by tile in the processor's cache. One query:
codes are split leaf by leaf and dropped as soon as they cannot be among the best. `docs/lattice.md` has the measurements.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, TypeGuard

import numpy as np

from catalyzer.errors import InvalidInput, integer
from catalyzer.lattice import GainShapeLattice, GainShapeProduct, ProductLattice, SphericalLattice
from catalyzer.progress import progress

if TYPE_CHECKING:
    import torch

BLOCK_CODES = 1 << 16  # codes decoded at a time
DEVICE_CODES = 1 << 20  # codes that a GPU decodes at a time: some hundred launches, which take as long for fewer
DEVICE_DISTANCES = 1 << 26  # of queries to codes, held at a time in double precision on a GPU
FEW_CODES = 1 << 15  # that one thread scans for one query without tables of products
FIRST_ROUND_CODES, LAST_ROUND_CODES = 1 << 11, 1 << 22  # codes of a round of the scan for one query, from few to many

Lattice = SphericalLattice | ProductLattice | GainShapeLattice | GainShapeProduct


def search(
    lattice: Lattice, queries: np.ndarray, codes: np.ndarray, k: int, rotated: bool = False
) -> tuple[np.ndarray, np.ndarray]:
    """The k codes nearest to each query by asymmetric distance: queries are not quantized (section 4.2).

    Args:
        lattice: lattice of the codes.
        queries: `(nq, dim)` float32.
        codes: `(n, code_size)` uint8, in memory or memory-mapped; read once, block by block, for all queries together.
        k: neighbours per query; at most n.
        rotated: whether vectors and queries were rotated at random. Then a single query drops codes of several blocks as soon
            as their first coordinates say that they are not among the nearest, which is wrong for about one in 100,000 of them;
            see `docs/lattice.md`. Otherwise the search is exact.

    Returns:
        `D` `(nq, k)` float32 squared L2 distances to the decoded vectors, ascending, and `I` `(nq, k)` int64 rows of
        `codes`; ties by lower row.

    Raises:
        InvalidInput: shapes or k that do not fit, NaN or infinity in a query, or an invalid code.

    >>> lattice = SphericalLattice(dim=3, radius_sq=2)
    >>> codes = lattice.encode(np.array([[1, 1, 0], [0, 1, -1], [1, 1, 0.1]], np.float32))
    >>> D, I = search(lattice, np.array([[1, 1, 0]], np.float32) / 2**0.5, codes, k=3)
    >>> D.round(3).tolist(), I.tolist()
    ([[0.0, 0.0, 1.0]], [[0, 2, 1]])
    """
    distances, ids = search_part(lattice, queries, codes, k, rotated, "searching")
    return distances.astype(np.float32), ids


def search_part(
    lattice: Lattice, queries: np.ndarray, codes: np.ndarray, k: int, rotated: bool = False, description: str | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """`search` with the float64 distances of the comparison, by which results from parts of the codes are merged.

    Rounded to float32, some different distances would be equal, and a merge would not know which is smaller.

    >>> lattice = SphericalLattice(dim=3, radius_sq=2)
    >>> codes = lattice.encode(np.eye(3, dtype=np.float32))
    >>> search_part(lattice, np.ones((1, 3), np.float32) / 3**0.5, codes, k=1)[0].dtype
    dtype('float64')
    """
    queries, k = _checked(lattice, queries, codes, k)
    import torch

    if torch.cuda.is_available():
        distances, ids = _search_torch(lattice, queries, codes, k, torch.device("cuda"), description)
    elif len(queries) == 1 and _splits(lattice) and len(codes) <= FEW_CODES:
        distances, ids = _search_runs(lattice, queries, codes, np.array([0]), np.array([len(codes)]), k)
    elif len(queries) == 1 and _splits(lattice):
        distances, ids = (found[None] for found in _search_one(lattice, queries[0], codes, k, description))
    elif len(queries) == 1 and _splits_blocks(lattice):
        from catalyzer.scan.one_query import search_blocks

        whole = np.array([0]), np.array([len(codes)])
        distances, ids = search_blocks(lattice, queries[0], codes, *whole, k, rotated, description)
    else:
        distances, ids = _search_many(lattice, queries, codes, k, description)
    return distances, ids.astype(np.int64)


def search_lists(
    lattice: Lattice,
    queries: np.ndarray,
    codes: np.ndarray,
    offsets: np.ndarray,
    probed: np.ndarray,
    k: int,
    rotated: bool = False,
) -> tuple[np.ndarray, np.ndarray]:
    """`search` in some lists of codes for each query; other lists are not read.

    It proceeds list by list, so that codes are decoded once for all queries that probe a list. It runs on the CPU.

    Args:
        lattice: lattice of the codes.
        queries: `(nq, dim)` float32.
        codes: `(n, code_size)` uint8, in memory or memory-mapped, list by list.
        offsets: `(lists + 1,)` int64: list l are rows `offsets[l]` to `offsets[l + 1]`.
        probed: `(nq, nprobe)` int64, the lists of each query, distinct.
        k: neighbours per query; at most n.
        rotated: as for `search`.

    Returns:
        As `search`; if a query's lists have fewer than k codes, inf and -1 at the end.

    Raises:
        InvalidInput: as for `search`, or lists that do not exist.

    >>> lattice = SphericalLattice(dim=3, radius_sq=2)
    >>> codes = lattice.encode(np.array([[1, 1, 0], [0, 1, -1], [1, 1, 0.1]], np.float32))
    >>> query = np.array([[1, 1, 0]], np.float32) / 2**0.5
    >>> D, I = search_lists(lattice, query, codes, offsets=np.array([0, 2, 3]), probed=np.array([[1]]), k=2)
    >>> D.round(3).tolist(), I.tolist()
    ([[0.0, inf]], [[2, -1]])
    """
    from catalyzer.scan.kernels import SCAN_TILE, decode_tiles, queries_by_list, scan_lists, sort_heaps

    queries, k = _checked(lattice, queries, codes, k)
    last = len(offsets) - 2
    if probed.ndim != 2 or len(probed) != len(queries) or probed.min(initial=0) < 0 or probed.max(initial=0) > last:
        raise InvalidInput(f"probed must be (nq, nprobe) lists from 0 to {last:,}, got shape {probed.shape} of {probed.dtype}")
    if len(queries) == 1 and _splits(lattice):
        distances, ids = _search_runs(lattice, queries, codes, offsets[probed[0]], offsets[probed[0] + 1], k)
        return distances.astype(np.float32), ids
    if len(queries) == 1 and _splits_blocks(lattice):
        from catalyzer.scan.one_query import search_blocks

        distances, ids = search_blocks(lattice, queries[0], codes, offsets[probed[0]], offsets[probed[0] + 1], k, rotated)
        return distances.astype(np.float32), ids
    starts, probing = np.zeros(len(offsets), np.int64), np.empty(probed.size, np.int64)
    queries_by_list(probed, starts, probing)
    # Each list that somebody probes is cut into tiles, the last of which is not full.
    lists = np.flatnonzero((np.diff(starts) > 0) & (np.diff(offsets) > 0))
    tiles_of = -(-np.diff(offsets)[lists] // SCAN_TILE)
    lists = np.repeat(lists, tiles_of)
    firsts = offsets[lists] + SCAN_TILE * (np.arange(len(lists)) - np.repeat(np.cumsum(tiles_of) - tiles_of, tiles_of))
    sizes = np.minimum(SCAN_TILE, offsets[lists + 1] - firsts)

    (distances, ids), (squares, slacks) = _heaps(queries, k), measured(queries)
    augmented, scaled, ends, radii = augmented_queries(lattice, queries)
    block = BLOCK_CODES // SCAN_TILE
    tiles = np.zeros((min(block, len(lists)), scaled.shape[1], SCAN_TILE), np.float32)
    task_size = _task_size(len(queries))
    for part in (slice(first, first + block) for first in range(0, len(lists), block)):
        words, each = _gathered(lattice, codes, firsts[part], sizes[part]), np.append(0, np.cumsum(sizes[part]))
        for (low, high), (sphere, row, _) in zip(words, blocks_of(lattice), strict=True):
            decode_tiles(low, high, each, sphere.tables, tiles, row)
        if has_gains(lattice):
            own = lattice.gains(_rows(codes, firsts[part], sizes[part]))
            gains = np.ones((len(firsts[part]), SCAN_TILE, *own.shape[1:]), np.float32)
            gains[np.arange(SCAN_TILE) < sizes[part][:, None]] = own
            amplify(lattice, np.moveaxis(tiles[: len(gains)], 1, 0), gains)
            slacks = _slacks(queries, squares, gains)
        scan_lists(
            *(tiles, firsts[part], sizes[part], lists[part], starts, probing, ends, radii),
            *(augmented, scaled, squares, slacks, task_size, distances, ids),
        )
    sort_heaps(distances, ids)
    return distances.astype(np.float32), ids


def _search_runs(
    lattice: SphericalLattice, query: np.ndarray, codes: np.ndarray, firsts: np.ndarray, ends: np.ndarray, k: int
) -> tuple[np.ndarray, np.ndarray]:
    """`search_lists` for one query, `(1, dim)`, in rows `firsts` to `ends`: nothing is decoded that cannot be near."""
    from catalyzer.scan.kernels import prepare_query, scan_runs, sort_heaps

    codes, last = np.asarray(codes), lattice.num_points - 1
    words = codes.view("<u8")[:, 0] if codes.shape[1] == 8 and codes.flags.c_contiguous else codes[:, 0]
    if words.dtype == np.uint64 and words.flags.aligned:
        starts, stops = firsts, ends
    else:
        ((words, _),) = _gathered(lattice, codes, firsts, ends - firsts)
        stops = np.cumsum(ends - firsts)
        starts = stops - (ends - firsts)
    tables, r = lattice.tables, lattice.radius_sq**0.5
    leaves, rest = np.empty((tables.leaves, 4), np.float32), np.empty((tables.leaves, lattice.radius_sq + 1), np.float32)
    prepare_query(query[0], tables, np.float32(1 / r), leaves, rest)
    (square,), (slack,) = measured(query)
    distances, ids = np.full((1, k), np.inf), np.full((1, k), -1)
    points = lattice.numbering.points.reshape(-1, 4)
    refused = scan_runs(
        *(words, starts, stops, firsts, tables, points, leaves, rest, query[0], np.uint64(last)),
        *(square, slack, r, distances[0], ids[0]),
    )
    if refused >= 0:
        lattice.words(codes[refused : refused + 1], refused)  # which raises
    sort_heaps(distances, ids)
    return distances, ids


def _words(lattice: Lattice, codes: np.ndarray, names: int | np.ndarray) -> list[tuple[np.ndarray, np.ndarray]]:
    """The words, low and high, of each block of codes; an error names the row, counted from a number or as in `(n,)` int64."""
    shapes = lattice.shapes(codes) if isinstance(lattice, GainShapeProduct) else codes
    try:
        return [sphere.words(shapes[:, part]) for sphere, _, part in blocks_of(lattice)]
    except InvalidInput:
        if isinstance(names, int):
            lattice.check_codes(codes, names)
        else:
            for row, name in enumerate(names.tolist()):
                lattice.check_codes(codes[row : row + 1], name)
        raise


def _gathered(
    lattice: Lattice, codes: np.ndarray, firsts: np.ndarray, sizes: np.ndarray
) -> list[tuple[np.ndarray, np.ndarray]]:
    """The words, low and high, of each block of several concatenated runs of codes."""
    gathered = _rows(codes, firsts, sizes)
    try:
        return _words(lattice, gathered, 0)
    except InvalidInput:  # which counts the rows gathered
        runs = zip(firsts, firsts + sizes, strict=True)
        return _words(lattice, gathered, np.concatenate([np.arange(first, end) for first, end in runs]))


def _rows(codes: np.ndarray, firsts: np.ndarray, sizes: np.ndarray) -> np.ndarray:
    """Several runs of codes, concatenated."""
    codes = np.asarray(codes)  # of a memory map even slices would be memory maps, which take microseconds to make
    runs = zip(firsts.tolist(), sizes.tolist(), strict=True)
    return np.concatenate([codes[first : first + size] for first, size in runs])


def blocks_of(lattice: Lattice) -> Iterator[tuple[SphericalLattice, int, slice]]:
    """The sphere of each block, its first coordinate, and the columns of its codes, without their gains."""
    row = byte = 0
    for sphere in lattice.spheres:
        yield sphere, row, slice(byte, byte + sphere.code_size)
        row, byte = row + sphere.dim, byte + sphere.code_size


def _ends(lattice: Lattice) -> np.ndarray:
    return np.cumsum([sphere.dim for sphere in lattice.spheres])


def columns(points: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """`(n, dim)` points as `nearest_columns` takes them: their columns, and half of their squared norms; padded."""
    from catalyzer.scan.kernels import SCAN_TILE

    n, dim = points.shape
    padded = np.zeros((-(-dim // 8) * 8, -(-n // SCAN_TILE) * SCAN_TILE), np.float32)
    padded[:dim, :n] = points.T
    halves = np.full(padded.shape[1], np.inf, np.float32)
    halves[:n] = np.einsum("ij,ij->i", points, points, dtype=np.float64) / 2
    return padded, halves


def nearest_columns(columns: np.ndarray, halves: np.ndarray, queries: np.ndarray, m: int) -> np.ndarray:
    """The m nearest of few points to each query, nearest first, ties by lower number: `(nq, m)` int64.

    A query has the same results alone and in a batch.

    Args:
        columns: as `columns` makes them, like `halves`.
        halves: half of the points' squared norms.
        queries: `(nq, dim)` float32.
        m: number of results per query, at most the number of points.

    >>> points = np.array([[0, 0], [1, 0], [0, 2]], np.float32)
    >>> nearest_columns(*columns(points), np.array([[0.9, 0.1]], np.float32), m=2).tolist()
    [[1, 0]]
    """
    from catalyzer.scan import kernels

    padded = np.zeros((len(queries), len(columns)), np.float32)
    padded[:, : queries.shape[1]] = queries
    distances, ids = np.full((len(queries), m), np.inf), np.full((len(queries), m), -1)
    kernels.nearest_columns(columns, halves, padded, distances, ids)
    kernels.sort_heaps(distances, ids)
    return ids


def check_search(queries: np.ndarray, codes: np.ndarray, k: int, dim: int, code_size: int) -> int:
    """k as a Python integer; raises `InvalidInput` unless the queries, the codes and k of a search fit together."""
    if queries.ndim != 2 or queries.shape[1] != dim:
        raise InvalidInput(f"queries must be (n, {dim}), got {queries.shape}")
    if codes.ndim != 2 or codes.shape[1] != code_size or codes.dtype != np.uint8:
        raise InvalidInput(f"codes must be (n, {code_size}) uint8, got {codes.shape} {codes.dtype}")
    return integer("k", k, 1, len(codes), "the number of codes")


def _checked(lattice: Lattice, queries: np.ndarray, codes: np.ndarray, k: int) -> tuple[np.ndarray, int]:
    k = check_search(queries, codes, k, lattice.dim, lattice.code_size)
    queries = np.ascontiguousarray(queries, np.float32)
    refused = ~np.isfinite(queries).all(axis=1)
    if refused.any():
        raise InvalidInput(f"query {int(np.argmax(refused)):,} contains NaN or infinity; it has no nearest neighbours")
    return queries, k


def _splits(lattice: Lattice) -> TypeGuard[SphericalLattice]:
    """Whether codes of this lattice can be split leaf by leaf for one query."""
    return isinstance(lattice, SphericalLattice) and len(lattice.numbering.widths) > 1 and not lattice.numbering.wide


def _splits_blocks(lattice: Lattice) -> bool:
    """Whether each block of codes can be split leaf by leaf for one query."""
    return all(_splits(sphere) for sphere in lattice.spheres)


def measured(queries: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Squared norms of the queries, and what single precision may be off by in their dot products with points; float64."""
    from catalyzer.scan.kernels import measure_queries

    squares, slacks = np.empty(len(queries)), np.empty(len(queries))
    measure_queries(queries, squares, slacks)
    return squares, slacks


def _slacks(queries: np.ndarray, squares: np.ndarray, gains: np.ndarray) -> np.ndarray:
    """`measured`'s second for points times gains."""
    largest = float(gains.max(initial=1))
    return (queries.shape[1] + 17) * 2.0**-23 * (np.sqrt(squares) * largest + largest**2 + 1)


def _search_many(
    lattice: Lattice, queries: np.ndarray, codes: np.ndarray, k: int, description: str | None
) -> tuple[np.ndarray, np.ndarray]:
    from catalyzer.scan.kernels import SCAN_TILE, decode_columns, scan_many, sort_heaps

    (distances, ids), (squares, slacks) = _heaps(queries, k), measured(queries)
    augmented, scaled, ends, radii = augmented_queries(lattice, queries)
    columns = np.zeros((scaled.shape[1], -(-min(BLOCK_CODES, len(codes)) // SCAN_TILE) * SCAN_TILE), np.float32)
    task_size = _task_size(len(queries))
    with progress(description, len(codes), "codes") as advance:
        for first in range(0, len(codes), BLOCK_CODES):
            block = np.asarray(codes[first : first + BLOCK_CODES])
            for (low, high), (sphere, row, _) in zip(_words(lattice, block, first), blocks_of(lattice), strict=True):
                decode_columns(low, high, sphere.tables, columns, row)
            if has_gains(lattice):
                gains = lattice.gains(block)
                amplify(lattice, columns[:, : len(block)], gains)
                slacks = _slacks(queries, squares, gains)
            scan_many(
                *(columns, len(block), first, ends, radii),
                *(augmented, scaled, squares, slacks, task_size, distances, ids),
            )
            advance(len(block))
    sort_heaps(distances, ids)
    return distances, ids


def augmented_queries(lattice: Lattice, queries: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Queries for the loops, these divided by the blocks' radii and padded to an even number and 8 dimensions, ends and radii.

    A vector x has the squared distance |q|² + |x|² - 2 q·x. The loops compute |q|² + 1 - 2 q·x, so gains are one coordinate
    more: 1 in queries and (1 - |x|²) / 2 in vectors; see `amplify`.
    """
    ends, radii = _ends(lattice), lattice.radii
    if has_gains(lattice):
        queries = np.pad(queries, ((0, 0), (0, 1)), constant_values=1)
        ends, radii = np.append(ends, lattice.dim + 1), np.append(radii, 1.0)
    nq, dim = queries.shape
    scaled = np.zeros((nq + nq % 2, -(-dim // 8) * 8), np.float32)
    scaled[:nq, :dim] = queries / np.repeat(radii, np.diff(ends, prepend=0))
    return queries, scaled, ends, radii


def has_gains(lattice: Lattice) -> TypeGuard[GainShapeLattice | GainShapeProduct]:
    return isinstance(lattice, GainShapeLattice | GainShapeProduct)


def amplify(lattice: GainShapeLattice | GainShapeProduct, columns: np.ndarray, gains: np.ndarray) -> None:
    """Multiply decoded points, in columns, by their gains or those of their blocks, and write the coordinate behind them."""
    dim = lattice.dim
    if isinstance(lattice, GainShapeLattice):
        columns[:dim] *= gains
        columns[dim] = (1 - gains * gains) / 2
        return
    columns[dim] = 0.5
    for (sphere, row, _), of_block in zip(blocks_of(lattice), np.moveaxis(gains, -1, 0), strict=True):
        columns[row : row + sphere.dim] *= of_block
        columns[dim] -= sphere.dim / (2 * dim) * (of_block * of_block)


def _heaps(queries: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
    """Empty heaps for the k best of each query: distances and ids."""
    return np.full((len(queries), k), np.inf), np.full((len(queries), k), -1)


def _task_size(nq: int) -> int:
    """Queries of a task: enough tasks to share out evenly, each with enough queries that bringing codes into the cache costs
    little."""
    from numba import get_num_threads

    return min(256, max(2, -(-nq // (4 * get_num_threads()) // 2) * 2))


def _search_one(
    lattice: SphericalLattice, query: np.ndarray, codes: np.ndarray, k: int, description: str | None
) -> tuple[np.ndarray, np.ndarray]:
    from catalyzer.lattice.kernels import decode
    from catalyzer.scan.kernels import exact_distances, leaf_products, scan_one

    tables, numbering, r = lattice.tables, lattice.numbering, lattice.radius_sq**0.5
    scale = np.float32(1 / r)
    leaves = np.zeros((len(numbering.widths), 4), np.float32)
    left = np.zeros(len(numbering.widths))  # norm of the query's coordinates after each leaf
    for t, (first, width) in enumerate(zip(np.cumsum((0, *numbering.widths)), numbering.widths, strict=False)):
        leaves[t, :width] = query[first : first + width]
        left[t] = np.linalg.norm(query[first + width :].astype(np.float64))
    points = numbering.points.reshape(-1, 4)
    products = np.empty((len(leaves), len(points)), np.float32)
    leaf_products(leaves * scale, points, products)
    rest = (left[:, None] * np.sqrt(np.arange(lattice.radius_sq + 1) / lattice.radius_sq)).astype(np.float32)
    (square,), (slack,) = measured(query[None])

    distances, ids, ends = np.full(k, np.inf), np.full(k, -1), _ends(lattice)
    first, size = 0, max(FIRST_ROUND_CODES, k)
    with progress(description, len(codes), "codes") as advance:
        # A round's limit is what the codes before it have shown: each looks at three times as many as all before it.
        while first < len(codes):
            low, _ = lattice.words(codes[first : first + size], first)
            limit = np.float32((square + 1 - distances[-1]) / 2 - slack)
            rows = scan_one(low, tables, products, rest, limit)
            points = np.empty((len(rows), lattice.dim), np.float32)
            decode(low[rows], np.empty(0, np.uint64), tables, np.float32(1), points)
            distances = np.concatenate([distances, exact_distances(query, points, ends, lattice.radii, square)])
            ids = np.concatenate([ids, rows + first])
            best = np.lexsort((ids, distances))[:k]
            distances, ids = distances[best], ids[best]
            advance(len(low))
            first += len(low)
            size = min(3 * first, LAST_ROUND_CODES)
    return distances, ids


def _search_torch(
    lattice: Lattice,
    queries: np.ndarray,
    codes: np.ndarray,
    k: int,
    device: torch.device,
    description: str | None = None,
) -> tuple[np.ndarray, np.ndarray]:
    import torch

    q, radii = torch.from_numpy(queries).to(device, torch.float64), lattice.radii.tolist()
    shape = lattice.shape if has_gains(lattice) else lattice
    shares = torch.tensor([sphere.dim / lattice.dim for sphere in lattice.spheres], dtype=torch.float64, device=device)
    squares, ends = q.square().sum(dim=1, keepdim=True), _ends(lattice)[:-1].tolist()
    distances = torch.full((len(q), k), torch.inf, dtype=torch.float64, device=device)
    ids = torch.full((len(q), k), -1, device=device)
    with progress(description, len(codes), "codes") as advance:
        for first in range(0, len(codes), DEVICE_CODES):
            some = np.ascontiguousarray(codes[first : first + DEVICE_CODES])
            lattice.check_codes(some, first)  # here, where the row's number is known
            block = torch.from_numpy(some).to(device)
            shapes = lattice.shapes(block) if isinstance(lattice, GainShapeProduct) else block[:, : shape.code_size]
            points = shape.decode(shapes).double()
            gains = lattice.gains(block).double() if has_gains(lattice) else points.new_ones(len(block))
            gains = gains.reshape(len(block), -1).expand(-1, len(radii)).T  # one of each block
            whole = [(part * r).round().T for part, r in zip(points.tensor_split(ends, 1), radii, strict=True)]
            size = max(1, DEVICE_DISTANCES // len(block))
            for rows in (slice(start, start + size) for start in range(0, len(q), size)):
                d = squares[rows] + shares @ gains**2
                for radius, gain, part, point in zip(radii, gains, q[rows].tensor_split(ends, 1), whole, strict=True):
                    d = d - 2 / radius * gain * (part @ point)
                d.clamp_(min=0)
                near = torch.cat([distances[rows], d], dim=1)
                kept = near.topk(k, dim=1, largest=False)
                columns = kept.indices
                # topk chooses freely among equals at the k-th place; where there are any, a stable sort chooses for it.
                tied = ((near <= kept.values.amax(dim=1, keepdim=True)).sum(dim=1) > k).nonzero()[:, 0]
                columns[tied] = near[tied].argsort(dim=1, stable=True)[:, :k]
                columns = columns.sort(dim=1).values
                order = near.gather(1, columns).argsort(dim=1, stable=True)
                columns = columns.gather(1, order)
                old = ids[rows].gather(1, columns.clamp(max=k - 1))
                ids[rows] = torch.where(columns < k, old, columns - k + first)
                distances[rows] = near.gather(1, columns)
            advance(len(block))
    return distances.cpu().numpy(), ids.cpu().numpy()
