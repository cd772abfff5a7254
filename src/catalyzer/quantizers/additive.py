"""RQ and LSQ, from faiss: a vector is the sum of one codeword from each of several codebooks."""

from collections.abc import Mapping
from typing import Self

import numpy as np
import torch
from torch import Tensor

from catalyzer._faiss import faiss
from catalyzer.errors import InvalidInput
from catalyzer.progress import progress
from catalyzer.quantizers.base import MAX_TRAINING, MIN_TRAINING, Quantizer, check_state

ENCODED = 4096  # vectors encoded at a time, for the progress display: this is slow


class AdditiveQuantizer(Quantizer):
    """Residual quantization (RQ) or local search quantization (LSQ), one byte a codebook; all of it faiss's.

    Codes hold no norms; search decodes them block by block, so it is exact over the decoded vectors.

    Args:
        dim: dimension of the vectors.
        bits: bits of a code, a multiple of 8.
        local_search: codewords are chosen together, by local search (LSQ), instead of one after another (RQ).

    Raises:
        InvalidInput: bits that are not whole bytes.

    >>> x = np.random.default_rng(0).normal(size=(1000, 8)).astype(np.float32)
    >>> quantizer = AdditiveQuantizer(dim=8, bits=16).fit(x)
    >>> quantizer.encode(x[:3]).shape
    (3, 2)
    """

    def __init__(self, dim: int, bits: int = 64, local_search: bool = False) -> None:
        if bits % 8 or bits <= 0:
            raise InvalidInput(f"additive quantization uses whole bytes: bits must be a multiple of 8, got {bits}")
        self.dim, self.bits, self.local_search = dim, bits, local_search
        self.label = "LSQ" if local_search else "RQ"
        kind = faiss.LocalSearchQuantizer if local_search else faiss.ResidualQuantizer
        self._quantizer = kind(dim, self.code_size, 8)

    def fit(self, x: np.ndarray) -> Self:
        """Learn the codebooks from at most `MAX_TRAINING` of the vectors.

        Raises:
            InvalidInput: fewer than 256 vectors.
        """
        if len(x) < MIN_TRAINING:
            raise InvalidInput(f"additive quantization learns from at least {MIN_TRAINING} vectors, got {len(x)}")
        self._quantizer.train(np.ascontiguousarray(x[:MAX_TRAINING]))
        return self

    def state_dict(self) -> dict[str, Tensor]:
        return {"codebooks_": torch.from_numpy(faiss.vector_to_array(self._quantizer.codebooks))}

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        check_state(self, state, codebooks_=(256 * self.code_size * self.dim,))
        faiss.copy_array_to_vector(state["codebooks_"].numpy(), self._quantizer.codebooks)
        self._quantizer.is_trained = True

    def encode(self, x: np.ndarray) -> np.ndarray:
        codes = np.empty((len(x), self.code_size), np.uint8)
        with progress("encoding", len(x), "vectors") as advance:
            for start in range(0, len(x), ENCODED):
                rows = np.ascontiguousarray(x[start : start + ENCODED])
                codes[start : start + ENCODED] = self._quantizer.compute_codes(rows)
                advance(len(rows))
        return codes

    def decode(self, codes: np.ndarray) -> np.ndarray:
        return self._quantizer.decode(np.ascontiguousarray(codes))
