"""The lattice against faiss, side by side in one run: nearest point, codes, scan, memory, and where the machine's limits lie.

    python benchmarks/lattice.py                        # the whole table, a few minutes on two cores
    python benchmarks/lattice.py --n 100_000 --quick    # without the long scans

Each pair is timed in turn, ours then theirs, several times; the medians make the ratio. Both write into
memory that is there. Codes are of random points of the sphere, the hardest case: nothing stands out for a scan to find.
"""

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

import faiss
import matplotlib.pyplot as plt
import numba
import numpy as np
from rich.console import Console
from rich.table import Table

from catalyzer import SphericalLattice, scan
from catalyzer.runs.figures import styled

FIRST_CALL = """
import time; start = time.perf_counter()
import numpy as np
from catalyzer import SphericalLattice
lattice = SphericalLattice(24, 79)
lattice.decode(lattice.encode(np.ones((1, 24), np.float32)))
print(time.perf_counter() - start)
"""


@dataclass
class Row:
    """Medians in seconds; `aim` is the ratio theirs / ours that the project set itself, if it did.

    `operations` and `bytes` are what one run of ours has to do and to move at least; they place it in the figure.
    """

    what: str
    ours: float
    theirs: float
    aim: float | None
    operations: float = 0.0
    bytes: float = 0.0

    @property
    def ratio(self) -> float:
        return self.theirs / self.ours


def medians(ours: Callable[[], object], theirs: Callable[[], object], repeats: int) -> tuple[float, float]:
    """Time both in turn; the first call of each is not counted."""
    times: tuple[list[float], list[float]] = ([], [])
    for turn in range(repeats + 1):
        for run, of_run in zip((ours, theirs), times, strict=True):
            time.sleep(0.2)  # until the other side's idle threads have stopped spinning
            start = time.perf_counter()
            run()
            if turn:
                of_run.append(time.perf_counter() - start)
    return statistics.median(times[0]), statistics.median(times[1])


def sphere(n: int, dim: int, seed: int) -> np.ndarray:
    y = np.random.default_rng(seed).standard_normal((n, dim), np.float32)
    y /= np.linalg.norm(y, axis=1, keepdims=True)
    return y


def codec(lattice: SphericalLattice, n: int, repeats: int) -> list[Row]:
    """Nearest point, encoding (which starts with it) and decoding against `faiss.ZnSphereCodec`."""
    dim, y = lattice.dim, sphere(n, lattice.dim, 0)
    theirs = faiss.ZnSphereCodec(dim, lattice.radius_sq)
    points, dots, numbers = np.empty((n, dim), np.float32), np.empty(n, np.float32), np.empty(n, np.uint64)
    p = faiss.swig_ptr
    codes = lattice.encode(y)
    z, x = np.empty((n, dim), np.int16), np.empty((n, dim), np.float32)
    nearest = medians(lambda: lattice.quantize(y, out=z), lambda: theirs.search_multi(n, p(y), p(points), p(dots)), repeats)
    dots_of_ours = (y.astype(np.float64) * z).sum(axis=1)
    dots_of_theirs = (y.astype(np.float64) * points).sum(axis=1)
    worse = int((dots_of_ours < dots_of_theirs - 1e-12).sum())
    print(
        f"nearest points of {n:,} vectors: {worse} worse than faiss's, {(dots_of_ours > dots_of_theirs + 1e-12).sum()} better"
    )
    encode = medians(lambda: lattice.encode(y), lambda: theirs.encode_multi(n, p(y), p(numbers)), repeats)
    decode = medians(lambda: lattice.decode(codes, out=x), lambda: theirs.decode_multi(n, p(numbers), p(points)), repeats)
    # Two a comparator, one a prefix sum, two a level of an atom and four to keep the two best, three a threshold.
    levels = int(lattice._atoms.levels.sum())
    operations = n * (2 * len(lattice._atoms.network) + dim + 2 * levels + 4 * len(lattice.atoms) + 12 * dim)
    size = lattice.code_size
    return [
        Row("nearest point", *nearest, 10, operations, n * dim * 6.0),
        Row("nearest point + encode", *encode, 10, operations, n * (dim * 4.0 + size)),
        Row("decode", *decode, 8, n * len(lattice.numbering.widths) * 12.0, n * (dim * 4.0 + size)),
    ]


def scans(lattice: SphericalLattice, n: int, repeats: int, queries: int) -> list[Row]:
    """The scan against `faiss.IndexPQ` of the same bytes a code on 128-dimensional vectors, k = 100."""
    codes, k = lattice.encode(sphere(n, lattice.dim, 1)), 100
    random = np.random.default_rng(2)
    pq = faiss.IndexPQ(128, lattice.code_size, 8)
    pq.train(random.standard_normal((20_000, 128), np.float32))
    of_theirs = random.integers(0, 256, n * lattice.code_size, np.uint8)
    q, q128 = sphere(queries, lattice.dim, 3), random.standard_normal((queries, 128), np.float32)
    rows = []
    for size, nq in ((n // 100, 1), (n // 100, 100), (n // 10, 1), (n // 10, 100), (n, 1), (n, 100), (n, queries)):
        faiss.copy_array_to_vector(of_theirs[: size * lattice.code_size], pq.codes)
        pq.ntotal = size
        times = medians(
            lambda size=size, nq=nq: scan.search(lattice, q[:nq], codes[:size], k),  # type: ignore[misc]
            lambda nq=nq: pq.search(q128[:nq], k),  # type: ignore[misc]
            1 if nq >= 1000 else repeats,
        )
        label = f"scan, {nq:,} quer{'y' if nq == 1 else 'ies'} × {size:,} codes"
        aim = {(n, 1): 1 / 2.5, (n, queries): 4.0}.get((size, nq))
        rows.append(Row(label, *times, aim, 2.0 * nq * size * lattice.dim, size * float(lattice.code_size)))
    return rows


def first_call() -> float:
    """Seconds from the start of a new process's imports to its first code, with numba's cache on disk."""
    times = [
        float(subprocess.run([sys.executable, "-c", FIRST_CALL], capture_output=True, check=True).stdout) for _ in range(4)
    ]
    return statistics.median(times[1:])  # the first may have compiled


def memory_of_scan(lattice: SphericalLattice, n: int) -> tuple[float, float]:
    """Peak anonymous memory, in MiB, that scanning n memory-mapped codes adds for one query and for a hundred."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "codes"
        with path.open("wb") as file:
            for first in range(0, n, 1 << 20):
                file.write(lattice.encode(sphere(min(1 << 20, n - first), lattice.dim, first)).tobytes())
        codes = np.memmap(path, np.uint8, "r", shape=(n, lattice.code_size))
        peaks = []
        for nq in (1, 100):
            queries = sphere(nq, lattice.dim, 3)
            scan.search(lattice, queries, codes[: 1 << 20], 100)
            with PeakMemory() as peak:
                scan.search(lattice, queries, codes, 100)
            peaks.append(peak.mib)
        return peaks[0], peaks[1]


class PeakMemory:
    """Samples the anonymous resident memory, which leaves the pages of mapped files out, as Linux reports it."""

    mib = 0.0

    def __enter__(self) -> "PeakMemory":
        self._before, self._stop = self._now(), threading.Event()
        self._thread = threading.Thread(target=self._watch)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()

    def _watch(self) -> None:
        while not self._stop.wait(0.02):
            self.mib = max(self.mib, (self._now() - self._before) / 1024)

    @staticmethod
    def _now() -> int:
        status = Path("/proc/self/status").read_text(encoding="ascii")
        return int(status.split("RssAnon:")[1].split()[0])


def machine(repeats: int) -> tuple[float, float]:
    """Bytes a second of a large copy (read and written), and single-precision operations a second of a matrix product."""
    source = np.ones(1 << 26, np.float32)
    target, a = np.zeros_like(source), np.ones((2048, 2048), np.float32)
    copy, product = medians(lambda: np.copyto(target, source), lambda: a @ a, repeats)
    return 2 * source.nbytes / copy, 2 * 2048**3 / product


@styled()
def draw(rows: list[Row], bandwidth: float, arithmetic: float, title: str, path: Path) -> None:
    """A roofline: operations a second against operations a byte, under what the machine can do at most."""
    figure, axes = plt.subplots(figsize=(5.2, 5))
    rows = [row for row in rows if row.operations and (row.aim or "scan" not in row.what)]
    intensity = np.array([row.operations / row.bytes for row in rows])
    x = np.geomspace(intensity.min() / 4, intensity.max() * 4, 200)
    axes.plot(x, np.minimum(x * bandwidth, arithmetic) / 1e9, color="0.4", label="the machine: memory copy, matrix product")
    for i, row in enumerate(rows):
        color = f"C{i}"
        achieved = np.array([row.operations / row.ours, row.operations / row.theirs]) / 1e9
        axes.plot([intensity[i]] * 2, achieved, color=color)
        axes.plot(intensity[i], achieved[0], "o", color=color, label=f"{row.what} ({row.ratio:.1f}×)")
        axes.plot(intensity[i], achieved[1], "x", color=color)
    axes.set(xscale="log", yscale="log", xlabel="operations per byte of memory traffic", ylabel="10⁹ operations per second")
    axes.set_title(f"{title}\n● ours   × faiss doing the same")
    figure.legend(loc="outside lower center")
    figure.savefig(path)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--n", type=int, default=1_000_000, help="vectors and codes (default: 1,000,000)")
    parser.add_argument("--dim", type=int, default=24)
    parser.add_argument("--radius-sq", type=int, default=79)
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--threads", type=int, default=numba.get_num_threads(), help="of both (default: all)")
    parser.add_argument("--quick", action="store_true", help="leave out 10,000 queries and the scan of 100 million codes")
    parser.add_argument("--out", type=Path, default=Path("outputs/benchmarks"), help="folder for lattice.json and lattice.png")
    args = parser.parse_args()
    numba.set_num_threads(args.threads)
    faiss.omp_set_num_threads(args.threads)

    lattice = SphericalLattice(args.dim, args.radius_sq)
    title = f"{args.n:,} vectors, dim {args.dim}, r² {args.radius_sq} ({lattice.bits} bits), {args.threads} threads"
    print(title)
    rows = codec(lattice, args.n, args.repeats)
    rows += scans(lattice, args.n, args.repeats, 200 if args.quick else 10_000)
    start = first_call()
    table = Table(title=title, title_justify="left")
    for column in ("what", "ours", "faiss", "ratio", "aim"):
        table.add_column(column, justify="left" if column == "what" else "right", no_wrap=True)
    for row in rows:
        unit, scale = ("ns/vector", args.n / 1e9) if "scan" not in row.what else ("ms", 1e-3)
        times = [f"{seconds / scale:,.1f} {unit}" for seconds in (row.ours, row.theirs)]
        table.add_row(row.what, *times, f"{row.ratio:.2f}×", f"≥ {row.aim:.2g}×" if row.aim else "")
    table.add_row("first call in a new process", f"{start:.2f} s", "", "", "< 2 s")
    report = {"title": title, "rows": [{**asdict(row), "ratio": row.ratio} for row in rows], "first_call_seconds": start}
    if not args.quick:
        one, hundred = memory_of_scan(lattice, 100_000_000)
        table.add_row("memory of scanning 100M mapped codes", f"{max(one, hundred):,.0f} MiB", "", "", "< 1,024 MiB")
        report["scan_100m_mib"] = {"1 query": one, "100 queries": hundred}
    report["bandwidth"], report["arithmetic"] = machine(args.repeats)
    Console().print(table)

    args.out.mkdir(parents=True, exist_ok=True)
    (args.out / "lattice.json").write_text(json.dumps(report, indent=2), encoding="utf-8")
    draw(rows, report["bandwidth"], report["arithmetic"], title, args.out / "lattice.png")
    print(f"written to {args.out}/lattice.json and {args.out}/lattice.png")


if __name__ == "__main__":
    main()
