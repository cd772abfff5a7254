"""The cost of threads on a busy machine: OpenMP's threads that spin while they wait, compared with ours that sleep.

    python benchmarks/busy.py

Each row is measured in a process of its own, on a quiet machine and with as many busy loops as there are processors.
Spinning is what OpenMP of GCC does by default (GOMP_SPINCOUNT=300000). Untrained networks take as long as trained ones.
"""

import argparse
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable

MEASURED = ("one query of 8,000, ms", "1,000 queries of 8,000, ms", "OPQ of 2,000 vectors, s", "gradient step, ms")
BUSY_LOOP = "while True: pass"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--measure", action="store_true", help=argparse.SUPPRESS)
    if parser.parse_args().measure:
        print(json.dumps(measured()))
        return
    processors = os.cpu_count() or 1
    print(f"{processors} processors\n{'':<28} {'machine':>8} {'spinning':>10} {'sleeping':>10} {'ratio':>6}", flush=True)
    for loops in (0, processors):
        busy = [subprocess.Popen([sys.executable, "-c", BUSY_LOOP]) for _ in range(loops)]
        try:
            spinning, sleeping = (in_a_process(**given) for given in ({"GOMP_SPINCOUNT": "300000"}, {}))
        finally:
            for process in busy:
                process.kill()
        for name, spins, sleeps in zip(MEASURED, spinning, sleeping, strict=True):
            machine = "busy" if loops else "quiet"
            print(f"{name:<28} {machine:>8} {spins:>10.2f} {sleeps:>10.2f} {spins / sleeps:>6.2f}", flush=True)


def in_a_process(**given: str) -> list[float]:
    kept = {key: value for key, value in os.environ.items() if not key.startswith(("OMP_", "GOMP_", "KMP_"))}
    command = [sys.executable, __file__, "--measure"]
    return json.loads(subprocess.run(command, env=kept | given, capture_output=True, text=True, check=True).stdout)


def measured() -> list[float]:
    import numpy as np

    from catalyzer import Catalyzer, CatalyzerIndex, Codec, Decoder, LatticeQuantizer, ProductQuantizer

    x = np.random.default_rng(0).normal(size=(8_000, 128)).astype(np.float32)
    network = Catalyzer(128, 24)
    index = CatalyzerIndex.from_codec(Codec(network.eval(), LatticeQuantizer(24), Decoder(24, 128).eval()))
    index.add(x)
    one = median_of(lambda: index.search(x[:1], 10), 50)
    many = median_of(lambda: index.search(x[:1000], 10, rerank=0), 10)
    opq = median_of(lambda: ProductQuantizer(128, 64, rotate=True).fit(x[:2000]), 1, warm=0)

    import torch

    batch = torch.from_numpy(x[:900])
    optimizer = torch.optim.SGD(network.train().parameters(), 0.01)

    def step() -> None:
        optimizer.zero_grad()
        network(batch).square().sum().backward()
        optimizer.step()

    return [1e3 * one, 1e3 * many, opq, 1e3 * median_of(step, 20)]


def median_of(work: Callable[[], object], times: int, warm: int = 3) -> float:
    for _ in range(warm):
        work()
    seconds = []
    for _ in range(times):
        start = time.perf_counter()
        work()
        seconds.append(time.perf_counter() - start)
    return sorted(seconds)[times // 2]


if __name__ == "__main__":
    main()
