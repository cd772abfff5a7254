"""Map vectors with a transform, block by block."""

from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache

import numpy as np
import torch
from llvmlite.binding import get_host_cpu_features

from catalyzer.files.vectors import BLOCK, Vectors, as_float32, float_blocks
from catalyzer.nn.inference import RowWise
from catalyzer.nn.transforms import Transform


@cache
def multiplies_bfloat16(device: torch.device) -> bool:
    """Whether the hardware multiplies bfloat16, about twice as fast as float32; emulation would be slower.

    >>> multiplies_bfloat16(torch.device("meta"))
    False
    """
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    if device.type != "cpu":
        return False
    features = get_host_cpu_features()  # as LLVM names them, on x86 and ARM
    return any(features.get(name) for name in ("avx512bf16", "amx-bf16", "bf16"))


def embed(transform: Transform, vectors: Vectors, description: str | None = None) -> np.ndarray:
    """Map all vectors with `transform` in evaluation mode, block by block, on the device of its tensors.

    Networks multiply in bfloat16 if the hardware does, as in training: codes then have the same error, and a few differ. PCA
    and identity stay in float32.

    Args:
        transform: fitted transform.
        vectors: `(n, d_in)`.
        description: text of the progress display; None shows none.

    Returns:
        `(n, d_out)` float32.

    >>> from catalyzer.nn import Identity
    >>> embed(Identity(d_in=2), np.eye(2, dtype=np.uint8)).tolist()
    [[1.0, 0.0], [0.0, 1.0]]
    """
    if isinstance(transform, RowWise):
        return transform.map(as_float32(vectors[:]))
    with torch.inference_mode():
        return _embedded(transform, vectors, description)


def _embedded(transform: Transform, vectors: Vectors, description: str | None) -> np.ndarray:
    out: np.ndarray | None = None
    first = 0
    with evaluating(transform) as (device, autocast):
        # Small blocks stay in a processor's cache; a GPU wants few launches and copies.
        for block in float_blocks(vectors, description, BLOCK // 32 if device.type == "cpu" else BLOCK):
            with autocast:
                x = torch.from_numpy(np.require(block, requirements="W"))  # torch warns of an array that is read-only
                mapped = transform(x.to(device)).float().cpu().numpy()
            if out is None:
                out = np.empty((len(vectors), mapped.shape[1]), np.float32)
            out[first : first + len(mapped)] = mapped
            first += len(mapped)
    return out if out is not None else np.empty((0, transform.d_out), np.float32)


@contextmanager
def evaluating(transform: Transform) -> Iterator[tuple[torch.device, torch.autocast]]:
    """Set `transform` to evaluation mode meanwhile; yields the device of its tensors, and the autocast for its evaluation."""
    was_training = transform.training
    if was_training:  # checked first, since it takes longer than the forward pass of a single vector
        transform.eval()
    tensors = [*transform.parameters(), *transform.buffers()]
    device = tensors[0].device if tensors else torch.device("cpu")
    fast = transform.is_trained and multiplies_bfloat16(device)
    try:
        yield device, torch.autocast(device.type, torch.bfloat16, enabled=fast)
    finally:
        if was_training:
            transform.train()
