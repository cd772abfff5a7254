"""Means, scales and covariances of vectors without outliers, block by block, also of files larger than memory."""

from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor

from catalyzer.errors import InvalidInput
from catalyzer.files.vectors import Vectors, as_float32
from catalyzer.outliers import SAMPLE, Usual

ADAPT_SAMPLE = 1 << 17  # vectors that means, scales and principal axes are computed from
SAMPLE_BLOCKS = 64  # evenly spaced ones, of which such a sample consists


def sampled(x: Vectors) -> Iterator[np.ndarray]:
    """At most `ADAPT_SAMPLE` of the vectors, `(n, d)` float32 blocks without outliers (see `catalyzer.outliers`)."""
    # Evenly spaced blocks: the file may be sorted, and only whole slices are cheap to read from it.
    size = ADAPT_SAMPLE // SAMPLE_BLOCKS
    starts = np.arange(0, len(x), size) if len(x) <= ADAPT_SAMPLE else np.linspace(0, len(x) - size, SAMPLE_BLOCKS).astype(int)
    few = SAMPLE // max(1, len(starts))
    usual = Usual.of(np.concatenate([x[:0], *(x[start : min(start + max(1, few), len(x))] for start in starts)]))
    for start in starts:
        block = x[start : start + size]
        yield as_float32(block[~usual.outliers(block)])


def mean_and_deviation(x: Vectors) -> tuple[Tensor, Tensor]:
    """The mean `(d,)` of vectors, and their standard deviation, averaged over the dimensions; float32.

    Raises:
        InvalidInput: all vectors are equal.
    """
    count, shift, total, squares = 0, np.zeros(x.shape[1]), np.zeros(x.shape[1]), np.zeros(x.shape[1])
    for block in sampled(x):
        if not count:
            shift = block.mean(axis=0, dtype=np.float64)  # or squares of large means would cancel
        apart = block - shift
        count, total, squares = count + len(block), total + apart.sum(axis=0), squares + np.einsum("ij,ij->j", apart, apart)
    mean = total / max(count, 1)
    deviation = float(np.sqrt(np.maximum(squares / max(count, 1) - mean**2, 0)).mean())
    if deviation == 0:
        raise InvalidInput("all training vectors are equal; there is nothing to learn from them")
    return torch.from_numpy((shift + mean).astype(np.float32)), torch.tensor(deviation)


def mean_and_covariance(x: Vectors) -> tuple[Tensor, Tensor]:
    """The mean `(d,)` and the covariance `(d, d)` of vectors, float64; memory is a few times d².

    Raises:
        InvalidInput: no vectors.
    """
    count, shift = 0, torch.zeros(x.shape[1], dtype=torch.float64)
    total, products = torch.zeros_like(shift), torch.zeros(x.shape[1], x.shape[1], dtype=torch.float64)
    for block in map(torch.from_numpy, sampled(x)):
        if not count:
            shift = block.mean(dim=0, dtype=torch.float64)
        apart = block - shift.float()
        count, total = count + len(block), total + apart.sum(dim=0, dtype=torch.float64)
        products += apart.T @ apart
    if not count:
        raise InvalidInput("there are no training vectors")
    mean = total / count
    return shift.float().double() + mean, products / count - torch.outer(mean, mean)
