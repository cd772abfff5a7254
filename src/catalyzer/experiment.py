"""A run from settings to results: train or fit, code, search, compare with the baselines, leave one folder."""

import importlib.metadata
import json
import logging
import platform
import subprocess
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from functools import cached_property
from pathlib import Path
from typing import Any, Self

import numpy as np
import torch
from pytorch_lightning import seed_everything
from pytorch_lightning.loggers import Logger
from torch import nn

import catalyzer
from catalyzer.cache import ArrayCache, write_atomically
from catalyzer.codec import Codec
from catalyzer.datasets import Benchmark, load_bigann, load_deep1b, load_demo, load_files, load_photosift
from catalyzer.errors import InvalidInput
from catalyzer.evaluation import Result, measure
from catalyzer.neighbors import engine
from catalyzer.nn import PCA, Catalyzer, Decoder, Identity, embed, load_module, save_module
from catalyzer.quantizers import ProductQuantizer
from catalyzer.report import COLUMNS, draw_recall, draw_sphere, draw_training, print_table, table_cells
from catalyzer.settings import Evaluation, Settings
from catalyzer.tracking import log_tables, loggers
from catalyzer.training import (
    COMPETITORS,
    CatalyzerTraining,
    Loss,
    Miner,
    Optimization,
    QueryData,
    QueryTraining,
    TripletData,
    check_trainer,
    choose_dimension,
    fit,
    fit_quantizer,
    is_first,
)
from catalyzer.vectors import Vectors

log = logging.getLogger(__name__)

LABELS = {
    "mlp": "catalyzer", "pca": "PCA",
    "lattice": "lattice", "sign": "sign", "pq": "PQ", "opq": "OPQ", "rq": "RQ", "lsq": "LSQ",
    "lsh": "LSH", "itq": "ITQ", "rabitq": "RaBitQ",
}  # fmt: skip


def run(settings: Settings, folder: Path) -> list[Result]:
    """Do all of a run that `folder` does not hold yet; print and return the rows of its table, none with `split=validation`.

    Raises:
        InvalidInput: settings and data that do not fit together, or a folder that holds a run of other settings;
            nothing has been written then.
    """
    if (folder / "config.yaml").exists() and not Settings.load(folder / "config.yaml").decides_as(settings):
        raise InvalidInput(
            f"{folder} holds a run with other settings; go on with it by resume={folder}, or choose another folder"
        )
    if (folder / "results.json").exists():
        log.info("%s has ended already; this is its table", folder)
        rows, title = read_results(folder)
        print_table(rows, title)
        return rows

    if settings.catalyzer.name == "mlp":
        check_trainer(settings.trainer.options)
    benchmark = load_benchmark(settings)
    baselines = build_baselines(settings, benchmark.dim, build(settings, benchmark).quantizer.code_size * 8)
    started = datetime.now(UTC).isoformat(timespec="seconds")
    with loggers(settings, folder) as made:
        trained = train(settings, benchmark, folder, made)
        if trained is None:
            return []
        if settings.split == "validation":
            log.info("weights and metrics, without a look at the test split: %s", folder)
            return []
        rows = compare(settings, benchmark, trained, baselines)
        title = save_results(rows, settings, benchmark, folder, started)
        figures = {f"figures/{path.stem}": path for path in sorted((folder / "figures").glob("*.png"))}
        log_tables(made, {"results": (COLUMNS, table_cells(rows))}, figures)
    print_table(rows, title)
    log.info("weights, results and figures: %s", folder)
    return rows


def train(settings: Settings, benchmark: Benchmark, folder: Path, loggers: Sequence[Logger] = ()) -> "TrainedRun | None":
    """Fit the transform or, where it is a network, train it; go on with what `folder` holds of it.

    Writes settings, checkpoints, metrics and weights, and no results: the test split is not touched.

    Args:
        settings: all of the run's.
        benchmark: the dataset that they name.
        folder: of the run.
        loggers: of Lightning, besides the CSV one.

    Returns:
        The run; None in all but one of several processes that trained together.
    """
    seed_everything(settings.seed, verbose=False)
    codec = build(settings, benchmark)
    if is_first():
        settings.save(folder / "config.yaml")
    start = time.perf_counter()
    codec.transform.fit(benchmark.train)  # type: ignore[operator]
    seconds = time.perf_counter() - start
    if isinstance(codec.transform, Catalyzer):
        if codec.decoder is not None:
            codec.decoder.fit(codec.transform)
        seconds = train_networks(settings, benchmark, codec, folder, loggers)
        if settings.query.name == "mlp":
            codec, query_seconds = train_query(settings, settings.query.max_epochs, benchmark, codec, folder / "query")
            seconds += query_seconds
        if not is_first():  # one process of several goes on; the others were for training only
            return None
        draw_training(folder / "metrics.csv", folder / "figures" / "training.png")
        latent = embed(codec.transform, benchmark.validation.queries)
        draw_sphere(latent, folder / "figures" / "sphere.png")
    for name, module in (("decoder", codec.decoder), ("query", codec.query), ("catalyzer", codec.transform)):
        if module is not None:
            save_module(module, folder, name, seconds)
    return TrainedRun(folder, settings, codec.transform, codec.decoder, codec.query, seconds)


def load_benchmark(settings: Settings) -> Benchmark:
    """The dataset that the settings name, checked."""
    load: dict[str, Callable[..., Benchmark]] = {
        "demo": load_demo,
        "bigann": load_bigann,
        "deep1b": load_deep1b,
        "photosift": load_photosift,
        "files": load_files,
    }
    options = settings.dataset.model_dump(exclude={"name"})
    return load[settings.dataset.name](cache=ArrayCache(settings.cache), **options)


def build(settings: Settings, benchmark: Benchmark) -> Codec:
    """Transform, quantizer and decoder, not fitted yet.

    Raises:
        InvalidInput: a quantizer that cannot code the transform's dimension.
    """
    chosen, d_in, d_out = settings.catalyzer, benchmark.dim, settings.d_out
    if chosen.name == "identity":
        return Codec(Identity(d_in), settings.quantizer.build(d_in))
    if d_out == "auto":
        d_out = choose_dimension(benchmark.train, benchmark.validation, settings.bits, ArrayCache(settings.cache))
    transform = Catalyzer(d_in, d_out, chosen.hidden) if chosen.name == "mlp" else PCA(d_in, d_out)
    quantizer = settings.quantizer.build(d_out)
    if settings.decoder.name == "none":
        return Codec(transform, quantizer)
    decoder = Decoder(d_out, d_in, settings.decoder.hidden)
    return Codec(transform, quantizer, decoder, latent_share=settings.decoder.latent_share)


def build_baselines(settings: Settings, d_in: int, bits: int) -> dict[str, ProductQuantizer]:
    """The baselines that the settings name, at the size of the chosen quantizer's codes, without what is chosen itself."""
    chosen = settings.quantizer.name if settings.catalyzer.name == "identity" else None
    try:
        return {n: ProductQuantizer(d_in, bits, rotate=n == "opq") for n in settings.baselines if n != chosen}
    except InvalidInput as error:
        raise InvalidInput(f"the baselines cannot be built: {error}; baselines=[] leaves them out") from None


def make_training(settings: Settings, codec: Codec) -> CatalyzerTraining:
    """What trains catalyzer and decoder as the settings say."""
    optimization = Optimization(
        settings.optimizer,
        settings.learning_rate,
        settings.momentum,
        "cosine" if settings.decay == "cosine" else tuple(settings.decay),
        settings.warmup,
    )
    loss = Loss(settings.lambda_, settings.loss.rank, settings.loss.reconstruction, settings.rank_loss, settings.koleo.scope)
    sync_batchnorm = settings.trainer.sync_batchnorm
    return CatalyzerTraining(codec, loss, optimization, settings.end_to_end, settings.rerank, sync_batchnorm)


def train_networks(settings: Settings, benchmark: Benchmark, codec: Codec, folder: Path, loggers: Sequence[Logger]) -> float:
    """Train catalyzer and decoder, or go on with their training; returns the seconds that it took."""
    return fit(
        make_training(settings, codec),
        TripletData(k_neg=settings.k_neg, **data_options(settings, benchmark)),
        folder,
        trainer_options=settings.trainer.options,
        loggers=[*loggers],
        monitor=settings.callbacks.monitor,
        patience=settings.callbacks.patience,
        keep=settings.callbacks.keep_last,
    )


def train_query(settings: Settings, max_epochs: int, benchmark: Benchmark, codec: Codec, folder: Path) -> tuple[Codec, float]:
    """Train the queries' own network behind a trained catalyzer; returns the codec with it and the seconds that it took."""
    training = QueryTraining(codec, settings.trainer.sync_batchnorm)
    seconds = fit(
        training,
        QueryData(
            codec=codec,
            k_neg=min(COMPETITORS, len(benchmark.train) - 1),
            **data_options(settings, benchmark),
        ),
        folder,
        trainer_options=settings.trainer.options | {"max_epochs": max_epochs, "check_val_every_n_epoch": 1},
        loggers=[],
        monitor=settings.callbacks.monitor,
        keep=settings.callbacks.keep_last,
        epoch_name="query epoch",
    )
    return replace(codec, query=training.query), seconds


def data_options(settings: Settings, benchmark: Benchmark) -> dict[str, Any]:
    """Arguments of `AnchorData` that all trainings of a run share."""
    return {
        "train": benchmark.train,
        "validation": benchmark.validation,
        "batch_size": settings.batch_size,
        "k_pos": settings.k_pos,
        "miner": Miner(**settings.miner.model_dump()),
        "seed": settings.seed,
        "cache": ArrayCache(settings.cache),
    }


def compare(
    settings: Settings, benchmark: Benchmark, trained: "TrainedRun", baselines: dict[str, ProductQuantizer]
) -> list[Result]:
    """Rows for the settings' quantizer on the trained transform, and for the baselines on the raw vectors."""
    codec = trained.codec(settings)
    name = method_name(settings.catalyzer.name, settings.quantizer.name)
    rows = measure_method(name, benchmark, codec, sorted({0, settings.rerank}))
    for row in rows:
        row.training += trained.seconds
    for name, baseline in baselines.items():
        rows += measure_method(LABELS[name], benchmark, Codec(Identity(benchmark.dim), baseline))
    return rows


def measure_method(method: str, benchmark: Benchmark, codec: Codec, reranks: Sequence[int] = (0,)) -> list[Result]:
    """Fit the quantizer to the transformed training vectors, and measure the codec on the test split."""
    test = benchmark.test
    truth = test.ground_truth  # before the clocks start
    log.info("%s: coding %s vectors, searching %s queries", method, f"{len(test.base):,}", f"{len(test.queries):,}")
    start = time.perf_counter()
    fit_quantizer(codec.quantizer, codec.transform, benchmark.train)
    fitting = time.perf_counter() - start
    rows = measure(method, codec, test.base, test.queries, truth, reranks)
    for row in rows:
        row.training = fitting
    return rows


def method_name(transform: str, quantizer: str) -> str:
    """What a composition is called in tables and figures.

    >>> method_name("mlp", "lattice"), method_name("identity", "opq")
    ('catalyzer + lattice', 'OPQ')
    """
    return " + ".join(LABELS[name] for name in (transform, quantizer) if name != "identity")


def save_results(rows: list[Result], settings: Settings, benchmark: Benchmark, folder: Path, started: str) -> str:
    """Write the figure and, last since it says that the run has ended, results.json; returns the table's title."""
    test = benchmark.test
    title = f"{benchmark.name}: {len(test.base):,} base vectors, {len(test.queries):,} queries"
    draw_recall(rows, title, folder / "figures" / "recall.png")
    results = {
        "title": title,
        "rows": [asdict(row) for row in rows],
        "seed": settings.seed,
        "settings": settings.model_dump(mode="json", by_alias=True),
        "fingerprints": {"base": test.key[0], "queries": test.key[1]},
        "started": started,
        "ended": datetime.now(UTC).isoformat(timespec="seconds"),
        **environment(),
    }
    write_atomically(folder / "results.json", lambda file: file.write(json.dumps(results, indent=1).encode()))
    return title


def environment() -> dict[str, Any]:
    """What the numbers depend on beside settings and data: versions, threads, git commit."""
    packages = ("torch", "pytorch-lightning", "numpy", "numba", "hydra-core")
    versions = {name: importlib.metadata.version(name) for name in packages}
    versions |= {"catalyzer": catalyzer.__version__, "python": platform.python_version()}
    git = subprocess.run(
        ["git", "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"],
        cwd=Path(__file__).parent,
        capture_output=True,
        text=True,
        check=False,
    )
    return {
        "versions": versions,
        "git_commit": git.stdout.strip() or None,
        "threads": torch.get_num_threads(),
        "neighbours": engine(),
    }


@dataclass
class TrainedRun:
    """A finished run, ready to code vectors and to search them.

    Attributes:
        folder: of the run.
        settings: what it was made with.
        transform: the fitted map, in evaluation mode on the CPU.
        decoder: the way back, likewise, or None.
        query: the queries' own network, likewise, or None.
        seconds: that its training took.

    A run's folder is all that is needed:

        run = TrainedRun.load("outputs/my-run")
        codes = run.encode(base)                     # (n, code_size) uint8
        D, I = run.search(queries, codes, k=10)      # squared distances, row numbers
    """

    folder: Path
    settings: Settings
    transform: nn.Module
    decoder: Decoder | None
    query: nn.Module | None
    seconds: float

    @classmethod
    def load(cls, folder: str | Path) -> Self:
        """Read a run's folder; nothing in it is unpickled.

        Raises:
            InvalidInput: not a run folder, a run that has not ended, or damaged files.
        """
        folder = Path(folder)
        settings = Settings.load(folder / "config.yaml")
        transform, seconds = load_module(folder, "catalyzer")
        decoder = load_module(folder, "decoder")[0] if settings.decoder.name == "mlp" else None
        query = load_module(folder, "query")[0] if settings.query.name == "mlp" else None
        return cls(folder, settings, transform, decoder, query, seconds)  # type: ignore[arg-type]

    def codec(self, settings: Settings) -> Codec:
        """The run's networks with the quantizer of `settings`, not fitted yet.

        Raises:
            InvalidInput: a quantizer that cannot code the transform's dimension.
        """
        quantizer = settings.quantizer.build(self.transform.d_out)  # type: ignore[arg-type]
        share = settings.decoder.latent_share if settings.decoder.name == "mlp" else 0.0
        query = self.query if settings.quantizer == self.settings.quantizer else None  # it knows these points and no others
        return Codec(self.transform, quantizer, self.decoder, settings.refine, share, query)

    @cached_property
    def own_codec(self) -> Codec:
        """The run's networks and its quantizer, if it is fixed (lattice, sign): one that is learned is not kept in the folder.

        Raises:
            InvalidInput: the quantizer is a learned one.
        """
        if self.settings.quantizer.name not in ("lattice", "sign"):
            raise InvalidInput(
                f"{self.folder}: the codebooks of {self.settings.quantizer.name} are not kept with a run; "
                "train with quantizer=lattice or quantizer=sign, which have none"
            )
        return self.codec(self.settings)

    def encode(self, x: Vectors) -> np.ndarray:
        """Map and code `(n, d_in)` vectors: `(n, code_size)` uint8."""
        return self.own_codec.encode(x)

    def decode(self, codes: np.ndarray) -> np.ndarray:
        """The vectors, `(n, d_in)` float32 in the original space, that codes stand for; see `Codec.decode`."""
        return self.own_codec.decode(codes)

    def search(self, queries: Vectors, codes: np.ndarray, k: int, rerank: int | None = None) -> tuple[np.ndarray, np.ndarray]:
        """The k codes nearest to each `(nq, d_in)` query: `(nq, k)` squared distances and int64 row numbers.

        `rerank` is by default the run's own; see `Codec.search`.
        """
        return self.own_codec.search(queries, codes, k, self.settings.rerank if rerank is None else rerank)


def evaluate_run(evaluation: Evaluation) -> list[Result]:
    """Another quantizer, rerank or refine on a run's networks, without training them again; prints and returns the table.

    Writes results.json and the figure into `evaluations/<quantizer>-<bits>bits` in the run's folder, with rerank and refine
    in the name where they are given.

    Raises:
        InvalidInput: not a finished run, or a quantizer, rerank or refine that does not go with its networks.
    """
    folder, quantizer = Path(evaluation.run), evaluation.quantizer
    trained = TrainedRun.load(folder)
    started = datetime.now(UTC).isoformat(timespec="seconds")
    given = {key: n for key in ("rerank", "refine") if (n := getattr(evaluation, key)) is not None}
    settings = trained.settings.model_copy(update={"quantizer": quantizer, **given})
    built = trained.codec(settings).quantizer
    benchmark = load_benchmark(settings)
    baselines = build_baselines(settings, benchmark.dim, built.code_size * 8)
    rows = compare(settings, benchmark, trained, baselines)
    name = "-".join([quantizer.name, f"{built.bits}bits", *(f"{key}{n}" for key, n in given.items())])
    target = folder / "evaluations" / name
    title = save_results(rows, settings, benchmark, target, started)
    print_table(rows, title)
    log.info("results and figure: %s", target)
    return rows


def read_results(folder: Path) -> tuple[list[Result], str]:
    """The rows and the title that `save_results` wrote.

    Raises:
        InvalidInput: the file is missing or is not such a file.
    """
    path = folder / "results.json"
    if not path.is_file():
        raise InvalidInput(f"{folder} holds no finished run: it has no results.json; go on with it by resume={folder}")
    try:
        content = json.loads(path.read_text())
        return [Result.load(row) for row in content["rows"]], content["title"]
    except (ValueError, KeyError, TypeError, AttributeError):
        raise InvalidInput(f"{path} is damaged; remove it and go on with the run by resume={folder}") from None
