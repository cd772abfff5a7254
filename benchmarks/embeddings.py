"""A linear map + lattice compared with faiss's quantizers of the same size, in one run: recall and time.

    python benchmarks/embeddings.py --learn learn.fvecs --base base.fvecs --queries queries.fvecs --bytes 8 16 32 48 64

`linear` is `catalyzer.nn.Linear` and a lattice, in the dimension and with the gain that find most of the neighbours of learn
vectors held out.
For `rabitq`, `eden` and `sq` the dimension decides the size, so these come after principal components, as many as fit; the
bits a dimension are chosen on the same held-out vectors. `pq`, `opq`, `rq` and `lsq` take the vectors as they are. The time of
a choice is a column of its own. Nothing can be interrupted inside faiss, so choose the methods: `lsq` takes hours.

Each finds 100 neighbours of all queries at once; R@k is the share of queries whose nearest base vector is among the first k.
Runs (`--runs`) are measured in one stage and, with a decoder, with 500 candidates reranked; they must have been trained with
the same metric. At the end is, for each size, R@1 of `linear` divided by that of the best of faiss's.
"""

import argparse
import json
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import faiss
import numpy as np
from rich.console import Console
from rich.table import Table

from catalyzer import Codec, LatticeQuantizer, TrainedRun, knn, open_vectors, recall_at
from catalyzer.datasets import Split
from catalyzer.errors import CatalyzerError
from catalyzer.evaluation import neighbours_found
from catalyzer.files.array_cache import ArrayCache
from catalyzer.files.vectors import as_float32
from catalyzer.metric import Metric
from catalyzer.nn import Axes, Identity, Linear
from catalyzer.quantizers import (
    AdditiveQuantizer,
    EdenQuantizer,
    ProductQuantizer,
    Quantizer,
    RaBitQuantizer,
    ScalarQuantizer,
)
from catalyzer.runs.linear_maps import GAINS
from catalyzer.training import choose_dimension

K = 100
RERANKS = (0, 500)
HELD_OUT = 20_000  # learn vectors that choices are made on, at most a fifth
QUERIES = 2_000  # of these
RAW: dict[str, Callable[[int, int], Quantizer]] = {
    "pq": ProductQuantizer,
    "opq": lambda d, bits: ProductQuantizer(d, bits, rotate=True),
    "rq": AdditiveQuantizer,
    "lsq": lambda d, bits: AdditiveQuantizer(d, bits, local_search=True),
}
BY_DIMENSION: dict[str, tuple[Callable[[int, int], Quantizer], tuple[int, ...]]] = {
    "rabitq": (lambda dim, bits: RaBitQuantizer(dim, bits_per_dim=bits), tuple(range(1, 10))),
    "eden": (EdenQuantizer, tuple(range(1, 9))),
    "sq": (ScalarQuantizer, (4, 6, 8)),
}
METHODS = ("linear", *RAW, *BY_DIMENSION)


@dataclass
class Row:
    """What a method finds, in percent, and what it takes: seconds to choose and to fit, µs a vector and a query."""

    bytes: int
    method: str
    setting: str
    recall_at_1: float
    recall_at_10: float
    recall_at_100: float
    choosing: float
    fitting: float
    encoding: float
    search: float


class Projected:
    """A quantizer after principal components, which are not normalized: distances stay those of the vectors, but for the rest.

    It has of a `Codec` what is measured here.
    """

    def __init__(self, d: int, quantizer: Quantizer) -> None:
        self.quantizer = quantizer
        self.pca = faiss.PCAMatrix(d, quantizer.dim) if quantizer.dim < d else None

    def fit(self, x: np.ndarray) -> "Projected":
        if self.pca is not None:
            self.pca.train(x)
        self.quantizer.fit(self.mapped(x))
        return self

    def mapped(self, x: np.ndarray) -> np.ndarray:
        return x if self.pca is None else self.pca.apply(x)

    def encode(self, x: np.ndarray, description: str | None = None) -> np.ndarray:
        return self.quantizer.encode(self.mapped(x))

    def search(self, queries: np.ndarray, codes: np.ndarray, k: int, rerank: int = 0) -> tuple[np.ndarray, np.ndarray]:
        return self.quantizer.search(self.mapped(queries), codes, k)


@dataclass
class Data:
    train: np.ndarray  # without what is held out
    held_out: Split
    learn: np.ndarray
    base: np.ndarray
    queries: np.ndarray
    truth: np.ndarray

    def found(self, codec: "Codec | Projected") -> float:
        """The share of the 10 nearest of the vectors held out that a codec finds."""
        split = self.held_out
        return float(neighbours_found(codec, split.base, split.queries, split.ground_truth, 10).mean())  # type: ignore[arg-type]


def largest(make: Callable[[int, int], Quantizer], d: int, bits_per_dim: int, size: int) -> Quantizer | None:
    """With the most dimensions whose codes have at most so many bytes; None if not even one fits."""
    most = min(d, 8 * size // bits_per_dim)
    return next((q for dim in range(most, 0, -1) if (q := make(dim, bits_per_dim)).code_size <= size), None)


def fitted(method: str, size: int, data: Data) -> tuple[Codec | Projected, str, float, float]:
    """The codec, what was chosen, and the seconds of choosing and fitting."""
    d, start = data.learn.shape[1], time.perf_counter()
    setting = ""
    codec: Codec | Projected
    if method == "linear":
        dim = choose_dimension(data.train, data.held_out, 8 * size, ArrayCache(), tolerance=0.0)
        axes, shares = Axes.of(data.train, dim), {}
        for gain in GAINS:
            codec = Codec(Linear(d, dim, gain=bool(gain)).take(axes), LatticeQuantizer(dim, 8 * size, gain=gain))
            shares[gain] = data.found(codec)
        gain = max(shares, key=lambda each: shares[each])
        setting = f"{dim} dimensions, {GAINS[gain]}"
        chosen = time.perf_counter()
        codec = Codec(Linear(d, dim, gain=bool(gain)).adapt(data.learn), LatticeQuantizer(dim, 8 * size, gain=gain))
    elif method in RAW:
        chosen = start
        codec = Codec(Identity(d), RAW[method](d, 8 * size))
        codec.fit(data.learn)
    else:
        make, choices = BY_DIMENSION[method]
        tried = {bits: q for bits in choices if (q := largest(make, d, bits, size)) is not None}
        if not tried:
            sys.exit(f"{method} has no codes of {size} bytes; leave it out of --methods")
        found = {bits: data.found(Projected(d, q).fit(data.train)) for bits, q in tried.items()}
        bits = max(found, key=lambda each: found[each])
        setting = f"{tried[bits].dim} × {bits} bits"
        chosen = time.perf_counter()
        codec = Projected(d, make(tried[bits].dim, bits)).fit(data.learn)
    return codec, setting, chosen - start, time.perf_counter() - chosen


def measure(row: Row, codec: Codec | Projected, data: Data, reranks: tuple[int, ...] = (0,)) -> list[Row]:
    """The row, filled in, for each number of candidates that are reranked."""
    k = min(K, len(data.base))
    codec.search(data.queries[:1], codec.encode(data.base[:1], None), 1)  # compiled code is loaded, memory is there
    start = time.perf_counter()
    codes = codec.encode(data.base, None)
    encoding = 1e6 * (time.perf_counter() - start) / len(data.base)
    rows = []
    for rerank in reranks:
        start = time.perf_counter()
        ids = codec.search(data.queries, codes, k, rerank)[1]
        search = 1e6 * (time.perf_counter() - start) / len(data.queries)
        recalls = {f"recall_at_{rank}": 100 * recall_at(rank, ids, data.truth) for rank in (1, 10, 100)}
        name = f"rerank {rerank}" if len(reranks) > 1 else row.setting
        rows.append(replace(row, bytes=codes.shape[1], setting=name, encoding=encoding, search=search, **recalls))
    return rows


def show(rows: list[Row], title: str) -> None:
    table = Table(title=title, title_justify="left")
    for column in ("bytes", "method", "", "R@1", "R@10", "R@100", "choose, s", "fit, s", "encode, µs", "search, µs"):
        table.add_column(column, justify="left" if column in ("method", "") else "right", no_wrap=True)
    for row in rows:
        recalls = [f"{value:.1f}" for value in (row.recall_at_1, row.recall_at_10, row.recall_at_100)]
        times = [f"{value:,.1f}" for value in (row.choosing, row.fitting, row.encoding, row.search)]
        table.add_row(str(row.bytes), row.method, row.setting, *recalls, *times)
    Console(width=130).print(table)


def ratios(rows: list[Row], sizes: list[int]) -> dict[int, float]:
    """R@1 of linear in that of the best baseline, for each size that has both."""
    found = {}
    for size in sizes:
        ours = [row for row in rows if row.method == f"linear {size}"]
        theirs = [row for row in rows if row.method in {f"{name} {size}" for name in (*RAW, *BY_DIMENSION)}]
        best = max(theirs, key=lambda row: row.recall_at_1, default=None)
        if ours and best is not None and best.recall_at_1:
            found[size] = ours[0].recall_at_1 / best.recall_at_1
            print(f"{size} bytes: linear has {found[size]:.3f} times the R@1 of {best.method.split()[0]}, the best baseline")
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name in ("learn", "base", "queries"):
        parser.add_argument(f"--{name}", type=Path, required=True)
    parser.add_argument("--bytes", type=int, nargs="+", default=[8, 16, 32, 48, 64], help="sizes of codes")
    default = ["linear", "pq", "opq", "rq", "rabitq", "sq"]
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=default, help=f"default: {' '.join(default)}")
    parser.add_argument("--runs", type=Path, nargs="+", default=[], help="folders of runs to measure, too")
    parser.add_argument("--metric", choices=["l2", "cosine"], default="l2")
    parser.add_argument("--json", type=Path, help="file for the numbers")
    args = parser.parse_args()
    metric = Metric(args.metric)
    learn, base, queries = (
        as_float32(metric.stored(open_vectors(getattr(args, n)), n)[:]) for n in ("learn", "base", "queries")
    )
    runs = [(folder, TrainedRun.load(folder)) for folder in args.runs]
    for folder, run in runs:
        if run.metric.name != metric.name or run.d != learn.shape[1]:
            sys.exit(f"{folder} is a run for {run.metric.name} of {run.d} dimensions, not {metric.name} of {learn.shape[1]}")
    order = np.random.default_rng(0).permutation(len(learn))
    learn = learn[order]  # some learn from the first vectors only
    held = min(HELD_OUT, len(learn) // 5)
    few = min(QUERIES, held // 5)
    held_out = Split(learn[few:held], learn[:few])
    data = Data(learn[held:], held_out, learn, base, queries, knn(queries, base, 1)[1])
    title = f"{len(learn):,} learn, {len(base):,} base vectors of {base.shape[1]} dimensions, {len(queries):,} queries"
    title += f", {metric.name}"
    print(f"{title}; {faiss.omp_get_max_threads()} threads", flush=True)
    rows, compared = [], []
    for size in args.bytes:
        for method in args.methods:
            print(f"{size} bytes: {method}", file=sys.stderr, flush=True)
            codec, setting, choosing, fitting = fitted(method, size, data)
            row = Row(size, method, setting, 0, 0, 0, choosing, fitting, 0, 0)
            measured = measure(row, codec, data)
            rows += measured
            compared += [replace(each, method=f"{method} {size}") for each in measured]
    for folder, run in runs:
        print(f"run {folder}", file=sys.stderr, flush=True)
        row = Row(0, folder.name, "rerank 0", 0, 0, 0, 0, run.seconds + run.fitting, 0, 0)
        rows += measure(row, run.codec, data, RERANKS if run.codec.decodes else (0,))
    show(rows, title)
    found = ratios(compared, args.bytes)
    if args.json is not None:
        args.json.parent.mkdir(parents=True, exist_ok=True)
        report = {"title": title, "rows": [asdict(row) for row in rows], "ratios": found}
        args.json.write_text(json.dumps(report, indent=2), encoding="utf-8")


if __name__ == "__main__":
    try:
        main()
    except CatalyzerError as error:
        sys.exit(str(error))
