"""The interface of all quantizers, and the search that every decodable one has."""

from abc import ABC, abstractmethod
from collections.abc import Iterator
from typing import Self

import numpy as np
from torch import nn

from catalyzer.errors import InvalidInput
from catalyzer.neighbors import knn_of_blocks
from catalyzer.progress import progress
from catalyzer.scan import check_search
from catalyzer.vectors import BLOCK

MIN_TRAINING = 256  # codebooks of 256 entries cannot be learned from fewer vectors
MAX_TRAINING = 100_000  # faiss's own limit is 65,536; the baselines shall not suffer from ours


class Quantizer(ABC):
    """Turns `(n, dim)` float32 vectors into `(n, code_size)` uint8 codes, and finds the codes nearest to a query.

    Attributes:
        dim: dimension of the vectors.
        bits: bits of a code that carry information.
        code_size: bytes of a code, `ceil(bits / 8)`.
        symmetric: whether search quantizes the query as well.
    """

    dim: int
    bits: int
    symmetric: bool = False

    @property
    def code_size(self) -> int:
        return -(-self.bits // 8)

    def fit(self, x: np.ndarray) -> Self:
        """Learn what the quantizer needs from `(n, dim)` float32 training vectors; fixed quantizers learn nothing."""
        return self

    def straight_through(self) -> nn.Module:
        """Quantization as a layer to train through, for quantizers that are fixed.

        Raises:
            InvalidInput: this one is learned.
        """
        raise InvalidInput(f"{type(self).__name__} is learned from what the network makes, so no network is trained through it")

    def nearest(self, x: np.ndarray, k: int) -> np.ndarray:
        """The k points that codes stand for nearest to each vector, `(n, k, dim)` float32, nearest first.

        Raises:
            InvalidInput: this quantizer knows the nearest one only.
        """
        raise InvalidInput(f"refine tries lattice points, {type(self).__name__} has none; use quantizer=lattice, or refine=1")

    @abstractmethod
    def encode(self, x: np.ndarray) -> np.ndarray:
        """The codes, `(n, code_size)` uint8, of `(n, dim)` float32 vectors."""

    @abstractmethod
    def decode(self, codes: np.ndarray) -> np.ndarray:
        """The vectors, `(n, dim)` float32, that the codes stand for."""

    def search(self, queries: np.ndarray, codes: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
        """The k codes nearest to each query by asymmetric distance: queries are not quantized (section 4.2).

        Args:
            queries: `(nq, dim)` float32.
            codes: `(n, code_size)` uint8.
            k: at most n.

        Returns:
            `D` `(nq, k)` float32 squared L2 distances to the decoded vectors, ascending, and `I` `(nq, k)` int64 rows.
        """
        self.check_search(queries, codes, k)

        def decoded() -> Iterator[np.ndarray]:
            with progress("searching", len(codes), "codes") as advance:
                for start in range(0, len(codes), BLOCK):
                    block = codes[start : start + BLOCK]
                    yield self.decode(block)
                    advance(len(block))

        return knn_of_blocks(queries, decoded(), k)

    def search_part(self, queries: np.ndarray, codes: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
        """`search`, with distances as precise as they were compared: what it finds in parts of the codes is merged by them."""
        return self.search(queries, codes, k)

    def check_search(self, queries: np.ndarray, codes: np.ndarray, k: int) -> None:
        """Raise `InvalidInput` unless shapes and k fit together."""
        check_search(queries, codes, k, self.dim, self.code_size)
