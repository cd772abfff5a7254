"""PQ and OPQ, from faiss: the learned baselines of Table 1."""

from collections.abc import Sequence
from typing import Any, Self

import numpy as np

from catalyzer._faiss import faiss
from catalyzer.errors import InvalidInput, integer
from catalyzer.progress import progress
from catalyzer.quantizers.base import MAX_TRAINING, MIN_TRAINING, FaissQuantizer

QUERIES = 1024  # searched at a time, for the progress display


class ProductQuantizer(FaissQuantizer):
    """Product quantization of faiss with one byte per subvector, after an optional learned rotation (OPQ).

    Vectors are padded with zeros if the number of bytes does not divide their dimension.

    Args:
        dim: dimension of the vectors.
        bits: bits of a code, a multiple of 8.
        rotate: whether a rotation is learned first (OPQ).

    Raises:
        InvalidInput: bits that are not whole bytes, or more bytes than dimensions.

    >>> x = np.random.default_rng(0).normal(size=(1000, 16)).astype(np.float32)
    >>> quantizer = ProductQuantizer(dim=16, bits=32).fit(x)
    >>> codes = quantizer.encode(x)
    >>> codes.shape, quantizer.search(x[:1], codes, k=1)[1].tolist()
    ((1000, 4), [[0]])
    """

    def __init__(self, dim: int, bits: int = 64, rotate: bool = False) -> None:
        dim, bits = integer("dim", dim, 1), integer("bits", bits, 1)
        if bits % 8:
            raise InvalidInput(f"product quantization uses whole bytes: bits must be a multiple of 8, got {bits}")
        self.dim, self.bits, self.rotate = dim, bits, rotate
        self.label = "OPQ" if rotate else "PQ"
        size = self.code_size
        if size > dim:
            raise InvalidInput(f"{size} bytes need at least {size} dimensions, got {dim}; use fewer bits")
        padded = -(-dim // size) * size
        self._transforms: list[faiss.VectorTransform] = []
        self._rotation = faiss.OPQMatrix(padded, size) if rotate else None
        if padded != dim:
            remap: Any = faiss.RemapDimensionsTransform  # faiss's stubs know one of its two constructors
            self._transforms.append(remap(dim, padded, False))  # not uniform: the zeros come last
        self._pq = faiss.IndexPQ(padded, size, 8)
        _use_all_points(self._pq.pq)
        if self._rotation is not None:
            self._pq_of_rotation = faiss.ProductQuantizer(padded, size, 8)  # kept: the rotation only points to it
            _use_all_points(self._pq_of_rotation)
            self._rotation.pq = self._pq_of_rotation
            self._rotation.is_orthonormal = True  # as all that it learns, and nothing in a file says so
            self._rotation.max_train_points = MAX_TRAINING
            self._transforms.append(self._rotation)
        self._index = faiss.IndexPreTransform(self._pq)
        for transform in reversed(self._transforms):
            self._index.prepend_transform(transform)

    def fit(self, x: np.ndarray) -> Self:
        """Learn rotation and codebooks from at most `MAX_TRAINING` of the vectors, drawn by faiss.

        Raises:
            InvalidInput: fewer than 256 vectors.
        """
        if len(x) < MIN_TRAINING:
            raise InvalidInput(f"product quantization learns from at least {MIN_TRAINING} vectors, got {len(x)}")
        self._index.train(x)
        return self

    def _learned(self) -> dict[str, tuple[Any, int]]:
        learned = {"centroids_": (self._pq.pq.centroids, 256 * self._pq.d)}
        return learned if self._rotation is None else {**learned, "rotation_": (self._rotation.A, self._pq.d**2)}

    def _trained(self) -> Sequence[Any]:
        return [self._pq, self._index, *self._transforms]

    def encode(self, x: np.ndarray) -> np.ndarray:
        return self._index.sa_encode(self.checked(x))

    def decode(self, codes: np.ndarray) -> np.ndarray:
        return self._index.sa_decode(codes)

    def search(self, queries: np.ndarray, codes: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
        k = self.check_search(queries, codes, k)
        for transform in self._transforms:
            queries = transform.apply(queries)
        self._pq.reset()
        self._pq.add_sa_codes(codes)
        distances = np.empty((len(queries), k), np.float32)
        ids = np.empty((len(queries), k), np.int64)
        with progress("searching", len(queries), "queries") as advance:
            for start in range(0, len(queries), QUERIES):
                rows = slice(start, start + QUERIES)
                distances[rows], ids[rows] = self._pq.search(queries[rows], k)
                advance(len(queries[rows]))
        self._pq.reset()
        return distances, ids


def _use_all_points(pq: "faiss.ProductQuantizer") -> None:
    # The lower limit only silences faiss, which warns hundreds of times where it would like to have more vectors.
    pq.cp.min_points_per_centroid = 1
    pq.cp.max_points_per_centroid = MAX_TRAINING // 256 + 1
