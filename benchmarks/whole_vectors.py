"""Codes in memory against whole vectors on a disk: candidates are reranked by decoded vectors, or by those in the file.

    python benchmarks/whole_vectors.py photos.catalyzer --base base.bvecs --queries queries.bvecs

The index holds the base in its order. Whole vectors are read row by row from the memory-mapped file: once with the file in the
system's cache, once after the system was asked to forget it, as where the file is larger than memory. One query at a time.
"""

import argparse
import os
import statistics
import time
from pathlib import Path

import numpy as np

from catalyzer import CatalyzerIndex, knn, open_vectors, recall_at
from catalyzer.files.vectors import as_float32


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("index", type=Path)
    parser.add_argument("--base", type=Path, required=True)
    parser.add_argument("--queries", type=Path, required=True)
    parser.add_argument("--count", type=int, default=500, help="queries (default: 500)")
    parser.add_argument("--candidates", type=int, default=100, help="reranked per query (default: 100)")
    parser.add_argument("--nprobe", type=int, default=64, help="lists, of an index that has them (default: 64)")
    args = parser.parse_args()
    index = CatalyzerIndex.load(args.index)
    queries = as_float32(open_vectors(args.queries)[: args.count])
    truth = knn(queries, open_vectors(args.base), 1)[1]
    nprobe = min(args.nprobe, index.ivf) if index.ivf else None

    def of_codes(query: np.ndarray, rerank: int) -> np.ndarray:
        return index.search(query, 10, rerank, nprobe, threads=1)[1]

    def of_file(query: np.ndarray) -> np.ndarray:
        base = open_vectors(args.base)
        ids = index.search(query, args.candidates, 0, nprobe, threads=1)[1]
        whole = as_float32(np.concatenate([base[int(i) : int(i) + 1] for i in np.sort(ids[ids >= 0])]))
        return np.sort(ids[ids >= 0])[np.argsort(((whole - query) ** 2).sum(axis=1), kind="stable")[:10]]

    def forgotten(query: np.ndarray) -> np.ndarray:
        with args.base.open("rb") as file:
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
        return of_file(query)

    ways = {
        "codes, rerank=0": lambda query: of_codes(query, 0),
        f"codes, rerank={args.candidates}": lambda query: of_codes(query, args.candidates),
        "whole vectors, cached": of_file,
        "whole vectors, not cached": forgotten,
    }
    base = open_vectors(args.base)
    code, whole = index.codes.shape[1], base.dtype.itemsize * base.shape[1]
    print(f"{index.ntotal:,} vectors; a code takes {code} bytes and its id 8, a whole vector {whole}")
    del base  # what is mapped is not forgotten
    for name, search in ways.items():
        found, times = np.full((len(queries), 10), -1), []
        for row, query in enumerate(queries):
            start = time.perf_counter()
            ids = search(query)
            times.append(time.perf_counter() - start)
            found[row, : len(ids)] = ids
        recalls = "/".join(f"{100 * recall_at(k, found, truth):.1f}" for k in (1, 10))
        print(f"{name:>26}: R@1/R@10 {recalls}, {1e6 * statistics.median(times):,.0f} µs per query")


if __name__ == "__main__":
    main()
