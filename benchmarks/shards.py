"""How fast vectors are encoded into shards and shards are searched, and what memory it takes, by the commands themselves.

    python benchmarks/shards.py outputs/RUN                                      # a million made vectors
    python benchmarks/shards.py outputs/RUN --n 1_000_000 10_000_000 100_000_000 --folder /large/disk

The vectors are random bytes of the run's dimension; neither command is faster or slower on others. Each command is a process,
whose memory is sampled: what is its own (anonymous), and all that is resident, pages of the mapped file included. What it takes
to start, measured on a thousand vectors, is left out of the rates.
"""

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
from rich.console import Console
from rich.table import Table

from catalyzer import TrainedRun

SRC = Path(__file__).parent.parent / "src"
START = 1_000  # vectors whose time is negligible compared with the start
BLOCK = 1 << 20  # vectors made at a time


def make(path: Path, n: int, dim: int) -> None:
    random = np.random.default_rng(n)
    with path.open("wb") as file:
        file.write(np.array([n, dim], "<i4").tobytes())
        for first in range(0, n, BLOCK):
            file.write(random.integers(0, 256, (min(BLOCK, n - first), dim), np.uint8).tobytes())


def measured(script: str, *overrides: str) -> tuple[float, float, float]:
    """Seconds, and peaks of anonymous and of all resident memory in MiB, of a command."""
    anonymous = resident = 0
    start = time.perf_counter()
    process = subprocess.Popen([sys.executable, str(SRC / script), *overrides], stderr=subprocess.PIPE)
    while process.poll() is None:
        status = Path(f"/proc/{process.pid}/status").read_text(encoding="ascii")
        if "RssAnon" in status:  # it has not ended in between
            anonymous = max(anonymous, int(status.split("RssAnon:")[1].split()[0]))
            resident = max(resident, int(status.split("VmRSS:")[1].split()[0]))
        time.sleep(0.02)
    seconds = time.perf_counter() - start
    if process.returncode:
        sys.exit(process.communicate()[1].decode())
    return seconds, anonymous / 1024, resident / 1024


def both(run: Path, folder: Path, n: int, dim: int, queries: int) -> dict[str, tuple[float, float, float]]:
    """What encoding n vectors and searching in them takes; removes the vectors and leaves the codes."""
    base, codes = folder / f"{n}.u8bin", folder / f"codes-{n}"
    make(base, n, dim)
    encoding = measured("encode.py", f"run={run}", f"input={base}", f"output={codes}")
    base.unlink()
    make(folder / "queries.u8bin", queries, dim)
    search = (f"codes={codes}", f"queries={folder / 'queries.u8bin'}", "k=100", "rerank=0", f"output={folder / 'found'}")
    return {"encode": encoding, "search": measured("search.py", *search)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path, help="folder of a run with the lattice")
    parser.add_argument("--n", type=int, nargs="+", default=[1_000_000], help="vectors (default: 1,000,000)")
    parser.add_argument("--queries", type=int, default=1_000, help="(default: 1,000)")
    parser.add_argument("--folder", type=Path, help="for vectors and codes; by default a temporary one")
    parser.add_argument("--out", type=Path, default=Path("outputs/benchmarks"), help="folder for shards.json")
    args = parser.parse_args()
    dim = TrainedRun.load(args.run).codec.transform.d_in
    table = Table(title=f"{dim} × uint8, {args.queries:,} queries, k = 100", title_justify="left")
    for column in ("vectors", "command", "per second", "seconds", "own memory", "resident"):
        table.add_column(column, justify="left" if column == "command" else "right", no_wrap=True)
    report = []
    with tempfile.TemporaryDirectory(dir=args.folder) as folder:
        starts = both(args.run, Path(folder), START, dim, args.queries)
        for n in args.n:
            for command, (seconds, own, resident) in both(args.run, Path(folder), n, dim, args.queries).items():
                rate = n / (seconds - starts[command][0])
                report.append({
                    "n": n, "command": command, "rate": rate, "seconds": seconds, "own_mib": own, "resident_mib": resident
                })  # fmt: skip
                row = (f"{n:,}", command, f"{rate:,.0f}", f"{seconds:,.1f}", f"{own:,.0f} MiB", f"{resident:,.0f} MiB")
                table.add_row(*row)
    Console().print(table)
    args.out.mkdir(parents=True, exist_ok=True)
    (args.out / "shards.json").write_text(json.dumps(report, indent=2), encoding="utf-8")


if __name__ == "__main__":
    main()
