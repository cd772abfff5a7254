"""L2, cosine and inner product as one search by L2: transformations of vectors before it, and of distances after it.

Cosine is L2 between normalized vectors. Inner product is L2 with one more dimension. With M at least the norm of every base
vector, x' = (x, sqrt(M² - |x|²)) has the norm M. So for a query q' = (M q/|q|, 0) of the same norm, the nearest x' has the
largest product.
"""

import logging
from dataclasses import dataclass, replace
from numbers import Real
from typing import Literal, get_args

import numpy as np

from catalyzer.errors import InvalidInput
from catalyzer.files.vectors import MappedVectors, VectorFile, Vectors, as_float32, check_finite, float_blocks
from catalyzer.outliers import FAR, MOST

log = logging.getLogger(__name__)

MetricName = Literal["l2", "cosine", "ip"]
LARGEST_NORM = 1e18  # M: float32 holds the squares of distances between such vectors
NORM_TOLERANCE = 1e-6  # relative to M: the same vector, rounded another way, may be so much longer


@dataclass(frozen=True)
class Metric:
    """How vectors are compared.

    Attributes:
        name: "l2", "cosine" or "ip".
        max_norm: M, the largest allowed norm of a base vector; for "ip", once it is known.

    Raises:
        InvalidInput: another name, or a `max_norm` that is not positive or for another metric.

    >>> x = np.array([[3, 4], [0, 3]], dtype=np.float32)
    >>> Metric("cosine").base(x)
    array([[0.6, 0.8],
           [0. , 1. ]], dtype=float32)
    >>> ip = Metric("ip", max_norm=5.0)
    >>> ip.base(x)
    array([[3., 4., 0.],
           [0., 3., 4.]], dtype=float32)
    >>> ip.queries(x)
    array([[3., 4., 0.],
           [0., 5., 0.]], dtype=float32)
    """

    name: MetricName
    max_norm: float | None = None

    def __post_init__(self) -> None:
        if self.name not in get_args(MetricName):
            raise InvalidInput(f"metric must be one of {', '.join(get_args(MetricName))}; got {self.name!r}")
        if self.max_norm is None:
            return
        if self.name != "ip":
            raise InvalidInput(f'max_norm = {self.max_norm} is for inner products, metric="ip"; got metric={self.name!r}')
        if not isinstance(self.max_norm, Real) or isinstance(self.max_norm, bool) or not 0 < self.max_norm <= LARGEST_NORM:
            raise InvalidInput(f"max_norm must be a number above 0 and at most {LARGEST_NORM:.0e}, got {self.max_norm!r}")
        object.__setattr__(self, "max_norm", float(self.max_norm))  # NumPy's small types overflow in what is computed with it

    @property
    def extra(self) -> int:
        """Dimensions that `base` and `queries` add."""
        return int(self.name == "ip")

    @property
    def worst(self) -> float:
        """The score of missing results: inf, or -inf if scores are similarities."""
        return np.inf if self.name == "l2" else -np.inf

    def better(self, scores: np.ndarray, radius: float) -> np.ndarray:
        """Which scores are strictly better than a radius: smaller, or larger if scores are similarities."""
        limit = np.float64(radius)  # which float32 may not hold
        return scores < limit if self.name == "l2" else scores > limit

    def as_float32(self, x: np.ndarray) -> np.ndarray:
        """`(n, d)` vectors of any type as float32; float64 for cosine are scaled first, since they may exceed float32."""
        if self.name == "cosine" and x.dtype.kind == "f" and x.dtype.itemsize > 4:
            largest = np.abs(x).max(axis=1, keepdims=True)
            x = x / np.where((largest > 0) & np.isfinite(largest), largest, 1)
        with np.errstate(over="ignore"):  # to infinity
            return as_float32(x)

    def too_long(self, x: np.ndarray) -> np.ndarray:
        """Which of `(n, d)` float32 vectors are not allowed in a base, `(n,)` bool: for "ip" those longer than M."""
        if self.max_norm is None:
            return np.zeros(len(x), bool)
        return norms(x) > self.max_norm * (1 + NORM_TOLERANCE)

    def warn_of_rare_length(self, x: np.ndarray) -> None:
        """Warn if M is far above the norms of most of `(n, d)` float32 vectors: x' then says little about the norm of x."""
        most = float(np.quantile(norms(x), MOST)) if self.max_norm is not None and len(x) else 0.0
        if self.max_norm is not None and self.max_norm > FAR * most:
            log.warning(
                "the largest norm of the vectors is %.6g, but most are below %.6g, which lowers the recall of inner-product "
                "searches; remove such long vectors from those to learn from, or give a smaller max_norm", self.max_norm, most,
            )  # fmt: skip

    def fitted(self, *parts: Vectors) -> "Metric":
        """The metric with `max_norm`, if it needs one and has none: the largest norm of all vectors of the parts.

        Args:
            parts: each `(n, d)`, read block by block.

        Raises:
            InvalidInput: all vectors are zeros, or one is longer than any `max_norm`.
        """
        if self.name != "ip" or self.max_norm is not None:
            return self
        blocks = (block for part in parts for block in float_blocks(part, "measuring norms"))
        return replace(self, max_norm=max(float(norms(block).max()) for block in blocks))

    def stored(self, vectors: np.ndarray | VectorFile, name: str) -> Vectors:
        """Training or base vectors, transformed by `base` when they are sliced; for "l2" the vectors themselves.

        Args:
            vectors: `(n, d)`, of any type.
            name: name in errors of vectors that are not in a file.

        Returns:
            `(n, d + extra)`. Slices raise `InvalidInput`, with the row's number, for NaN, infinity, numbers too large for
            float32, a row of zeros if the metric is cosine, and a row longer than `max_norm`.
        """
        return self._mapped(vectors, name, searched=False)

    def searched(self, vectors: np.ndarray | VectorFile, name: str) -> Vectors:
        """Queries, transformed by `queries` when they are sliced; as `stored`, but of any norm."""
        return self._mapped(vectors, name, searched=True)

    def _mapped(self, vectors: np.ndarray | VectorFile, name: str, searched: bool) -> Vectors:
        if self.name == "l2":
            return vectors
        where = str(vectors.path) if isinstance(vectors, VectorFile) else name

        def mapped(rows: np.ndarray, first: int) -> np.ndarray:
            check_finite(rows, where, first)
            x = self.as_float32(rows)
            if self.name == "cosine" and not (some := x.any(axis=1)).all():
                raise InvalidInput(
                    f"{where}: row {first + int(np.argmin(some)):,} contains only zeros, so it has no direction to compare "
                    "by cosine; remove such rows"
                )
            if not searched and (longer := self.too_long(x)).any():
                row = int(np.argmax(longer))
                raise InvalidInput(
                    f"{where}: row {first + row:,} has the norm {norms(x[row : row + 1])[0]:.6g}, above the run's "
                    f"limit for inner products, {self.max_norm:.6g}; train with such vectors in the base"
                )
            return self.queries(x) if searched else self.base(x)

        return MappedVectors(vectors, vectors.shape[1] + self.extra, mapped)

    def base(self, x: np.ndarray) -> np.ndarray:
        """Training or base vectors `(n, d)` float32 as `(n, d + extra)` float32 to compare by L2."""
        if self.name == "l2":
            return x
        lengths = norms(x)
        if self.name == "cosine":
            return _divided(x, lengths)
        assert self.max_norm is not None
        rest = np.sqrt(np.maximum(self.max_norm**2 - lengths**2, 0))
        return np.concatenate([x, rest[:, None]], axis=1, dtype=np.float32)

    def queries(self, x: np.ndarray) -> np.ndarray:
        """`(nq, d)` float32 queries as `(nq, d + extra)` float32 to compare by L2 with `base`'s."""
        if self.name != "ip":
            return self.base(x)
        assert self.max_norm is not None
        lengths = norms(x)[:, None]
        scaled = x * (self.max_norm / np.where(lengths == 0, 1, lengths))
        return np.pad(scaled, ((0, 0), (0, 1))).astype(np.float32)

    def scores(self, distances: np.ndarray, queries: np.ndarray, on_sphere: bool) -> np.ndarray:
        """Squared distances as the user's scores: for cosine and "ip" the similarity, best first.

        Args:
            distances: `(nq, k)` float32, ascending.
            queries: `(nq, d)` float32, as the user gave them.
            on_sphere: whether the distances are between points of norm 1 on the catalyzer's sphere, which keep nothing of the
                norms. The similarity is then the cosine there, also for "ip".

        Returns:
            `(nq, k)` float32.
        """
        if self.name == "l2":
            return distances
        if self.name == "cosine" or on_sphere:
            return (1 - distances / 2).astype(np.float32)
        assert self.max_norm is not None
        return ((self.max_norm - distances / (2 * self.max_norm)) * norms(queries)[:, None]).astype(np.float32)

    def restore(self, decoded: np.ndarray) -> np.ndarray:
        """Decoded `(n, d + extra)` vectors as `(n, d)` in the user's space; for cosine of norm 1."""
        if self.name == "cosine":
            return _divided(decoded, norms(decoded))
        return np.ascontiguousarray(decoded[:, : decoded.shape[1] - self.extra])


L2 = Metric("l2")


def _divided(x: np.ndarray, lengths: np.ndarray) -> np.ndarray:
    # In double precision, but piece by piece: all at once would take twice the memory of the vectors more.
    return np.divide(x, lengths[:, None], out=np.empty(x.shape, np.float32), casting="same_kind")


def norms(x: np.ndarray) -> np.ndarray:
    """The norms of `(n, d)` vectors, `(n,)` float64: float32 cannot represent the squares of all its numbers."""
    return np.sqrt(np.einsum("ij,ij->i", x, x, dtype=np.float64))
