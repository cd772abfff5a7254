"""Recall by epochs of an index's training, on a small part of a folder in BigANN's layout.

python benchmarks/epochs.py FOLDER
"""

import sys
import time
from pathlib import Path

from catalyzer import CatalyzerIndex, knn, open_vectors, recall_at

EPOCHS = (5, 10, 20, 40)
LEARN, BASE, QUERIES = 30_000, 50_000, 2_000
HIDDEN = 256


def main() -> None:
    folder = Path(sys.argv[1])
    learn = open_vectors(folder / "bigann_learn.bvecs", LEARN)
    base = open_vectors(folder / "bigann_base.bvecs", BASE)
    queries = open_vectors(folder / "bigann_query.bvecs", QUERIES)
    truth = knn(queries, base, 1)[1]
    for epochs in EPOCHS:
        start = time.perf_counter()
        index = CatalyzerIndex(hidden=HIDDEN).fit(learn, epochs=epochs)
        seconds = time.perf_counter() - start
        index.add(base)
        ids = index.search(queries, 100)[1]
        recalls = ", ".join(f"R@{k} {100 * recall_at(k, ids, truth):.1f}" for k in (1, 10, 100))
        print(f"{epochs} epochs: {recalls}, {seconds:.0f} s of training")


if __name__ == "__main__":
    main()
