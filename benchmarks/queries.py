"""One query at a time, filtered searches and range searches, compared with faiss's at the same code size, in one run.

    python benchmarks/queries.py photos.catalyzer --learn learn.bvecs --base base.bvecs --queries queries.bvecs

The index, or a run's folder, gives the networks. Of each size of base there are ours without and with lists, and faiss's
`PQ<bytes>` and `IVF<lists>,PQ<bytes>`; k = 10. Times are medians of single calls, one after the other.
"""

import argparse
import json
import statistics
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

import faiss
import numba
import numpy as np
import torch
from ivf import faiss_index, load_codec, our_index
from rich.console import Console
from rich.table import Table

from catalyzer import CatalyzerIndex, knn, open_vectors, recall_at
from catalyzer.files.vectors import as_float32

K = 10
SHARES = (0.5, 0.1, 0.01, 0.001)  # of ids that are allowed
WANTED = 20  # true neighbours per query within the radius, on average


@dataclass
class Row:
    """A search with one setting; recall in percent, time in µs per query."""

    size: int
    threads: int
    method: str
    setting: str
    recall: float
    alone: float
    more: str = ""


def alone(search: Callable[[np.ndarray], object], queries: np.ndarray, n: int) -> float:
    for row in range(3):
        search(queries[row : row + 1])
    times = []
    for row in range(n):
        start = time.perf_counter()
        search(queries[row : row + 1])
        times.append(time.perf_counter() - start)
    return 1e6 * statistics.median(times)


def with_threads(threads: int) -> None:
    numba.set_num_threads(threads)
    faiss.omp_set_num_threads(threads)
    torch.set_num_threads(threads)


def single_queries(
    flat: CatalyzerIndex, lists: CatalyzerIndex, theirs: dict[str, faiss.Index], queries: np.ndarray, truth: np.ndarray, n: int
) -> list[Row]:
    rows = []
    threads, size = numba.get_num_threads(), flat.ntotal

    def row(method: str, setting: str, search: Callable[[np.ndarray], np.ndarray], few: int = n) -> None:
        found = np.concatenate([search(queries[i : i + 500]) for i in range(0, len(queries), 500)])
        rows.append(Row(size, threads, method, setting, 100 * recall_at(K, found, truth), alone(search, queries, few)))

    pq, ivf = theirs.values()
    row(next(iter(theirs)), "all codes", lambda q: pq.search(q, K)[1], n // 4)
    for rerank in (0, 100, 500):
        row("catalyzer", f"all codes, rerank={rerank}", lambda q, rerank=rerank: flat.search(q, K, rerank)[1], n // 4)
    for nprobe in (4, 16, 32, 64):
        ivf.nprobe = nprobe
        row([*theirs][1], f"nprobe={nprobe}", lambda q: ivf.search(q, K)[1])
        for rerank in (0, 100, 500):
            setting = f"nprobe={nprobe}, rerank={rerank}"
            row("catalyzer, lists", setting, lambda q, r=rerank, p=nprobe: lists.search(q, K, r, p)[1])
    return rows


def filtered(
    flat: CatalyzerIndex, lists: CatalyzerIndex, theirs: dict[str, faiss.Index], queries: np.ndarray, base: np.ndarray, n: int
) -> list[Row]:
    """Searches within shares of the ids; the truth is that of the allowed vectors."""
    rows = []
    size, threads = flat.ntotal, numba.get_num_threads()
    for share in (1.0, *SHARES):
        allowed = np.sort(np.random.default_rng(0).permutation(size)[: int(share * size)])
        truth = allowed[knn(queries, base[allowed], 1)[1]]
        ids = None if share == 1 else allowed
        selector = faiss.IDSelectorBitmap(np.packbits(np.isin(np.arange(size), allowed), bitorder="little"))
        for method, index, rerank in (("catalyzer", flat, 0), ("catalyzer, lists", lists, 0), ("catalyzer, lists", lists, 100)):
            found = index.search(queries, K, rerank, ids=ids)[1]
            start = time.perf_counter()
            index.search(queries, K, rerank, ids=ids)
            together = 1e6 * (time.perf_counter() - start) / len(queries)
            one = alone(lambda q, i=index, r=rerank, ids=ids: i.search(q, K, r, ids=ids), queries, n // 4)
            recall = 100 * recall_at(K, found, truth)
            rows.append(Row(size, threads, method, f"{share:.1%}, rerank={rerank}", recall, one, f"{together:,.0f}"))
        for nprobe in (16, 128):  # faiss's IndexPQ takes no selector
            (_, (name, index)), options = theirs.items(), faiss.SearchParametersIVF(sel=selector, nprobe=nprobe)
            found = index.search(queries, K, params=options)[1]
            start = time.perf_counter()
            index.search(queries, K, params=options)
            together = 1e6 * (time.perf_counter() - start) / len(queries)
            one = alone(lambda q, i=index, options=options: i.search(q, K, params=options), queries, n // 4)
            recall, setting = 100 * recall_at(K, found, truth), f"{share:.1%}, nprobe={nprobe}"
            rows.append(Row(size, threads, name, setting, recall, one, f"{together:,.0f}"))
    return rows


def within_radius(
    flat: CatalyzerIndex, theirs: dict[str, faiss.Index], others: np.ndarray, queries: np.ndarray, base: np.ndarray, n: int
) -> list[Row]:
    """Of the true neighbours within one radius for all queries, what is found; and how much of what is found is true."""
    size, threads = flat.ntotal, numba.get_num_threads()
    distances, ids = knn(queries, base, 1000)
    radius = float(np.sort(distances, axis=None)[WANTED * len(queries)])
    on_sphere = float(flat.range_search(others, expected=WANTED, rerank=0)[1].max())  # chosen by other queries
    true = [{*row[near].tolist()} for near, row in zip(distances < radius, ids, strict=True)]
    total = sum(map(len, true))
    rows = []

    def row(method: str, setting: str, search: Callable[[np.ndarray], tuple]) -> None:
        lims, _, found = search(queries)
        hits = sum(len(true[i] & {*found[int(lims[i]) : int(lims[i + 1])].tolist()}) for i in range(len(queries)))
        spread = np.diff(lims.astype(np.int64))
        none = 100 * float((spread == 0).mean())
        more = f"{100 * hits / max(1, len(found)):.1f} true, {len(found) / len(queries):.0f} per query, {none:.0f}% have none"
        rows.append(Row(size, threads, method, setting, 100 * hits / total, alone(search, queries, n // 4), more))

    row(next(iter(theirs)), "this radius", lambda q: next(iter(theirs.values())).range_search(q, radius))
    row("catalyzer, decoded", "this radius", lambda q: flat.range_search(q, radius))
    row("catalyzer, sphere", f"radius of {WANTED} expected", lambda q: flat.range_search(q, on_sphere, rerank=0))
    return rows


def show(rows: list[Row], title: str, more: str = "") -> None:
    table = Table(title=title, title_justify="left")
    what = "found" if "radius" in title else "R@10"
    for name in ("vectors", "threads", "method", "setting", what, "alone, µs", *([more] * bool(more))):
        table.add_column(name, justify="left" if name in ("method", "setting") else "right", no_wrap=True)
    for row in rows:
        cells = f"{row.size:,}", str(row.threads), row.method, row.setting, f"{row.recall:.1f}", f"{row.alone:,.0f}"
        table.add_row(*cells, *([row.more] * bool(more)))
    Console(width=150).print(table)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("trained", type=Path, help="folder of a run with the lattice, or file of an index for L2")
    for name in ("learn", "base", "queries"):
        parser.add_argument(f"--{name}", type=Path, required=True)
    parser.add_argument("--sizes", type=int, nargs="+", default=[100_000, 1_000_000], help="of the base")
    parser.add_argument("--lists", type=int, nargs="+", default=[512, 4096], help="for each size")
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--first", type=int, default=0, help="number of the first query (default: 0)")
    parser.add_argument("--count", type=int, default=1000, help="queries (default: 1000)")
    parser.add_argument("--alone", type=int, default=200, help="queries searched one by one (default: 200)")
    parts = ("alone", "filtered", "range")
    parser.add_argument("--parts", nargs="+", choices=parts, default=parts, help="what is measured (default: all)")
    parser.add_argument("--out", type=Path, default=Path("outputs/benchmarks"), help="folder for queries.json")
    args = parser.parse_args()
    codec = load_codec(args.trained)
    learn = as_float32(open_vectors(args.learn)[:500_000])
    queries = as_float32(open_vectors(args.queries)[args.first : args.first + args.count])
    alone_rows, filter_rows, range_rows = [], [], []
    for size, ivf in zip(args.sizes, args.lists, strict=True):
        base = open_vectors(args.base, limit=size)
        truth = knn(queries, base, 1)[1]
        flat, lists = CatalyzerIndex.from_codec(codec), our_index(codec, learn, base, ivf)
        flat.add(base)
        bytes_ = codec.quantizer.code_size
        theirs = {name: faiss_index(name, learn, base) for name in (f"PQ{bytes_}", f"IVF{ivf},PQ{bytes_}")}
        vectors, half = as_float32(base[:]), queries[: len(queries) // 2]
        for threads in args.threads if "alone" in args.parts else ():
            with_threads(threads)
            alone_rows += single_queries(flat, lists, theirs, queries, truth, args.alone)
        with_threads(args.threads[0])
        if "filtered" in args.parts:
            filter_rows += filtered(flat, lists, theirs, queries, vectors, args.alone)
        if "range" in args.parts:
            range_rows += within_radius(flat, theirs, half, queries[len(half) :], vectors, args.alone)
        show([row for row in alone_rows if row.size == size], "one query at a time")
        show([row for row in filter_rows if row.size == size], "within a share of the ids", "at once, µs")
        show([row for row in range_rows if row.size == size], "within a radius", "of what is found")
    args.out.mkdir(parents=True, exist_ok=True)
    report = {"alone": alone_rows, "filtered": filter_rows, "range": range_rows}
    text = json.dumps({name: [asdict(row) for row in rows] for name, rows in report.items()}, indent=2)
    (args.out / "queries.json").write_text(text, encoding="utf-8")
    print(f"written to {args.out}/queries.json")


if __name__ == "__main__":
    main()
