"""Binary codes: the sign of each coordinate (section 4.1)."""

import numpy as np

from catalyzer._faiss import faiss
from catalyzer.quantizers.base import Quantizer


class SignQuantizer(Quantizer):
    """One bit a coordinate, its sign; compared by Hamming distance, or asymmetrically.

    Args:
        dim: dimension of the vectors, which is the number of bits.
        asymmetric: compare the unquantized query with the decoded signs, instead of counting differing bits.

    >>> quantizer = SignQuantizer(dim=4)
    >>> quantizer.decode(quantizer.encode(np.array([[0.3, -2.0, 0.0, 1.0]], dtype=np.float32)))
    array([[ 0.5, -0.5, -0.5,  0.5]], dtype=float32)
    """

    def __init__(self, dim: int, asymmetric: bool = False) -> None:
        self.dim = self.bits = dim
        self.asymmetric = asymmetric

    def encode(self, x: np.ndarray) -> np.ndarray:
        return np.packbits(x > 0, axis=1, bitorder="little")

    def decode(self, codes: np.ndarray) -> np.ndarray:
        bits = np.unpackbits(codes, axis=1, count=self.dim, bitorder="little")
        return (bits.astype(np.float32) * 2 - 1) / np.float32(self.dim**0.5)

    def search(self, queries: np.ndarray, codes: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
        """See `Quantizer.search`; by default `D` is the squared L2 distance between the decoded signs of both sides,
        4/dim times their Hamming distance."""
        if self.asymmetric:
            return super().search(queries, codes, k)
        self.check_search(queries, codes, k)
        index = faiss.IndexBinaryFlat(self.code_size * 8)
        index.add(np.ascontiguousarray(codes))
        hamming, ids = index.search(self.encode(queries), k)
        return hamming.astype(np.float32) * np.float32(4 / self.dim), ids
