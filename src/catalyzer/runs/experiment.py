"""A run from settings to results: train or fit, code, search, compare with the baselines, leave one folder."""

import logging
import time
from collections.abc import Sequence
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from pytorch_lightning import seed_everything
from pytorch_lightning.loggers import Logger

from catalyzer.codec import Codec
from catalyzer.datasets import Benchmark
from catalyzer.errors import InvalidInput
from catalyzer.evaluation import Result
from catalyzer.files.array_cache import ArrayCache
from catalyzer.nn import PCA, Catalyzer, Decoder, Identity, embed, save_module
from catalyzer.runs.figures import draw_sphere, draw_training
from catalyzer.runs.results import COLUMNS, print_table, table_cells
from catalyzer.runs.settings import Settings
from catalyzer.runs.tracking import log_tables, loggers
from catalyzer.runs.trained_run import TrainedRun, build_baselines, compare, load_benchmark, read_results, save_results
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
    is_first,
)

log = logging.getLogger(__name__)


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


def train(settings: Settings, benchmark: Benchmark, folder: Path, loggers: Sequence[Logger] = ()) -> TrainedRun | None:
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
