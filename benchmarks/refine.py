"""What steps to where a vector decodes better, and several lattice points tried, bring and cost, on the networks of a run.

    python benchmarks/refine.py outputs/RUN --steps 0 1 2 4 --refine 1 4 16 --damping 0.3

The run needs a decoder. Codes are those of its validation split. A time is the least of three, of the first 2,048 vectors.
"""

import argparse
from dataclasses import replace
from itertools import product
from pathlib import Path

from encoding import microseconds
from rich.console import Console
from rich.table import Table

from catalyzer import TrainedRun, recall_at
from catalyzer.evaluation.benchmarking import squared_error
from catalyzer.nn import Descent
from catalyzer.nn.descent import DAMPING
from catalyzer.runs.build import load_dataset

TIMED, K = 2_048, 10


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path, help="folder of a run with a decoder")
    parser.add_argument("--steps", type=int, nargs="+", default=[0, 1, 2, 4])
    parser.add_argument("--refine", type=int, nargs="+", default=[1, 4, 16])
    parser.add_argument("--damping", type=float, nargs="+", default=[DAMPING], help="of the steps, see catalyzer.nn.Descent")
    options = parser.parse_args()

    run = TrainedRun.load(options.run)
    split = load_dataset(run.settings, run.metric).validation
    rerank = run.settings.rerank
    title = f"{len(split.base):,} vectors, {run.codec.quantizer.bits} bits, reranking {rerank}"
    table = Table("steps", "damping", "refine", "squared error", "R@1", f"R@{K}", "µs a vector", title=title)
    grid = [(steps, damping) for steps in options.steps for damping in (options.damping if steps else [DAMPING])]
    for (steps, damping), refine in product(grid, options.refine):
        codec = replace(run.codec, steps=steps, refine=refine)
        if steps:
            vars(codec)["descent"] = Descent(codec.decoder, codec.quantizer.spheres, damping)  # in place of its own
        took = microseconds(codec, split.base[:TIMED])
        codes = codec.encode(split.base, None)
        found = codec.search(split.queries, codes, K, rerank)[1]
        recalls = (f"{100 * recall_at(k, found, split.ground_truth):.1f}" for k in (1, K))
        error = f"{squared_error(codec, codes, split.base):,.5g}"
        table.add_row(str(steps), f"{damping:g}" if steps else "", str(refine), error, *recalls, f"{took:.1f}")
    Console().print(table)


if __name__ == "__main__":
    main()
