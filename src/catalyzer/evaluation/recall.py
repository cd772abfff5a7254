"""recall@k, the measure of section 5.1."""

import numpy as np

RANKS = (1, 2, 5, 10, 20, 50, 100)
"""The k for which results are kept."""


def recall_at(k: int, ids: np.ndarray, ground_truth: np.ndarray) -> float:
    """The share of queries whose true nearest neighbour is among the first k returned ("1-recall@k").

    Args:
        k: number of returned ids that count.
        ids: `(nq, at least k)` returned ids, nearest first.
        ground_truth: `(nq, at least 1)` true ids, nearest first; only the first column is used.

    >>> recall_at(1, np.array([[5, 7], [7, 5]]), np.array([[5], [5]]))
    0.5
    >>> recall_at(2, np.array([[5, 7], [7, 5]]), np.array([[5], [5]]))
    1.0
    """
    return float((ids[:, :k] == ground_truth[:, :1]).any(axis=1).mean())
