"""Time to encode a vector: the networks of runs with steps and lattice points tried, and faiss's quantizers of the same sizes.

    python benchmarks/encoding.py outputs/RUN4 outputs/RUN8 --quantizers PQ OPQ

Each run needs a decoder. A time is the least of three, of the first 5,000 vectors of the run's validation base. faiss's methods
learn from its last 10,000, which are enough to time them.
"""

import argparse
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import torch

from catalyzer import Codec, TrainedRun
from catalyzer.files.vectors import Vectors, as_float32
from catalyzer.nn import Identity
from catalyzer.quantizers import AdditiveQuantizer, ProductQuantizer, Quantizer
from catalyzer.runs.build import load_dataset

QUANTIZERS: dict[str, Callable[[int, int], Quantizer]] = {
    "PQ": ProductQuantizer,
    "OPQ": partial(ProductQuantizer, rotate=True),
    "RQ": AdditiveQuantizer,
    "LSQ": partial(AdditiveQuantizer, local_search=True),
}
CHOICES = [(0, 1), (1, 1), (2, 1), (3, 4), (3, 16)]
"""Values of `steps` and `refine`."""
LEARNED, TIMED, ROUNDS = 10_000, 5_000, 3


def microseconds(codec: Codec, vectors: Vectors) -> float:
    """The least time to encode a vector."""
    codec.encode(vectors[:1], None)  # loads compiled code
    times = []
    for _ in range(ROUNDS):
        start = time.perf_counter()
        codec.encode(vectors, None)
        times.append(time.perf_counter() - start)
    return 1e6 * min(times) / len(vectors)


def methods(codec: Codec, names: Sequence[str], learned: np.ndarray) -> Iterator[tuple[str, Codec]]:
    """The codec with each choice, then faiss's methods with codes of the same size, each fitted when it is reached."""
    for steps, refine in CHOICES:
        yield f"catalyzer + lattice, steps={steps} refine={refine}", replace(codec, steps=steps, refine=refine)
    dim = learned.shape[1]
    for name in names:
        other = Codec(Identity(dim), QUANTIZERS[name](dim, 8 * codec.quantizer.code_size))
        other.fit(learned)
        yield name, other


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", type=Path, nargs="+", help="folders of runs with a decoder")
    parser.add_argument("--quantizers", nargs="*", choices=QUANTIZERS, default=[*QUANTIZERS], help="of faiss, to compare with")
    options = parser.parse_args()

    print(f"| bytes | method | µs a vector, {torch.get_num_threads()} threads | × nearest point |\n|---|---|---|---|")
    for folder in options.runs:
        run = TrainedRun.load(folder)
        base, size = load_dataset(run.settings, run.metric).validation.base, run.codec.quantizer.code_size
        vectors, learned = as_float32(base[:TIMED]), as_float32(base[-LEARNED:])
        nearest = None
        for method, codec in methods(run.codec, options.quantizers, learned):
            took = microseconds(codec, vectors)
            nearest = nearest or took
            print(f"| {size} | {method} | {took:.1f} | {took / nearest:.2f} |", flush=True)


if __name__ == "__main__":
    main()
