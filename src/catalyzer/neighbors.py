"""k nearest neighbours by L2, exact or approximate, in memory or streamed: one engine for mining, ground truth and search.

Exact search runs on faiss's GPU index where faiss sees a GPU, else in torch where torch sees one, else on faiss's CPU
index. Neighbours come as `(D, I)`: float32 squared distances and int64 ids, ascending, ties by lower id.
"""

import logging
import math
from collections.abc import Iterator

import numpy as np

from catalyzer._faiss import faiss
from catalyzer.errors import InvalidInput
from catalyzer.progress import progress
from catalyzer.vectors import BLOCK, Vectors, as_float32, float_blocks

log = logging.getLogger(__name__)

EXACT_LIMIT = 30_000
"""Largest set whose neighbour graph `method="auto"` computes exactly on a CPU: the cost is quadratic."""


def engine() -> str:
    """What exact search runs on here: `"faiss-gpu"`, `"torch-cuda"` or `"faiss-cpu"`.

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
        k: neighbours a query; at most n.
        description: what the progress display says.

    Returns:
        `D` `(nq, k)` float32 squared L2 distances, ascending, and `I` `(nq, k)` int64 row numbers.

    Raises:
        InvalidInput: k out of range, or dimensions that differ.

    >>> base = np.array([[0.0, 0], [1, 0], [0, 2]], dtype=np.float32)
    >>> D, I = knn(base[:1], base, k=2)
    >>> D.tolist(), I.tolist()
    ([[0.0, 1.0]], [[0, 1]])
    """
    if queries.shape[1] != base.shape[1]:
        raise InvalidInput(f"queries have dimension {queries.shape[1]}, base vectors {base.shape[1]}; they must agree")
    if not 1 <= k <= len(base):
        raise InvalidInput(f"k must be between 1 and the number of base vectors, {len(base):,}; got {k}")
    return knn_of_blocks(as_float32(queries[:]), float_blocks(base, description), k)


def knn_of_blocks(queries: np.ndarray, blocks: Iterator[np.ndarray], k: int) -> tuple[np.ndarray, np.ndarray]:
    """`knn` over float32 blocks that come one after another and are never held together."""
    if engine() == "torch-cuda":
        distances, ids = _torch_knn(queries, blocks, k, "cuda")
    else:
        from faiss.contrib.exhaustive_search import knn_ground_truth

        logging.getLogger("faiss.contrib.exhaustive_search").setLevel(logging.WARNING)
        distances, ids = knn_ground_truth(queries, blocks, k)
    return _sorted_by_distance_then_id(distances, ids)


def _sorted_by_distance_then_id(distances: np.ndarray, ids: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    order = np.lexsort((ids, distances), axis=-1)
    return np.take_along_axis(distances, order, 1), np.take_along_axis(ids, order, 1)


def _torch_knn(queries: np.ndarray, blocks: Iterator[np.ndarray], k: int, device: str) -> tuple[np.ndarray, np.ndarray]:
    import torch

    best_d = torch.full((len(queries), 0), math.inf, device=device)
    best_i = torch.zeros((len(queries), 0), dtype=torch.int64, device=device)
    q = torch.from_numpy(queries).to(device)
    first = 0
    for block in blocks:
        x = torch.from_numpy(block).to(device)
        norms = x.square().sum(1)
        found = []
        for part in q.split(1 << 13):  # 8192 queries × 65536 rows of float32 distances: 2 GiB at a time
            d = torch.addmm(norms, part, x.T, alpha=-2).add_(part.square().sum(1, keepdim=True)).clamp_(min=0)
            found.append(d.topk(min(k, len(x)), largest=False, sorted=False))
        d = torch.cat([best_d, torch.cat([f.values for f in found])], 1)
        i = torch.cat([best_i, torch.cat([f.indices for f in found]) + first], 1)
        keep = d.topk(min(k, d.shape[1]), largest=False, sorted=False)
        best_d, best_i = keep.values, i.gather(1, keep.indices)
        first += len(block)
    return best_d.cpu().numpy(), best_i.cpu().numpy()


def knn_graph(x: Vectors, k: int, method: str = "auto", nprobe: int = 40, description: str = "mining") -> np.ndarray:
    """The k nearest other rows of each row of `x`: a row is never its own neighbour, duplicates of it may be.

    Args:
        x: `(n, d)`.
        k: neighbours a row; at most n - 1.
        method: `"exact"`, `"ivf"` (an inverted file of `6 sqrt(n)` lists, approximate) or `"auto"`: exact on a GPU and
            up to `EXACT_LIMIT` rows, inverted file beyond.
        nprobe: lists that `"ivf"` visits for each row: more is closer to exact, and slower.
        description: what the progress display says.

    Returns:
        `(n, k)` int64 row numbers, nearest first.

    Raises:
        InvalidInput: an unknown method, or k out of range.

    >>> knn_graph(np.array([[0.0], [1], [3]], dtype=np.float32), k=2).tolist()
    [[1, 2], [0, 2], [1, 0]]
    """
    n = len(x)
    if not 1 <= k < n:
        raise InvalidInput(f"k must be between 1 and {n - 1:,} for {n:,} vectors, since none is its own neighbour; got {k}")
    if method == "auto":
        method = "exact" if n <= EXACT_LIMIT or engine() != "faiss-cpu" else "ivf"
    log.debug("%s: %s neighbours of %s vectors, %s on %s", description, k, n, method, engine())
    if method == "exact":
        ids = knn(x, x, k + 1, description)[1]
    elif method == "ivf":
        ids = _ivf_graph(as_float32(x[:]), k + 1, nprobe, description)
    else:
        raise InvalidInput(f"unknown method {method!r}; expected auto, exact or ivf")
    # Each row itself is among what it found, or beyond it where it has many duplicates: columns from there on move up.
    itself = ids == np.arange(n)[:, None]
    at = np.where(itself.any(axis=1), itself.argmax(axis=1), k)
    columns = np.arange(k)
    return np.take_along_axis(ids, columns + (columns >= at[:, None]), 1)


def _ivf_graph(x: np.ndarray, k: int, nprobe: int, description: str) -> np.ndarray:
    n, dim = x.shape
    lists = max(1, int(6 * math.sqrt(n)))
    index = faiss.IndexIVFFlat(faiss.IndexFlatL2(dim), dim, lists)
    index.cp.niter = 6  # the partition only has to be fair; more iterations cost more than they save in probes
    index.cp.max_points_per_centroid = 64
    index.cp.min_points_per_centroid = 1
    index.train(x)
    index.add(x)
    index.nprobe = min(nprobe, lists)
    ids = np.empty((n, k), dtype=np.int64)
    with progress(description, n, "vectors") as advance:
        for start in range(0, n, BLOCK):
            block = x[start : start + BLOCK]
            ids[start : start + BLOCK] = index.search(block, k)[1]
            advance(len(block))
    # Rows that found fewer than k in the lists probed are few; they are searched exactly.
    short = np.flatnonzero(ids[:, -1] < 0)
    if len(short):
        ids[short] = knn(x[short], x, k, f"{description}, {len(short)} rows exactly")[1]
    return ids
