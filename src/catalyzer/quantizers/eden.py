"""EDEN, from faiss: each coordinate of a rotated vector by the best levels for a normal distribution."""

from typing import Any

from catalyzer._faiss import faiss
from catalyzer.errors import MissingPackage
from catalyzer.quantizers.rabitq import RotatedQuantizer


class EdenQuantizer(RotatedQuantizer):
    """EDEN (Vargaftik et al.) of faiss after a random rotation: 1 to 8 bits per dimension, and 64 bits of factors.

    The size of the codes follows from the dimension: `bits` is `8 * (ceil(dim * bits_per_dim / 8) + 8)`. `D` of a search are
    EDEN's estimates of the distances.

    Args:
        dim: dimension of the vectors.
        bits_per_dim: bits per dimension, 1 to 8.
        seed: seed of the rotation.

    Raises:
        MissingPackage: faiss is too old for EDEN.

    >>> import numpy as np
    >>> x = np.random.default_rng(0).normal(size=(1000, 64)).astype(np.float32)
    >>> quantizer = EdenQuantizer(dim=64, bits_per_dim=2).fit(x)
    >>> quantizer.bits, quantizer.search(x[:1], quantizer.encode(x), k=1)[1].tolist()
    (192, [[0]])
    """

    label = "EDEN"
    most_bits = 8

    def __init__(self, dim: int, bits_per_dim: int = 4, seed: int = 0) -> None:
        super().__init__(dim, bits_per_dim, seed)

    def _made(self) -> Any:
        if not hasattr(faiss, "IndexEDEN"):
            raise MissingPackage("EDEN needs a newer faiss; update faiss-cpu or faiss-gpu")
        return faiss.IndexEDEN(self.dim, faiss.METRIC_L2, self.bits_per_dim)
