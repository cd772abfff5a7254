"""Learn, base and queries, and the validation protocol of section 5.1.

The network trains on the first `train_size` learn vectors; validation queries and base are cut from the rest of learn,
so that nothing is ever chosen by looking at the test split.
"""

import logging
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from catalyzer.files.array_cache import ArrayCache
from catalyzer.errors import InvalidInput
from catalyzer.neighbors import knn
from catalyzer.files.vectors import Vectors, fingerprint

log = logging.getLogger(__name__)

GROUND_TRUTH_K = 100
MIN_LEARN = 500
ENOUGH_FOR_VALIDATION = 20_000


@dataclass
class Split:
    """Base vectors, queries, and the true neighbours of the queries in the base.

    Args:
        name: "validation" or "test".
        base: `(n, d)`.
        queries: `(nq, d)`.
        cache: where computed ground truth is kept.
        shipped: `(nq, >= 1)` ids that the dataset came with; None to compute them.
    """

    name: str
    base: Vectors
    queries: np.ndarray
    cache: ArrayCache
    shipped: np.ndarray | None = None

    @cached_property
    def key(self) -> tuple[str, str]:
        """Fingerprints of base and queries; taking them checks every row."""
        return (
            fingerprint(self.base, f"checking {self.name} base"),
            fingerprint(self.queries, f"checking {self.name} queries"),
        )

    @cached_property
    def ground_truth(self) -> np.ndarray:
        """`(nq, k)` int64 ids of the true neighbours, nearest first: shipped with the data, or computed once, exactly."""
        if self.shipped is not None:
            return self.shipped
        k = min(GROUND_TRUTH_K, len(self.base))
        description = f"ground truth, {self.name}"
        return self.cache.get("ground-truth", (*self.key, k), lambda: knn(self.queries, self.base, k, description)[1])


@dataclass
class Benchmark:
    """A dataset as training and evaluation see it.

    Args:
        name: of the dataset.
        train: `(n, d)` vectors to learn from, in their native dtype.
        validation: cut from the learn set; for every choice.
        test: for the final numbers only.
    """

    name: str
    train: np.ndarray
    validation: Split
    test: Split

    @property
    def dim(self) -> int:
        return self.train.shape[1]


def make_benchmark(
    name: str,
    learn: Vectors,
    base: Vectors,
    queries: Vectors,
    ground_truth: np.ndarray | None,
    *,
    train_size: int,
    validation_base_size: int,
    validation_queries_size: int,
    cache: ArrayCache,
) -> Benchmark:
    """Check that the parts fit together, read every row once, and split the learn set.

    Raises:
        InvalidInput: dimensions that differ, a learn set too small to split, ground truth of another size than the
            queries or with ids outside the base, NaN or infinity anywhere.
    """
    for part, vectors in (("base", base), ("queries", queries)):
        if vectors.shape[1] != learn.shape[1]:
            raise InvalidInput(
                f"{name}: learn vectors have dimension {learn.shape[1]}, {part} vectors {vectors.shape[1]}; they must agree"
            )
    wanted = (train_size, validation_base_size, validation_queries_size)
    train, val_base, val_queries = split_sizes(name, len(learn), *wanted)
    held_out = learn[train : train + val_queries + val_base]
    validation = Split("validation", held_out[val_queries:], held_out[:val_queries], cache)
    test = Split("test", base, queries[:], cache, ground_truth)
    if ground_truth is not None:
        _check_ground_truth(name, ground_truth, len(queries), len(base))
    benchmark = Benchmark(name, learn[:train], validation, test)
    _ = test.key  # reads, and so checks, every row before hours of work depend on it
    if (train, val_base, val_queries) != wanted:
        log.info("%s: the learn set has %s vectors, too few for the split wanted, %s", name, f"{len(learn):,}",
                 " + ".join(f"{size:,}" for size in wanted))  # fmt: skip
    log.info(
        "%s: %s training vectors of %d dimensions; validation %s base, %s queries; test %s base, %s queries",
        name, f"{train:,}", benchmark.dim, f"{val_base:,}", f"{val_queries:,}", f"{len(base):,}", f"{len(queries):,}",
    )  # fmt: skip
    return benchmark


def split_sizes(name: str, available: int, train: int, base: int, queries: int) -> tuple[int, int, int]:
    """Sizes of training set, validation base and validation queries out of `available` learn vectors.

    Where they do not all fit, at least a sixteenth of the learn set stays for validation, of a small one up to a fifth;
    a fifth of that are queries.

    >>> split_sizes("x", 10_000_000, 500_000, 1_000_000, 10_000)
    (500000, 1000000, 10000)
    >>> split_sizes("x", 550_000, 500_000, 1_000_000, 10_000)
    (500000, 40000, 10000)
    >>> split_sizes("x", 10_000, 500_000, 1_000_000, 10_000)
    (8000, 1600, 400)
    """
    if available < MIN_LEARN:
        raise InvalidInput(f"{name}: the learn set has {available:,} vectors; at least {MIN_LEARN} are needed")
    train = min(train, available - max(available // 16, min(available // 5, ENOUGH_FOR_VALIDATION)))
    rest = available - train
    queries = min(queries, rest // 5)
    base = min(base, rest - queries)
    return train, base, queries


def _check_ground_truth(name: str, ids: np.ndarray, queries: int, base: int) -> None:
    if len(ids) != queries:
        raise InvalidInput(f"{name}: the ground truth has {len(ids):,} rows, the queries {queries:,}; they must agree")
    if ids.dtype.kind not in "iu":
        raise InvalidInput(f"{name}: the ground truth must hold integers (ivecs or an integer npy), got {ids.dtype}")
    if ids.min() < 0 or ids.max() >= base:
        raise InvalidInput(
            f"{name}: the ground truth names ids from {ids.min():,} to {ids.max():,}, but the base has {base:,} vectors; "
            "it belongs to a base of another size"
        )
