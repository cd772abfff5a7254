"""A user's vectors, as arrays, tensors or files: opened, checked for NaN and infinity, and sampled."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch

from catalyzer.errors import InvalidInput
from catalyzer.files.vectors import BLOCK, LARGEST, VectorFile, Vectors, too_large
from catalyzer.metric import Metric, norms
from catalyzer.progress import progress


class SupportsArray(Protocol):
    """An object that NumPy converts to an array."""

    def __array__(self) -> np.ndarray: ...


VectorSource = np.ndarray | torch.Tensor | VectorFile | str | Path | Sequence | SupportsArray
"""`(n, d)` vectors: an array, a tensor, a list of lists, what NumPy makes an array of, such as a DataFrame or an HDF5 dataset,
which is read by blocks, or a file that `open_vectors` reads, by its path too."""

SAMPLE_RUN = 1 << 10  # consecutive rows of a sample: only whole slices are cheap to read from a file


def open_source(source: VectorSource, d: int | None = None) -> Vectors:
    """Open vectors, and check type and dimension only; `valid_rows` checks for NaN and infinity.

    Args:
        source: `(n, d)` vectors; n may be 0, except in a file.
        d: required dimension; None is any.

    Raises:
        InvalidInput: not vectors, a file that cannot be read, or another dimension.

    >>> open_source([[1, 2], [3, 4], [5, 6]]).shape
    (3, 2)
    """
    vectors = _as_array(source)
    if len(vectors.shape) != 2 or vectors.shape[1] == 0:
        way = "; give a single vector x as x[None]" if len(vectors.shape) == 1 else ""
        raise InvalidInput(f"expected vectors as numbers of shape (n, d), got shape {vectors.shape} of {vectors.dtype}{way}")
    if d is not None and vectors.shape[1] != d:
        raise InvalidInput(
            f"{name_of(vectors)}expected vectors of dimension {d}, like the training vectors, got {vectors.shape[1]}"
        )
    return vectors


def open_queries(source: VectorSource, d: int) -> tuple[Vectors, bool]:
    """Queries as from `open_source`, and whether there is only one, given as `(d,)`.

    >>> open_queries([1, 2], d=2)
    (array([[1, 2]]), True)
    """
    if isinstance(source, VectorFile | str | Path):
        return open_source(source, d), False
    array = _as_array(source)
    single = len(array.shape) == 1
    return open_source(np.asarray(array[:])[None] if single else array, d), single


def _as_array(source: Any) -> Any:
    if type(source) is np.ndarray and source.dtype.kind in "fiu":
        return source
    if isinstance(source, VectorFile):
        return source.unchecked()
    if isinstance(source, str | Path):
        return VectorFile(source, finite=False)
    if isinstance(source, torch.Tensor):
        try:
            source = source.detach().cpu()
            return (source.float() if source.is_floating_point() and source.dtype.itemsize < 4 else source).numpy()
        except (RuntimeError, TypeError) as error:  # sparse, quantized, on no device
            raise InvalidInput(f"expected vectors of shape (n, d), got a tensor that is not such an array ({error})") from None
    rows = source if isinstance(source, list | tuple) else [source]
    if any(isinstance(row, np.ma.MaskedArray) for row in rows):
        if any(np.ma.is_masked(row) for row in rows):
            raise InvalidInput("expected vectors, got an array with masked elements, which have no value; give x.filled(...)")
        source = np.ma.getdata(source)
    kind = type(source).__name__
    if not isinstance(source, list | tuple) and not hasattr(source, "__array__"):
        raise InvalidInput(f"expected an array, a tensor, lists of numbers or the path of a vector file, got {kind}")
    try:
        # What has a type, a shape and slices, such as an HDF5 dataset, may be larger than memory.
        array = source if hasattr(source, "dtype") and hasattr(source, "shape") else np.asarray(source)
        dtype = np.dtype(array.dtype)
    except (ValueError, TypeError, RuntimeError) as error:
        raise InvalidInput(f"expected vectors of shape (n, d), got a {kind} that is not such an array ({error})") from None
    if dtype.kind not in "fiu" and dtype.name != "bfloat16":
        raise InvalidInput(f"expected vectors as numbers of shape (n, d), got shape {array.shape} of {dtype}")
    return array


def name_of(vectors: Vectors) -> str:
    """The beginning of a sentence about vectors: a file's path and a colon, or nothing."""
    return f"{vectors.path}: " if isinstance(vectors, VectorFile) else ""


def valid_rows(vectors: Vectors, first: int, size: int, metric: Metric, skip: bool | None) -> tuple[np.ndarray, np.ndarray]:
    """The valid ones among `size` rows from `first`, `(m, d)` float32, and which are invalid, `(size,)` bool.

    A row with NaN or infinity is not valid, nor for cosine one of zeros only.

    Args:
        skip: whether invalid rows are skipped; None if the user has no such choice.

    Raises:
        InvalidInput: there are some that are not valid, and they are not to be skipped; or one with numbers that are too large,
            which is never skipped.
    """
    given = _as_array(vectors[first : first + size])
    expected = (min(size, len(vectors) - first), vectors.shape[1])
    if given.shape != expected:
        raise InvalidInput(f"{name_of(vectors)}expected {expected} when reading rows from {first:,} on, got {given.shape}")
    block = metric.as_float32(given)
    largest = np.maximum(block.max(axis=1), -block.min(axis=1))  # NaN where there is one
    cosine = metric.name == "cosine"
    usual = (largest > 0) & (largest < np.inf) if cosine else largest <= LARGEST
    if usual.all():
        return block, ~usual
    # Of the numbers as they were given: float32 may have made infinity of them.
    finite = np.isfinite(given.astype(np.float64) if given.dtype.kind == "f" else given).all(axis=1)
    if not cosine and (huge := finite & ~usual).any():
        raise InvalidInput(f"{name_of(vectors)}{too_large(given[huge][0], first + int(np.argmax(huge)))}")
    invalid = ~finite | (largest == 0) if cosine else ~finite
    if not skip and invalid.any():
        at = int(np.argmax(invalid))
        what = "only zeros, so it has no direction" if finite[at] else "NaN or infinity"
        way = "" if skip is None else "; or leave them out with skip_invalid=True, or --skip-invalid"
        raise InvalidInput(f"{name_of(vectors)}row {first + at:,} contains {what}; remove such rows{way}")
    return block[~invalid], invalid


def check_rows(vectors: Vectors, metric: Metric, skip: bool | None = None, size: int = BLOCK) -> float:
    """Check all vectors, block by block, before the work begins.

    Args:
        skip: see `valid_rows`.

    Returns:
        The largest norm, or 0.0 for a metric that does not need it.

    Raises:
        InvalidInput: as `valid_rows`; or a vector that is longer than the `max_norm` of the metric.
    """
    longest = 0.0
    with progress("checking" if len(vectors) > size else None, len(vectors), "vectors") as advance:
        for first in range(0, len(vectors), size):
            block, invalid = valid_rows(vectors, first, size, metric, skip)
            if metric.name == "ip":
                longest = max(longest, float(norms(block).max(initial=0)))
                if (longer := metric.too_long(block)).any():
                    row = first + int(np.flatnonzero(~invalid)[np.argmax(longer)])
                    raise InvalidInput(
                        f"{name_of(vectors)}row {row:,} has the norm {norms(block)[longer][0]:.6g}, above the index's "
                        f"limit for inner products, {metric.max_norm:.6g}; fit an index with a larger max_norm, or --max-norm"
                    )
            advance(len(invalid))
    return longest


def sample(vectors: Vectors, most: int, metric: Metric, skip_invalid: bool) -> tuple[np.ndarray, np.ndarray]:
    """At most a number of the vectors, evenly spread, in random order, `(m, d)` float32, and their `(m,)` row numbers.

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
