"""RaBitQ, from faiss: the sign of each coordinate and two factors a vector that correct distances."""

from collections.abc import Mapping
from typing import Self

import numpy as np
import torch
from torch import Tensor

from catalyzer._faiss import faiss
from catalyzer.quantizers.base import Quantizer, check_state


class RaBitQuantizer(Quantizer):
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
        self.dim, self.seed = dim, seed
        self._rotation = faiss.RandomRotationMatrix(dim, dim)
        self._rotation.init(seed)
        self._index = faiss.IndexRaBitQ(dim)
        self.bits = 8 * self._index.sa_code_size()

    @classmethod
    def default_dim(cls, bits: int) -> int:
        return 64  # 128 bits

    def fit(self, x: np.ndarray) -> Self:
        """Learn the mean."""
        self._index.train(self._rotation.apply(x))
        return self

    def state_dict(self) -> dict[str, Tensor]:
        return {"center_": torch.from_numpy(faiss.vector_to_array(self._index.center))}

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        check_state(self, state, center_=(self.dim,))
        faiss.copy_array_to_vector(state["center_"].numpy(), self._index.center)
        self._index.is_trained = True

    def encode(self, x: np.ndarray) -> np.ndarray:
        return self._index.sa_encode(self._rotation.apply(x))

    def decode(self, codes: np.ndarray) -> np.ndarray:
        return self._rotation.reverse_transform(self._index.sa_decode(codes))

    def search(self, queries: np.ndarray, codes: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
        self.check_search(queries, codes, k)
        self._index.reset()
        self._index.add_sa_codes(np.ascontiguousarray(codes))
        found = self._index.search(self._rotation.apply(queries), k)
        self._index.reset()
        return found
