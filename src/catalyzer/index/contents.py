"""The contents of an index at one moment, checked to fit together."""

from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np

from catalyzer.codec import Codec
from catalyzer.errors import InvalidInput
from catalyzer.index.lists import InvertedLists, check_quantizer
from catalyzer.metric import Metric

MAX_ID = (1 << 63) - 1
MAX_DIM = 1 << 12  # of the quantizer: some allocate its square before a file has shown that this is not a false claim
MAX_CODE_SIZE = 1 << 14  # bytes


@dataclass(frozen=True)
class Validation:
    """Recall of a trained codec on vectors held out of the training.

    Attributes:
        recall: recall@k by k, from 0 to 1.
        base: number of vectors that were searched.
        queries: number of queries.
        rerank: number of candidates that were reranked.
    """

    recall: dict[int, float]
    base: int
    queries: int
    rerank: int


@dataclass(frozen=True)
class Contents:
    """All contents of an index at one moment.

    Attributes:
        codec: trained codec.
        metric: fitted metric.
        ids: `(n,)` int64, distinct.
        codes: `(n, code_size)` uint8; row i is the code of `ids[i]`.
        last_id: largest id so far, at least -1.
        lists: inverted lists, in whose order ids and codes are; None without lists.
        validation: recall on held-out vectors, if `fit` trained the codec.
        origin: name of the pretrained map that the codec is, if it is one.

    Raises:
        InvalidInput: they do not fit together.
    """

    codec: Codec
    metric: Metric
    ids: np.ndarray
    codes: np.ndarray
    last_id: int = -1
    lists: InvertedLists | None = None
    validation: Validation | None = None
    origin: str | None = None

    def __post_init__(self) -> None:
        codec, n = self.codec, len(self.ids)
        d_in, dim, size = codec.transform.d_in, codec.quantizer.dim, codec.quantizer.code_size
        check_sizes(dim, size)
        if self.lists is not None:
            check_quantizer(type(codec.quantizer))
        for what, fits in (
            ("metric", self.d >= 1 and (self.metric.max_norm is not None) == (self.metric.name == "ip")),
            ("codes", self.codes.shape == (n, size)),
            ("decoder", codec.decoder is None or (codec.decoder.d_in, codec.decoder.d_out) == (dim, d_in)),
            ("query network", codec.query is None or (codec.query.d_in, codec.query.d_out) == (d_in, dim)),
            ("lists", self.lists is None or (self.lists.centroids.shape[1], self.lists.offsets[-1]) == (dim, n)),
        ):
            if not fits:
                raise InvalidInput(
                    f"the {what} of the index does not fit the rest: {n:,} vectors of {d_in} dimensions, mapped to {dim}, "
                    f"in codes of {size} bytes"
                )

    @cached_property
    def _by_id(self) -> np.ndarray | None:
        """Rows in the order of their ids; None if they are already in that order."""
        ids = np.asarray(self.ids)
        return None if (ids[1:] > ids[:-1]).all() else np.argsort(ids, kind="stable")

    def find(self, ids: np.ndarray) -> np.ndarray:
        """The rows of `(m,)` int64 ids, -1 for missing ones: `(m,)` int64."""
        if not len(self.ids):
            return np.full(len(ids), -1)
        at = np.minimum(np.searchsorted(self.ids, ids, sorter=self._by_id), len(self.ids) - 1)
        rows = at if self._by_id is None else self._by_id[at]
        return np.where(self.ids[rows] == ids, rows, -1)

    def only(self, rows: np.ndarray) -> "Contents":
        """The contents of `(m,)` rows, ascending, copied into new arrays, also if all are mapped from a file."""
        lists = None if self.lists is None else self.lists.only(rows)
        return replace(self, ids=np.asarray(self.ids)[rows], codes=np.asarray(self.codes)[rows], lists=lists)

    @property
    def d(self) -> int:
        """Dimension of the user's vectors."""
        return self.codec.transform.d_in - self.metric.extra


def check_sizes(dim: int, code_size: int) -> None:
    """Raise `InvalidInput` if a quantizer has more dimensions, or larger codes, than an index may hold."""
    if dim > MAX_DIM or code_size > MAX_CODE_SIZE:
        raise InvalidInput(
            f"an index quantizes at most {MAX_DIM:,} dimensions to at most {MAX_CODE_SIZE:,} bytes, got {dim:,} and "
            f"{code_size:,}; map vectors to fewer dimensions, or use fewer bits"
        )
