"""L2, cosine and inner product as one search by L2: what is done to vectors before it, and to distances after it.

Cosine is L2 between normalized vectors. Inner product is L2 with one dimension more: with M at least the norm of every base
vector, x' = (x, sqrt(M² - |x|²)) has the norm M, so that for a query q' = (M q/|q|, 0) of the same norm the nearest x' is the
one of the largest product.
"""

from dataclasses import dataclass
from typing import Literal, Self, get_args

import numpy as np

from catalyzer.errors import InvalidInput

MetricName = Literal["l2", "cosine", "ip"]
NORM_TOLERANCE = 1e-6  # relative to M: the same vector, rounded another way, may be so much longer


@dataclass(frozen=True)
class Metric:
    """How vectors are compared.

    Attributes:
        name: "l2", "cosine" or "ip".
        max_norm: M, the largest norm that a base vector may have; of "ip", once it is fitted.

    Raises:
        InvalidInput: another name.

    >>> x = np.array([[3, 4], [0, 3]], dtype=np.float32)
    >>> Metric("cosine").base(x)
    array([[0.6, 0.8],
           [0. , 1. ]], dtype=float32)
    >>> ip = Metric("ip").fit(x)
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

    @property
    def extra(self) -> int:
        """Dimensions that `base` and `queries` add."""
        return int(self.name == "ip")

    @property
    def worst(self) -> float:
        """The score of what was not found: inf, or -inf where scores are similarities."""
        return np.inf if self.name == "l2" else -np.inf

    def fit(self, x: np.ndarray) -> Self:
        """Take M from `(n, d)` float32 vectors, for "ip"."""
        return type(self)(self.name, float(_norms(x).max())) if self.name == "ip" else self

    def invalid(self, x: np.ndarray) -> np.ndarray:
        """Which of `(n, d)` float32 vectors cannot be compared, `(n,)` bool: those with NaN or infinity or, for float32, too
        large ones, and for cosine those without a direction."""
        with np.errstate(over="ignore", invalid="ignore"):
            squares = np.einsum("ij,ij->i", x, x)
            return ~np.isfinite(squares) | (squares == 0) if self.name == "cosine" else ~np.isfinite(squares)

    def too_long(self, x: np.ndarray) -> np.ndarray:
        """Which of `(n, d)` float32 vectors may not be in a base, `(n,)` bool: for "ip" those longer than M."""
        if self.max_norm is None:
            return np.zeros(len(x), bool)
        return _norms(x) > self.max_norm * (1 + NORM_TOLERANCE)

    def base(self, x: np.ndarray) -> np.ndarray:
        """`(n, d)` float32 vectors to learn from or to be found, as `(n, d + extra)` float32 to compare by L2."""
        if self.name == "l2":
            return x
        norms = _norms(x)
        if self.name == "cosine":
            return (x / norms[:, None]).astype(np.float32)
        assert self.max_norm is not None
        rest = np.sqrt(np.maximum(self.max_norm**2 - norms**2, 0))
        return np.concatenate([x, rest[:, None]], axis=1, dtype=np.float32)

    def queries(self, x: np.ndarray) -> np.ndarray:
        """`(nq, d)` float32 queries as `(nq, d + extra)` float32 to compare by L2 with `base`'s."""
        if self.name != "ip":
            return self.base(x)
        assert self.max_norm is not None
        norms = _norms(x)[:, None]
        scaled = x * (self.max_norm / np.where(norms == 0, 1, norms))
        return np.pad(scaled, ((0, 0), (0, 1))).astype(np.float32)

    def scores(self, distances: np.ndarray, queries: np.ndarray, on_sphere: bool) -> np.ndarray:
        """What squared distances mean to the user: for cosine and "ip" the similarity, best first.

        Args:
            distances: `(nq, k)` float32, ascending.
            queries: `(nq, d)` float32, as the user gave them.
            on_sphere: the distances are between points of norm 1 on the catalyzer's sphere, where nothing is left of the norms;
                the similarity is then the cosine there, for "ip" too.

        Returns:
            `(nq, k)` float32.
        """
        if self.name == "l2":
            return distances
        if self.name == "cosine" or on_sphere:
            return (1 - distances / 2).astype(np.float32)
        assert self.max_norm is not None
        return ((self.max_norm - distances / (2 * self.max_norm)) * _norms(queries)[:, None]).astype(np.float32)

    def restore(self, decoded: np.ndarray) -> np.ndarray:
        """Decoded `(n, d + extra)` vectors as `(n, d)` in the user's space; for cosine of norm 1."""
        if self.name == "cosine":
            return (decoded / _norms(decoded)[:, None]).astype(np.float32)
        return np.ascontiguousarray(decoded[:, : decoded.shape[1] - self.extra])


def _norms(x: np.ndarray) -> np.ndarray:
    return np.sqrt(np.einsum("ij,ij->i", x, x, dtype=np.float64))
