"""The dimension of the sphere (`d_out=auto`), chosen without training anything."""

import logging

import numpy as np

import catalyzer
from catalyzer.codec import Codec
from catalyzer.datasets import Split
from catalyzer.errors import InvalidInput
from catalyzer.evaluation import measure
from catalyzer.files.array_cache import ArrayCache
from catalyzer.files.vectors import Vectors, fingerprint
from catalyzer.nn import PCA
from catalyzer.quantizers import LatticeQuantizer

log = logging.getLogger(__name__)

DIMENSIONS = (8, 12, 16, 20, 24, 28, 32, 40, 48, 64, 96, 128)
TOLERANCE = 0.01  # of recall@10 that a smaller dimension may lose


def choose_dimension(train: Vectors, validation: Split, bits: int, cache: ArrayCache) -> int:
    """The dimension in which PCA and a lattice of so many bits, which need no training, find the most.

    With the dimension less is projected away, but fewer bits are left for each coordinate, so recall@10 rises and then
    falls. A network keeps in fewer dimensions what PCA needs more for, hence the smallest one that comes within
    `TOLERANCE` of the best. The search ends where recall falls; what it finds is kept in `cache`.

    Args:
        train: `(n, d)`, what PCA learns from.
        validation: where recall@10 is measured; the test split is not touched.
        bits: upper limit for the bits of a code.
        cache: keeps the choice.

    Returns:
        One of `DIMENSIONS`, at most d.

    Raises:
        InvalidInput: vectors of fewer dimensions than the smallest of `DIMENSIONS`, or than a lattice of so many bits needs.
    """
    if train.shape[1] < DIMENSIONS[0]:
        raise InvalidInput(
            f"d_out=auto chooses among {DIMENSIONS[0]} dimensions and more, but the vectors have {train.shape[1]}; "
            "set d_out to a number"
        )

    def compute() -> np.ndarray:
        log.info("d_out=auto: trying PCA + lattice in %d dimensions and more", DIMENSIONS[0])
        recall: dict[int, float] = {}
        for dim in (d for d in DIMENSIONS if d <= train.shape[1]):
            try:
                quantizer = LatticeQuantizer(dim, bits)
            except InvalidInput:  # so few dimensions have no lattice of so many bits that tables can hold
                continue
            pca = PCA(train.shape[1], dim).adapt(train)
            codec, split = Codec(pca, quantizer), validation
            recall[dim] = measure(f"d_out = {dim}", codec, split.base, split.queries, split.ground_truth)[0].recall[10]
            if recall[dim] < max(recall.values()):
                break
        if not recall:
            raise InvalidInput(
                f"d_out=auto found no lattice of {bits} bits in {DIMENSIONS[0]} to {train.shape[1]} dimensions; "
                "use fewer bits, or set d_out to a number"
            )
        chosen = next(dim for dim, value in recall.items() if value >= max(recall.values()) - TOLERANCE)
        seen = ", ".join(f"{100 * value:.1f} in {dim}" for dim, value in recall.items())
        log.info("d_out = %d: validation R@10 of PCA + lattice is %s dimensions", chosen, seen)
        return np.array([chosen])

    key = (fingerprint(train, "checking training vectors"), *validation.key, bits, catalyzer.__version__)
    return int(cache.get("dimension", key, compute)[0])
