"""The ids of an index: distinct int64, found and checked."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from catalyzer.errors import InvalidInput
from catalyzer.files.formats import open_rows
from catalyzer.files.paths import expanded
from catalyzer.index.contents import MAX_ID, Contents

MASKED = 8  # binary logarithm of the share of all ids from which on they are marked in a mask
DENSE = 8  # times the number of vectors that the largest id may be for that

IdSource = np.ndarray | Sequence | range | str | Path
"""`(n,)` integers, a range, a mask of ids, or a file of ids (`catalyzer.files.formats`)."""


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
        raise InvalidInput("ids must be int64 of shape (n,), got an array with masked elements, which have no value")
    try:
        array = np.asarray(ids)
    except (ValueError, TypeError, RuntimeError) as error:
        raise InvalidInput(f"ids must be int64 of shape (n,), got a {type(ids).__name__}: {error}") from None
    if array.size == 0:
        array = array.astype(np.int64)
    if array.ndim != 1 or array.dtype.kind not in "iu" or (array.dtype == np.uint64 and array.max(initial=0) > MAX_ID):
        got = f"a {type(ids).__name__}" if array.dtype == object else f"shape {array.shape} of {array.dtype}"
        if array.ndim == 1 and array.size and all(type(each) is int for each in array.tolist()):
            got = f"{max(array.tolist(), key=abs)}, beyond 64 bits"
        way = f"; name their column, {where[:-2]}:NAME" if where and array.ndim == 2 and ":" not in where[:-2] else ""
        raise InvalidInput(f"{where}ids must be int64 of shape (n,), got {got}{way}")
    return array.astype(np.int64)


def ids_for(n: int, ids: Any, contents: Contents) -> np.ndarray:
    """`(n,)` int64 ids of vectors to add: the checked `ids`, or those that follow the largest so far.

    Raises:
        InvalidInput: not one id for each vector, a repeated id, -1, or an id that is in the index.
    """
    if ids is None:
        if contents.last_id >= MAX_ID - n:
            raise InvalidInput(f"fewer than {n:,} ids are left above {contents.last_id}, the largest so far; give ids")
        return np.arange(contents.last_id + 1, contents.last_id + 1 + n)
    ids = distinct_ids(n, ids)
    if (ids == -1).any():
        raise InvalidInput(
            f"row {int(np.argmax(ids == -1)):,} has the id -1, which means that nothing was found; give another id"
        )
    check_new(ids, contents)
    return ids


def distinct_ids(n: int, ids: Any) -> np.ndarray:
    """`(n,)` int64 of distinct ids, one for each of n vectors.

    Raises:
        InvalidInput: they are not.
    """
    if not isinstance(ids, range) or len(ids) == n:  # a range may be longer than memory
        ids = as_ids(ids)
    if len(ids) != n:
        raise InvalidInput(f"expected an id for each of {n:,} vectors, got {len(ids):,}")
    distinct, first = np.unique(ids, return_index=True)
    if len(distinct) < n:
        again = int(np.setdiff1d(np.arange(n), first)[0])
        raise InvalidInput(f"row {again:,} repeats the id {ids[again]} of an earlier row; ids must be distinct")
    return ids


def check_new(ids: np.ndarray, contents: Contents) -> None:
    """Raise `InvalidInput` if one of `(n,)` ids is in the index."""
    known = np.isin(ids, contents.ids)
    if known.any():
        raise InvalidInput(
            f"{int(known.sum()):,} of the ids are in the index already, the first of them {ids[np.argmax(known)]}; "
            "update or remove these vectors, or give other ids"
        )


def rows_allowed(contents: Contents, ids: Any, exclude: Any) -> np.ndarray | None:
    """The rows that a search may find, `(m,)` int64, ascending; None is all.

    Args:
        contents: contents of the index.
        ids: allowed ids, as in `CatalyzerIndex.search`; None is all.
        exclude: ids that are not searched, of the same types; None is none.

    Raises:
        InvalidInput: neither ids nor a mask of them.
    """
    if ids is None and exclude is None:
        return None
    if exclude is None:
        return _rows_among(contents, ids, "ids")
    kept = np.ones(len(contents.ids), bool)
    if ids is not None:
        kept[:] = False
        kept[_rows_among(contents, ids, "ids")] = True
    kept[_rows_among(contents, exclude, "exclude")] = False
    return np.flatnonzero(kept)


def _rows_among(contents: Contents, ids: Any, name: str) -> np.ndarray:
    """Rows of those of the ids that are in the index, ascending."""
    there = np.asarray(contents.ids)
    if isinstance(ids, range):
        return np.flatnonzero(_in_range(there, ids))
    try:
        mask = None if isinstance(ids, str | Path) else np.asarray(ids)
        if mask is None or mask.dtype != bool or not mask.size:
            return _rows_of_some(contents, as_ids(ids))
    except (InvalidInput, ValueError, TypeError, RuntimeError) as error:
        raise InvalidInput(str(error) if name == "ids" else f"{name}: {error}") from None
    if mask.ndim != 1 or (len(there) and (there.min() < 0 or there.max() >= len(mask))):
        ends = f"from {there.min():,} to {there.max():,}" if len(there) else "none"
        raise InvalidInput(
            f"{name}: expected a mask of shape (n,), where element i is for id i and n is above all ids of the index, "
            f"{ends}; got shape {mask.shape}; give the ids instead"
        )
    return np.flatnonzero(mask[there])


def _rows_of_some(contents: Contents, wanted: np.ndarray) -> np.ndarray:
    there = np.asarray(contents.ids)
    if len(there) and len(wanted) > len(there) >> MASKED and there.min() >= 0 and there.max() < DENSE * len(there):
        mask = np.zeros(there.max() + 1, bool)  # many of ids with few gaps: faster than to sort them
        mask[wanted[(wanted >= 0) & (wanted < len(mask))]] = True
        return np.flatnonzero(mask[there])
    rows = contents.find(np.unique(wanted))
    return np.sort(rows[rows >= 0])


def _in_range(ids: np.ndarray, wanted: range) -> np.ndarray:
    ascending = wanted if wanted.step > 0 else wanted[::-1]
    first = -(MAX_ID + 1)
    if ascending.start < first:  # the next ones that int64 holds
        ascending = ascending[-((ascending.start - first) // ascending.step) :]
    if not ascending or ascending[0] > MAX_ID:
        return np.zeros(len(ids), bool)
    low, high = ascending[0], min(ascending[-1], MAX_ID)
    inside = (ids >= low) & (ids <= high)
    if ascending.step == 1 or low == high:
        return inside
    # Modulo 2^64, by which differences beyond int64 are right.
    return inside & ((ids.astype(np.uint64) - np.uint64(low % (1 << 64))) % np.uint64(min(ascending.step, (1 << 64) - 1)) == 0)


def rows_of(ids: np.ndarray, contents: Contents) -> np.ndarray:
    """`(n,)` int64 rows of `(n,)` ids.

    Raises:
        InvalidInput: an id is not in the index.
    """
    rows = contents.find(ids)
    missing = rows < 0
    if missing.any():
        raise InvalidInput(
            f"{int(missing.sum()):,} of the ids are not in the index, the first of them {ids[np.argmax(missing)]}"
        )
    return rows
