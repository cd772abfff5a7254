"""Vectors of many dimensions: time and memory of fitting a linear map, adding and searching.

    python benchmarks/wide.py LEARN --dim 1536 --bits 512 --base 1000000

The vectors are those of LEARN by a random linear map to `--dim` dimensions, made block by block, so they need no memory. Adding
codes so many of them; memory is the process's largest resident size, and how much of it was there before the fit.
"""

import argparse
import resource
import time

import numpy as np

from catalyzer import CatalyzerIndex, open_vectors

BLOCK = 10_000


def peak() -> float:
    """Largest resident size of this process so far, GiB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("learn")
    parser.add_argument("--dim", type=int, default=1536)
    parser.add_argument("--bits", type=int, default=512)
    parser.add_argument("--learn-size", type=int, default=50_000, help="vectors to learn from")
    parser.add_argument("--base", type=int, default=1_000_000, help="vectors to add")
    parser.add_argument("--queries", type=int, default=1_000)
    options = parser.parse_args()
    source = open_vectors(options.learn)
    mix = np.random.default_rng(0).normal(size=(source.shape[1], options.dim)).astype(np.float32)

    def made(first: int, count: int) -> np.ndarray:
        rows = np.arange(first, first + count) % len(source)
        return source[int(rows[0]) : int(rows[0]) + count].astype(np.float32) @ mix

    learn = np.concatenate([made(first, BLOCK) for first in range(0, options.learn_size, BLOCK)])
    before, start = peak(), time.perf_counter()
    index = CatalyzerIndex(bits=options.bits, metric="cosine", method="linear").fit(learn)
    fitting = time.perf_counter() - start
    size = f"{len(learn):,} x {options.dim}, {learn.nbytes / 2**30:.1f} GiB"
    print(f"fit: {fitting:.1f} s from {size}; peak {peak():.1f} GiB, {before:.1f} before")
    del learn
    adding = 0.0
    for first in range(0, options.base, BLOCK):
        block = made(first % (len(source) - BLOCK), BLOCK)
        start = time.perf_counter()
        index.add(block)
        adding += time.perf_counter() - start
    print(f"add: {adding:.1f} s for {index.ntotal:,}, {1e6 * adding / index.ntotal:.1f} µs each; peak {peak():.1f} GiB")
    queries = made(0, options.queries)
    index.search(queries[:10])
    start = time.perf_counter()
    index.search(queries)
    each = 1e3 * (time.perf_counter() - start) / len(queries)
    print(f"search: {each:.2f} ms per query, {len(queries):,} at once; peak {peak():.1f} GiB")


if __name__ == "__main__":
    main()
