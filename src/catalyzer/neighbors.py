"""k nearest neighbours by L2, exact or approximate, in memory or streamed: one engine for mining, ground truth and search.

Exact search uses faiss's GPU index if faiss sees a GPU, else torch if torch sees one, else faiss's CPU index. Neighbours are
`(D, I)`: float32 squared distances and int64 ids, ascending, ties by lower id.
"""

import logging
import math
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, Literal, get_args

import numpy as np

from catalyzer._faiss import faiss
from catalyzer.errors import InvalidInput, integer
from catalyzer.files.vectors import BLOCK, Vectors, as_float32, float_blocks
from catalyzer.progress import progress

if TYPE_CHECKING:
    import torch

log = logging.getLogger(__name__)

GROUP = 32  # distances whose minimum a GPU takes before it selects
EXACT_LIMIT = 30_000
"""Largest set whose neighbour graph `method="auto"` computes exactly on a CPU: the cost is quadratic."""


def engine() -> str:
    """The engine of exact search on this machine: `"faiss-gpu"`, `"torch-cuda"` or `"faiss-cpu"`.

    >>> engine() in ("faiss-gpu", "torch-cuda", "faiss-cpu")
    True
    """
    if faiss.get_num_gpus():
        return "faiss-gpu"
    import torch

    return "torch-cuda" if torch.cuda.is_available() else "faiss-cpu"


def knn(queries: Vectors, base: Vectors, k: int, description: str = "searching") -> tuple[np.ndarray, np.ndarray]:
    """The exact k nearest rows of `base` for each query; `base` is read block by block.

    Args:
        queries: `(nq, d)`.
        base: `(n, d)`, in memory or in a file.
        k: neighbours per query; at most n.
        description: text of the progress display.

    Returns:
        `D` `(nq, k)` float32 squared L2 distances, ascending, and `I` `(nq, k)` int64 row numbers.

    Raises:
        InvalidInput: k out of range, or different dimensions.

    >>> base = np.array([[0.0, 0], [1, 0], [0, 2]], dtype=np.float32)
    >>> D, I = knn(base[:1], base, k=2)
    >>> D.tolist(), I.tolist()
    ([[0.0, 1.0]], [[0, 1]])
    """
    if queries.shape[1] != base.shape[1]:
        raise InvalidInput(f"queries have dimension {queries.shape[1]}, base vectors {base.shape[1]}; they must agree")
    k = integer("k", k, 1, len(base), "the number of base vectors")
    return knn_of_blocks(as_float32(queries[:]), float_blocks(base, description), k)


def knn_of_blocks(queries: np.ndarray, blocks: Iterator[np.ndarray], k: int) -> tuple[np.ndarray, np.ndarray]:
    """`knn` over consecutive float32 blocks, which are never in memory together."""
    if engine() == "torch-cuda":
        return _torch_knn(queries, blocks, k, "cuda")
    from faiss.contrib.exhaustive_search import knn_ground_truth

    logging.getLogger("faiss.contrib.exhaustive_search").setLevel(logging.WARNING)
    distances, ids = knn_ground_truth(queries, blocks, k)
    # Rows come ascending, and only those with ties have ids out of order; to sort all takes longer than a GPU's search.
    rows = np.flatnonzero((distances[:, 1:] <= distances[:, :-1]).any(axis=1))
    order = np.lexsort((ids[rows], distances[rows]), axis=-1)
    distances[rows], ids[rows] = (np.take_along_axis(each[rows], order, 1) for each in (distances, ids))
    return distances, ids


def _torch_knn(queries: np.ndarray, blocks: Iterator[np.ndarray], k: int, device: str) -> tuple[np.ndarray, np.ndarray]:
    """`knn_of_blocks` on a device, sorted there too: on the CPU that takes longer than the search."""
    import torch

    best_d = torch.full((len(queries), 0), math.inf, device=device)
    best_i = torch.zeros((len(queries), 0), dtype=torch.int64, device=device)
    q = torch.from_numpy(queries).to(device)
    first = 0
    for block in blocks:
        x = torch.from_numpy(block).to(device)
        norms = x.square().sum(1)
        scaled = -2 * x.T
        found = []
        for part in q.split(1 << 13):  # 8192 queries × 65536 rows of float32 distances: 2 GiB at a time
            # Without the query's own square, which changes no order; so this is written once and read once.
            found.append(_smallest(torch.addmm(norms, part, scaled), min(k, len(x))))
        d = torch.cat([best_d, torch.cat([values for values, _ in found])], 1)
        i = torch.cat([best_i, torch.cat([columns for _, columns in found]) + first], 1)
        keep = d.topk(min(k, d.shape[1]), largest=False, sorted=False)
        best_d, best_i = keep.values, i.gather(1, keep.indices)
        first += len(block)
    best_d = best_d.add_(q.square().sum(1, keepdim=True)).clamp_(min=0)
    best_i, order = best_i.sort(1)
    best_d, order = best_d.gather(1, order).sort(stable=True, dim=1)
    return best_d.cpu().numpy(), best_i.gather(1, order).cpu().numpy()


def _smallest(d: "torch.Tensor", k: int) -> "tuple[torch.Tensor, torch.Tensor]":
    """The k smallest of each row of `(m, n)` and their columns, both `(m, k)`, in any order.

    They are in the k groups of columns whose minima are smallest. topk reads what it is given several times on a GPU, and a
    minimum reads it once; so only the minima and those groups go through topk.
    """
    import torch

    n = d.shape[1]
    groups = n // GROUP
    if groups < 2 * k:
        near = d.topk(k, largest=False, sorted=False)
        return near.values, near.indices
    minima = d[:, : groups * GROUP].unflatten(1, (GROUP, groups)).amin(1)
    chosen = minima.topk(k, largest=False, sorted=False).indices
    columns = (chosen[:, None] + torch.arange(0, groups * GROUP, groups, device=d.device)[:, None]).flatten(1)
    rest = torch.arange(groups * GROUP, n, device=d.device).expand(len(d), -1)
    columns = torch.cat([columns, rest], 1)
    near = d.gather(1, columns).topk(k, largest=False, sorted=False)
    return near.values, columns.gather(1, near.indices)


Method = Literal["auto", "exact", "ivf", "hnsw"]
METHODS = get_args(Method)


def knn_graph(
    x: np.ndarray,
    k: int,
    method: str = "auto",
    nprobe: int = 48,
    description: str = "mining",
    rows: slice = slice(None),
) -> np.ndarray:
    """The k nearest other rows of each row of `x`: a row is never its own neighbour, but its duplicates may be.

    Besides `x` and the result, approximate methods hold an index in memory: a copy of the vectors, one byte per coordinate for
    uint8, else float32.

    Args:
        x: `(n, d)`.
        k: neighbours per row; at most n - 1.
        method: `"exact"`, `"ivf"` (an inverted file of `3 sqrt(n)` lists, approximate), `"hnsw"` (a navigable graph,
            approximate) or `"auto"`: exact on a GPU and up to `EXACT_LIMIT` rows, inverted file beyond.
        nprobe: number of lists that `"ivf"` visits for each row: more is closer to exact, and slower. `"hnsw"` keeps four times
            as many candidates, and at least k.
        description: text of the progress display.
        rows: slice of step 1 of the rows whose neighbours are computed; by default all.

    Returns:
        `(n, k)` int64 row numbers, nearest first, for the n of `rows`.

    Raises:
        InvalidInput: an unknown method, or k out of range.

    >>> knn_graph(np.array([[0.0], [1], [3]], dtype=np.float32), k=2).tolist()
    [[1, 2], [0, 2], [1, 0]]
    """
    n = len(x)
    k = integer("k", k, 1, n - 1, "all but itself")
    if method not in METHODS:
        raise InvalidInput(f"unknown method {method!r}; expected {', '.join(METHODS[:-1])} or {METHODS[-1]}")
    if method == "auto":
        method = "exact" if n <= EXACT_LIMIT or engine() != "faiss-cpu" else "ivf"
    log.debug("%s: %s neighbours of %s vectors, %s on %s", description, k, n, method, engine())
    first, last, _ = rows.indices(n)
    if method == "exact":
        ids = knn(x[first:last], x, k + 1, description)[1]
    else:
        ids = _approximate_graph(x, k + 1, method, nprobe, description, first, last)
    # Each row itself is among what it found, or beyond it where it has many duplicates: columns from there on move up.
    itself = ids == np.arange(first, last)[:, None]
    at = np.where(itself.any(axis=1), itself.argmax(axis=1), k)
    columns = np.arange(k)
    return np.take_along_axis(ids, columns + (columns >= at[:, None]), 1)


def graph_recall(x: np.ndarray, graph: np.ndarray, first: int = 0, sample: int = 500) -> float:
    """Share of the exact nearest neighbours that are in `graph`, over a sample of its rows; any of the ties at rank k counts.

    Args:
        x: `(n, d)`.
        graph: `(m, k)` as from `knn_graph`, for rows `first` to `first + m`.
        first: first row of the graph.
        sample: number of rows that are compared.

    >>> x = np.array([[0.0], [1], [3]], dtype=np.float32)
    >>> round(graph_recall(x, np.array([[1], [2], [1]])), 2)  # of the middle one the nearest is 0, not 2
    0.67
    """
    m, k = graph.shape
    rows = np.sort(np.random.default_rng(0).permutation(m)[:sample])
    own = as_float32(x[first + rows])
    exact = knn(own, x, k + 1, "recall of the neighbours")[1]  # the row itself is one of them

    def distances(ids: np.ndarray) -> np.ndarray:  # in one arithmetic for both, so that equal is equal
        return np.linalg.norm(as_float32(x[ids]) - own[:, None], axis=2)

    return float((distances(graph[rows]) <= distances(exact).max(axis=1, keepdims=True)).mean())


def _approximate_graph(x: np.ndarray, k: int, method: str, nprobe: int, description: str, first: int, last: int) -> np.ndarray:
    n, dim = x.shape
    # Bytes are kept as bytes: distances are as exact as in float32, and 10M SIFT vectors take 1.3 GB instead of 5.
    storage = "SQ8_direct" if x.dtype == np.uint8 else "Flat"
    lists = max(1, int(3 * math.sqrt(n)))
    index: Any = faiss.index_factory(dim, f"IVF{lists},{storage}" if method == "ivf" else f"HNSW16,{storage}")
    if method == "ivf":
        index.by_residual = False
        index.cp.niter = 6  # the partition only has to be fair; more iterations cost more than they save in probes
        index.cp.max_points_per_centroid = 64
        index.cp.min_points_per_centroid = 1
        index.nprobe = min(nprobe, lists)
        index.train(as_float32(x[:: max(1, n // (64 * lists))]))  # k-means would take no more, but at random
    else:
        index.hnsw.efConstruction = 60
        index.hnsw.efSearch = max(k, 4 * nprobe)
        index.train(as_float32(x[:1]))
    with progress(f"{description}, index", n, "vectors") as advance:
        for block in float_blocks(x, None):
            index.add(block)
            advance(len(block))
    # List by list, since rows of one list probe much the same lists, which are then in the processor's cache: twice as fast.
    order = np.arange(first, last)
    if method == "ivf":
        kept, sizes = index.invlists, map(index.invlists.list_size, range(lists))
        order = np.concatenate([faiss.rev_swig_ptr(kept.get_ids(i), size) for i, size in enumerate(sizes) if size])
        order = order[(order >= first) & (order < last)]
    ids = np.empty((last - first, k), dtype=np.int64)
    with progress(description, last - first, "vectors") as advance:
        for start in range(0, len(order), BLOCK):
            rows = order[start : start + BLOCK]
            ids[rows - first] = index.search(as_float32(x[rows]), k)[1]
            advance(len(rows))
    # Rows that found fewer than k in the lists probed are few; they are searched exactly.
    short = np.flatnonzero(ids[:, -1] < 0)
    if len(short):
        ids[short] = knn(as_float32(x[first:last])[short], x, k, f"{description}, {len(short)} rows exactly")[1]
    return ids
