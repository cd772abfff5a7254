"""Encode a base, search it, and measure recall and time: the two phases of section 5.1."""

import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Self

import numpy as np

from catalyzer.codec import Codec
from catalyzer.evaluation.recall import RANKS, recall_at
from catalyzer.files.vectors import BLOCK, Vectors, as_float32
from catalyzer.progress import progress


@dataclass
class Result:
    """One row of the final table; times are seconds of wall clock.

    Attributes:
        method: measured method, such as "catalyzer + lattice".
        bits: bits of a code.
        recall: recall@k by k, for the k of `RANKS` up to the size of the base.
        training: seconds to train transform and quantizer.
        encoding: seconds to map and code the whole base.
        search: seconds to map all queries, scan all codes and, if requested, rerank.
        error: mean over the base of |x - x̂|², in the data's units; None if codes are not decoded.
    """

    method: str
    bits: int
    recall: dict[int, float] = field(default_factory=dict)
    training: float = 0.0
    encoding: float = 0.0
    search: float = 0.0
    error: float | None = None

    @classmethod
    def load(cls, values: dict[str, Any]) -> Self:
        """Restore a result from the JSON of its `asdict`, whose keys are all text."""
        return cls(**{**values, "recall": {int(k): v for k, v in values["recall"].items()}})


def measure(
    method: str, codec: Codec, base: Vectors, queries: np.ndarray, truth: np.ndarray, reranks: Sequence[int] = (0,)
) -> list[Result]:
    """Encode `base`, search the codes for all `queries`, and compare with the true nearest neighbours.

    Args:
        method: name of the rows; for reranked ones the number of candidates follows.
        codec: fitted codec.
        base: `(n, d)`, read block by block; only the codes are held in memory.
        queries: `(nq, d)`.
        truth: `(nq, at least 1)` ids of the true nearest neighbours.
        reranks: numbers of candidates, with a row for each; see `Codec.search`.
    """
    # The first call of a process loads compiled code, and the clocks measure rates. What goes wrong does so before the work.
    codec.search(queries[:1], codec.encode(base[:1]), 1, max(reranks))
    start = time.perf_counter()
    codes = codec.encode(base, f"{method}: encoding")
    encoding = time.perf_counter() - start
    error = squared_error(codec, codes, base) if codec.decodes else None
    k = min(RANKS[-1], len(base))
    rows = []
    for rerank in reranks:
        start = time.perf_counter()
        _, ids = codec.search(queries, codes, k, rerank)
        seconds = time.perf_counter() - start
        recall = {rank: recall_at(rank, ids, truth) for rank in RANKS if rank <= k}
        name = f"{method} (rerank {rerank})" if rerank else method
        rows.append(Result(name, codec.quantizer.bits, recall, encoding=encoding, search=seconds, error=error))
    return rows


def neighbours_found(
    codec: Codec, base: Vectors, queries: np.ndarray, truth: np.ndarray, k: int, rerank: int = 0
) -> np.ndarray:
    """The share of each query's k true nearest neighbours that are among the k found: `(nq,)`.

    With few queries it is more precise than recall@k, which only counts the nearest one.

    Args:
        codec: fitted codec.
        base: `(n, d)`, n at least k.
        queries: `(nq, d)`.
        truth: `(nq, at least k)` ids of the true nearest neighbours.
        k: number of neighbours.
        rerank: see `Codec.search`.
    """
    ids = codec.search(queries, codec.encode(base, None), k, rerank)[1]
    return (ids[:, :, None] == truth[:, None, :k]).any(axis=2).mean(axis=1)


def squared_error(codec: Codec, codes: np.ndarray, base: Vectors) -> float:
    """Mean of |x - x̂|² over vectors x and their decoded codes x̂, in the data's units."""
    total = 0.0
    with progress("decoding", len(base), "vectors") as advance:
        for first in range(0, len(base), BLOCK):
            block = as_float32(base[first : first + BLOCK])
            difference = codec.decode(codes[first : first + BLOCK]) - block
            total += float(np.einsum("ij,ij->", difference, difference, dtype=np.float64))
            advance(len(block))
    return total / len(base)
