"""The training that the library does where a user says nothing of it: that of `conf/experiment/decoder.yaml`."""

import logging
import time
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch

from catalyzer.files.array_cache import ArrayCache
from catalyzer.codec import Codec
from catalyzer.datasets import Benchmark, Split
from catalyzer.datasets.benchmark import split_sizes
from catalyzer.errors import InvalidInput
from catalyzer.evaluation import measure
from catalyzer.runs.experiment import build, data_options, make_training, train
from catalyzer.nn import Catalyzer, multiplies_bfloat16
from catalyzer.runs.settings import DECODER_LAMBDA, Settings, paper_lambda
from catalyzer.training import COMPETITORS, QueryData, QueryTraining, TripletData, measure_epoch
from catalyzer.files.vectors import fingerprint

log = logging.getLogger(__name__)

TRAIN, VALIDATION_BASE, VALIDATION_QUERIES = 500_000, 100_000, 2_000  # vectors, of learn sets that have so many
LEARN = TRAIN + VALIDATION_BASE + VALIDATION_QUERIES
EPOCHS = 20
MAX_EPOCHS = 300  # of a budget: as many as the paper's
QUERY_EPOCHS = 2
VALIDATE_EVERY = 5  # epochs
SHARE = 0.95  # of a budget that is planned with: no two epochs take the same time


def learn_codec(
    learn: np.ndarray,
    *,
    bits: int,
    d_out: int | Literal["auto"],
    hidden: int,
    decoder: bool,
    epochs: int | None,
    seconds: float | None,
    folder: Path,
) -> Codec:
    """Train a catalyzer, a decoder and a query network behind one lattice, or go on with what `folder` holds of them.

    Args:
        learn: `(n, d)`, in an order that says nothing: its end is held out for validation.
        bits: of a code, at most.
        d_out: dimension of the sphere.
        hidden: width of the networks.
        decoder: train a decoder, and a query network, which pays only where there is one.
        epochs: passes over the training vectors; None for what fits into `seconds`.
        seconds: that it may all take, from now on.
        folder: of the run.

    Raises:
        InvalidInput: too few vectors, bits or dimensions that no lattice has, too few seconds for one epoch, or a folder that
            holds a training of other settings or vectors.
    """
    end = None if seconds is None else time.perf_counter() + seconds
    benchmark = _benchmark(learn, folder)
    settings = make_settings(
        bits=bits,
        d_out=d_out,
        hidden=hidden,
        decoder=decoder,
        epochs=epochs or 1,
        learn=fingerprint(learn, "checking vectors"),  # by their content, so that a folder goes on with the same ones alone
        cache=folder / "cache",
    )
    held = Settings.load(folder / "config.yaml") if (folder / "config.yaml").exists() else None
    if epochs is None:
        # A run that was stopped goes on to where it wanted to, or its learning rate would fall twice.
        epochs = _epochs_until(end, settings, benchmark) if held is None else held.trainer.max_epochs
        settings = settings.model_copy(update={"trainer": settings.trainer.model_copy(update=_schedule(epochs))})
    if held is not None and not held.decides_as(settings):
        raise InvalidInput(f"{folder} holds a training with other settings or vectors; choose another folder, or remove it")
    trained = train(settings, benchmark, folder)
    assert trained is not None  # it is, in the first process of several, and there is one
    return trained.codec(settings)


def make_settings(
    *, bits: int, d_out: int | Literal["auto"], hidden: int, decoder: bool, epochs: int, learn: str, cache: Path
) -> Settings:
    """`conf/experiment/decoder.yaml`, or without a decoder `conf/experiment/long.yaml`, composed and checked."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    return Settings.check({
        "dataset": {
            "name": "files",
            "learn": learn,
            "base": "",
            "queries": "",
            "groundtruth": None,
            "base_size": None,
            "train_size": TRAIN,
            "validation_base_size": VALIDATION_BASE,
            "validation_queries_size": VALIDATION_QUERIES,
        },
        "catalyzer": {"name": "mlp", "hidden": hidden},
        "quantizer": {"name": "lattice", "d_out": 24, "bits": bits, "radius_sq": None},
        "decoder": {"name": "mlp", "hidden": hidden, "rerank": 500, "latent_share": 0.2}
        if decoder
        else {"name": "none", "rerank": 0},
        "query": {"name": "mlp", "max_epochs": QUERY_EPOCHS} if decoder else {"name": "none"},
        "trainer": {
            "accelerator": "auto",
            "devices": 1,
            "num_nodes": 1,
            "strategy": "auto",
            "precision": "bf16-mixed" if multiplies_bfloat16(device) else "32-true",
            "log_every_n_steps": 50,
            "sync_batchnorm": False,
            **_schedule(epochs),
        },
        "logger": {"wandb": None, "tensorboard": False},
        "callbacks": {"monitor": "val/recall_at_10", "patience": None, "keep_last": 2},
        "bits": bits,
        "d_out": d_out,
        "lambda": DECODER_LAMBDA if decoder else paper_lambda(d_out),
        "koleo": {"scope": "local"},
        "loss": {"rank": 1, "reconstruction": 1},
        "rerank": 500 if decoder else 0,
        "refine": 1,
        "end_to_end": False,
        "rank_loss": "triangle",
        "batch_size": 256,
        "optimizer": "adamw",
        "learning_rate": 0.001,
        "momentum": 0.9,
        "decay": "cosine",
        "warmup": 0.02,
        "k_pos": 10,
        "k_neg": 12,
        "miner": {"positives": "auto", "negatives": "auto"},
        "baselines": ["pq", "opq"],
        "seed": 0,
        "cache": str(cache),
    })  # fmt: skip


def _schedule(epochs: int) -> dict[str, Any]:
    # The last epoch is among those that are validated, and so may be the best.
    every = next(n for n in range(min(VALIDATE_EVERY, epochs), 0, -1) if epochs % n == 0)
    return {"max_epochs": epochs, "check_val_every_n_epoch": every}


def _benchmark(learn: np.ndarray, folder: Path) -> Benchmark:
    train, base, queries = split_sizes("fit", len(learn), TRAIN, VALIDATION_BASE, VALIDATION_QUERIES)
    held_out = learn[train : train + queries + base]
    validation = Split("validation", held_out[queries:], held_out[:queries], ArrayCache(folder / "cache"))
    # There is no test split: what is trained here is measured by nobody but its user.
    return Benchmark("fit", learn[:train], validation, validation)


def _epochs_until(end: float | None, settings: Settings, benchmark: Benchmark) -> int:
    """How many epochs can be trained until `end`, a time of `time.perf_counter`.

    What is computed for it and needed again, such as the positives, is kept in the cache of the settings.
    """
    assert end is not None
    start = time.perf_counter()
    codec, options = build(settings, benchmark), data_options(settings, benchmark)
    assert isinstance(codec.transform, Catalyzer)
    codec.transform.fit(benchmark.train)
    if codec.decoder is not None:
        codec.decoder.fit(codec.transform)
    trainer = settings.trainer.options
    epoch, _ = measure_epoch(make_training(settings, codec), TripletData(k_neg=settings.k_neg, **options), trainer)
    codec.transform.cpu().eval()
    query = 0.0
    if settings.query.name == "mlp":
        k_neg = min(COMPETITORS, len(benchmark.train) - 1)
        each, before = measure_epoch(QueryTraining(codec), QueryData(codec=codec, k_neg=k_neg, **options), trainer)
        query = before + settings.query.max_epochs * each
    split = benchmark.validation
    began = time.perf_counter()
    measure("validation", codec, split.base, split.queries, split.ground_truth, sorted({0, settings.rerank}))
    validation = time.perf_counter() - began

    after = query + (1 + QUERY_EPOCHS) * validation
    each = epoch + validation / VALIDATE_EVERY
    left = SHARE * (end - time.perf_counter())
    epochs = min(MAX_EPOCHS, int((left - after) / each))
    log.info("an epoch takes about %.1f s here: %d fit into the time that is left", epoch, epochs)
    if epochs < 1:
        least = (time.perf_counter() - start) + (each + after) / SHARE
        raise InvalidInput(
            f"the budget is too small for an epoch of {len(benchmark.train):,} vectors, which takes about {epoch:.0f} s here; "
            f"give at least {1.1 * least / 60:.1f}min, or fewer vectors"
        )
    return epochs
