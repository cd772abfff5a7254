"""Recall against time of searches in inverted lists, compared with faiss's at the same code size, in one run.

    python benchmarks/ivf.py outputs/RUN --learn learn.bvecs --base base.bvecs --queries queries.bvecs
    python benchmarks/ivf.py photos.catalyzer --learn learn.bvecs --base base.bvecs --queries queries.bvecs --ivf 1024

A run with the lattice, or an index for L2, gives the networks; lists are learned again, and the base is added. faiss has
`IVF<n>,PQ<bytes>` and `IVF<n>,PQ<2 bytes>x4fs`, of as many lists, learned from the same vectors. Each is searched with every
nprobe, all queries at once and some one by one, k = 10; all time is counted, for ours that of the networks too. What a method
takes for a recall between two of its points is interpolated, the time on a logarithmic scale.
"""

import argparse
import json
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from itertools import pairwise
from pathlib import Path

import faiss
import matplotlib.pyplot as plt
import numba
import numpy as np
import torch
from rich.console import Console
from rich.table import Table

from catalyzer import CatalyzerIndex, Codec, TrainedRun, knn, open_vectors, recall_at
from catalyzer.files.vectors import BLOCK, Vectors, as_float32
from catalyzer.index.contents import Contents
from catalyzer.index.file import read, write
from catalyzer.index.lists import InvertedLists
from catalyzer.metric import Metric
from catalyzer.runs.figures import styled

K = 10
LOOKS = {"rerank 0": ("#0072B2", "o", "-"), "rerank 100": ("#009E73", "s", "-"), "rerank 500": ("#56B4E9", "D", "-")}
FAISS_LOOKS = (("#E69F00", "v", "--"), ("#D55E00", "^", "--"))
Search = Callable[[np.ndarray, int], np.ndarray]  # queries and nprobe to ids


@dataclass
class Point:
    """What a method finds with one nprobe, in percent, and what it takes, in µs a query."""

    method: str
    nprobe: int
    recall_at_1: float
    recall_at_10: float
    together: float
    alone: float


def load_codec(path: Path) -> Codec:
    """Of a run's folder, or of an index's file."""
    if path.is_dir():
        return TrainedRun.load(path).codec
    contents = read(path, mmap=True)
    if contents.metric.name != "l2":
        sys.exit(f"{path} is an index for {contents.metric.name}; faiss is measured with L2")
    return contents.codec


def our_index(codec: Codec, learn: np.ndarray, base: Vectors, ivf: int) -> CatalyzerIndex:
    """An index of the base in lists that are learned here."""
    start = time.perf_counter()
    lists = InvertedLists.fit(codec, learn[np.random.default_rng(0).permutation(len(learn))], ivf)
    fitted = time.perf_counter()
    none = np.empty((0, codec.quantizer.code_size), np.uint8)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "index.catalyzer"
        write(path, Contents(codec, Metric("l2"), np.empty(0, np.int64), none, lists=lists))
        index = CatalyzerIndex.load(path)
    index.add(base)
    print(f"catalyzer: lists in {fitted - start:.1f} s, {len(base):,} vectors added in {time.perf_counter() - fitted:.1f} s")
    return index


def faiss_index(name: str, learn: np.ndarray, base: Vectors) -> faiss.Index:
    start = time.perf_counter()
    index = faiss.index_factory(base.shape[1], name)
    index.train(learn)
    fitted = time.perf_counter()
    for first in range(0, len(base), BLOCK):
        index.add(as_float32(base[first : first + BLOCK]))
    print(f"{name}: learned in {fitted - start:.1f} s, {len(base):,} vectors added in {time.perf_counter() - fitted:.1f} s")
    return index


def searches(index: CatalyzerIndex, theirs: dict[str, faiss.Index], reranks: list[int]) -> dict[str, Search]:
    def ours(rerank: int) -> Search:
        return lambda queries, nprobe: index.search(queries, K, rerank, nprobe)[1]

    def of(index: faiss.Index) -> Search:
        def search(queries: np.ndarray, nprobe: int) -> np.ndarray:
            index.nprobe = nprobe
            return index.search(queries, K)[1]

        return search

    return {f"catalyzer, rerank {n}": ours(n) for n in reranks} | {name: of(index) for name, index in theirs.items()}


def measure(
    methods: dict[str, Search], queries: np.ndarray, truth: np.ndarray, nprobes: list[int], alone: int, repeats: int
) -> list[Point]:
    """Every method with every nprobe; one after the other, so that what disturbs the machine disturbs all alike."""
    points = []
    for nprobe in nprobes:
        for method, search in methods.items():
            ids = search(queries[:1], nprobe)  # compiled code is loaded, memory is there
            times, singles = [], []
            for _ in range(repeats):
                start = time.perf_counter()
                ids = search(queries, nprobe)
                times.append((time.perf_counter() - start) / len(queries))
            time.sleep(0.2)  # until idle threads have stopped spinning
            for row in range(min(alone, len(queries))):
                start = time.perf_counter()
                search(queries[row : row + 1], nprobe)
                singles.append(time.perf_counter() - start)
            recalls = [100 * recall_at(k, ids, truth) for k in (1, K)]
            microseconds = [1e6 * statistics.median(of) for of in (times, singles)]
            points.append(Point(method, nprobe, *recalls, *microseconds))
            print(f"nprobe {nprobe}: {method}", file=sys.stderr)
    return points


def time_for(points: list[Point], recall: float, what: str) -> float:
    """The least time in which a method finds so much, between its points by interpolation; infinite beyond them."""
    best = min((getattr(point, what) for point in points if point.recall_at_10 >= recall), default=np.inf)
    for a, b in pairwise(sorted(points, key=lambda point: point.recall_at_10)):
        if a.recall_at_10 < recall < b.recall_at_10:
            share = (recall - a.recall_at_10) / (b.recall_at_10 - a.recall_at_10)
            best = min(best, getattr(a, what) ** (1 - share) * getattr(b, what) ** share)
    return best


def print_points(points: list[Point], title: str) -> None:
    table = Table(title=title, title_justify="left")
    for column in ("method", "nprobe", "R@1", "R@10", "at once, µs", "alone, µs"):
        table.add_column(column, justify="left" if column == "method" else "right", no_wrap=True)
    for method in dict.fromkeys(point.method for point in points):
        for p in (point for point in points if point.method == method):
            cells = f"{p.recall_at_1:.1f}", f"{p.recall_at_10:.1f}", f"{p.together:,.0f}", f"{p.alone:,.0f}"
            table.add_row(p.method, str(p.nprobe), *cells)
        table.add_section()
    Console(width=110).print(table)


def compare(points: list[Point], what: str, title: str) -> list[dict[str, object]]:
    """A line a recall: the fastest of ours and the fastest of theirs, their time in ours, and which is ahead."""
    table = Table(title=title, title_justify="left")
    for column in ("R@10", "catalyzer", "µs", "faiss", "µs", "ratio", "ahead"):
        table.add_column(column, justify="left" if column in ("catalyzer", "faiss", "ahead") else "right", no_wrap=True)
    lines = []
    methods: dict[str, list[Point]] = {}
    for point in points:
        methods.setdefault(point.method, []).append(point)
    for recall in range(20, 100, 5):
        times = {method: time_for(series, recall, what) for method, series in methods.items()}
        sides = [{m: t for m, t in times.items() if m.startswith("catalyzer") == own} for own in (True, False)]
        (ours, our_time), (theirs, their_time) = (min(side.items(), key=lambda item: item[1]) for side in sides)
        if np.isinf([our_time, their_time]).all():
            break
        ahead = "catalyzer" if our_time < their_time else "faiss"
        ratio = "" if np.isinf([our_time, their_time]).any() else f"{their_time / our_time:.2f}×"
        cells = [
            (name, f"{t:,.0f}") if np.isfinite(t) else ("not reached", "")
            for name, t in ((ours, our_time), (theirs, their_time))
        ]
        table.add_row(str(recall), *cells[0], *cells[1], ratio, ahead)
        lines.append({"recall_at_10": recall, "catalyzer": cells[0], "faiss": cells[1], "ratio": ratio, "ahead": ahead})
    Console(width=110).print(table)
    return lines


@styled()
def draw(points: list[Point], title: str, path: Path) -> None:
    figure, axes = plt.subplots(1, 2, figsize=(6.6, 3.8), sharey=True)
    methods = list(dict.fromkeys(point.method for point in points))
    spare = iter(FAISS_LOOKS)
    looks = {
        m: LOOKS.get(m.split(", ")[-1], ("#666666", "X", "-")) if m.startswith("catalyzer") else next(spare) for m in methods
    }
    for side, what, label in zip(axes, ("together", "alone"), ("all queries at once", "one query at a time"), strict=True):
        for method in methods:
            series = [(getattr(p, what), p.recall_at_10) for p in points if p.method == method]
            color, marker, line = looks[method]
            side.plot(*zip(*series, strict=True), color=color, marker=marker, ls=line, label=method)
        side.set(xscale="log", xlabel="µs a query", title=label)
    axes[0].set_ylabel("recall@10, %")
    handles, labels = axes[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=3)
    figure.suptitle(title)
    figure.savefig(path)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("trained", type=Path, help="folder of a run with the lattice, or file of an index for L2")
    parser.add_argument(
        "--learn", type=Path, required=True, help="vectors that the lists, and faiss's codebooks, are learned from"
    )
    parser.add_argument("--base", type=Path, required=True, help="vectors that are searched")
    parser.add_argument("--queries", type=Path, required=True)
    parser.add_argument("--ivf", type=int, default=4096, help="lists (default: 4096)")
    parser.add_argument(
        "--nprobe", type=int, nargs="+", default=[1, 2, 4, 8, 16, 32, 64, 128], help="up to the number of lists"
    )
    parser.add_argument("--rerank", type=int, nargs="+", default=[0, 100, 500], help="candidates reranked (default: 0 100 500)")
    parser.add_argument("--learn-size", type=int, default=500_000, help="of the first learn vectors (default: 500,000)")
    parser.add_argument("--base-size", type=int, help="of the first base vectors (default: all)")
    parser.add_argument("--alone", type=int, default=300, help="queries searched one by one (default: 300)")
    parser.add_argument("--repeats", type=int, default=3, help="of the search of all queries; the median counts (default: 3)")
    parser.add_argument("--threads", type=int, default=numba.get_num_threads(), help="of both (default: all)")
    parser.add_argument("--out", type=Path, default=Path("outputs/benchmarks"), help="folder for ivf.json and ivf.png")
    args = parser.parse_args()
    numba.set_num_threads(args.threads)
    faiss.omp_set_num_threads(args.threads)
    torch.set_num_threads(args.threads)

    codec = load_codec(args.trained)
    learn = as_float32(open_vectors(args.learn)[: args.learn_size])
    base, queries = open_vectors(args.base, limit=args.base_size), as_float32(open_vectors(args.queries)[:])
    size = codec.quantizer.code_size
    title = f"{len(base):,} vectors in {size} bytes, {args.ivf:,} lists, {len(queries):,} queries, {args.threads} threads"
    print(title)
    truth = knn(queries, base, 1)[1]
    names = [f"IVF{args.ivf},PQ{size}", f"IVF{args.ivf},PQ{2 * size}x4fs"]
    theirs = {name: faiss_index(name, learn, base) for name in names}
    methods = searches(our_index(codec, learn, base, args.ivf), theirs, args.rerank if codec.decodes else [0])
    points = measure(methods, queries, truth, sorted(n for n in args.nprobe if n <= args.ivf), args.alone, args.repeats)
    print_points(points, title)
    together = compare(points, "together", "all queries at once: the fastest way to a recall")
    alone = compare(points, "alone", "one query at a time: the fastest way to a recall")
    args.out.mkdir(parents=True, exist_ok=True)
    report = {"title": title, "points": [asdict(p) for p in points], "together": together, "alone": alone}
    (args.out / "ivf.json").write_text(json.dumps(report, indent=2), encoding="utf-8")
    draw(points, title, args.out / "ivf.png")
    print(f"written to {args.out}/ivf.json and {args.out}/ivf.png")


if __name__ == "__main__":
    main()
