"""What a GPU does, beside the CPU of the same machine: training, mining, codes and scans, each within a time of its own.

    python benchmarks/gpu.py                          # all, on the first GPU, in less than eight minutes
    python benchmarks/gpu.py --data learn.bvecs       # your vectors instead of made-up ones
    python benchmarks/gpu.py --only epoch step-graph  # some steps; --help lists them
    python benchmarks/gpu.py --cpu-only --size 4000   # a dry run without a GPU

It prints a Markdown table, and writes the same as JSON. Each step is a process of its own, so that one that fails or takes too
long says so in its row, and the others go on. The networks are those of `experiment=decoder`, not trained where that does not
matter for the time: batches of 256, the 12th neighbour of f(x) as negative, AdamW, 24 dimensions, 64 bits. Times of a GPU are
taken when it has finished.
"""

import argparse
import json
import os
import platform
import signal
import statistics
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, NoReturn

import numpy as np

SIZE, DIM = 500_000, 128
D_OUT, BITS, HIDDEN = 24, 64, 768
BATCH, K_POS, K_NEG = 256, 10, 12
K = 100  # codes that a scan finds for each query
WARM, TIMED = 20, 300  # training steps on a GPU; the loss after them is the same for all ways to compute it, but for rounding
GOAL = 5.0  # seconds of an epoch on an H100, mining included
MADE_UP = "made-up vectors like SIFT's: bytes of random ReLU features of 16 random numbers"


@dataclass
class Row:
    """A measurement, or why there is none.

    Attributes:
        step: that it is of.
        what: was done.
        device: "gpu" or "cpu".
        seconds: it took; None where it failed.
        count: of what it was done to.
        unit: name of one of these.
        gpu_gib: most memory that torch's tensors took on the GPU.
        host_gib: most resident memory of the process so far.
        note: anything else, or the error.
    """

    step: str
    what: str
    device: str
    seconds: float | None = None
    count: int = 1
    unit: str = ""
    gpu_gib: float | None = None
    host_gib: float | None = None
    note: str = ""

    def __str__(self) -> str:
        time_ = "" if self.seconds is None else readable(self.seconds)
        each = "" if self.seconds is None or not self.unit else f"{readable(self.seconds / self.count)} a {self.unit}"
        memory = ("" if gib is None else f"{gib:.2f}" for gib in (self.gpu_gib, self.host_gib))
        return "| " + " | ".join([self.what, self.device, time_, each, *memory, self.note.replace("|", "/")]) + " |"


HEAD = "| what | on | time | each | GPU GiB | host GiB | note |\n|---|---|---|---|---|---|---|"


def readable(seconds: float) -> str:
    """A duration with three digits.

    >>> readable(12.345), readable(0.0012), readable(8.1e-8)
    ('12.3 s', '1.20 ms', '81.0 ns')
    """
    unit, scale = next(((u, s) for u, s in (("s", 1.0), ("ms", 1e-3), ("µs", 1e-6)) if seconds >= s), ("ns", 1e-9))
    value = seconds / scale
    return f"{value:.{max(0, 2 - int(np.log10(max(value, 1))))}f} {unit}"


@dataclass
class Work:
    """What the process of a step is given, and where it leaves its rows."""

    step: str
    device: str
    folder: Path
    vectors: str
    size: int
    started: float = field(default_factory=time.perf_counter)

    @property
    def cuda(self) -> bool:
        return self.device == "gpu"

    @property
    def torch_device(self) -> str:
        return "cuda" if self.cuda else "cpu"

    def learn(self) -> np.ndarray:
        """`(n, d)` vectors in the file's dtype."""
        from catalyzer import open_vectors

        return open_vectors(self.vectors, self.size)[:]

    def row(self, what: str, seconds: float | None, count: int = 1, unit: str = "", note: str = "", **more: Any) -> None:
        """Leave a row at once: what comes after it may be stopped."""
        row = Row(self.step, what, self.device, seconds, count, unit, note=note, **more)
        if self.cuda and row.gpu_gib is None:
            import torch

            row.gpu_gib = torch.cuda.max_memory_allocated() / 2**30
            torch.cuda.reset_peak_memory_stats()
        row.host_gib = peak_gib()
        with (self.folder / f"{self.step}.jsonl").open("a", encoding="utf-8") as file:
            file.write(json.dumps(asdict(row)) + "\n")

    def seconds(self, call: Callable[[], object], repeats: int = 3) -> float:
        """Median time of a call, after one that warms up."""
        call()
        times = []
        for _ in range(repeats):
            self.wait()
            start = time.perf_counter()
            call()
            self.wait()
            times.append(time.perf_counter() - start)
        return statistics.median(times)

    def wait(self) -> None:
        """Until the GPU has done what it was told."""
        if self.cuda:
            import torch

            torch.cuda.synchronize()


def peak_gib() -> float:
    """Most resident memory of this process so far; where the system does not say, that of now."""
    try:
        import resource
    except ImportError:  # Windows
        import psutil

        return psutil.Process().memory_info().rss / 2**30
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024) / 2**30


# ---- the steps, each in a process of its own; what they import would slow the others down


def machine(work: Work) -> None:
    """Large products and copies, by which the other times can be judged."""
    import torch

    device, n = work.torch_device, 8192 if work.cuda else 1024
    a = torch.randn(n, n, device=device)
    for dtype in (torch.float32, torch.bfloat16):
        b = a.to(dtype)
        seconds = work.seconds(lambda b=b: b @ b)  # type: ignore[misc]
        work.row(f"product of {n} × {n} matrices, {dtype}", seconds, note=f"{2 * n**3 / seconds / 1e12:.2f} TFLOP/s")
    seconds = work.seconds(a.clone)
    work.row("copy on the device", seconds, note=f"{2 * a.nbytes / seconds / 1e9:.0f} GB/s, read and written")
    if work.cuda:
        host = torch.randn(n, n)
        seconds = work.seconds(lambda: host.to(device))
        work.row("copy to the device", seconds, note=f"{a.nbytes / seconds / 1e9:.1f} GB/s from memory that is not pinned")


def loops(work: Work) -> None:
    """Compile the CPU's loops, once on a machine, so that no other step has to."""
    from catalyzer import LatticeQuantizer

    start = time.perf_counter()
    quantizer = LatticeQuantizer(D_OUT, BITS)
    y = np.random.default_rng(0).normal(size=(40_000, D_OUT)).astype(np.float32)
    codes = quantizer.encode(y)
    for queries in (y[:1], y[:10]):
        quantizer.search(queries, codes, 10)
    quantizer.decode(codes)
    work.row("lattice and scan loaded, loops compiled unless they are cached", time.perf_counter() - start)


def mining(work: Work) -> None:
    """Positives and negatives as the training finds them, alone."""
    from catalyzer.neighbors import _torch_knn, engine, graph_recall
    from catalyzer.nn import embed
    from catalyzer.training import Miner

    x, miner = work.learn(), Miner()
    transform = networks(x).transform.to(work.torch_device)
    start = time.perf_counter()
    latent = embed(transform, x)
    work.row("vectors mapped, to be mined", time.perf_counter() - start, len(x), "vector", "the first call on the device")
    sets: list[tuple[str, np.ndarray, int, Callable[..., np.ndarray]]] = [
        ("negatives", latent, K_NEG, miner.find_negatives),
        ("positives", x, K_POS, miner.find_positives),
    ]
    for name, points, k, find in sets:
        find(points[:2_000], k, slice(None))
        start = time.perf_counter()
        graph = find(points, k, slice(None))
        seconds = time.perf_counter() - start
        what = f"{name}: {k} neighbours in {points.shape[1]} dimensions"
        work.row(what, seconds, len(x), "vector", f"{engine()}, recall {graph_recall(points, graph):.1%}")
        if engine() == "faiss-gpu":
            points = points.astype(np.float32)
            blocks = (points[first : first + (1 << 16)] for first in range(0, len(points), 1 << 16))
            start = time.perf_counter()
            _torch_knn(points, blocks, k + 1, "cuda")
            work.row(what, time.perf_counter() - start, len(x), "vector", "the same by torch")


def epoch(work: Work) -> None:
    """An epoch as `src/train.py` trains it, without validation; on the CPU from some of its steps."""
    import logging

    import pytorch_lightning as pl

    from catalyzer.files.array_cache import ArrayCache
    from catalyzer.training import TripletData, measure_epoch
    from catalyzer.training.epoch_report import quiet_lightning

    quiet_lightning()
    logging.getLogger("catalyzer").setLevel(logging.WARNING)
    x = work.learn()
    data = TripletData(x, batch_size=BATCH, k_pos=K_POS, k_neg=K_NEG, cache=ArrayCache(work.folder / "cache"))
    training = recipe(x)
    precision = "bf16-mixed" if fast(work.torch_device) else "32-true"
    options = {"accelerator": work.device, "devices": 1, "precision": precision}
    what = f"epoch of {data.steps:,} steps, negatives mined"
    if not work.cuda:
        seconds, _ = measure_epoch(training, data, options)
        work.row(what, seconds, len(x), "vector", f"{precision}; mined whole, from the rate of at most 60 steps")
        return

    class Clock(pl.Callback):
        def on_train_epoch_start(self, trainer: pl.Trainer, pl_module: Any) -> None:
            self.start = time.perf_counter()

        def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: Any) -> None:
            work.wait()
            seconds = time.perf_counter() - self.start
            mining_ = float(trainer.callback_metrics["epoch/mining_seconds"])
            parts = f"{precision}; mining {mining_:.2f} s, steps {seconds - mining_:.2f} s"
            goal = f"; the goal on an H100 is less than {GOAL:.0f} s"
            first = trainer.current_epoch == 0
            work.row(f"first {what}" if first else what, seconds, len(x), "vector", parts + ("" if first else goal))

    start = time.perf_counter()
    trainer = pl.Trainer(
        **options, max_epochs=3, callbacks=[Clock()], logger=False, enable_checkpointing=False, enable_progress_bar=False,
        enable_model_summary=False, limit_val_batches=0, use_distributed_sampler=False,
    )  # fmt: skip
    trainer.fit(training, datamodule=data)
    work.row("three epochs and what precedes them, positives mined", time.perf_counter() - start)


def step_eager(work: Work) -> None:
    """The training step in a bare loop."""
    steps(work, "training step, bare loop", lambda compute: compute)


def step_graph(work: Work) -> None:
    """The whole training step, optimizer included, as one CUDA graph."""
    steps(work, "training step, one CUDA graph", lambda compute: compute, captured=True)


def step_compiled(work: Work) -> None:
    """The loss by `torch.compile`."""
    import torch

    steps(work, "training step, torch.compile", lambda compute: torch.compile(compute, dynamic=False))


def step_compiled_graphs(work: Work) -> None:
    """The loss by `torch.compile`, with its CUDA graphs."""
    import torch

    def graphed(compute: Callable[..., Any]) -> Callable[..., Any]:
        compiled = torch.compile(compute, mode="reduce-overhead", dynamic=False)

        def call(triplets: Any) -> Any:
            torch.compiler.cudagraph_mark_step_begin()
            return compiled(triplets)

        return call

    steps(work, "training step, torch.compile with CUDA graphs", graphed)


def steps(work: Work, what: str, way: Callable[[Callable[..., Any]], Callable[..., Any]], captured: bool = False) -> None:
    """Time training steps of the same batches; neighbours are random rows, which take as long as mined ones."""
    import torch

    from catalyzer.nn import mean_and_deviation

    device, x = torch.device(work.torch_device), work.learn()
    training = recipe(x).to(device).train()
    training._deviation = mean_and_deviation(x)[1].to(device)
    vectors = torch.from_numpy(x).to(device)
    warm, timed = (WARM, TIMED) if work.cuda else (2, 5)
    random = np.random.default_rng(0)
    batches = torch.from_numpy(random.integers(len(x), size=(warm + timed, 3, BATCH))).to(device)
    options = {"fused": True, "capturable": captured} if work.cuda else {}
    optimizer = torch.optim.AdamW(training.parameters(), lr=1e-3, weight_decay=0.0, **options)

    enabled = fast(device)

    def compute(triplets: torch.Tensor) -> torch.Tensor:
        # A cache of cast weights would outlive the graph that is captured.
        with torch.autocast(device.type, torch.bfloat16, enabled=enabled, cache_enabled=not captured):
            return training.losses(triplets)["loss"]

    compute = way(compute)

    def step(rows: torch.Tensor) -> torch.Tensor:
        optimizer.zero_grad()
        loss = compute(vectors[rows].float())
        loss.backward()
        optimizer.step()
        return loss.detach()

    start = time.perf_counter()
    losses = []
    if captured:
        rows = batches[0].clone()
        with aside():
            losses += [float(step(rows.copy_(batch))) for batch in batches[:3]]
        optimizer.zero_grad()
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            static = step(rows)

        def replayed(batch: torch.Tensor) -> torch.Tensor:
            rows.copy_(batch)
            graph.replay()
            return static

        run, first = replayed, 3
    else:
        losses.append(float(step(batches[0])))
        run, first = step, 1
    work.wait()
    work.row(f"{what}: until it has run once", time.perf_counter() - start, note="compilation or capture included")
    for batch in batches[first:warm]:
        run(batch)
    work.wait()
    start = time.perf_counter()
    for batch in batches[warm:]:
        loss = run(batch)
    work.wait()
    seconds = (time.perf_counter() - start) / timed
    of_epoch = len(x) // BATCH * seconds
    note = f"{readable(of_epoch)} an epoch; loss {losses[0]:.4f} at first, {float(loss):.4f} after {warm + timed} steps"
    work.row(what, seconds, 3 * BATCH, "mapped vector", note)


@contextmanager
def aside() -> Iterator[None]:
    """On a stream of its own, as what is captured has to be warmed up."""
    import torch

    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        yield
    torch.cuda.current_stream().wait_stream(stream)


def codes(work: Work) -> None:
    """Vectors to codes and back, by `Codec`, whose lattice is on the CPU, and on a GPU by its tensors alone."""
    import torch

    from catalyzer.nn.embedding import evaluating

    x = work.learn()
    x = np.concatenate([x, x])
    codec, n = networks(x), len(x)
    lattice, device = codec.quantizer.lattice, work.torch_device
    for network in (codec.transform, codec.decoder):
        network.eval().to(device)
    name = f"of {BITS // 8} bytes"
    seconds = work.seconds(lambda: codec.encode(x), 1)
    work.row(f"encode, codes {name}", seconds, n, "vector", "Codec.encode")
    found = codec.encode(x)
    seconds = work.seconds(lambda: codec.decode(found), 1)
    work.row(f"decode, codes {name}", seconds, n, "vector", "Codec.decode, all at once")
    if not work.cuda:
        return
    vectors, on_device = torch.from_numpy(x), torch.from_numpy(found)

    def encoded() -> torch.Tensor:
        with torch.inference_mode(), evaluating(codec.transform) as (_, autocast), autocast:
            parts = [lattice.encode(codec.transform(part.to(device)).float()).cpu() for part in vectors.split(1 << 17)]
        return torch.cat(parts)

    def decoded() -> None:
        with torch.inference_mode(), evaluating(codec.decoder) as (_, autocast), autocast:
            for part in on_device.split(1 << 17):
                codec.decoder(lattice.decode(part.to(device))).float().cpu()

    seconds = work.seconds(encoded)
    y = torch.randn(min(n, 100_000), D_OUT, device=device)
    by_both = lattice.encode(y).cpu().numpy(), lattice.encode(y.cpu().numpy())
    different = int((by_both[0] != by_both[1]).any(axis=1).sum())
    note = f"network and lattice on the GPU; of {len(y):,} points {different} have another code than on the CPU"
    work.row(f"encode, codes {name}", seconds, n, "vector", note)
    seconds = work.seconds(decoded)
    by_both = lattice.decode(on_device[:100_000].to(device)).cpu().numpy(), lattice.decode(found[:100_000])
    different = int((by_both[0] != by_both[1]).any(axis=1).sum())
    note = f"lattice and network on the GPU; of {len(by_both[0]):,} points {different} differ from the CPU's"
    work.row(f"decode, codes {name}", seconds, n, "vector", note)


def scan(work: Work) -> None:
    """The scan of twice as many codes as there are vectors."""
    scans(work, 2 * work.size, (1, 10, 1000))


def scan_large(work: Work) -> None:
    """The scan of two hundred times as many codes."""
    from catalyzer.training.memory import memory_available

    n = 200 * work.size
    if memory_available() < 3 * 8 * n:
        work.row(f"scan of {n:,} codes", None, note="left out: it needs more memory than is free")
        return
    scans(work, n, (1, 100))


def scans(work: Work, n: int, many: tuple[int, ...]) -> None:
    """Search random codes, the hardest case, and compare what the GPU finds with what the CPU does."""
    from catalyzer import LatticeQuantizer

    quantizer, random = LatticeQuantizer(D_OUT, BITS), np.random.default_rng(0)
    numbers = random.integers(quantizer.lattice.num_points, size=n, dtype=np.uint64)
    points = numbers.astype("<u8", copy=False).view(np.uint8).reshape(n, 8)
    queries = random.normal(size=(max(many), D_OUT)).astype(np.float32)
    queries /= np.linalg.norm(queries, axis=1, keepdims=True)
    for nq in (1, 2):  # which are different loops
        quantizer.search(queries[:nq], points[: 1 << 17], K)
    for nq in many:
        times = []
        for _ in range(3 if nq <= 10 else 1):
            start = time.perf_counter()
            ids = quantizer.search(queries[:nq], points, K)[1]
            times.append(time.perf_counter() - start)
        kept, note = work.folder / f"ids-{n}-{nq}.npy", ""
        if kept.exists():
            note = f"{(np.load(kept) != ids).mean():.2%} of the ids differ from the GPU's"
        elif work.cuda:
            np.save(kept, ids)
        work.row(f"scan of {n:,} codes, {nq:,} quer{'y' if nq == 1 else 'ies'}", statistics.median(times), nq, "query", note)


def faiss_gpu(work: Work) -> None:
    """faiss's product quantizer of as many bytes on the GPU, which needs a list: one has all codes."""
    import faiss
    import torch

    if not hasattr(faiss, "StandardGpuResources") or not faiss.get_num_gpus():
        work.row("faiss on the GPU", None, note=f"not installed: faiss {faiss.__version__} sees no GPU")
        return
    x = work.learn().astype(np.float32)
    x = np.concatenate([x, x])
    resources = faiss.StandardGpuResources()
    index = faiss.index_cpu_to_gpu(resources, 0, faiss.index_factory(x.shape[1], f"IVF1,PQ{BITS // 8}"))
    index.train(x[:100_000])
    start = time.perf_counter()
    index.add(x)

    def used() -> float:
        free, total = torch.cuda.mem_get_info()
        return (total - free) / 2**30

    note = "memory is all that is taken of the GPU"
    work.row("faiss: PQ of 8 bytes, encode", time.perf_counter() - start, len(x), "vector", note, gpu_gib=used())
    for nq in (1, 1000):
        seconds = work.seconds(lambda nq=nq: index.search(x[:nq], K))  # type: ignore[misc]
        what = f"faiss: scan of {len(x):,} codes of PQ, {nq:,} quer{'y' if nq == 1 else 'ies'}"
        work.row(what, seconds, nq, "query", note, gpu_gib=used())


def networks(x: np.ndarray) -> Any:
    """The codec of `experiment=decoder` that knows mean and scale of the vectors, and has learned nothing else."""
    import torch

    from catalyzer import Catalyzer, Codec, LatticeQuantizer
    from catalyzer.nn import ResidualDecoder

    torch.manual_seed(0)
    dim = x.shape[1]
    transform, decoder = Catalyzer(dim, D_OUT, HIDDEN).adapt(x), ResidualDecoder(D_OUT, dim, HIDDEN).adapt(x)
    return Codec(transform, LatticeQuantizer(D_OUT, BITS), decoder)


def recipe(x: np.ndarray) -> Any:
    """The training of `experiment=decoder`."""
    from functools import partial

    import torch

    from catalyzer.training import CatalyzerTraining, Decay, KoLeo, Reconstruction, TriangleRank

    return CatalyzerTraining(
        networks(x),
        {"koleo": KoLeo(0.005), "rank": TriangleRank(), "reconstruction": Reconstruction()},
        optimizer=partial(torch.optim.AdamW, lr=1e-3, weight_decay=0.0),
        scheduler=partial(Decay, decay="cosine", warmup=0.02),
    )


def fast(device: Any) -> bool:
    """Whether the device multiplies bfloat16."""
    import torch

    from catalyzer.nn import multiplies_bfloat16

    return multiplies_bfloat16(torch.device(device))


# ---- the program that starts them


STEPS: dict[str, Callable[[Work], None]] = {
    "machine": machine,
    "loops": loops,
    "mining": mining,
    "epoch": epoch,
    "step": step_eager,
    "step-graph": step_graph,
    "codes": codes,
    "scan": scan,
    "scan-large": scan_large,
    "faiss": faiss_gpu,
    "step-compiled": step_compiled,
    "step-compiled-graphs": step_compiled_graphs,
}
MINUTES = 7.5
# Name, device and most seconds of so many minutes, in the order of what should be known first if time runs out.
PLAN = [
    ("loops", "cpu", 120), ("machine", "gpu", 45), ("epoch", "gpu", 100), ("mining", "gpu", 60), ("step", "gpu", 45),
    ("step-graph", "gpu", 45), ("codes", "gpu", 60), ("scan", "gpu", 45), ("codes", "cpu", 45), ("scan", "cpu", 45),
    ("scan-large", "gpu", 60), ("scan-large", "cpu", 60), ("faiss", "gpu", 45), ("step-compiled", "gpu", 100),
    ("epoch", "cpu", 75), ("mining", "cpu", 75), ("step-compiled-graphs", "gpu", 100), ("step", "cpu", 30),
    ("machine", "cpu", 30),
]  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", help="learn vectors; by default made-up ones")
    parser.add_argument("--size", type=int, default=SIZE, help="vectors to train on, at most (default: 500,000)")
    parser.add_argument("--json", type=Path, default=Path("outputs/benchmarks/gpu.json"), help="where the rows are written")
    parser.add_argument("--minutes", type=float, default=MINUTES, help="for all steps, shared out among them (default: 7.5)")
    parser.add_argument("--only", nargs="+", choices=STEPS, metavar="STEP", help=f"of {', '.join(STEPS)}")
    parser.add_argument("--cpu-only", action="store_true", help="measure the CPU alone, as a dry run")
    parser.add_argument("--work", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.work:
        run_step(arguments.work)
    deadline = time.monotonic() + 60 * arguments.minutes
    import torch

    if not arguments.cpu_only and not torch.cuda.is_available():
        sys.exit(f"torch {torch.__version__} sees no GPU; --cpu-only --size 4000 is a dry run without one")
    title, rows = described(torch), []
    with tempfile.TemporaryDirectory() as folder:
        vectors = arguments.data or str(made_up(Path(folder) / "learn.npy", arguments.size))
        data = f"{arguments.size:,} {MADE_UP}" if arguments.data is None else f"at most {arguments.size:,} of {arguments.data}"
        print(f"{title}\ndata: {data}", flush=True)
        for name, device, most in PLAN:
            if (arguments.only and name not in arguments.only) or (arguments.cpu_only and device == "gpu"):
                continue
            work = {"step": name, "device": device, "folder": folder, "vectors": vectors, "size": arguments.size}
            rows += rows_of(work, min(most * arguments.minutes / MINUTES, deadline - time.monotonic()))
            report = {"machine": title, "data": data, "rows": [asdict(row) for row in rows]}
            arguments.json.parent.mkdir(parents=True, exist_ok=True)
            arguments.json.write_text(json.dumps(report, indent=2), encoding="utf-8")  # each time: what comes may be stopped
    print(f"\n{title}; {data}\n\n{HEAD}", *rows, f"\nwritten to {arguments.json}", sep="\n")


def described(torch: Any) -> str:
    """The machine in a line."""
    import faiss

    gpu = "no GPU"
    if torch.cuda.is_available():
        kind = torch.cuda.get_device_properties(0)
        gpu = f"{kind.name}, {kind.total_memory / 2**30:.0f} GiB, CUDA {torch.version.cuda}"
    processors = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    versions = f"torch {torch.__version__}, faiss {faiss.__version__}, Python {platform.python_version()}"
    return f"{gpu}; {processors} processors {platform.machine()}; {versions}"


def made_up(path: Path, n: int) -> Path:
    """Write `(n, 128)` uint8 vectors that have neighbours: 16 random numbers through two random layers, of SIFT's norm."""
    random = np.random.default_rng(0)
    layers = [random.normal(size=shape).astype(np.float32) for shape in ((16, 64), (64, DIM))]
    x = np.lib.format.open_memmap(path, "w+", np.uint8, (n, DIM))
    for first in range(0, n, 1 << 16):
        y = random.normal(size=(min(1 << 16, n - first), 16)).astype(np.float32)
        for layer in layers:
            y = np.maximum(y @ layer, 0)
        y *= 512 / np.linalg.norm(y, axis=1, keepdims=True).clip(1e-6)
        x[first : first + len(y)] = (y + random.uniform(0, 4, y.shape)).clip(0, 255)
    x.flush()
    return path


def rows_of(work: dict[str, Any], most: float) -> list[Row]:
    """Do a step in a process, for so many seconds at most: its rows, the last of which may say why there are no more."""
    name, device, folder = work["step"], work["device"], Path(work["folder"])

    def failed(why: str) -> Row:
        return Row(name, name, device, note=why)

    if most < 5:
        return [failed("left out: the time is over")]
    print(f"{device}: {name}, at most {most:.0f} s ...", flush=True)
    environment = dict(os.environ, TORCHINDUCTOR_CACHE_DIR=str(folder / f"compiled-{name}-{device}"))  # so it does compile
    if device == "cpu":
        environment["CUDA_VISIBLE_DEVICES"] = ""  # so that mining and scan stay on it
    command = [sys.executable, __file__, "--work", json.dumps(work)]
    start = time.monotonic()
    left = folder / f"{name}.jsonl"
    left.unlink(missing_ok=True)
    with (folder / "stderr").open("w+", encoding="utf-8", errors="replace") as log:
        process = subprocess.Popen(command, env=environment, stdout=log, stderr=log, start_new_session=True)
        late = False
        try:
            process.wait(most)
        except subprocess.TimeoutExpired:
            late = True
        finally:
            if process.poll() is None:
                stop(process)
        log.seek(0)
        said = log.read().strip().splitlines()
    lines = left.read_text(encoding="utf-8").splitlines() if left.exists() else []
    rows = [Row(**json.loads(line)) for line in lines]
    if late:
        rows.append(failed(f"stopped after {most:.0f} s"))
    elif process.returncode:
        print("\n".join(said[-20:]), file=sys.stderr)
        rows.append(failed(f"failed: {said[-1] if said else f'exit code {process.returncode}'}"))
    print(*(f"  {row}" for row in rows), f"  {time.monotonic() - start:.0f} s in all", sep="\n", flush=True)
    return rows


def stop(process: "subprocess.Popen[bytes]") -> None:
    """Kill a step's process, and those that it has started to compile."""
    if hasattr(os, "killpg"):
        os.killpg(process.pid, signal.SIGKILL)
    else:
        process.kill()
    process.wait()


def run_step(given: str) -> NoReturn:
    """In the step's own process: do it, and leave what goes wrong as the last line."""
    options = json.loads(given)
    work = Work(**{**options, "folder": Path(options["folder"])})
    try:
        STEPS[work.step](work)
    except Exception as error:  # whatever it is, the row says it
        traceback.print_exc()
        sys.exit(f"{type(error).__name__}: {' '.join(str(error).split())[:300]}")
    sys.exit(0)


if __name__ == "__main__":
    main()
