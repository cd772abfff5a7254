"""The ids of an index: distinct int64, found and checked."""

from pathlib import Path
from typing import Any

import numpy as np

from catalyzer.errors import InvalidInput
from catalyzer.files.formats import open_rows
from catalyzer.files.paths import expanded
from catalyzer.index.contents import MAX_ID, Contents


def as_ids(ids: Any) -> np.ndarray:
    """`(n,)` int64 of integers of any type, or those in a file (`catalyzer.files.formats`), such as "x.parquet:id".

    Raises:
        InvalidInput: not one-dimensional, no integers, or beyond int64; or a file that cannot be read.

    >>> as_ids([3, 5]).dtype
    dtype('int64')
    """
    where = ""
    if isinstance(ids, str | Path):
        rows, where = open_rows(expanded(ids)), f"{ids}: "
        ids = rows.read(0, len(rows))
        ids = ids[:, 0] if ids.shape[1:] == (1,) else ids  # of the formats that know matrices only
    if np.ma.is_masked(ids):
        raise InvalidInput("ids must be int64 of shape (n,), got a masked array, and what is masked has no value")
    try:
        array = np.asarray(ids)
    except (ValueError, TypeError, RuntimeError) as error:
        raise InvalidInput(f"ids must be int64 of shape (n,), got a {type(ids).__name__}: {error}") from None
    if array.size == 0:
        array = array.astype(np.int64)
    if array.ndim != 1 or array.dtype.kind not in "iu" or (array.dtype == np.uint64 and array.max(initial=0) > MAX_ID):
        raise InvalidInput(f"{where}ids must be int64 of shape (n,), got shape {array.shape} of {array.dtype}")
    return array.astype(np.int64)


def ids_for(n: int, ids: Any, contents: Contents) -> np.ndarray:
    """`(n,)` int64 ids of vectors that are to be added: `ids`, checked, or those that follow the largest so far.

    Raises:
        InvalidInput: not one for each vector, the same twice, -1, or one that is in the index.
    """
    if ids is None:
        if contents.last_id >= MAX_ID - n:
            raise InvalidInput(f"there are no {n:,} ids above {contents.last_id}, the largest so far; give ids")
        return np.arange(contents.last_id + 1, contents.last_id + 1 + n)
    ids = distinct_ids(n, ids)
    if (ids == -1).any():
        raise InvalidInput(f"row {int(np.argmax(ids == -1)):,} has the id -1, which stands for nothing found; give another")
    check_new(ids, contents)
    return ids


def distinct_ids(n: int, ids: Any) -> np.ndarray:
    """`(n,)` int64 of distinct ids, one for each of n vectors.

    Raises:
        InvalidInput: they are not.
    """
    ids = as_ids(ids)
    if len(ids) != n:
        raise InvalidInput(f"expected an id for each of {n:,} vectors, got {len(ids):,}")
    distinct, first = np.unique(ids, return_index=True)
    if len(distinct) < n:
        again = int(np.setdiff1d(np.arange(n), first)[0])
        raise InvalidInput(f"row {again:,} has the id {ids[again]}, as a row before it; ids must be distinct")
    return ids


def check_new(ids: np.ndarray, contents: Contents) -> None:
    """Raise `InvalidInput` if one of `(n,)` ids is in the index."""
    known = np.isin(ids, contents.ids)
    if known.any():
        raise InvalidInput(
            f"{int(known.sum()):,} of the ids are in the index already, the first of them {ids[np.argmax(known)]}; "
            "update or remove those, or give others"
        )


def rows_of(ids: np.ndarray, contents: Contents) -> np.ndarray:
    """`(n,)` int64 rows of `(n,)` ids.

    Raises:
        InvalidInput: one is not in the index.
    """
    order = np.argsort(contents.ids, kind="stable")
    at = np.searchsorted(contents.ids, ids, sorter=order)
    rows = order[np.minimum(at, len(order) - 1)] if len(order) else np.full(len(ids), -1)
    missing = np.ones(len(ids), bool) if not len(order) else contents.ids[rows] != ids
    if missing.any():
        raise InvalidInput(
            f"{int(missing.sum()):,} of the ids are not in the index, the first of them {ids[np.argmax(missing)]}"
        )
    return rows
