"""The decorator of all loops that numba compiles, and the cache of what it has compiled.

numba's own cache looks at the file that a function stands in, and not at what is compiled into it from other modules. Here
the sources of all kernel modules decide: a change in any of them compiles all loops anew. Files of earlier sources stay.
"""

from collections.abc import Callable
from hashlib import sha256
from pathlib import Path
from typing import Any

from numba import njit
from numba.core.caching import CompileResultCacheImpl, FunctionCache
from numba.core.dispatcher import Dispatcher

_MODULES = [Path(__file__), *sorted(Path(__file__).parents[1].glob("*/*kernels.py"))]
SOURCES = sha256(b"".join(sha256(path.read_bytes()).digest() for path in _MODULES)).hexdigest()[:16]
"""Digest of the modules whose functions, constants and options are compiled into loops."""


class _CacheOfSources(CompileResultCacheImpl):
    def get_filename_base(self, fullname: str, abiflags: str) -> str:
        # In the name, so that processes with other sources never write each other's files.
        return f"{super().get_filename_base(fullname, abiflags)}-{SOURCES}"


class _KernelCache(FunctionCache):
    _impl_class = _CacheOfSources


def kernel(**options: Any) -> Callable[[Callable], Callable]:
    """`numba.njit` without the GIL and with NumPy's division by zero, cached on disk by the sources of all kernel modules.

    A kernel may use functions and constants of modules named `*kernels.py` only. The cache is where numba has it:
    `NUMBA_CACHE_DIR`, or `__pycache__`, or the user's cache folder where that cannot be written.

    Args:
        **options: further ones of `numba.njit`.
    """

    def compiled(function: Callable) -> Callable:
        dispatcher = njit(nogil=True, error_model="numpy", **options)(function)
        if isinstance(dispatcher, Dispatcher):  # with NUMBA_DISABLE_JIT it is the function itself
            dispatcher._cache = _KernelCache(function)  # type: ignore[attr-defined]  # as cache=True sets numba's own
        return dispatcher

    return compiled
