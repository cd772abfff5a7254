"""An epoch of our training against a plain loop, side by side in one run, and what Lightning costs a step.

    python benchmarks/training.py                                     # the bundled dataset, a few minutes on two cores
    python benchmarks/training.py learn.bvecs --n 100_000 --epochs 8  # vectors of your own, the last of them held out

The plain loop is what section 5.2 says and no more: batches of 64, three forward passes a step, in float32, the 50th neighbour
of f(x) as negative by an HNSW graph of all mapped vectors (faiss), SGD in steps. Ours is `src/train.py` with its defaults. Both
have the same network, the same positives, mined beforehand, and the same epochs, and are compared by recall@10 of the lattice's
codes on vectors that were held out.
"""

import argparse
import logging
import statistics
import tempfile
import time
from dataclasses import dataclass
from functools import partial
from typing import Any

import faiss
import numpy as np
import pytorch_lightning as pl
import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor

from catalyzer import Catalyzer, KoLeoLoss, LatticeQuantizer, RankLoss, knn, open_vectors, recall_at
from catalyzer.codec import Codec
from catalyzer.datasets import Demo, Split
from catalyzer.files.array_cache import ArrayCache
from catalyzer.neighbors import knn_graph
from catalyzer.nn import multiplies_bfloat16
from catalyzer.training import CatalyzerTraining, Decay, TripletData
from catalyzer.training.epoch_report import quiet_lightning
from catalyzer.training.schedule import PAPER

D_OUT, K_POS = 24, 10
QUERIES = 2_000
OURS = {  # conf/settings.yaml
    "optimizer": partial(torch.optim.SGD, lr=0.2, momentum=0.9),
    "scheduler": partial(Decay, decay=((0.5, 0.5), (0.7, 0.2), (0.85, 0.05), (0.95, 0.01))),
}
NATIVE = "bf16-mixed" if multiplies_bfloat16(torch.device("cpu")) else "32-true"


@dataclass
class Epochs:
    """Seconds of each epoch, and recall@10 in the end."""

    mining: list[float]
    steps: list[float]
    recall: float


class Clock(pl.Callback):
    """When the steps of each epoch began and ended."""

    def __init__(self) -> None:
        self.steps: list[float] = []

    def on_train_batch_start(self, trainer: pl.Trainer, module: Any, batch: Any, batch_idx: int) -> None:
        if batch_idx == 0:
            self.start = time.perf_counter()

    def on_train_batch_end(self, trainer: pl.Trainer, module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        if trainer.is_last_batch:
            self.steps.append(time.perf_counter() - self.start)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("vectors", nargs="?", help="learn vectors; by default the bundled dataset's")
    parser.add_argument("--n", type=int, default=100_000, help="vectors to train on, at most; of the rest as many are held out")
    parser.add_argument("--epochs", type=int, default=4)
    arguments = parser.parse_args()
    logging.getLogger("catalyzer").setLevel(logging.WARNING)
    quiet_lightning()
    with tempfile.TemporaryDirectory() as folder:
        compare(read(arguments.vectors, arguments.n), arguments.epochs, ArrayCache(folder))


def read(path: str | None, n: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Training vectors, and a base and queries that are held out."""
    if path is None:
        with tempfile.TemporaryDirectory() as folder:
            demo = Demo(train_size=min(n, 45_000), validation_base_size=14_000, validation_queries_size=QUERIES)
            benchmark = demo.load(ArrayCache(folder))
            return benchmark.train, benchmark.validation.base[:], benchmark.validation.queries
    vectors = open_vectors(path)
    n = min(n, len(vectors) // 2)
    held_out = vectors[n : 2 * n]
    return vectors[:n], held_out[QUERIES:], held_out[:QUERIES]


def compare(data: tuple[np.ndarray, np.ndarray, np.ndarray], epochs: int, cache: ArrayCache) -> None:
    """Train both in turn and print the table."""
    train, base, queries = data
    truth = knn(queries, base, 1)[1]
    start = time.perf_counter()
    positives = knn_graph(train, K_POS)
    print(f"{len(train):,} vectors of {train.shape[1]} dimensions, positives mined in {time.perf_counter() - start:.1f} s")

    def recall(transform: Catalyzer) -> float:
        codec = Codec(transform.eval(), LatticeQuantizer(D_OUT, 64))
        return recall_at(10, codec.search(queries, codec.encode(base), 10)[1], truth)

    torch.manual_seed(0)
    plain = Catalyzer(train.shape[1], D_OUT).adapt(train)
    mining, steps = plain_loop(plain, train, positives, epochs)
    theirs = Epochs(mining, steps, recall(plain))

    triplets = TripletData(
        train,
        Split(base, queries, cache=cache),
        batch_size=128,
        k_pos=K_POS,
        k_neg=10,
        cache=cache,
    )
    torch.manual_seed(0)
    own = Catalyzer(train.shape[1], D_OUT).adapt(train)
    training = CatalyzerTraining(Codec(own, LatticeQuantizer(D_OUT, 64)), **OURS)
    clock, mined = Clock(), []
    mine = triplets.mine

    def timed_mine(*args: Any) -> None:
        start = time.perf_counter()
        mine(*args)
        mined.append(time.perf_counter() - start)

    triplets.mine = timed_mine  # type: ignore[method-assign]
    trainer = make_trainer(clock, epochs)
    trainer.fit(training, datamodule=triplets)
    ours = Epochs(mined, clock.steps, recall(own))

    table = Table("medians", "mining s", "steps s", "epoch s", f"R@10 after {epochs}", title="an epoch", title_justify="left")
    totals = []
    for name, measured in (("plain loop", theirs), ("ours", ours)):
        parts = [statistics.median(measured.mining), statistics.median(measured.steps)]
        totals.append(sum(parts))
        table.add_row(name, *(f"{s:.1f}" for s in (*parts, sum(parts))), f"{100 * measured.recall:.1f}")
    console = Console(width=100)
    console.print(table)
    print(f"ours takes {totals[1] / totals[0]:.2f} of the plain loop's time (aim: at most 0.5)")
    rate = triplets.steps * 128 * 3 * operations(own) / statistics.median(ours.steps)
    peak = peak_rate()
    print(f"arithmetic: {rate / 1e9:,.0f} of {peak / 1e9:,.0f} GFLOP/s that a large product reaches, {rate / peak:.0%}")
    bare = bare_steps(training, triplets)
    overhead = statistics.median(ours.steps) / bare - 1
    print(
        f"Lightning: a bare loop over the same steps takes {bare:.1f} s an epoch, so it costs {overhead:.1%} (aim: at most 5%)"
    )


def plain_loop(f: Catalyzer, train: np.ndarray, positives: np.ndarray, epochs: int) -> tuple[list[float], list[float]]:
    """Seconds of mining and of steps of each epoch."""
    x = torch.from_numpy(train).float()
    rank_loss, koleo = RankLoss(), KoLeoLoss()
    n, batch = len(x), 64
    optimizer = torch.optim.SGD(f.parameters(), lr=0.1, momentum=0.9)  # section 5.2
    schedule = Decay(optimizer, epochs * (n // batch), PAPER)
    random = np.random.default_rng(0)
    mining, steps = [], []
    for _ in range(epochs):
        start = time.perf_counter()
        f.eval()
        with torch.inference_mode():
            latent = torch.cat([f(block) for block in x.split(1024)]).numpy()
        index = faiss.IndexHNSWFlat(D_OUT, 16)
        index.hnsw.efSearch = 64
        index.add(latent)
        negative = torch.from_numpy(index.search(latent, 51)[1][:, -1])
        positive = torch.from_numpy(positives[np.arange(n), random.integers(K_POS, size=n)])
        mining.append(time.perf_counter() - start)
        start = time.perf_counter()
        f.train()
        for rows in torch.from_numpy(random.permutation(n))[: n - n % batch].split(batch):
            anchor, near, far = f(x[rows]), f(x[positive[rows]]), f(x[negative[rows]])
            loss = rank_loss(anchor, near, far) + 0.02 * koleo(anchor)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
        steps.append(time.perf_counter() - start)
    return mining, steps


def make_trainer(clock: Clock, epochs: int) -> pl.Trainer:
    """As `catalyzer.training.fit` makes it, without checkpoints and validation."""
    return pl.Trainer(
        max_epochs=epochs,
        accelerator="cpu",
        precision=NATIVE,
        callbacks=[clock],
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        limit_val_batches=0,
    )


def bare_steps(training: CatalyzerTraining, data: TripletData) -> float:
    """Seconds that the steps of the last epoch take again in a loop of our own, with the same losses, optimizer and data."""
    f = training.transform.train()
    optimizer = training.make_optimizer(f.parameters())
    schedule, _ = training.schedule(optimizer, data.steps)
    rank_loss, koleo = RankLoss(), KoLeoLoss()
    start = time.perf_counter()
    for number in data.train_dataloader():
        triplets: Tensor = data.batch(data.anchors(number))
        with torch.autocast("cpu", torch.bfloat16, enabled=NATIVE != "32-true"):
            anchor, near, far = f(triplets.flatten(0, 1)).chunk(3)
            loss = rank_loss(anchor, near, far) + 0.02 * koleo(anchor)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
    return time.perf_counter() - start


def operations(f: Catalyzer) -> int:
    """Floating-point operations of a vector's forward and backward pass: two a weight forward, four backward."""
    return 6 * sum(layer.weight.numel() for layer in f.layers if isinstance(layer, torch.nn.Linear))


def peak_rate() -> float:
    """Operations a second of a large matrix product in the precision that the training multiplies in; the best of several."""
    dtype = torch.bfloat16 if NATIVE != "32-true" else torch.float32
    a = torch.randn(2048, 2048, dtype=dtype)
    seconds = []
    for _ in range(10):
        start = time.perf_counter()
        a @ a
        seconds.append(time.perf_counter() - start)
    return 2 * 2048**3 / min(seconds)


if __name__ == "__main__":
    main()
