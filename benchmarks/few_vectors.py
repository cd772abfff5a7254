"""How many vectors an index needs to learn from: recall after training on few, compared with PQ and PCA + lattice.

    python benchmarks/few_vectors.py data/photosift --sizes 500 2000 6000

The folder is in BigANN's layout. Everything learns from the same vectors, spread evenly over the learn set, and is measured
on the first `--base` base vectors. R@1/R@10/R@100.
"""

import argparse
import time
from pathlib import Path

import numpy as np

from catalyzer import Codec, LatticeQuantizer, open_vectors
from catalyzer.evaluation import measure
from catalyzer.index import CatalyzerIndex
from catalyzer.neighbors import knn
from catalyzer.nn import PCA, Identity
from catalyzer.quantizers import ProductQuantizer


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="with bigann_learn.bvecs, bigann_base.bvecs and bigann_query.bvecs")
    parser.add_argument("--sizes", type=int, nargs="+", default=[500, 1000, 2000, 4000, 8000, 16000], help="of the learn set")
    parser.add_argument("--base", type=int, default=20_000)
    parser.add_argument("--queries", type=int, default=2_000)
    parser.add_argument("--bits", type=int, default=64)
    parser.add_argument("--epochs", type=int, default=20)
    options = parser.parse_args()
    learn = open_vectors(options.folder / "bigann_learn.bvecs")
    base = open_vectors(options.folder / "bigann_base.bvecs")[: options.base].astype(np.float32)
    queries = open_vectors(options.folder / "bigann_query.bvecs")[: options.queries].astype(np.float32)
    truth = knn(queries, base, 1)[1]
    print(f"{len(base):,} base vectors, {len(queries):,} queries, {options.bits} bits, {options.epochs} epochs", flush=True)
    print(f"{'learn':>8} {'catalyzer':>18} {'PQ':>18} {'PCA + lattice':>18} {'fit, s':>8}", flush=True)
    for size in options.sizes:
        step = len(learn) // size
        x = np.concatenate([learn[row : row + 1] for row in range(0, step * size, step)]).astype(np.float32)
        start = time.perf_counter()
        index = CatalyzerIndex(bits=options.bits).fit(x, epochs=options.epochs)
        seconds = time.perf_counter() - start
        index.add(base)
        found = index.search(queries, k=100)[1]
        cells = ["/".join(f"{100 * np.mean((found[:, :k] == truth).any(axis=1)):.1f}" for k in (1, 10, 100))]
        pq = ProductQuantizer(x.shape[1], options.bits)
        for codec in (Codec(Identity(x.shape[1]), pq), Codec(PCA(x.shape[1], 24).adapt(x), LatticeQuantizer(24, options.bits))):
            codec.fit(x)
            recall = measure("", codec, base, queries, truth)[0].recall
            cells.append("/".join(f"{100 * recall[k]:.1f}" for k in (1, 10, 100)))
        print(f"{size:>8,} {cells[0]:>18} {cells[1]:>18} {cells[2]:>18} {seconds:>8.0f}", flush=True)


if __name__ == "__main__":
    main()
