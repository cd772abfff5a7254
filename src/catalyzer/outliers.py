"""Outliers: rows so far from all others that they would dominate means, scales and gradients."""

import logging
import math
from typing import NamedTuple, Self

import numpy as np

from catalyzer.errors import InvalidInput

log = logging.getLogger(__name__)

FAR = 10.0  # times the distance within which are MOST; one row in 3,000 at 35 times it costs an index a tenth of its recall
MOST = 0.9  # of the rows: what more than a tenth of them have in common is data
SAMPLE = 1 << 12  # rows that the middle and the distance are taken from, and that are looked at together
LEAST_SPREAD, LARGEST_SPREAD = 1e-18, 5e17  # between them float32 holds squared distances, also those of what is FAR
NAMED = 10  # rows in a warning


class Usual(NamedTuple):
    """Where most vectors lie.

    Attributes:
        middle: `(d,)` float64, the median of each coordinate.
        farthest: largest distance from the middle of a vector that is not an outlier.
    """

    middle: np.ndarray
    farthest: float

    @classmethod
    def of(cls, sample: np.ndarray) -> Self:
        """Of `(n, d)` vectors: `FAR` times the distance within which `MOST` of them lie.

        Raises:
            InvalidInput: vectors so near to or so far from each other that float32 holds no squares of their distances.
        """
        sample = sample[:: -(-len(sample) // SAMPLE)] if len(sample) else sample
        middle = np.median(sample.astype(np.float64), axis=0) if len(sample) else np.zeros(sample.shape[1])
        apart = _distances(sample, middle)
        apart = apart[apart > 0]  # duplicates of the middle say nothing of how far others are
        if not len(apart):
            return cls(middle, np.inf)
        spread = float(np.quantile(apart, MOST))
        if not LEAST_SPREAD < spread < LARGEST_SPREAD:
            raise InvalidInput(
                f"the vectors lie {spread:.1g} from their middle, and float32 cannot hold the squares of such distances; "
                f"multiply all vectors, also those to add and to search for, by 2**{-round(math.log2(spread))}"
            )
        return cls(middle, FAR * spread)

    def outliers(self, x: np.ndarray) -> np.ndarray:
        """Which of `(n, d)` vectors are outliers, `(n,)` bool."""
        blocks = (x[first : first + SAMPLE] for first in range(0, len(x), SAMPLE))
        return np.concatenate([np.zeros(0, bool), *(_distances(block, self.middle) > self.farthest for block in blocks)])


def outliers(x: np.ndarray) -> np.ndarray:
    """Which rows are more than `FAR` times as far from the middle as `MOST` of them: the median of each coordinate.

    Args:
        x: `(n, d)` vectors.

    Returns:
        `(n,)` bool, at most about a tenth of them true.

    Raises:
        InvalidInput: see `Usual.of`.

    >>> x = np.random.default_rng(0).normal(size=(1000, 8)).astype(np.float32)
    >>> x[[3, 700]] *= 1000
    >>> np.flatnonzero(outliers(x)).tolist()
    [3, 700]
    """
    return Usual.of(x).outliers(x)


def without_outliers(x: np.ndarray, rows: np.ndarray | None = None) -> np.ndarray:
    """The vectors without outliers, which a warning names.

    Args:
        x: `(n, d)` training vectors.
        rows: `(n,)` integers, the user's row numbers; by default 0 to n - 1.

    Returns:
        `(m, d)`, the same array if there are none.

    Raises:
        InvalidInput: see `outliers`.
    """
    out = outliers(x)
    if not out.any():
        return x
    named = np.sort(np.flatnonzero(out) if rows is None else rows[out])
    log.warning(
        "%s of %s vectors to learn from are more than %.0f times as far from the middle as most, and are left out of "
        "the training: rows %s%s", f"{len(named):,}", f"{len(x):,}", FAR, ", ".join(map(str, named[:NAMED].tolist())),
        ", ..." if len(named) > NAMED else "",
    )  # fmt: skip
    return x[~out]


def _distances(x: np.ndarray, middle: np.ndarray) -> np.ndarray:
    # In double precision: the squares of an outlier may be more than float32 holds.
    difference = x - middle
    return np.sqrt(np.einsum("ij,ij->i", difference, difference))
