"""RaBitQ, from faiss: a few bits per dimension, and factors for each vector that correct distances."""

from abc import abstractmethod
from collections.abc import Sequence
from typing import Any, Self

import numpy as np

from catalyzer._faiss import faiss
from catalyzer.errors import MissingPackage, integer
from catalyzer.quantizers.base import FaissQuantizer

SIGN_FACTORS = 12  # bytes behind the signs, where a dimension has several bits
MORE_FACTORS = 8  # bytes behind the further bits


class RotatedQuantizer(FaissQuantizer):
    """Base of faiss's quantizers that learn only the mean, after a random rotation, and estimate distances from codes.

    Args:
        dim: dimension of the vectors.
        bits_per_dim: bits a dimension.
        seed: seed of the rotation.
    """

    most_bits: int
    bits_per_dim: int

    def __init__(self, dim: int, bits_per_dim: int, seed: int) -> None:
        self.dim, self.seed = dim, seed = integer("dim", dim, 1), integer("seed", seed, 0)
        self.bits_per_dim = integer("bits_per_dim", bits_per_dim, 1, self.most_bits)
        self._rotation = faiss.RandomRotationMatrix(dim, dim)
        self._rotation.init(seed)
        self._index = self._made()
        self.bits = 8 * self._index.sa_code_size()

    @abstractmethod
    def _made(self) -> Any:
        """faiss's index."""

    @classmethod
    def default_dim(cls, bits: int) -> int:  # noqa: ARG003
        return 64  # 128 bits with a bit a dimension

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
        return self._rotation.reverse_transform(self._index.sa_decode(np.ascontiguousarray(codes)))

    def search(self, queries: np.ndarray, codes: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
        k = self.check_search(queries, codes, k)
        self._index.reset()
        self._index.add_sa_codes(np.ascontiguousarray(codes))
        found = self._index.search(self._rotation.apply(queries), k)
        self._index.reset()
        return found


class RaBitQuantizer(RotatedQuantizer):
    """RaBitQ (Gao and Long) of faiss after a random rotation: a few bits per dimension, and factors.

    One bit per dimension has 64 bits of factors, several have 160. The size of the codes follows from the dimension:
    `code_size` is `ceil(dim / 8) + 8` with one bit, and `ceil(dim / 8) + ceil(dim * (bits_per_dim - 1) / 8) + 20` with several.
    `D` of a search are RaBitQ's estimates of the distances.

    Args:
        dim: dimension of the vectors.
        seed: seed of the rotation.
        bits_per_dim: bits per dimension, 1 to 9, the sign included.

    Raises:
        MissingPackage: faiss is too old for more than one bit per dimension.

    >>> x = np.random.default_rng(0).normal(size=(1000, 64)).astype(np.float32)
    >>> quantizer = RaBitQuantizer(dim=64).fit(x)
    >>> quantizer.bits, quantizer.search(x[:1], quantizer.encode(x), k=1)[1].tolist()
    (128, [[0]])
    >>> RaBitQuantizer(dim=64, bits_per_dim=4).bits
    416
    """

    label = "RaBitQ"
    most_bits = 9

    def __init__(self, dim: int, seed: int = 0, bits_per_dim: int = 1) -> None:
        super().__init__(dim, bits_per_dim, seed)

    def _made(self) -> Any:
        if self.bits_per_dim == 1:
            return faiss.IndexRaBitQ(self.dim)
        kind: Any = faiss.IndexRaBitQ
        try:
            return kind(self.dim, faiss.METRIC_L2, self.bits_per_dim)
        except TypeError:
            raise MissingPackage(
                "RaBitQ with several bits per dimension needs a newer faiss; update faiss-cpu or faiss-gpu"
            ) from None

    def decode(self, codes: np.ndarray) -> np.ndarray:
        if self.bits_per_dim == 1:
            return super().decode(codes)
        # faiss's decoder reads the signs alone. This is the point whose distance the search estimates: the mean and a multiple
        # of the levels, which for a dimension of b bits are the odd multiples of 1/2 below 2^(b-1).
        more = self.bits_per_dim - 1
        start, width = -(-self.dim // 8), -(-self.dim * more // 8)
        signs = np.unpackbits(codes[:, :start], axis=1, count=self.dim, bitorder="little")
        rest = codes[:, start + SIGN_FACTORS : -MORE_FACTORS]
        bits = np.unpackbits(rest[:, :width], axis=1, count=self.dim * more, bitorder="little").reshape(-1, self.dim, more)
        weights = (1 << np.arange(more)).astype(np.float32)
        levels = bits @ weights + (signs * np.float32(1 << more) - np.float32((1 << more) - 0.5))
        scale = np.ascontiguousarray(codes[:, -4:]).view("<f4") / np.float32(-2)
        points = faiss.vector_to_array(self._index.center) + scale * levels
        return self._rotation.reverse_transform(np.ascontiguousarray(points, np.float32))
