"""Search in code shards: the k nearest of all codes, found shard by shard and merged."""

import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, Self

import numpy as np

from catalyzer.codec import PAIRS, Codec
from catalyzer.errors import InvalidInput, integer
from catalyzer.files.vectors import as_float32, open_vectors, write_npy, write_vecs
from catalyzer.nn import digest
from catalyzer.parts import Trust
from catalyzer.progress import progress
from catalyzer.quantizers import Quantizer
from catalyzer.runs.trained_run import TrainedRun
from catalyzer.shards.code_shards import CodeShards
from catalyzer.shards.engines import Engine, local

log = logging.getLogger(__name__)

SHARDS_PER_TASK = 16  # whose candidates are merged by the worker that found them
QUERIES_PER_MERGE = 1 << 10  # bounds the memory of a merge


def search(
    shards: CodeShards,
    queries: str | Path,
    k: int,
    rerank: int | None = None,
    run: str | Path | None = None,
    engine: Engine = local,
    trust: Trust = (),
) -> tuple[np.ndarray, np.ndarray]:
    """The k codes nearest to each query, exactly as found by `TrainedRun.search` in all codes at once.

    Memory is that of a shard, of the result and of the candidates of the queries that are searched together, at most 8 million.

    Args:
        shards: complete shards from `encode`; each is compared with its checksum when it is scanned.
        queries: file of `(nq, d)` vectors.
        k: number of codes per query, at most all.
        rerank: see `Codec.search`; None is the run's setting.
        run: folder of the run that made the codes; None is its path at that time.
        engine: engine that runs the tasks.
        trust: modules whose classes the run may name; see `TrainedRun.load`.

    Returns:
        `D` `(nq, k)` float32 squared distances, ascending, or for cosine and inner product similarities, descending, and `I`
        `(nq, k)` int64 rows of the encoded file; ties by lower row.

    Raises:
        InvalidInput: incomplete shards, or codes of another run; invalid queries, k or rerank.
        DamagedFile: a shard that is missing or differs from its checksum.
    """
    shards.check_complete()
    manifest, folder = shards.manifest, Path(run or shards.manifest.run)
    if run is None and not folder.is_dir():
        raise InvalidInput(
            f"{folder}, the run that made the codes in {shards.folder}, does not exist; give its folder with run=FOLDER"
        )
    trained, given = TrainedRun.load(folder, trust), open_vectors(queries)
    codec = trained.codec
    if (digest(codec.parts), trained.metric) != (manifest.parts, manifest.metric):
        raise InvalidInput(
            f"{shards.folder} holds codes of another run than {folder}; give the run that made them with run=FOLDER"
        )
    if given.shape[1] != trained.d:
        raise InvalidInput(f"{queries}: expected vectors of dimension {trained.d}, as in the run; got {given.shape[1]}")
    k = integer("k", k, 1, manifest.rows, "the number of codes")
    rerank = trained.settings.rerank if rerank is None else integer("rerank", rerank, 0)
    if rerank:
        codec.decode(np.empty((0, manifest.code_size), np.uint8))  # refuses a codec without decoder before the search

    vectors = trained.searched(given)
    latent = codec.map_queries(vectors)
    candidates = min(max(k, rerank), manifest.rows)
    distances, ids = np.empty((len(vectors), k), np.float32), np.empty((len(vectors), k), np.int64)
    pieces = [range(first, min(first + SHARDS_PER_TASK, shards.count)) for first in range(0, shards.count, SHARDS_PER_TASK)]
    together = max(1, PAIRS // candidates)
    parts = [slice(first, first + together) for first in range(0, len(vectors), together)]
    with progress("searching", manifest.rows * len(parts), "codes") as advance:
        for part in parts:
            scan = _Scan(codec.quantizer, latent[part], shards, candidates)
            best = scan.nothing()
            for piece, found in engine(scan, pieces):
                best.merge(found)
                advance(sum(len(shards.rows(number)) for number in piece))
            nearest, ids[part] = best.reranked(codec, vectors[part], k) if rerank else (best.distances, best.ids)
            distances[part] = trained.scores(nearest.astype(np.float32), given[part], rerank)
    return distances, ids


@dataclass
class _Candidates:
    """The nearest codes so far, ascending, ties by lower id; at distance inf if there are fewer.

    Attributes:
        distances: `(nq, m)` float64 as compared, or float32 of a quantizer that compares these.
        ids: `(nq, m)` int64.
        codes: `(nq, m, code_size)` uint8, so that reranking need not read them again.
    """

    distances: np.ndarray
    ids: np.ndarray
    codes: np.ndarray

    def merge(self, other: Self) -> None:
        """Keep the nearest of both; the result does not depend on the order of merges."""
        m = self.ids.shape[1]
        for first in range(0, len(self.ids), QUERIES_PER_MERGE):
            rows = slice(first, first + QUERIES_PER_MERGE)
            distances, ids, codes = (
                np.concatenate([mine[rows], theirs[rows]], axis=1)
                for mine, theirs in (
                    (self.distances, other.distances), (self.ids, other.ids), (self.codes, other.codes)
                )
            )  # fmt: skip
            best = np.lexsort((ids, distances), axis=1)[:, :m]
            self.distances[rows] = np.take_along_axis(distances, best, 1)
            self.ids[rows] = np.take_along_axis(ids, best, 1)
            self.codes[rows] = np.take_along_axis(codes, best[..., None], 1)

    def reranked(self, codec: Codec, queries: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
        """The second stage of `Codec.search` for all candidates together."""
        distinct, at, place = np.unique(self.ids, return_index=True, return_inverse=True)
        codes = self.codes.reshape(-1, self.codes.shape[2])[at]
        on_sphere = self.distances.astype(np.float32)
        distances, best = codec.rerank(as_float32(queries), codes, on_sphere, place.reshape(self.ids.shape), k)
        return distances, distinct[best]


@dataclass(frozen=True)
class _Scan:
    """A task: the candidates of some shards for each of the mapped queries."""

    quantizer: Quantizer
    queries: np.ndarray
    shards: CodeShards
    candidates: int

    def nothing(self) -> _Candidates:
        shape = (len(self.queries), self.candidates)
        codes = np.zeros((*shape, self.quantizer.code_size), np.uint8)
        return _Candidates(np.full(shape, np.inf), np.full(shape, -1), codes)

    def __call__(self, numbers: range) -> _Candidates:
        best = self.nothing()
        for number in numbers:
            codes = self.shards.read(number)
            distances, rows = self.quantizer.search_part(self.queries, codes, min(self.candidates, len(codes)))
            best.merge(_Candidates(distances, rows + self.shards.rows(number).start, codes[rows]))
        return best


def check_format(shards: CodeShards, file_format: Literal["vecs", "npy"]) -> None:
    """Raise `InvalidInput` if row numbers of the shards do not fit into a format of `write_neighbours`."""
    if file_format == "vecs" and shards.manifest.rows > 1 << 31:
        raise InvalidInput(f"{shards.folder} has ids above 2³¹, the limit of .ivecs files; add format=npy")


def write_neighbours(output: Path, distances: np.ndarray, ids: np.ndarray, file_format: Literal["vecs", "npy"]) -> None:
    """Write the results of a search, each file atomically.

    Args:
        output: beginning of the files' paths.
        distances: `(nq, k)` float32.
        ids: `(nq, k)` int64.
        file_format: vecs for `.ivecs` (int32) and `.fvecs`, npy for `.ids.npy` (int64) and `.distances.npy`.
    """
    for array, (vecs, npy) in ((ids, (".ivecs", ".ids.npy")), (distances, (".fvecs", ".distances.npy"))):
        if file_format == "vecs":
            write_vecs(Path(f"{output}{vecs}"), [array])
        else:
            write_npy(Path(f"{output}{npy}"), array)
    log.info("%s: %s rows of %s ids and distances", output, f"{len(ids):,}", f"{ids.shape[1]:,}")
