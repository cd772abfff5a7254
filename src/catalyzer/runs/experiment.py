"""A run from settings to results: train or fit, encode, search, compare with the baselines, write one folder."""

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
from catalyzer.lattice.product import FILLED
from catalyzer.nn import Linear, embed, save_part
from catalyzer.quantizers import LatticeQuantizer
from catalyzer.runs.build import (
    build_baselines,
    build_callbacks,
    build_codec,
    build_dataset,
    build_miner,
    build_query_training,
    build_training,
    class_of,
    load_dataset,
    trainer_options,
)
from catalyzer.runs.checks import check
from catalyzer.runs.figures import draw_sphere, draw_training
from catalyzer.runs.linear_maps import best_linear
from catalyzer.runs.results import COLUMNS, print_table, table_cells
from catalyzer.runs.settings import Settings
from catalyzer.runs.tracking import log_tables, loggers
from catalyzer.runs.trained_run import TrainedRun, compare, read_results, save_metric, save_results
from catalyzer.training import COMPETITORS, QueryData, TripletData, choose_dimension, fit, is_first
from catalyzer.training.dimension import TOLERANCE
from catalyzer.training.memory import tell_memory

log = logging.getLogger(__name__)


def run(settings: Settings, folder: Path, typed: Sequence[str] = (), sweeping: bool = False) -> list[Result]:
    """Do all that is missing of the run in `folder`; print and return the rows of its table, none with `split=validation`.

    Args:
        settings: settings of the run.
        folder: folder of the run.
        typed: overrides of the user, for `catalyzer.runs.checks.check`.
        sweeping: whether the run is a job of a sweep.

    Raises:
        InvalidInput: settings and data that do not fit together, or a folder that holds a run of other settings;
            nothing has been written then.
    """
    held = Settings.load(folder / "config.yaml") if (folder / "config.yaml").exists() else None
    if held is not None and (others := held.differences(settings)):
        raise InvalidInput(
            f"{folder} holds a run with other settings ({', '.join(others)}); resume it with resume={folder}, "
            "or choose another folder"
        )
    if (folder / "results.json").exists():
        if held != settings:  # which says, for one, on which split a sweep compares its jobs
            settings.save(folder / "config.yaml")
        log.info("%s has already finished; this is its table", folder)
        rows, title = read_results(folder)
        print_table(rows, title)
        return rows

    check(settings, folder, typed=typed, sweeping=sweeping)
    benchmark = load_dataset(settings)
    if build_dataset(settings).dim is None:
        check(settings, folder, benchmark.dim)
    codec = new_codec(settings, benchmark)
    baselines = build_baselines(settings, benchmark.dim, codec.quantizer.code_size * 8)
    started = datetime.now(UTC).isoformat(timespec="seconds")
    with loggers(settings, folder) as made:
        trained = train(settings, benchmark, codec, folder, made)
        if trained is None:
            return []
        if settings.split == "validation":
            log.info("weights and metrics, not measured on the test split: %s", folder)
            return []
        rows = compare(benchmark, trained, baselines)
        title = save_results(rows, settings, benchmark, folder, started)
        figures = {f"figures/{path.stem}": path for path in sorted((folder / "figures").glob("*.png"))}
        log_tables(made, {"results": (COLUMNS, table_cells(rows))}, figures)
    print_table(rows, title)
    log.info("weights and results: %s; recall as a picture: %s", folder, folder / "figures" / "recall.png")
    return rows


def new_codec(settings: Settings, benchmark: Benchmark) -> Codec:
    """The untrained parts of a run; first all random generators are seeded.

    Raises:
        InvalidInput: parts that do not fit the data.
    """
    d_out = settings.d_out
    if d_out == "auto":
        # A linear map is what the dimension is tried with, so the best is the best for it.
        tolerance = 0.0 if issubclass(class_of("catalyzer", settings.catalyzer), Linear) else TOLERANCE
        cache = ArrayCache(settings.cache)
        d_out = choose_dimension(benchmark.train, benchmark.validation, settings.bits, cache, tolerance)
    seed_everything(settings.seed, verbose=False)
    if issubclass(class_of("catalyzer", settings.catalyzer), Linear):
        return best_linear(settings, benchmark, d_out)
    return build_codec(settings, benchmark.dim, d_out)


def train(
    settings: Settings, benchmark: Benchmark, codec: Codec, folder: Path, loggers: Sequence[Logger] = ()
) -> TrainedRun | None:
    """Train or fit all parts, or resume the training in `folder`.

    Writes settings, checkpoints, metrics and weights, and no results: the test split is not touched.

    Args:
        settings: settings of the run.
        benchmark: the dataset that they name.
        codec: codec from `new_codec`.
        folder: folder of the run.
        loggers: Lightning's loggers, in addition to metrics.csv.

    Returns:
        The run; None in all processes of a distributed training except one.
    """
    if is_first():
        settings.save(folder / "config.yaml")
        _warn_of_unused_bits(settings, codec)
    start = time.perf_counter()
    if codec.transform.is_trained:
        seconds = train_networks(settings, benchmark, codec, folder, loggers)
        if settings.query.get("_target_") is not None:
            codec, query_seconds = train_query(settings, benchmark, codec, folder / "query")
            seconds += query_seconds
        if not is_first():  # one of several processes continues; the others were for training only
            return None
        draw_training(folder / "metrics.csv", folder / "figures" / "training.png")
        draw_sphere(embed(codec.transform, benchmark.validation.queries), folder / "figures" / "sphere.png")
    else:
        codec.adapt(benchmark.train)
        seconds = time.perf_counter() - start
    start = time.perf_counter()
    codec.fit(benchmark.train)
    fitting = time.perf_counter() - start
    save_part(codec.quantizer, folder, "quantizer", fitting)
    save_metric(benchmark.metric, folder)
    # The transform comes last: its file says that the run has been trained.
    for name, network in (("decoder", codec.decoder), ("query", codec.query), ("catalyzer", codec.transform)):
        if network is not None:
            save_part(network, folder, name, seconds)
    return TrainedRun(folder, settings, codec, seconds, fitting, benchmark.metric)


def _warn_of_unused_bits(settings: Settings, codec: Codec) -> None:
    """Warn if a lattice chosen by default makes much smaller codes than requested."""
    quantizer, part = codec.quantizer, settings.quantizer
    named = part.get("radius_sq") is not None or isinstance(part.get("blocks"), list)
    asked = part.get("bits", settings.bits)
    if named or not isinstance(quantizer, LatticeQuantizer) or quantizer.bits >= FILLED * asked:
        return
    if asked <= quantizer.dim:  # of the smallest spheres each has many times the points of the one before
        why, advice = "have no sphere between", "lower d_out, or ask for fewer bits"
    elif quantizer.dim < codec.transform.d_in:
        why, advice = "hold no more", "raise d_out, or ask for fewer bits"
    else:
        why, advice = "hold no more, and the vectors have no others", "ask for fewer bits"
    what = f"codes have {quantizer.bits} bits where bits = {asked}: {quantizer.dim} dimensions {why}"
    log.warning("%s; %s", what, advice)


def train_networks(settings: Settings, benchmark: Benchmark, codec: Codec, folder: Path, loggers: Sequence[Logger]) -> float:
    """Train transform and decoder, or resume their training; returns the seconds that it took."""
    if is_first():
        tell_memory(benchmark, codec, settings.k_pos, settings.k_neg)
    return fit(
        build_training(settings, codec),
        TripletData(k_neg=settings.k_neg, **data_options(settings, benchmark)),
        folder,
        trainer_options=trainer_options(settings),
        callbacks=build_callbacks(settings, folder.resolve()),
        loggers=loggers,
    )


def train_query(settings: Settings, benchmark: Benchmark, codec: Codec, folder: Path) -> tuple[Codec, float]:
    """Train the query network behind a trained transform; returns the codec with it and the seconds that it took."""
    training = build_query_training(settings, codec)
    k_neg = min(COMPETITORS, len(benchmark.train) - 1)
    if is_first():
        log.info("training the query network; its recall is measured before reranking")
    # Callbacks that a user adds are for the training of the run.
    own = settings.model_copy(update={"callbacks": {name: settings.callbacks.get(name) for name in ("best", "checkpoints")}})
    seconds = fit(
        training,
        QueryData(codec=codec, k_neg=k_neg, **data_options(settings, benchmark)),
        folder,
        trainer_options=trainer_options(settings) | {"max_epochs": training.max_epochs, "check_val_every_n_epoch": 1},
        callbacks=build_callbacks(own, folder.resolve()),
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
        "miner": build_miner(settings),
        "seed": settings.seed,
        "cache": ArrayCache(settings.cache),
    }
