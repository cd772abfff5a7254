"""Binary codes: the sign of each coordinate (section 4.1), or of projections, random (LSH) or learned (ITQ)."""

from abc import abstractmethod
from collections.abc import Mapping
from typing import Self

import numpy as np
from torch import Tensor

from catalyzer._faiss import faiss
from catalyzer.errors import InvalidInput, integer
from catalyzer.nn import StraightThroughSign
from catalyzer.quantizers.base import MAX_TRAINING, Quantizer, check_state


class SignQuantizer(Quantizer):
    """One bit per coordinate, its sign; compared by Hamming distance, or asymmetrically.

    Args:
        dim: dimension of the vectors, which is the number of bits.
        asymmetric: whether the unquantized query is compared with the decoded signs, instead of counting differing bits.

    >>> quantizer = SignQuantizer(dim=4)
    >>> quantizer.decode(quantizer.encode(np.array([[0.3, -2.0, 0.0, 1.0]], dtype=np.float32)))
    array([[ 0.5, -0.5, -0.5,  0.5]], dtype=float32)
    """

    label = "sign"

    def __init__(self, dim: int, asymmetric: bool = False) -> None:
        self.dim = self.bits = integer("dim", dim, 1)
        self.asymmetric, self.symmetric = asymmetric, not asymmetric

    @classmethod
    def default_dim(cls, bits: int) -> int:
        return bits

    def straight_through(self) -> StraightThroughSign:
        return StraightThroughSign()

    def encode(self, x: np.ndarray) -> np.ndarray:
        return np.packbits(self.checked(x) > 0, axis=1, bitorder="little")

    def decode(self, codes: np.ndarray) -> np.ndarray:
        bits = np.unpackbits(codes, axis=1, count=self.dim, bitorder="little")
        return (bits.astype(np.float32) * 2 - 1) / np.float32(self.dim**0.5)

    def search(self, queries: np.ndarray, codes: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
        """See `Quantizer.search`; by default `D` is the squared L2 distance between the decoded signs of both sides,
        4/dim times their Hamming distance."""
        if not self.symmetric:
            return super().search(queries, codes, k)
        k = self.check_search(queries, codes, k)
        index = faiss.IndexBinaryFlat(self.code_size * 8)
        index.add(np.ascontiguousarray(codes))
        hamming, ids = index.search(self.encode(queries), k)
        return hamming.astype(np.float32) * np.float32(4 / self.dim), ids


class HashQuantizer(Quantizer):
    """One bit per projection, its sign; compared by Hamming distance. The projections are faiss's.

    Args:
        dim: dimension of the vectors.
        bits: number of projections.
        seed: seed of the random directions.
    """

    symmetric = True

    def __init__(self, dim: int, bits: int = 64, seed: int = 0) -> None:
        self.dim, self.bits, self.seed = integer("dim", dim, 1), integer("bits", bits, 1), integer("seed", seed, 0)
        self._signs = SignQuantizer(bits)

    @abstractmethod
    def _directions(self, x: np.ndarray) -> np.ndarray:
        """The directions of the projections, `(dim, bits)` float32, for centred vectors `(n, dim)`."""

    def fit(self, x: np.ndarray) -> Self:
        """Learn the mean, the directions, and the average length of projections."""
        self.origin_ = x.mean(axis=0, keepdims=True, dtype=np.float64).astype(np.float32)
        self.directions_ = self._directions(x[:MAX_TRAINING] - self.origin_)
        self.size_ = np.abs(self._projected(x[:MAX_TRAINING])).mean(axis=0)
        return self

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        check_state(self, state, origin_=(1, self.dim), directions_=(self.dim, self.bits), size_=(self.bits,))
        super().load_state_dict(state)

    def _projected(self, x: np.ndarray) -> np.ndarray:
        return (x - self.origin_) @ self.directions_

    def encode(self, x: np.ndarray) -> np.ndarray:
        return self._signs.encode(self._projected(self.checked(x)))

    def decode(self, codes: np.ndarray) -> np.ndarray:
        """The vectors nearest to the mean whose projections have these signs and their average size."""
        signs = np.sign(self._signs.decode(codes))
        return (self.origin_ + signs * self.size_ @ np.linalg.pinv(self.directions_)).astype(np.float32)

    def search(self, queries: np.ndarray, codes: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
        """See `Quantizer.search`; `D` is 4/bits times the Hamming distance."""
        k = self.check_search(queries, codes, k)
        return self._signs.search(self._projected(queries), codes, k)


class LSHQuantizer(HashQuantizer):
    """Locality-sensitive hashing: the signs of projections to random orthogonal directions.

    Args:
        dim: dimension of the vectors.
        bits: number of projections.
        seed: seed of the directions.

    >>> x = np.random.default_rng(0).normal(size=(1000, 16)).astype(np.float32)
    >>> LSHQuantizer(dim=16, bits=12).fit(x).encode(x).shape
    (1000, 2)
    """

    label = "LSH"

    def _directions(self, x: np.ndarray) -> np.ndarray:
        random = faiss.RandomRotationMatrix(self.dim, self.bits)
        random.init(self.seed)
        return random.apply(np.eye(self.dim, dtype=np.float32))


class ITQQuantizer(HashQuantizer):
    """Iterative quantization: the signs of PCA's coordinates after the rotation with the smallest quantization error.

    Args:
        dim: dimension of the vectors.
        bits: number of projections, at most dim.
        seed: seed of the initial rotation.

    Raises:
        InvalidInput: more bits than dimensions.

    >>> x = np.random.default_rng(0).normal(size=(1000, 16)).astype(np.float32)
    >>> ITQQuantizer(dim=16, bits=12).fit(x).encode(x).shape
    (1000, 2)
    """

    label = "ITQ"

    def __init__(self, dim: int, bits: int = 64, seed: int = 0) -> None:
        super().__init__(dim, bits, seed)
        if bits > dim:
            raise InvalidInput(
                f"ITQ has at most one bit per dimension, so {bits} bits need at least {bits} dimensions; got {dim}"
            )

    @classmethod
    def default_dim(cls, bits: int) -> int:
        return bits

    def fit(self, x: np.ndarray) -> Self:
        """See `HashQuantizer.fit`.

        Raises:
            InvalidInput: fewer vectors than bits.
        """
        if len(x) < self.bits:
            raise InvalidInput(f"ITQ learns {self.bits} bits from at least {self.bits} vectors, got {len(x)}")
        return super().fit(x)

    def _directions(self, x: np.ndarray) -> np.ndarray:
        pca, rotation = faiss.PCAMatrix(self.dim, self.bits), faiss.ITQMatrix(self.bits)
        rotation.seed = self.seed
        pca.train(x)
        rotation.train(pca.apply(x))
        directions = rotation.apply(pca.apply(np.eye(self.dim, dtype=np.float32)))
        return directions - rotation.apply(pca.apply(np.zeros((1, self.dim), np.float32)))
