"""Encode a base, search it, and measure recall and time: the two phases of section 5.1."""

import time
from dataclasses import dataclass, field
from typing import Any, Self

import numpy as np
from torch import nn

from catalyzer.evaluation.recall import RANKS, recall_at
from catalyzer.nn import embed
from catalyzer.quantizers import Quantizer, encode_mapped
from catalyzer.vectors import Vectors


@dataclass
class Result:
    """One row of the final table; times are seconds of wall clock.

    Attributes:
        method: what was measured, such as "catalyzer + lattice".
        bits: bits of a code.
        recall: recall@k by k, for the k of `RANKS` up to the size of the base.
        training: seconds to train transform and quantizer.
        encoding: seconds to map and code the whole base.
        search: seconds to map all queries and scan all codes.
    """

    method: str
    bits: int
    recall: dict[int, float] = field(default_factory=dict)
    training: float = 0.0
    encoding: float = 0.0
    search: float = 0.0

    @classmethod
    def load(cls, values: dict[str, Any]) -> Self:
        """From `asdict` of a result that went through JSON, whose keys are all text."""
        return cls(**{**values, "recall": {int(k): v for k, v in values["recall"].items()}})


def measure(
    method: str, transform: nn.Module, quantizer: Quantizer, base: Vectors, queries: np.ndarray, truth: np.ndarray
) -> Result:
    """Code `base`, search all `queries` in the codes, compare with the true nearest neighbours.

    Args:
        method: the row's name.
        transform: maps vectors to the quantizer's space; fitted.
        quantizer: fitted.
        base: `(n, d)`, read block by block; only the codes are held.
        queries: `(nq, d)`.
        truth: `(nq, at least 1)` ids of the true nearest neighbours.
    """
    encode_mapped(transform, quantizer, base[:1])  # the first call of a process loads compiled code; the clocks measure rates
    start = time.perf_counter()
    codes = encode_mapped(transform, quantizer, base, f"{method}: encoding")
    encoded = time.perf_counter()
    k = min(RANKS[-1], len(base))
    _, ids = quantizer.search(embed(transform, queries), codes, k)
    searched = time.perf_counter()
    recall = {rank: recall_at(rank, ids, truth) for rank in RANKS if rank <= k}
    return Result(method, quantizer.bits, recall, encoding=encoded - start, search=searched - encoded)
