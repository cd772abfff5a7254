"""Vectors as users hand them in, arrays, tensors or files: opened, looked through for NaN and infinity, and sampled."""

from pathlib import Path

import numpy as np
import torch

from catalyzer.errors import InvalidInput
from catalyzer.files.vectors import VectorFile, Vectors, as_float32
from catalyzer.index.metric import Metric
from catalyzer.progress import progress

VectorSource = np.ndarray | torch.Tensor | VectorFile | str | Path
"""`(n, d)` vectors: an array, a tensor, or a file that `open_vectors` reads, by its path too."""

SAMPLE_RUN = 1 << 10  # consecutive rows of a sample: only whole slices are cheap to read from a file


def open_source(source: VectorSource, d: int | None = None) -> Vectors:
    """Vectors of which type and dimension alone are checked; NaN and infinity are looked for where they are used.

    Args:
        source: `(n, d)`; n may be 0 in an array.
        d: dimension that they must have; None for any.

    Raises:
        InvalidInput: not vectors, a file that cannot be read, or another dimension.

    >>> open_source(torch.zeros(3, 2, dtype=torch.float64)).shape
    (3, 2)
    """
    vectors: Vectors
    if isinstance(source, VectorFile):
        vectors = VectorFile(source.path, len(source), finite=False)
    elif isinstance(source, str | Path):
        vectors = VectorFile(source, finite=False)
    elif isinstance(source, torch.Tensor):
        source = source.detach().cpu()
        vectors = (source.float() if source.is_floating_point() else source).numpy()
    else:
        vectors = source
    if not isinstance(vectors, np.ndarray | VectorFile):
        raise InvalidInput(f"expected a NumPy array, a tensor or the path of a vector file, got {type(source).__name__}")
    if len(vectors.shape) != 2 or vectors.shape[1] == 0 or vectors.dtype.kind not in "fiu":
        raise InvalidInput(f"expected vectors as numbers of shape (n, d), got shape {vectors.shape} of {vectors.dtype}")
    if d is not None and vectors.shape[1] != d:
        raise InvalidInput(
            f"{name_of(vectors)}expected vectors of dimension {d}, as those learned from; got {vectors.shape[1]}"
        )
    return vectors


def name_of(vectors: Vectors) -> str:
    """What a sentence about them begins with: a file's path and a colon, or nothing."""
    return f"{vectors.path}: " if isinstance(vectors, VectorFile) else ""


def valid_rows(vectors: Vectors, first: int, size: int, metric: Metric, skip: bool | None) -> tuple[np.ndarray, np.ndarray]:
    """The valid ones among `size` rows from `first` on, `(m, d)` float32, and which are not, `(size,)` bool.

    Args:
        skip: leave them out; None where a user has no such choice.

    Raises:
        InvalidInput: there are some that are not, and they are not to be skipped.
    """
    with np.errstate(over="ignore"):  # to infinity, which is refused
        block = as_float32(vectors[first : first + size])
    invalid = metric.invalid(block)
    if not invalid.any():
        return block, invalid
    if not skip:
        what = "NaN, infinity or nothing but zeros" if metric.name == "cosine" else "NaN or infinity"
        row = first + int(np.argmax(invalid))
        way = "" if skip is None else ", or leave them out by skip_invalid"
        raise InvalidInput(f"{name_of(vectors)}row {row:,} holds {what}; remove such rows{way}")
    return block[~invalid], invalid


def sample(vectors: Vectors, most: int, metric: Metric, skip_invalid: bool) -> tuple[np.ndarray, np.ndarray]:
    """At most so many of the vectors, evenly spread, in random order, `(m, d)` float32, and their `(m,)` row numbers.

    Raises:
        InvalidInput: as `valid_rows`.
    """
    n = len(vectors)
    starts = np.arange(0, n, SAMPLE_RUN)
    if n > most:
        starts = np.linspace(0, n - SAMPLE_RUN, most // SAMPLE_RUN).astype(int)
    parts, rows = [np.empty((0, vectors.shape[1]), np.float32)], [np.empty(0, np.int64)]
    with progress("reading", min(n, len(starts) * SAMPLE_RUN), "vectors") as advance:
        for start in starts:
            block, invalid = valid_rows(vectors, int(start), SAMPLE_RUN, metric, skip_invalid)
            parts.append(block)
            rows.append(start + np.flatnonzero(~invalid))
            advance(len(invalid))
    x = np.concatenate(parts)
    order = np.random.default_rng(0).permutation(len(x))
    return x[order], np.concatenate(rows)[order]
