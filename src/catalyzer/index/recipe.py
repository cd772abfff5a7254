"""The default training of an index: `experiment=decoder`, for a number of epochs or a time budget."""

import logging
import math
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import numpy as np

from catalyzer.codec import Codec
from catalyzer.datasets import Benchmark, Split, split_sizes
from catalyzer.errors import InvalidInput
from catalyzer.evaluation import measure, neighbours_found
from catalyzer.files.array_cache import ArrayCache
from catalyzer.files.vectors import fingerprint
from catalyzer.index.contents import Validation, check_sizes
from catalyzer.nn import Catalyzer
from catalyzer.parts import find_class
from catalyzer.quantizers import LatticeQuantizer, Quantizer
from catalyzer.runs.build import build_query_training, build_training, class_of, fit_to_classes, trainer_options
from catalyzer.runs.checks import check, of_training
from catalyzer.runs.compose import compose_config, resolved
from catalyzer.runs.experiment import data_options, new_codec, train
from catalyzer.runs.settings import Settings
from catalyzer.training import COMPETITORS, MEASURED_STEPS, QueryData, TripletData, measure_epoch

log = logging.getLogger(__name__)

TRAIN, VALIDATION_BASE, VALIDATION_QUERIES = 500_000, 100_000, 2_000  # vectors, of learn sets that have so many
LEARN = TRAIN + VALIDATION_BASE + VALIDATION_QUERIES
EPOCHS = 20
MAX_EPOCHS = 300  # of a budget: as many as the paper's
VALIDATE_EVERY = 5  # epochs
COMPARED = 10  # nearest neighbours, by how many of which the network is compared with a linear map
TOLD = (1, 10, 100)  # k of the recall@k that users are told
SHARE = 0.95  # of a budget that is planned with: no two epochs take the same time


def learn_codec(
    learn: np.ndarray,
    *,
    bits: int,
    d_out: int | Literal["auto"],
    hidden: int | None,
    decoder: bool,
    linear: bool = False,
    overrides: Sequence[str] = (),
    epochs: int | None,
    seconds: float | None,
    folder: Path,
) -> tuple[Codec, Validation]:
    """Train a transform, a decoder and a query network for a quantizer, or resume the training in `folder`.

    If a linear map and a lattice find as many of the held-out vectors, as with few training vectors, it returns these: the ones
    that `linear` takes.

    Args:
        learn: `(n, d)` training vectors in random order: the last ones are held out for validation.
        bits: largest number of bits of a code.
        d_out: dimension of the sphere.
        hidden: width of the networks; None for that of the settings. A linear map has none.
        decoder: whether a decoder is trained, and a query network, which helps only with a decoder.
        linear: whether the best linear map and lattice, with or without gain, are taken without training.
        overrides: settings of `src/train.py`, as on its command line.
        epochs: number of passes over the training vectors; None is as many as fit into `seconds`. A linear map ignores both.
        seconds: time limit of the whole call.
        folder: folder of the run.

    Returns:
        The codec, with a fitted quantizer, and its recall on the held-out vectors.

    Raises:
        InvalidInput: refused settings, too few vectors, too little time for one epoch, or a folder with a training of other
            settings or vectors.
    """
    end = None if seconds is None else time.perf_counter() + seconds
    _refuse_idle(overrides, linear)
    own: dict[str, Any] = {"bits": bits, "d_out": d_out, "trainer.check_val_every_n_epoch": 1}  # and then by the epochs
    if linear:
        own |= {"rerank": 0} if decoder else {}
        epochs = 1  # of nothing
    elif hidden is not None:
        own |= {"catalyzer.hidden": hidden, **({"decoder.hidden": hidden} if decoder else {})}
    own |= {"dataset.learn": fingerprint(learn, "checking vectors"), "cache": str(folder / "cache")}
    settings = make_settings(decoder, linear, [f"{key}={value}" for key, value in own.items()], overrides)
    if settings.metric is not None:
        raise InvalidInput(
            f'metric={settings.metric} cannot be an override of an index; give CatalyzerIndex(metric="{settings.metric}")'
        )
    check(settings, folder, learn.shape[1], overrides)
    benchmark = _benchmark(learn, folder)
    instead = None if linear else _linear(settings, decoder, benchmark)  # first, so that a budget has its time behind it
    held = Settings.load(folder / "config.yaml") if (folder / "config.yaml").exists() else None
    if epochs is None:
        # An interrupted run keeps its number of epochs, or its learning rate would decay twice.
        epochs = _epochs_until(end, settings, benchmark) if held is None else held.trainer["max_epochs"]
    settings = settings.model_copy(update={"trainer": settings.trainer | _schedule(epochs)})
    if held is not None and (others := held.differences(settings)):
        which = ", ".join("the vectors" if key == "dataset.learn" else key for key in others)
        raise InvalidInput(f"{folder} holds a training that differs in {which}; repeat its settings, or remove the folder")
    codec = new_codec(settings, benchmark)
    if linear and codec.transform.is_trained:
        raise InvalidInput(
            f'method="linear" trains no network, but {type(codec.transform).__name__} is one; leave one of them out'
        )
    check_sizes(codec.quantizer.dim, codec.quantizer.code_size)
    trained = train(settings, benchmark, codec, folder)
    assert trained is not None  # it is, in the first process of several, and there is one
    codec, split = trained.codec, benchmark.validation
    if instead is not None and _finds_more(codec, instead, benchmark, settings.rerank):
        instead = None
    rerank = settings.rerank if instead is None else 0
    found = measure("validation", instead or codec, split.base, split.queries, split.ground_truth, [rerank])[0].recall
    found = {k: share for k, share in found.items() if k in TOLD}
    recalls = ", ".join(f"R@{k} {share:.1%}" for k, share in found.items())
    log.info("validation: %s (%s queries in %s vectors held out)", recalls, f"{len(split.queries):,}", f"{len(split.base):,}")
    if instead is not None:
        codec = instead.adapt(learn)  # to all vectors, since they are few
    return codec, Validation(found, len(split.base), len(split.queries), rerank)


def _refuse_idle(overrides: Sequence[str], linear: bool) -> None:
    """Refuse overrides without effect, since nothing is trained or an argument of `fit` sets them."""
    if linear and (idle := of_training(overrides)):
        raise InvalidInput(f'method="linear" trains no network, which leaves {" ".join(idle)} without effect; leave that out')
    for text in overrides:
        key, _, value = text.lstrip("+~").partition("=")
        if key in ("catalyzer.nested", "catalyzer.damping") and not linear and "catalyzer=linear" not in overrides:
            raise InvalidInput(f'{text} is for linear maps; add method="linear", or --method linear')
        if key == "trainer.max_epochs":
            raise InvalidInput(f"{text} cannot be an override of an index; give epochs={value} to fit, or --epochs {value}")
        if key in ("bits", "d_out"):
            option = key.replace("_", "-")
            raise InvalidInput(f"{text} cannot be an override of an index; give CatalyzerIndex({text}), or --{option} {value}")
        if key == "trainer.check_val_every_n_epoch":
            raise InvalidInput(f"{text} cannot be an override of an index, whose epochs say when it validates; leave it out")


def _linear(settings: Settings, decoder: bool, benchmark: Benchmark) -> Codec | None:
    """The best linear map, for a network and a lattice to be compared with; None if these settings have none of these."""
    network, quantizer = class_of("catalyzer", settings.catalyzer), class_of("quantizer", settings.quantizer)
    reduces = settings.d_out == "auto" or settings.d_out <= benchmark.dim
    if not (issubclass(network, Catalyzer) and issubclass(quantizer, LatticeQuantizer) and reduces):
        return None
    log.info("a linear map, to compare the network with")
    own = [f"{key}={getattr(settings, key)}" for key in ("bits", "d_out", "seed", "cache")]
    own.append(f"dataset.learn={settings.dataset['learn']}")
    linear = make_settings(decoder, True, own).model_copy(update={"quantizer": settings.quantizer})
    return new_codec(linear, benchmark).adapt(benchmark.train)


def _finds_more(codec: Codec, linear: Codec, benchmark: Benchmark, rerank: int) -> bool:
    """Whether a trained codec finds significantly more of the held-out vectors than a linear map, which costs less."""
    # All that was held out searches in all that was held out: of few vectors the validation queries are too few to tell.
    held_out = np.concatenate([benchmark.validation.queries, benchmark.validation.base[:]])
    split = Split(held_out, held_out[:VALIDATION_QUERIES])
    k = min(COMPARED, len(held_out))
    by_network, by_linear = (
        neighbours_found(each, split.base, split.queries, split.ground_truth, k, candidates)
        for each, candidates in ((codec, rerank), (linear, 0))
    )
    more = by_network - by_linear
    better = bool(more.mean() > 2 * more.std() / len(more) ** 0.5)  # standard errors
    seen = f"of the {k} nearest vectors held out the network finds {by_network.mean():.1%}, a linear map {by_linear.mean():.1%}"
    if better:
        log.info("%s; the index takes the network", seen)
    else:
        log.warning(
            "%s; the index takes the linear map: for a network, %s vectors or these epochs are too few",
            seen,
            f"{len(benchmark.train):,}",
        )
    return better


def quantizer_class(decoder: bool, linear: bool, overrides: Sequence[str]) -> type[Quantizer]:
    """The class of the quantizer that an index with these overrides has, known before any vector is read."""
    config = compose_config("train", [*_options(decoder, linear), *overrides])
    return find_class(config.quantizer._target_, Quantizer)


def _options(decoder: bool, linear: bool) -> list[str]:
    if linear:
        return ["experiment=long", "catalyzer=linear", *(["decoder=linear"] if decoder else [])]
    return [f"experiment={'decoder' if decoder else 'long'}"]


def make_settings(decoder: bool, linear: bool, own: Sequence[str], overrides: Sequence[str] = ()) -> Settings:
    """`experiment=decoder`, or without a decoder or a network `experiment=long`, composed and checked.

    Args:
        decoder: whether there is one.
        linear: whether linear maps replace the networks.
        own: overrides of this module. The dataset is named by the content of its vectors, so that a folder resumes a training
            of the same ones alone.
        overrides: overrides of the user, which follow these.
    """
    sizes = {"train_size": TRAIN, "validation_base_size": VALIDATION_BASE, "validation_queries_size": VALIDATION_QUERIES}
    dataset = ["dataset=files", "dataset.base=''", "dataset.queries=''", *(f"dataset.{key}={n}" for key, n in sizes.items())]
    values = resolved(compose_config("train", [*_options(decoder, linear), *dataset, *own, *overrides]))
    for key in ("resume", "trust"):
        del values[key]
    Settings.check(values)
    fit_to_classes(values, overrides)
    return Settings.check(values)


def _schedule(epochs: int) -> dict[str, Any]:
    # The last epoch is among those that are validated, and so may be the best.
    every = next(n for n in range(min(VALIDATE_EVERY, epochs), 0, -1) if epochs % n == 0)
    return {"max_epochs": epochs, "check_val_every_n_epoch": every}


def _benchmark(learn: np.ndarray, folder: Path) -> Benchmark:
    train, base, queries = split_sizes("fit", len(learn), TRAIN, VALIDATION_BASE, VALIDATION_QUERIES)
    held_out = learn[train : train + queries + base]
    validation = Split(held_out[queries:], held_out[:queries], cache=ArrayCache(folder / "cache"))
    # There is no test split: what is trained here is measured by nobody but its user.
    return Benchmark("fit", learn[:train], validation, validation)


def _epochs_until(end: float | None, settings: Settings, benchmark: Benchmark) -> int:
    """How many epochs can be trained until `end`, a time of `time.perf_counter`.

    What is computed for it and needed again, such as the positives, is kept in the cache of the settings.
    """
    assert end is not None
    start, n = time.perf_counter(), len(benchmark.train)
    trainer = trainer_options(settings)

    def timed(vectors: int) -> tuple[Codec, dict[str, Any], float]:
        part = replace(benchmark, train=benchmark.train[:vectors])
        codec, options = new_codec(settings, benchmark), data_options(settings, part)
        epoch, _ = measure_epoch(build_training(settings, codec), TripletData(k_neg=settings.k_neg, **options), trainer)
        return codec, options, epoch

    def fitting(epoch: float, validation: float, after: float) -> int:
        """The number of epochs; refused if there is not one."""
        each = epoch + validation / VALIDATE_EVERY
        epochs = int(min(MAX_EPOCHS, (SHARE * (end - time.perf_counter()) - after) / each))
        if epochs < 1:
            least = (time.perf_counter() - start) + (each + after) / SHARE
            raise InvalidInput(
                f"the budget is too small for an epoch of {n:,} vectors, which takes about {epoch:.1f} s here; "
                f"give at least {math.ceil(1.1 * least)}s, or fewer vectors"
            )
        return epochs

    few = MEASURED_STEPS * settings.batch_size
    if n > 2 * few:  # before all of them are mined, which may take a minute
        fitting(timed(few)[2] * n / few, 0.0, 0.0)
    codec, options, epoch = timed(n)
    codec.transform.cpu().eval()
    if codec.decoder is not None:
        codec.decoder.cpu().eval()
    codec.fit(benchmark.train)
    query, query_epochs = 0.0, 0
    if settings.query["_target_"] is not None:
        training = build_query_training(settings, codec)
        each, before = measure_epoch(training, QueryData(codec=codec, k_neg=min(COMPETITORS, n - 1), **options), trainer)
        query_epochs = training.max_epochs
        query = before + query_epochs * each
    split = benchmark.validation
    began = time.perf_counter()
    measure("validation", codec, split.base, split.queries, split.ground_truth, sorted({0, settings.rerank}))
    validation = time.perf_counter() - began

    # Validations come twice more to compare with a linear map, and once to tell the user.
    epochs = fitting(epoch, validation, query + (1 + query_epochs + 3) * validation)
    log.info("an epoch takes about %.1f s here: %d fit into the time that is left", epoch, epochs)
    return epochs
