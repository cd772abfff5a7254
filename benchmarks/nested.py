"""Nested codes: recall of their first blocks, compared with codes of that size, and the time that scanning fewer blocks saves.

    python benchmarks/nested.py LEARN BASE QUERIES [--metric cosine] [--bits 256]

R@1/10/100 of the queries in the base, by exact search. `first blocks` scans so many blocks of the nested codes and nothing
else, `own code` is an index of that size, and `reranked` ranks 500 candidates of the first blocks by full codes. Times are
microseconds per query, k = 10: one query at a time on one thread, and all queries at once.
"""

import argparse
import time

import numpy as np
from rich.console import Console
from rich.table import Table

from catalyzer import CatalyzerIndex, open_vectors
from catalyzer.evaluation import recall_at
from catalyzer.metric import Metric
from catalyzer.neighbors import knn

ALONE = 200  # queries that are searched one by one
RERANK = 500


def recalls(found: np.ndarray, truth: np.ndarray) -> str:
    return "/".join(f"{100 * recall_at(k, found, truth):.1f}" for k in (1, 10, 100))


def times(index: CatalyzerIndex, queries: np.ndarray, **search: int) -> str:
    index.search(queries[:1], 10, threads=1, **search)
    start = time.perf_counter()
    for query in queries[:ALONE]:
        index.search(query, 10, threads=1, **search)
    alone = (time.perf_counter() - start) / ALONE
    start = time.perf_counter()
    index.search(queries, 10, **search)
    return f"{1e6 * alone:,.0f} / {1e6 * (time.perf_counter() - start) / len(queries):,.0f}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name in ("learn", "base", "queries"):
        parser.add_argument(name)
    parser.add_argument("--metric", choices=["l2", "cosine"], default="cosine")
    parser.add_argument("--bits", type=int, default=256)
    options = parser.parse_args()
    learn, base, queries = (open_vectors(path)[:] for path in (options.learn, options.base, options.queries))
    metric = Metric(options.metric)
    truth = knn(metric.queries(queries.astype(np.float32)), metric.base(base.astype(np.float32)), 1)[1]

    def fitted(bits: int, nested: bool) -> CatalyzerIndex:
        overrides = [f"catalyzer.nested={str(nested).lower()}"]
        index = CatalyzerIndex(bits=bits, metric=options.metric, method="linear", overrides=overrides).fit(learn)
        index.add(base)
        return index

    nested = fitted(options.bits, nested=True)
    table = Table(
        "blocks", "bytes", "first blocks", "own code", f"reranked {RERANK}", "µs, first blocks", "µs, reranked", "µs, own code"
    )
    for blocks in range(1, options.bits // 64 + 1):
        own = fitted(64 * blocks, nested=False)
        first, reranked = {"blocks": blocks, "rerank": 0}, {"blocks": blocks, "rerank": RERANK}
        table.add_row(
            *(str(blocks), str(8 * blocks)),
            recalls(nested.search(queries, 100, **first)[1], truth),
            recalls(own.search(queries, 100, rerank=0)[1], truth),
            recalls(nested.search(queries, 100, **reranked)[1], truth),
            *(times(nested, queries, **first), times(nested, queries, **reranked), times(own, queries, rerank=0)),
        )
    Console(width=150).print(table)


if __name__ == "__main__":
    main()
