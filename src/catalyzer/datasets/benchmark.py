"""Learn, base and queries, and the validation protocol of section 5.1.

The network trains on the first `train_size` learn vectors; validation queries and base are cut from the rest of learn,
so that nothing is ever chosen by looking at the test split.
"""

import logging
from abc import ABC, abstractmethod
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import ClassVar, NamedTuple

import numpy as np

from catalyzer.errors import InvalidInput
from catalyzer.files.array_cache import ArrayCache
from catalyzer.files.formats import files_of
from catalyzer.files.paths import expanded
from catalyzer.files.vectors import VectorFile, Vectors, as_float32, check_finite, fingerprint
from catalyzer.metric import L2, Metric, MetricName
from catalyzer.neighbors import knn
from catalyzer.outliers import without_outliers
from catalyzer.parts import Part

log = logging.getLogger(__name__)

GROUND_TRUTH_K = 100
MIN_LEARN = 500
ENOUGH_FOR_VALIDATION = 20_000


@dataclass
class Split:
    """Base vectors, queries, and the true neighbours of the queries in the base.

    Args:
        base: `(n, d)`.
        queries: `(nq, d)`.
        shipped: `(nq, >= 1)` ids of true neighbours that the dataset provides; None computes them.
        cache: stores computed ground truth; by default in memory.
        name: "validation" or "test", for progress displays.

    >>> split = Split(base=np.eye(4, dtype=np.float32), queries=np.eye(4, dtype=np.float32)[2:])
    >>> split.ground_truth[:, 0].tolist()
    [2, 3]
    """

    base: Vectors
    queries: np.ndarray
    shipped: np.ndarray | None = None
    cache: ArrayCache = field(default_factory=ArrayCache)
    name: str = "validation"

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
    """A dataset for training and evaluation.

    Args:
        name: name of the dataset.
        train: `(n, d)` training vectors, in their native dtype for L2, else float32.
        validation: split cut from the learn set; for all choices.
        test: split for the final numbers only.
        metric: metric of the vectors, which have been mapped already: the nearest by L2 is the best by the metric.
    """

    name: str
    train: np.ndarray
    validation: Split
    test: Split
    metric: Metric = L2

    @property
    def dim(self) -> int:
        return self.train.shape[1]


class DatasetVectors(NamedTuple):
    """The vectors of a dataset, in memory or in files.

    Attributes:
        learn: `(n, d)` vectors for training; the validation split is cut from them too.
        base: `(n, d)` vectors to encode and search.
        queries: `(nq, d)`.
        ground_truth: `(nq, >= 1)` ids of each query's true neighbours in the base, nearest first; None computes them.
    """

    learn: Vectors
    base: Vectors
    queries: Vectors
    ground_truth: np.ndarray | None = None


class Dataset(Part, ABC):
    """Base of all datasets. A subclass defines `read`, and passes the sizes to `super().__init__`.

    Args:
        base_size: number of base vectors, from the first; None is all.
        train_size: number of learn vectors for training.
        validation_base_size: number of learn vectors in the base of the validation split.
        validation_queries_size: number of learn vectors that are its queries.

    Raises:
        InvalidInput: a size below 1.

    >>> class Noise(Dataset):
    ...     def read(self, cache: ArrayCache) -> DatasetVectors:
    ...         learn, base, queries = (np.random.default_rng(n).normal(size=(n, 8)) for n in (1000, 300, 10))
    ...         return DatasetVectors(learn, base, queries)
    >>> Noise(base_size=200).load(ArrayCache()).test.ground_truth.shape
    (10, 100)
    """

    test_arguments: ClassVar[tuple[str, ...]] = ("base_size",)
    """Arguments that decide what is tested on, and nothing about what is learned from."""

    metric: MetricName | None = None
    """What the vectors are compared by: "l2", "cosine" or "ip", or None where the dataset does not say."""

    def __init__(
        self,
        base_size: int | None = None,
        train_size: int = 500_000,
        validation_base_size: int = 1_000_000,
        validation_queries_size: int = 10_000,
    ) -> None:
        sizes = {
            "base_size": base_size,
            "train_size": train_size,
            "validation_base_size": validation_base_size,
            "validation_queries_size": validation_queries_size,
        }
        for name, size in sizes.items():
            if size is not None and size < 1:
                raise InvalidInput(f"dataset.{name} must be at least 1, got {size}")
        self.base_size, self.train_size = base_size, train_size
        self.validation_base_size, self.validation_queries_size = validation_base_size, validation_queries_size

    @property
    def dim(self) -> int | None:
        """Dimension of the vectors, if it is known before they are read."""
        return None

    @abstractmethod
    def read(self, cache: ArrayCache) -> DatasetVectors:
        """Open or make the vectors.

        Args:
            cache: stores results that are worth computing once.

        Raises:
            InvalidInput: missing or unusable vectors.
        """

    def files(self, learn_only: bool = False) -> list[Path]:
        """The files that are read, or only those for training; their size and date identify stored results.

        By default all files that arguments name.
        """
        named = (expanded(value) for value in vars(self).values() if isinstance(value, str | Path))
        return [file for path in named for file in files_of(path)]

    def compared_by(self, name: MetricName | None = None) -> Metric:
        """The metric of this name, not fitted yet; by default the dataset's, else L2.

        Raises:
            InvalidInput: a metric other than the dataset's.
        """
        if None not in (name, self.metric) and name != self.metric:
            raise InvalidInput(
                f"metric={name} contradicts {self.label}, which comes with true neighbours for {self.metric}; leave out metric="
            )
        return Metric(name or self.metric or "l2")

    def load(self, cache: ArrayCache, metric: Metric | None = None) -> "Benchmark":
        """Read the vectors, check that they fit together, and split the learn set; every row is checked once.

        Args:
            cache: stores the true neighbours.
            metric: metric of the comparison; by default that of `compared_by`. Inner products without a `max_norm` take it from
                the base and the learn vectors in use.

        Raises:
            InvalidInput: as `read` and `compared_by`; fewer base vectors than requested; different dimensions; a learn set too
                small to split; ground truth of another size than the queries or with ids outside the base; NaN or infinity; for
                cosine a row of zeros, for inner products a row longer than `max_norm`.
        """
        named = self.compared_by(None if metric is None else metric.name)
        read = DatasetVectors(*self.read(cache))
        name, ground_truth = self.label, read.ground_truth
        learn, base, queries = (_checked(name, part, getattr(read, part)) for part in ("learn", "base", "queries"))
        for part, vectors in (("base", base), ("queries", queries)):
            if vectors.shape[1] != learn.shape[1]:
                raise InvalidInput(
                    f"{name}: learn vectors have dimension {learn.shape[1]}, {part} vectors {vectors.shape[1]}; they must agree"
                )
        if self.base_size is not None:
            if len(base) < self.base_size:
                where = f"{base.path}: " if isinstance(base, VectorFile) else f"{name}: "
                raise InvalidInput(
                    f"{where}dataset.base_size = {self.base_size:,} is more than its {len(base):,} base vectors; "
                    f"use dataset.base_size={len(base)} or less"
                )
            base = _first(base, self.base_size)
        wanted = (self.train_size, self.validation_base_size, self.validation_queries_size)
        train, val_base, val_queries = split_sizes(name, len(learn), *wanted)
        val_first = train + val_queries
        used = _first(learn, val_first + val_base)
        metric = (metric or named).fitted(used, base)
        if metric.name == "ip":
            metric.warn_of_rare_length(as_float32(learn[:train]))
        stored = metric.stored(used, f"{name}, learn")
        held_out = metric.searched(learn, f"{name}, learn")[train:val_first]
        validation = Split(stored[val_first:], held_out, cache=cache)
        test = Split(
            metric.stored(base, f"{name}, base"), metric.searched(queries, f"{name}, queries")[:], ground_truth, cache, "test"
        )
        if ground_truth is not None:
            _check_ground_truth(name, ground_truth, len(queries), len(base))
        benchmark = Benchmark(name, without_outliers(stored[:train]), validation, test, metric)
        _ = test.key  # reads, and so checks, every row before hours of work depend on it
        if (train, val_base, val_queries) != wanted:
            log.info("%s: the learn set has %s vectors, fewer than the settings' %s, so each part of the split is smaller",
                     name, f"{len(learn):,}", " + ".join(f"{size:,}" for size in wanted))  # fmt: skip
        log.info(
            "%s: %s training vectors of %d dimensions; validation %s base, %s queries; test %s base, %s queries; by %s",
            name, f"{train:,}", learn.shape[1], f"{val_base:,}", f"{val_queries:,}", f"{len(base):,}", f"{len(queries):,}",
            metric.name,
        )  # fmt: skip
        return benchmark


def _first(vectors: np.ndarray | VectorFile, n: int) -> np.ndarray | VectorFile:
    return vectors.first(n) if isinstance(vectors, VectorFile) else vectors[:n]


def _checked(name: str, part: str, vectors: Vectors) -> np.ndarray | VectorFile:
    """The vectors, those in memory finite, C-contiguous and in this machine's byte order."""
    if isinstance(vectors, VectorFile):
        return vectors
    if not isinstance(vectors, np.ndarray) or vectors.ndim != 2 or vectors.dtype.kind not in "fiu":
        got = f"{vectors.shape} {vectors.dtype}" if isinstance(vectors, np.ndarray) else type(vectors).__name__
        raise InvalidInput(f"{name}: expected {part} vectors as an array (n, d) of numbers, got {got}")
    if vectors.dtype.kind == "f":
        check_finite(vectors, f"{name}, {part}")
    return np.ascontiguousarray(vectors, vectors.dtype.newbyteorder("="))


def split_sizes(name: str, available: int, train: int, base: int, queries: int) -> tuple[int, int, int]:
    """Sizes of training set, validation base and validation queries out of `available` learn vectors.

    If they do not all fit, at least a sixteenth of the learn set stays for validation, and up to a fifth of a small one. A
    fifth of that are queries.

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
            f"{name}: the ground truth has ids from {ids.min():,} to {ids.max():,}, but the base has {base:,} vectors; "
            "it belongs to a base of another size"
        )
