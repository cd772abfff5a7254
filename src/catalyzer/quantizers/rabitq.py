"""RaBitQ, from faiss: the sign of each coordinate and two factors a vector that correct distances."""

from collections.abc import Sequence
from typing import Any, Self

import numpy as np

from catalyzer._faiss import faiss
from catalyzer.errors import integer
from catalyzer.quantizers.base import FaissQuantizer


class RaBitQuantizer(FaissQuantizer):
    """Gao and Long's RaBitQ after a random rotation: a bit a dimension, and 64 bits of factors; all of it faiss's.

    The size of the codes follows from the dimension. `D` of a search are RaBitQ's estimates of the distances.

    Args:
        dim: dimension of the vectors.
        seed: of the rotation.

    >>> x = np.random.default_rng(0).normal(size=(1000, 64)).astype(np.float32)
    >>> quantizer = RaBitQuantizer(dim=64).fit(x)
    >>> quantizer.bits, quantizer.search(x[:1], quantizer.encode(x), k=1)[1].tolist()
    (128, [[0]])
    """

    label = "RaBitQ"

    def __init__(self, dim: int, seed: int = 0) -> None:
        self.dim, self.seed = dim, seed = integer("dim", dim, 1), integer("seed", seed, 0)
        self._rotation = faiss.RandomRotationMatrix(dim, dim)
        self._rotation.init(seed)
        self._index = faiss.IndexRaBitQ(dim)
        self.bits = 8 * self._index.sa_code_size()

    @classmethod
    def default_dim(cls, bits: int) -> int:  # noqa: ARG003
        return 64  # 128 bits

    def fit(self, x: np.ndarray) -> Self:
        """Learn the mean."""
        self._index.train(self._rotation.apply(x))
        return self

    def _learned(self) -> dict[str, tuple[Any, int]]:
        return {"center_": (self._index.center, self.dim)}

    def _trained(self) -> Sequence[Any]:
        return [self._index]

    def encode(self, x: np.ndarray) -> np.ndarray:
        return self._index.sa_encode(self._rotation.apply(self.checked(x)))

    def decode(self, codes: np.ndarray) -> np.ndarray:
        return self._rotation.reverse_transform(self._index.sa_decode(codes))

    def search(self, queries: np.ndarray, codes: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
        k = self.check_search(queries, codes, k)
        self._index.reset()
        self._index.add_sa_codes(np.ascontiguousarray(codes))
        found = self._index.search(self._rotation.apply(queries), k)
        self._index.reset()
        return found
