"""The scalar quantizer, from faiss: each coordinate alone, between its smallest and its largest value."""

from collections.abc import Sequence
from typing import Any, Self

import numpy as np

from catalyzer._faiss import faiss
from catalyzer.errors import InvalidInput, integer
from catalyzer.quantizers.base import FaissQuantizer

KINDS = {4: "QT_4bit", 6: "QT_6bit", 8: "QT_8bit"}


class ScalarQuantizer(FaissQuantizer):
    """faiss's scalar quantizer: 4, 6 or 8 bits per coordinate, evenly between its smallest and largest value in training.

    The size of the codes follows from the dimension: `bits` is `dim * bits_per_dim`.

    Args:
        dim: dimension of the vectors.
        bits_per_dim: bits per dimension: 4, 6 or 8.

    Raises:
        InvalidInput: another number of bits.

    >>> x = np.random.default_rng(0).normal(size=(1000, 16)).astype(np.float32)
    >>> quantizer = ScalarQuantizer(dim=16, bits_per_dim=4).fit(x)
    >>> codes = quantizer.encode(x)
    >>> codes.shape, quantizer.search(x[:1], codes, k=1)[1].tolist()
    ((1000, 8), [[0]])
    """

    label = "SQ"

    def __init__(self, dim: int, bits_per_dim: int = 8) -> None:
        self.dim, self.bits_per_dim = integer("dim", dim, 1), integer("bits_per_dim", bits_per_dim, 1)
        if self.bits_per_dim not in KINDS:
            raise InvalidInput(
                f"scalar quantization takes 4, 6 or 8 bits per dimension, got bits_per_dim = {self.bits_per_dim}"
            )
        self.bits = self.dim * self.bits_per_dim
        kind = getattr(faiss.ScalarQuantizer, KINDS[self.bits_per_dim])
        self._index = faiss.IndexScalarQuantizer(self.dim, kind, faiss.METRIC_L2)

    def fit(self, x: np.ndarray) -> Self:
        """Learn the smallest and the largest value of each coordinate."""
        self._index.train(np.ascontiguousarray(x))
        return self

    def _learned(self) -> dict[str, tuple[Any, int]]:
        return {"ranges_": (self._index.sq.trained, 2 * self.dim)}

    def _trained(self) -> Sequence[Any]:
        return [self._index]

    def encode(self, x: np.ndarray) -> np.ndarray:
        return self._index.sa_encode(self.checked(x))

    def decode(self, codes: np.ndarray) -> np.ndarray:
        return self._index.sa_decode(np.ascontiguousarray(codes))

    def search(self, queries: np.ndarray, codes: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
        k = self.check_search(queries, codes, k)
        self._index.reset()
        self._index.add_sa_codes(np.ascontiguousarray(codes))
        found = self._index.search(np.ascontiguousarray(queries, np.float32), k)
        self._index.reset()
        return found
