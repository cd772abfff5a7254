"""The memory that a training needs, logged before it begins."""

import logging
from pathlib import Path

import psutil

from catalyzer.codec import Codec
from catalyzer.datasets import Benchmark

log = logging.getLogger(__name__)

LIBRARIES = 1 << 30  # bytes that torch, faiss and numba take once they are loaded
COPIES = 5  # of the weights: themselves, gradients, two moments of the optimizer, and those of a checkpoint
LIMIT = Path("/sys/fs/cgroup/memory.max")  # of a container on Linux
USED = Path("/sys/fs/cgroup/memory.current")


def tell_memory(benchmark: Benchmark, codec: Codec, k_pos: int, k_neg: int) -> None:
    """Log the needed and the free memory of a training, with a warning if the free memory is too small."""
    need, free = memory_needed(benchmark, codec, k_pos, k_neg), memory_available()
    total = sum(need.values())
    parts = ", ".join(f"{name} {bytes_ / 2**30:.1f}" for name, bytes_ in need.items() if bytes_ >= 2**30 / 20)
    log.log(
        logging.WARNING if total > free else logging.INFO,
        "memory: the training needs about %.1f GiB (%s), and %.1f GiB are free%s", total / 2**30, parts, free / 2**30,
        "; lower dataset.train_size and dataset.validation_base_size" if total > free else "",
    )  # fmt: skip


def memory_needed(benchmark: Benchmark, codec: Codec, k_pos: int, k_neg: int) -> dict[str, int]:
    """Estimated bytes of a training on the CPU at its peak, by purpose.

    Args:
        benchmark: dataset of the training.
        codec: codec with the networks.
        k_pos: neighbours of each vector in the table of positives.
        k_neg: mined neighbours of each vector.
    """
    train, held_out = benchmark.train, benchmark.validation
    n, d = train.shape
    indexed = n * d * (1 if train.dtype == "uint8" else 4)  # as `catalyzer.neighbors` stores them
    mapped = 2 * 4 * n * codec.transform.d_out  # and once more in the index
    graph = 8 * n  # int64
    networks = [network for network in (codec.transform, codec.decoder, codec.query) if network is not None]
    weights = sum(weight.nbytes for network in networks for weight in network.parameters())
    return {
        "libraries": LIBRARIES,
        "vectors": train.nbytes + held_out.queries.nbytes + len(held_out.base) * d * held_out.base.dtype.itemsize,
        "neighbours": 4 * n * k_pos,
        "mining": max(indexed + graph * (k_pos + 1), mapped + graph * (k_neg + 1)),
        "networks": COPIES * weights,
    }


def memory_available() -> int:
    """Free bytes for this process: those of the machine or of its container."""
    free = psutil.virtual_memory().available
    try:
        return min(free, int(LIMIT.read_text()) - int(USED.read_text()))
    except (OSError, ValueError):  # there is no container, or it has no limit
        return free
