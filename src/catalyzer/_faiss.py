"""faiss, or one clear sentence where it is not installed (its CPU and GPU wheels are alternatives, so it is an extra)."""

from catalyzer.errors import MissingPackage

try:
    import faiss
except ModuleNotFoundError as error:
    if error.name != "faiss":
        raise
    raise MissingPackage('faiss is not installed: pip install "catalyzer[cpu]", or "catalyzer[gpu]" with CUDA') from None

__all__ = ["faiss"]
