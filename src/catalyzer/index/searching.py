"""Search in the contents of an index: k nearest, or all within a radius; of all vectors, or of some ids."""

from collections.abc import Callable, Iterator
from contextlib import nullcontext
from dataclasses import dataclass, replace
from functools import partial
from threading import Lock
from typing import Any

import numpy as np

from catalyzer.codec import PAIRS, Codec
from catalyzer.errors import InvalidInput, Unavailable, integer
from catalyzer.files.vectors import BLOCK, Vectors
from catalyzer.index.contents import Contents
from catalyzer.index.ids import rows_allowed
from catalyzer.index.lists import InvertedLists
from catalyzer.index.source import check_rows, valid_rows
from catalyzer.metric import Metric
from catalyzer.progress import progress

RERANKED = 10  # times as many candidates as results
LEAST_RERANKED, MOST_RERANKED = 50, 500  # candidates; more find hardly anything more
DEFAULT_NPROBE = 16  # lists, of an index that has so many
PADDED_K = 1 << 10  # results per query that are always given, also where fewer can be found
FEW_QUERIES = 8  # that are searched in parallel to other searches; larger searches take turns
FEW_ALLOWED = 8  # a filter that leaves less than such a part leaves lists so short that all codes are scanned sooner
FIRST_K = 128  # results per query that a range search asks for first
GROWTH = 4  # times as many the next time


@dataclass(frozen=True)
class Search:
    """A search in the contents of one moment, with checked arguments.

    Attributes:
        contents: vectors that may be found.
        codec: codec that searches in them.
        rerank: candidates, 0 without a second stage.
        nprobe: lists, 0 without lists.
        lock: lock that is held while many queries are searched.
    """

    contents: Contents
    codec: Codec
    rerank: int
    nprobe: int
    lock: Lock

    @classmethod
    def of(
        cls,
        contents: Contents,
        k: int,
        rerank: int | None,
        nprobe: int | None,
        ids: Any,
        exclude: Any,
        lock: Lock,
        blocks: int | None = None,
    ) -> "Search":
        """Check the arguments that all searches have; see `CatalyzerIndex.search`. The default of rerank depends on k."""
        lists, codec, n = contents.lists, contents.codec.for_search, len(contents.ids)
        probes = _check_nprobe(nprobe, lists)
        pays = contents.codec.reranking_pays
        if blocks is not None:
            integer("blocks", blocks, 1, len(codec.quantizer.spheres), "the number of blocks of a code")
            # Whole points on the sphere rank better than what a linear decoder makes of them.
            decoder = codec.decoder if pays else None
            codec = replace(codec, blocks=blocks, decoder=decoder, steps=0, refine=1)  # which concern encoding
        if rerank is None:
            rerank = min(max(RERANKED * k, LEAST_RERANKED), MOST_RERANKED) if pays or blocks is not None else 0
        rerank = min(integer("rerank", rerank, 0), max(1, n))
        if rerank:
            codec.check_reranks()
        rows = rows_allowed(contents, ids, exclude)
        if rows is not None:
            contents = contents.only(rows)
            if lists is not None and nprobe is None:
                if FEW_ALLOWED * len(rows) <= n:
                    contents, probes = replace(contents, lists=None), 0
                else:  # as many codes as without a filter
                    probes = min(len(lists), -(-probes * n // len(rows)))
        return cls(contents, codec, rerank, probes, lock)

    def nearest(self, source: Vectors, k: int) -> tuple[np.ndarray, np.ndarray]:
        """`(nq, k)` scores and ids; missing results have the metric's worst score and id -1.

        Raises:
            InvalidInput: an invalid query.
            Unavailable: the results do not fit into memory.
        """
        contents, metric = self.contents, self.contents.metric
        try:
            scores = np.full((len(source), k), metric.worst, np.float32)
            ids = np.full((len(source), k), -1, np.int64)
        except MemoryError:
            raise Unavailable(
                f"{k:,} results for each of {len(source):,} queries do not fit into memory; give fewer queries at a time"
            ) from None
        found = min(k, len(contents.ids))
        for first, block, mapped in self._blocks(source, k):
            if not found:
                continue
            distances, rows = self._found(mapped, found, self.rerank)
            missing = rows < 0
            distances[missing] = 0
            at = slice(first, first + len(block))
            scores[at, :found] = metric.scores(distances, block, on_sphere=not self.rerank or self.codec.reranks_on_sphere)
            ids[at, :found] = contents.ids[rows]
            scores[at, :found][missing], ids[at, :found][missing] = metric.worst, -1
        return scores, ids

    def within(self, source: Vectors, radius: float) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """All vectors within a radius, a score of the metric: `lims`, `D` and `I`; see `CatalyzerIndex.range_search`."""
        sizes, scores, ids = [0], [np.empty(0, np.float32)], [np.empty(0, np.int64)]
        stage = self._decoded_within if self.rerank else self._on_sphere_within
        for _, block, mapped in self._blocks(source, max(FIRST_K, self.rerank)):
            for given, query in zip(block, mapped, strict=True):
                distances, rows = stage(query[None], partial(self._is_within, given, radius))
                sizes.append(len(rows))
                scores.append(self._scores(given, distances))
                ids.append(self.contents.ids[rows])
        return np.cumsum(sizes, dtype=np.int64), np.concatenate(scores), np.concatenate(ids)

    def _scores(self, query: np.ndarray, distances: np.ndarray) -> np.ndarray:
        return self.contents.metric.scores(
            distances[None], query[None], on_sphere=not self.rerank or self.codec.reranks_on_sphere
        )[0]

    def _is_within(self, query: np.ndarray, radius: float, distances: np.ndarray) -> np.ndarray:
        return self.contents.metric.better(self._scores(query, distances), radius)

    def expected(self, source: Vectors, expected: float) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """`within` the radius that has `expected` results per query on average."""
        metric, n = self.contents.metric, len(self.contents.ids)
        wanted = min(round(expected * len(source)), n * len(source))
        if not wanted:
            return self.within(source, -metric.worst)  # nothing is nearer
        k = min(n, max(FIRST_K, int(GROWTH * expected)))
        plain = replace(self, codec=self.codec.plain)  # as `within` compares
        while True:
            scores = replace(plain, rerank=self.rerank and max(self.rerank, k)).nearest(source, k)[0]
            radius = self._next_best(scores, wanted)
            if k == n or not metric.better(scores[:, -1], radius).any():
                break
            k = min(n, GROWTH * k)
        lims, scores, ids = self.within(source, radius)
        if len(ids) > wanted:  # it has looked at more candidates
            kept = metric.better(scores, self._next_best(scores, wanted))
            lims, scores, ids = np.append(0, np.cumsum(kept))[lims], scores[kept], ids[kept]
        return lims, scores, ids

    def _next_best(self, scores: np.ndarray, wanted: int) -> float:
        """The radius that includes this number of scores, and scores equal to the last of them."""
        sign = 1 if self.contents.metric.worst > 0 else -1
        return sign * float(np.nextafter(np.sort(sign * scores, axis=None)[wanted - 1], np.float32(np.inf)))

    def _blocks(self, source: Vectors, k: int) -> Iterator[tuple[int, np.ndarray, np.ndarray]]:
        """Queries block by block, as they were given and as they are compared by L2, each with the number of its first."""
        metric = self.contents.metric
        size = min(BLOCK, max(1, PAIRS // max(k, self.rerank, self.nprobe)))
        if len(source) > size:  # before the work, of which an invalid query would leave nothing; queries may be of any length
            check_rows(source, Metric(metric.name))
        with progress("queries" if len(source) > size else None, len(source), "queries") as advance:
            for first in range(0, len(source), size):
                block, _ = valid_rows(source, first, size, metric, skip=None)
                yield first, block, metric.queries(block)
                advance(len(block))

    def _found(self, mapped: np.ndarray, k: int, rerank: int) -> tuple[np.ndarray, np.ndarray]:
        contents = self.contents
        with nullcontext() if len(mapped) <= FEW_QUERIES else self.lock:
            if contents.lists is None:
                return self.codec.search(mapped, contents.codes, k, rerank)
            return contents.lists.search(self.codec, mapped, contents.codes, k, rerank, self.nprobe)

    def _on_sphere_within(self, query: np.ndarray, inside: Callable[[np.ndarray], np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
        n, k = len(self.contents.ids), FIRST_K
        while n:
            (distances,), (rows,) = self._found(query, min(k, n), 0)
            near = inside(distances) & (rows >= 0)
            if k >= n or not near[-1]:
                return distances[near], rows[near]
            k *= GROWTH
        return np.empty(0, np.float32), np.empty(0, np.int64)

    def _decoded_within(self, query: np.ndarray, inside: Callable[[np.ndarray], np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
        """Candidates by distance on the sphere, more and more, until the farther half has none within the radius."""
        contents, n, codec = self.contents, len(self.contents.ids), self.codec.plain
        near_distances, near_rows = [np.empty(0, np.float32)], [np.empty(0, np.int64)]
        seen, k = 0, max(1, self.rerank // 2)
        while seen < n:
            k = min(k, n)
            on_sphere, rows = self._found(query, k, 0)
            fresh = rows[:, seen:]
            distances, rows = codec.rerank(query, contents.codes, on_sphere[:, seen:], fresh, fresh.shape[1])
            near = inside(distances[0]) & (rows[0] >= 0)
            near_distances.append(distances[0][near])
            near_rows.append(rows[0][near])
            if seen and not near.any():
                break
            seen, k = k, 2 * k
        distances, rows = np.concatenate(near_distances), np.concatenate(near_rows)
        order = np.lexsort((rows, distances))
        return distances[order], rows[order]


def check_k(k: int, contents: Contents) -> int:
    """k as a Python integer; raises `InvalidInput` unless an index gives so many results."""
    k, n = integer("k", k, 1), len(contents.ids)
    if k > max(PADDED_K, n):
        raise InvalidInput(f"k = {k:,}, but the index has only {n:,} vectors; give a k of at most {max(PADDED_K, n):,}")
    return k


def _check_nprobe(nprobe: int | None, lists: InvertedLists | None) -> int:
    if lists is None:
        if nprobe is not None:
            raise InvalidInput(
                f"nprobe = {nprobe} is for an index with inverted lists, but this one has none; leave it out, or "
                "fit an index with ivf"
            )
        return 0
    if nprobe is None:
        return min(DEFAULT_NPROBE, len(lists))
    return integer("nprobe", nprobe, 1, len(lists), "the number of lists")
