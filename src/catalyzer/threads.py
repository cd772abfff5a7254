"""Threads of the numeric libraries, mainly OpenMP's: they wait without spinning, and a forked child has only one.

This module is imported before any of these libraries, since they read their settings when they are loaded.
"""

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager

from catalyzer.errors import integer

_forked = False


def wait_passively() -> None:
    """Make OpenMP's threads sleep while they wait for each other, unless the environment sets how they wait.

    By default they spin for milliseconds. On a busy machine they then keep the processor from the thread that they wait for,
    and a parallel loop takes several times as long.
    """
    if not {"OMP_WAIT_POLICY", "GOMP_SPINCOUNT", "KMP_BLOCKTIME"} & os.environ.keys():
        os.environ["OMP_WAIT_POLICY"] = "PASSIVE"


@contextmanager
def limited(threads: int | None) -> Iterator[None]:
    """Limit the calling thread's computations to a number of threads meanwhile; None changes nothing.

    Raises:
        InvalidInput: not a number of at least 1.
    """
    if threads is None:
        yield
        return
    import numba
    import torch

    before = numba.get_num_threads(), torch.get_num_threads()
    threads = min(integer("threads", threads, 1), numba.config.NUMBA_NUM_THREADS)  # type: ignore[attr-defined]
    try:
        numba.set_num_threads(threads)
        torch.set_num_threads(threads)
        yield
    finally:
        numba.set_num_threads(before[0])
        torch.set_num_threads(before[1])


def is_forked() -> bool:
    """Whether this process is a fork of one that had loaded this package: parallel loops would hang or abort in it.

    >>> is_forked()
    False
    """
    return _forked


def _compute_on_one_thread() -> None:
    # A fork copies no threads but the one that forks, and OpenMP would wait for the others for ever.
    global _forked
    _forked = True
    if torch := sys.modules.get("torch"):
        torch.set_num_threads(1)
    if faiss := sys.modules.get("faiss"):
        faiss.omp_set_num_threads(1)


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_compute_on_one_thread)
