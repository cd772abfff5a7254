"""Products of spheres compared with faiss's product quantizer of the same size, in one run: encoding, many queries, one query.

    python benchmarks/products.py --bits 256 --dim 160 --codes 1000000 --queries 1000

Vectors are random and correlated, of twice the dimension; ours are mapped by `Linear`, which is counted. Times are medians.
"""

import argparse
import statistics
import time
from collections.abc import Callable

import faiss
import numba
import numpy as np
import torch
from rich.console import Console
from rich.table import Table

from catalyzer import Codec, LatticeQuantizer
from catalyzer.nn import Linear

K, BLOCK, LEARN = 10, 1 << 16, 20_000


def made(n: int, dim: int, seed: int) -> np.ndarray:
    """`(n, 2 · dim)` float32 vectors whose variances fall as those of embeddings do."""
    random = np.random.default_rng(seed)
    mix = np.random.default_rng(0).normal(size=(2 * dim, 2 * dim)).astype(np.float32)
    scales = (np.arange(1, 2 * dim + 1, dtype=np.float32)) ** -0.4
    return (random.normal(size=(n, 2 * dim)).astype(np.float32) * scales) @ mix


def median(call: Callable[[int], object], n: int) -> float:
    """Seconds of a call, given its number; the first one warms up."""
    call(0)
    times = []
    for i in range(n):
        start = time.perf_counter()
        call(i)
        times.append(time.perf_counter() - start)
    return statistics.median(times)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--bits", type=int, default=256)
    parser.add_argument("--dim", type=int, default=160, help="dimension that vectors are mapped to")
    parser.add_argument("--codes", type=int, default=1_000_000)
    parser.add_argument("--queries", type=int, default=1_000)
    parser.add_argument("--single", type=int, default=20, help="queries that are searched alone")
    options = parser.parse_args()

    learn, queries = made(LEARN, options.dim, 1), made(options.queries, options.dim, 2)
    codec = Codec(Linear(2 * options.dim, options.dim).adapt(learn), LatticeQuantizer(options.dim, options.bits)).for_search
    theirs = faiss.IndexPQ(2 * options.dim, options.bits // 8, 8)
    theirs.train(learn)
    codes, encoding = [], [0.0, 0.0]
    for first in range(0, options.codes, BLOCK):
        block = made(min(BLOCK, options.codes - first), options.dim, 3 + first)
        start = time.perf_counter()
        codes.append(codec.encode(block, None))
        middle = time.perf_counter()
        theirs.add(block)
        encoding[0] += middle - start
        encoding[1] += time.perf_counter() - middle
    ours = np.concatenate(codes)

    table = Table(f"{options.codes:,} codes of {options.bits // 8} bytes", "ours", "PQ", "ratio")

    def row(name: str, mine: float, other: float, unit: float, name_of_unit: str) -> None:
        table.add_row(name, f"{unit * mine:,.1f} {name_of_unit}", f"{unit * other:,.1f}", f"{other / mine:.2f}x")

    row("encoding a vector", *(seconds / options.codes for seconds in encoding), 1e6, "µs")
    many = median(lambda _: codec.search(queries, ours, K), 3), median(lambda _: theirs.search(queries, K), 3)
    row(f"a query of {options.queries:,}", *(seconds / len(queries) for seconds in many), 1e6, "µs")
    for threads in sorted({1, numba.get_num_threads()}):
        numba.set_num_threads(threads)
        torch.set_num_threads(threads)
        faiss.omp_set_num_threads(threads)
        alone = (
            median(lambda i: codec.search(queries[i : i + 1], ours, K), options.single),
            median(lambda i: theirs.search(queries[i : i + 1], K), options.single),
        )
        row(f"one query, {threads} thread{'s' * (threads > 1)}", *alone, 1e3, "ms")
    Console().print(table)


if __name__ == "__main__":
    main()
