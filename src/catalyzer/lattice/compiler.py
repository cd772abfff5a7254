"""The decorator of all loops that numba compiles, and the cache of what it has compiled.

numba's own cache checks the file of a function, but not the functions of other modules that are compiled into it. Here the key
is the sources of all kernel modules: a change to any of them recompiles all loops. Files of earlier sources stay.
"""

import logging
import threading
from collections.abc import Callable
from functools import cache, update_wrapper
from hashlib import sha256
from pathlib import Path
from typing import Any

from numba import get_num_threads, njit
from numba.core.caching import CompileResultCacheImpl, FunctionCache
from numba.core.dispatcher import Dispatcher

from catalyzer.threads import is_forked

log = logging.getLogger(__name__)

_MODULES = [Path(__file__), *sorted(Path(__file__).parents[1].glob("*/*kernels.py"))]
SOURCES = sha256(b"".join(sha256(path.read_bytes()).digest() for path in _MODULES)).hexdigest()[:16]
"""Digest of the modules whose functions, constants and options are compiled into loops."""


class _CacheOfSources(CompileResultCacheImpl):
    def get_filename_base(self, fullname: str, abiflags: str) -> str:
        # In the name, so that processes with other sources never write each other's files.
        return f"{super().get_filename_base(fullname, abiflags)}-{SOURCES}"


class _CacheOfOneThread(_CacheOfSources):
    def get_filename_base(self, fullname: str, abiflags: str) -> str:
        return f"{super().get_filename_base(fullname, abiflags)}-one"


class _KernelCache(FunctionCache):
    _impl_class = _CacheOfSources

    def save_overload(self, sig: Any, data: Any) -> None:
        try:
            super().save_overload(sig, data)
        except OSError as error:  # such as a full disk
            _warn_of_no_cache(error.strerror or str(error))


class _KernelCacheOfOneThread(_KernelCache):
    _impl_class = _CacheOfOneThread


# numba's threads may not be entered by two threads of Python at once: some of its threading layers abort the process.
_PARALLEL = threading.Lock()


class ParallelKernel:
    """A loop whose tasks are distributed over numba's threads; it is called from Python only.

    The calling thread executes all tasks if they are few: waking others would take longer, and other callers need not wait. It
    also does so in a forked child, where the other threads do not exist.

    Args:
        function: loop over `numba.prange`.
        several: function of a call's arguments that returns whether there is work for several threads.
        **options: options of `numba.njit`.
    """

    def __init__(self, function: Callable, several: Callable[..., bool], **options: Any) -> None:
        update_wrapper(self, function)
        self.shared_out = _compiled(function, _KernelCache, parallel=True, **options)
        self._several = several
        self.on_one_thread = _compiled(function, _KernelCacheOfOneThread, **options)

    def __call__(self, *args: Any) -> Any:
        if is_forked() or get_num_threads() == 1 or not self._several(*args):
            return self.on_one_thread(*args)
        with _PARALLEL:
            return self.shared_out(*args)


def kernel(parallel: Callable[..., bool] | None = None, **options: Any) -> Callable[[Callable], Callable]:
    """`numba.njit` without the GIL and with NumPy's division by zero, cached on disk by the sources of all kernel modules.

    A kernel may use functions and constants of modules named `*kernels.py` only. The cache is where numba has it:
    `NUMBA_CACHE_DIR`, or `__pycache__`, or the user's cache folder where that cannot be written. If none of them can be
    written, each process compiles its loops, and a warning says so.

    Args:
        parallel: argument `several` of a `ParallelKernel`, which is then made.
        **options: more options of `numba.njit`.
    """
    return lambda function: (
        _compiled(function, _KernelCache, **options) if parallel is None else ParallelKernel(function, parallel, **options)
    )


def _compiled(function: Callable, caching: type[FunctionCache], **options: Any) -> Callable:
    dispatcher = njit(nogil=True, error_model="numpy", **options)(function)
    if isinstance(dispatcher, Dispatcher):  # with NUMBA_DISABLE_JIT it is the function itself
        try:
            dispatcher._cache = caching(function)  # type: ignore[attr-defined]  # as cache=True sets numba's own
        except RuntimeError:  # numba finds no folder
            _warn_of_no_cache("no folder for it can be written")
    return dispatcher


@cache
def _warn_of_no_cache(why: str) -> None:
    log.warning(
        "compiled loops cannot be cached (%s), so every process compiles them again, which takes seconds; set NUMBA_CACHE_DIR "
        "to a writable folder", why,
    )  # fmt: skip
