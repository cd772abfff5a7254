"""RQ and LSQ, from faiss: a vector is the sum of one codeword from each of several codebooks."""

from collections.abc import Sequence
from typing import Any, Self

import numpy as np

from catalyzer._faiss import faiss
from catalyzer.errors import InvalidInput, integer
from catalyzer.progress import progress
from catalyzer.quantizers.base import MAX_TRAINING, MIN_TRAINING, FaissQuantizer

ENCODED = 4096  # vectors encoded at a time, for the progress display: this is slow


class AdditiveQuantizer(FaissQuantizer):
    """Residual quantization (RQ) or local search quantization (LSQ) of faiss, with one byte per codebook.

    Codes have no norms. A search decodes them block by block, so it is exact for the decoded vectors.

    Args:
        dim: dimension of the vectors.
        bits: bits of a code, a multiple of 8.
        local_search: whether codewords are chosen together, by local search (LSQ), instead of one after another (RQ).

    Raises:
        InvalidInput: bits that are not whole bytes.

    >>> x = np.random.default_rng(0).normal(size=(1000, 8)).astype(np.float32)
    >>> quantizer = AdditiveQuantizer(dim=8, bits=16).fit(x)
    >>> quantizer.encode(x[:3]).shape
    (3, 2)
    """

    def __init__(self, dim: int, bits: int = 64, local_search: bool = False) -> None:
        dim, bits = integer("dim", dim, 1), integer("bits", bits, 1)
        if bits % 8:
            raise InvalidInput(f"additive quantization uses whole bytes: bits must be a multiple of 8, got {bits}")
        self.dim, self.bits, self.local_search = dim, bits, local_search
        self.label = "LSQ" if local_search else "RQ"
        kind = faiss.LocalSearchQuantizer if local_search else faiss.ResidualQuantizer
        self._quantizer = kind(dim, self.code_size, 8)
        # Codewords that are perturbed at a time; faiss takes no more than there are codebooks.
        if isinstance(self._quantizer, faiss.LocalSearchQuantizer):
            self._quantizer.nperts = min(self._quantizer.nperts, self.code_size)

    def fit(self, x: np.ndarray) -> Self:
        """Learn the codebooks from at most `MAX_TRAINING` of the vectors.

        Raises:
            InvalidInput: fewer than 256 vectors.
        """
        if len(x) < MIN_TRAINING:
            raise InvalidInput(f"additive quantization learns from at least {MIN_TRAINING} vectors, got {len(x)}")
        self._quantizer.train(np.ascontiguousarray(x[:MAX_TRAINING]))
        return self

    def _learned(self) -> dict[str, tuple[Any, int]]:
        return {"codebooks_": (self._quantizer.codebooks, 256 * self.code_size * self.dim)}

    def _trained(self) -> Sequence[Any]:
        return [self._quantizer]

    def encode(self, x: np.ndarray) -> np.ndarray:
        x = self.checked(x)
        codes = np.empty((len(x), self.code_size), np.uint8)
        with progress("encoding", len(x), "vectors") as advance:
            for start in range(0, len(x), ENCODED):
                rows = np.ascontiguousarray(x[start : start + ENCODED])
                codes[start : start + ENCODED] = self._quantizer.compute_codes(rows)
                advance(len(rows))
        return codes

    def decode(self, codes: np.ndarray) -> np.ndarray:
        return self._quantizer.decode(np.ascontiguousarray(codes))
