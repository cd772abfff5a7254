"""Spreading vectors for similarity search: learn a map onto a sphere, code it with a quantizer that has no codebook.

The method is that of Sablayrolles et al., *Spreading vectors for similarity search*, ICLR 2019.
"""

from importlib import import_module
from typing import Any

from catalyzer.threads import wait_passively

wait_passively()

__version__ = "0.1.0"

_HOME = {
    "InvalidInput": "catalyzer.errors",
    "ProductLattice": "catalyzer.lattice",
    "SphericalLattice": "catalyzer.lattice",
    "Catalyzer": "catalyzer.nn",
    "CatalyzerIndex": "catalyzer.index",
    "Codec": "catalyzer.codec",
    "Decoder": "catalyzer.nn",
    "ResidualDecoder": "catalyzer.nn",
    "KoLeoLoss": "catalyzer.nn",
    "RankLoss": "catalyzer.nn",
    "LatticeQuantizer": "catalyzer.quantizers",
    "SignQuantizer": "catalyzer.quantizers",
    "ProductQuantizer": "catalyzer.quantizers",
    "open_vectors": "catalyzer.files.vectors",
    "knn": "catalyzer.neighbors",
    "recall_at": "catalyzer.evaluation",
    "TrainedRun": "catalyzer.runs.trained_run",
}

__all__ = [*_HOME, "__version__"]


def __getattr__(name: str) -> Any:
    # torch, faiss and numba load when a name that needs them is first used, so that `import catalyzer` stays instant.
    if name in _HOME:
        return getattr(import_module(_HOME[name]), name)
    raise AttributeError(f"module 'catalyzer' has no attribute {name!r}")


def __dir__() -> list[str]:
    return __all__
