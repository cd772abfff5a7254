"""Inverted lists: codes partitioned by the positions of their vectors on the sphere, so that a search scans only a few lists.

The partition is a k-means of mapped vectors. Mapped queries probe the lists of the nearest centroids; within these lists the
search is exact. docs/results.md compares it with partitions of other spaces.
"""

import logging
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, Self

import numpy as np

from catalyzer import scan
from catalyzer._faiss import faiss
from catalyzer.codec import Codec
from catalyzer.errors import InvalidInput
from catalyzer.nn import embed
from catalyzer.progress import progress
from catalyzer.quantizers import Quantizer

log = logging.getLogger(__name__)

MIN_LEARN_PER_LIST = 8  # with fewer vectors, centroids are little more than some of the vectors
MAX_LEARN_PER_LIST = 64  # with more vectors, k-means takes longer and the lists are no better
KMEANS_ITERATIONS = 10


@dataclass(frozen=True, eq=False)
class InvertedLists:
    """A partition of the sphere, and the rows of codes in each part.

    Attributes:
        centroids: `(ivf, dim)` float32; list l has the vectors nearest to centroid l.
        offsets: `(ivf + 1,)` int64, ascending from 0: list l are rows `offsets[l]` to `offsets[l + 1]` of ids and codes.

    >>> centroids = np.array([[1, 0], [0, 1]], np.float32)
    >>> lists = InvertedLists(centroids, offsets=np.zeros(3, np.int64))
    >>> lists.probe(np.array([[0.8, 0.6], [0.6, 0.8]], np.float32), nprobe=2).tolist()
    [[0, 1], [1, 0]]
    """

    centroids: np.ndarray
    offsets: np.ndarray

    @classmethod
    def fit(cls, codec: Codec, learn: np.ndarray, ivf: int) -> Self:
        """A partition by k-means, with empty lists.

        Args:
            codec: codec that maps the vectors.
            learn: `(n, d_in)` float32, in random order.
            ivf: number of lists.

        Raises:
            InvalidInput: fewer than MIN_LEARN_PER_LIST vectors per list.
        """
        check_learn(ivf, len(learn))
        points = embed(codec.transform, learn[: MAX_LEARN_PER_LIST * ivf])
        log.info("partitioning the sphere into %s lists, learned from %s vectors", f"{ivf:,}", f"{len(points):,}")
        centroids = None
        with progress("k-means", KMEANS_ITERATIONS, "iterations") as advance:
            for _ in range(KMEANS_ITERATIONS):
                kmeans = faiss.Kmeans(
                    points.shape[1], ivf, niter=1, seed=0, min_points_per_centroid=1, max_points_per_centroid=MAX_LEARN_PER_LIST
                )
                kmeans.train(points, init_centroids=centroids)
                centroids = kmeans.centroids
                advance(1)
        assert centroids is not None
        return cls(centroids, np.zeros(ivf + 1, np.int64))

    def __len__(self) -> int:
        return len(self.centroids)

    @property
    def sizes(self) -> np.ndarray:
        """`(ivf,)` int64: number of codes in each list."""
        return np.diff(self.offsets)

    @cached_property
    def _index(self) -> Any:
        index = faiss.IndexFlatL2(self.centroids.shape[1])
        index.add(self.centroids)
        return index

    def nearest(self, points: np.ndarray) -> np.ndarray:
        """The list that each of `(n, dim)` float32 points belongs to, that of the nearest centroid: `(n,)` int64."""
        return self._index.search(points, 1)[1][:, 0]

    @cached_property
    def _columns(self) -> tuple[np.ndarray, np.ndarray]:
        return scan.columns(self.centroids)

    def probe(self, queries: np.ndarray, nprobe: int) -> np.ndarray:
        """The lists of the nprobe centroids nearest to `(nq, dim)` float32 queries, nearest first: `(nq, nprobe)` int64.

        A query probes the same lists alone and in a batch.
        """
        return scan.nearest_columns(*self._columns, queries, nprobe)

    def insert(
        self, ids: np.ndarray, codes: np.ndarray, added: np.ndarray, added_ids: np.ndarray, added_codes: np.ndarray
    ) -> tuple[Self, np.ndarray, np.ndarray]:
        """Append vectors to their lists.

        Args:
            ids: `(n,)` int64, list by list.
            codes: `(n, code_size)` uint8, the codes of these ids.
            added: `(m,)` int64, the lists of the added vectors.
            added_ids: `(m,)` int64.
            added_codes: `(m, code_size)` uint8.

        Returns:
            The lists, ids and codes with both, in new arrays.
        """
        order = np.argsort(added, kind="stable")
        before = self.offsets[1:][added[order]]
        offsets = self.offsets + np.append(0, np.cumsum(np.bincount(added, minlength=len(self))))
        return (
            replace(self, offsets=offsets),
            np.insert(ids, before, added_ids[order]),
            np.insert(codes, before, added_codes[order], axis=0),
        )

    def only(self, rows: np.ndarray) -> Self:
        """The lists of `(m,)` rows, ascending, and no others."""
        return replace(self, offsets=np.searchsorted(rows, self.offsets))

    def search(
        self, codec: Codec, queries: np.ndarray, codes: np.ndarray, k: int, rerank: int, nprobe: int
    ) -> tuple[np.ndarray, np.ndarray]:
        """`Codec.search` in the nprobe lists nearest to each query.

        Args:
            codec: codec of the codes; its quantizer searches lists.
            queries: `(nq, d_in)` float32, at most as many as are searched at once.
            codes: `(n, code_size)` uint8, list by list.
            k: number of codes per query, at most n.
            rerank: see `Codec.search`.
            nprobe: number of lists per query, from 1 to ivf.

        Returns:
            As `Codec.search`; if the lists of a query have fewer than k codes, inf and -1 at the end.
        """
        if nprobe == len(self):
            return codec.search(queries, codes, k, rerank)
        candidates = min(max(k, rerank), len(codes))
        latent = codec.map_queries(queries)
        probed = self.probe(latent, nprobe)
        quantizer, latent, first = codec.first_stage(latent, codes)
        distances, rows = quantizer.search_lists(latent, first, self.offsets, probed, candidates)
        return codec.rerank(queries, codes, distances, rows, k) if rerank else (distances, rows)


def check_quantizer(cls: type[Quantizer]) -> None:
    """Raise `InvalidInput` unless quantizers of this class search inverted lists."""
    if not cls.can("search_lists"):
        raise InvalidInput(
            f"{cls.__name__} has no method search_lists, which inverted lists need; use quantizer=lattice, or ivf=0"
        )


def check_learn(ivf: int, n: int) -> None:
    """Raise `InvalidInput` unless n vectors are enough to learn so many lists from."""
    if n < MIN_LEARN_PER_LIST * ivf:
        raise InvalidInput(
            f"ivf = {ivf:,} lists need at least {MIN_LEARN_PER_LIST * ivf:,} vectors to learn from, "
            f"{MIN_LEARN_PER_LIST} per list; got {n:,}; give more vectors, or an ivf of at most {n // MIN_LEARN_PER_LIST:,}"
        )
