"""Checks before any data is read: whether parts support what the settings need, including parts of other packages."""

import copy
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from catalyzer.codec import Codec
from catalyzer.errors import InvalidInput
from catalyzer.nn import Descent, Transform, embed
from catalyzer.parts import describe, find_class, make
from catalyzer.quantizers import LatticeQuantizer, Quantizer, SignQuantizer
from catalyzer.runs.build import (
    blamed,
    build_baselines,
    build_callbacks,
    build_codec,
    build_dataset,
    build_miner,
    build_query_training,
    build_training,
    trainer_options,
)
from catalyzer.runs.settings import Settings

log = logging.getLogger(__name__)

MADE_UP = 300  # vectors that foreign parts are tried on
OF_TRAINING = frozenset(
    [
        *("loss", "lambda", "optimizer", "scheduler", "miner", "callbacks", "monitor"),
        *("batch_size", "learning_rate", "decay", "warmup", "k_pos", "k_neg"),
    ]
)
"""Keys and groups that say how networks are trained, and nothing else."""


def of_training(overrides: Sequence[str]) -> list[str]:
    """The overrides that only affect how networks are trained.

    >>> of_training(["loss=triplet", "~loss.terms.rank", "trainer=cpu", "trainer.max_epochs=3", "seed=1"])
    ['loss=triplet', '~loss.terms.rank', 'trainer.max_epochs=3']
    """
    keys = [text.lstrip("+~").partition("=")[0] for text in overrides]
    # An option of the group `trainer` says on what machine, which scripts say of every run.
    own = [key.partition(".")[0] in OF_TRAINING or key.startswith("trainer.") for key in keys]
    return [text for text, is_own in zip(overrides, own, strict=True) if is_own]


def check(settings: Settings, folder: Path, d_in: int | None = None, typed: Sequence[str] = (), sweeping: bool = False) -> None:
    """Check all that is known before data is read: classes, arguments, and whether parts support what the settings need.

    Parts of other packages are tried on random vectors.

    Args:
        settings: settings of the run.
        folder: folder of the run; nothing is written.
        d_in: dimension of the data, as the metric compares them; None for what the dataset says before it is read. Where it
            says nothing, a dimension is made up too, and a part that fails on it is left to a second check.
        typed: overrides of the user. Those about training are refused where nothing is trained.
        sweeping: warn of these instead, since the jobs of a sweep share them.

    Raises:
        InvalidInput: one sentence on what is wrong first.
    """
    dataset = build_dataset(settings)
    if d_in is None and dataset.dim is not None:
        d_in = dataset.dim + dataset.compared_by(settings.metric).extra
    try:
        codec, d_out = _tried(settings, d_in)
        rehearse(codec)
    except InvalidInput as error:
        if d_in is None and error.__cause__ is not None:  # raised within a part
            return
        raise
    transform, quantizer = codec.transform, codec.quantizer
    chosen = f"{type(transform).__name__} and {type(quantizer).__name__}"
    idle: list[tuple[str, str]] = []
    if not transform.is_trained and (given := of_training(typed)):
        what = f"{type(transform).__name__} is not trained, which leaves {' '.join(given)} without effect"
        idle.append((what, "leave that out, or choose a network, such as catalyzer=mlp"))
    sized = "bits" in settings.quantizer or isinstance(quantizer, SignQuantizer)
    if not sized and d_in is not None and quantizer.bits != settings.bits and any(text.startswith("bits=") for text in typed):
        made = f"codes of {quantizer.bits} bits from {quantizer.dim} dimensions"
        what = f"bits = {settings.bits}, but {type(quantizer).__name__} makes {made}"
        idle.append((what, "leave out bits, and set d_out or the arguments of the quantizer"))
    for what, instead in idle:
        if not sweeping:
            raise InvalidInput(f"{what}; {instead}")
        log.warning("%s", what)
    if (
        isinstance(quantizer, SignQuantizer)
        and transform.d_out == d_out
        and (settings.d_out == "auto" or quantizer.bits != settings.bits)
    ):
        raise InvalidInput(
            f"quantizer=sign makes codes of d_out = {settings.d_out} bits, but bits = {settings.bits}; set only one of them"
        )
    through = transform.is_trained and quantizer.can("straight_through")
    for asked, what in (
        (settings.end_to_end, "end_to_end=true needs a network and a fixed quantizer"),
        (
            codec.decoder is not None and codec.decoder.is_trained,
            "a decoder needs a network and a fixed quantizer",
        ),
    ):
        if asked and not through:
            raise InvalidInput(f"{what}, such as catalyzer=mlp quantizer=lattice or quantizer=sign; got {chosen}")
    if settings.query.get("_target_") is not None and (not through or quantizer.symmetric):
        raise InvalidInput(
            "a query network needs a network and a fixed quantizer, such as catalyzer=mlp quantizer=lattice "
            f"or quantizer=sign quantizer.asymmetric=true; got {chosen}"
        )
    if settings.split == "validation" and not transform.is_trained:
        raise InvalidInput(
            f"split=validation compares epochs of a training, so it needs a network, such as catalyzer=mlp; got {chosen}"
        )
    build_baselines(settings, 128, 64)
    build_miner(settings)
    if transform.is_trained:
        _check_training(settings, codec, folder)


def _tried(settings: Settings, d_in: int | None) -> tuple[Codec, int]:
    """A codec for vectors of d_in dimensions, and its d_out, where either may be made up; its parts check their arguments."""
    from catalyzer.training.dimension import dimensions

    proposed = find_class(settings.quantizer["_target_"], Quantizer).default_dim(settings.bits)
    made_up = max(128, proposed)
    choices = dimensions(settings.bits, d_in or made_up) if settings.d_out == "auto" else (settings.d_out,)
    refused: InvalidInput | None = None
    for d_out in choices[::-1]:  # fewer bits than so many dimensions need are told of by the last
        try:
            with torch.random.fork_rng(devices=[]):
                return build_codec(settings, d_in or max(128, d_out), d_out), d_out
        except InvalidInput as error:
            if refused is None or str(refused).startswith("quantizer: "):  # which depends on the dimension, unlike the others
                refused = error
    assert refused is not None
    raise refused


def _is_ours(part: object) -> bool:
    return type(part).__module__.startswith("catalyzer.")


def _path(part: object) -> str:
    return f"{type(part).__module__}.{type(part).__qualname__}"


def rehearse(codec: Codec) -> None:
    """Send random vectors through transforms and quantizers of other packages, and these through a file."""
    random = np.random.default_rng(0)
    x = random.normal(size=(MADE_UP, codec.transform.d_in)).astype(np.float32)
    transform, quantizer = codec.transform, codec.quantizer
    for given, shape in ((transform, (MADE_UP, quantizer.dim)), (codec.decoder, x.shape)):
        if given is None or _is_ours(given):
            continue
        with blamed(_path(given)):
            network = copy.deepcopy(given)  # what that of a run has learned stays as it is
            network.adapt(x)
            made = embed(network, x if given is transform else random.normal(size=(MADE_UP, network.d_in)).astype(np.float32))
            if made.shape != shape or not np.isfinite(made).all():
                raise InvalidInput(f"{_path(network)} makes {made.shape} of {MADE_UP} vectors, expected {shape} finite numbers")
            make(describe(network), Transform, trust=type(network).__module__).load_state_dict(network.state_dict())
            if given is codec.decoder and codec.steps:
                Descent(network, quantizer.spheres)  # which refuses a decoder without a gradient
            norms = np.linalg.norm(made, axis=1)
            if given is transform and isinstance(quantizer, LatticeQuantizer) and np.abs(norms - 1).max() > 0.01:
                raise InvalidInput(
                    f"{_path(network)} makes points of norm {norms[0]:.3g}, expected 1 for the lattice; "
                    "end forward with torch.nn.functional.normalize"
                )
    if _is_ours(quantizer):
        return
    latent = random.normal(size=(MADE_UP, quantizer.dim)).astype(np.float32)
    latent /= np.linalg.norm(latent, axis=1, keepdims=True)
    with blamed(_path(quantizer)):
        codes = _expected(quantizer, "codes", quantizer.fit(latent).encode(latent), (MADE_UP, quantizer.code_size), "uint8")
        _expected(quantizer, "decoded vectors", quantizer.decode(codes), latent.shape, "float32")
        distances, ids = quantizer.search(latent[:2], codes, 3)
        _expected(quantizer, "distances", distances, (2, 3), "float32")
        _expected(quantizer, "rows", ids, (2, 3), "int64")
        again = make(describe(quantizer), Quantizer, trust=type(quantizer).__module__)
        again.load_state_dict(quantizer.state_dict())
        if not np.array_equal(again.encode(latent), codes):
            raise InvalidInput(
                f"{_path(quantizer)} encodes differently after it is saved and loaded; give what fit learns names that end "
                "in an underscore, such as self.scale_, or define state_dict and load_state_dict"
            )


def _expected(quantizer: Quantizer, name: str, got: Any, shape: tuple[int, ...], dtype: str) -> np.ndarray:
    if not isinstance(got, np.ndarray):
        raise InvalidInput(f"{_path(quantizer)}: expected {name} as an array, got {type(got).__name__}")
    if got.shape != shape or got.dtype != dtype:
        raise InvalidInput(f"{_path(quantizer)}: expected {name} of {shape} {dtype}, got {got.shape} {got.dtype}")
    return got


def _check_training(settings: Settings, codec: Codec, folder: Path) -> None:
    """Build what trains, and try foreign terms of the loss, optimizers and schedules on random triplets."""
    from catalyzer.training import Checkpoints, Triplets, check_trainer
    from catalyzer.training.module import VALIDATED

    callbacks = build_callbacks(settings, folder)
    check_trainer(trainer_options(settings), callbacks)
    if not any(isinstance(callback, Checkpoints) for callback in callbacks):
        raise InvalidInput("callbacks.checkpoints is missing, but without it a run cannot be resumed; do not remove it")
    if settings.query.get("_target_") is not None:
        build_query_training(settings, codec)
    training = build_training(settings, codec)
    if not training.terms:
        raise InvalidInput("loss.terms is empty; keep at least one term")
    with blamed(settings.optimizer["_target_"]):
        optimizer = training.make_optimizer(training.parameters())
    with blamed(settings.scheduler["_target_"]):
        training.schedule(optimizer, total_steps=10)
    for weight in training.parameters():
        weight.grad = torch.zeros_like(weight)
    with blamed(settings.optimizer["_target_"]):
        optimizer.step(lambda: torch.zeros(()))  # type: ignore[arg-type, return-value]
    random = torch.Generator().manual_seed(0)
    inputs = torch.randn(3, 8, codec.transform.d_in, generator=random)
    points = torch.nn.functional.normalize(torch.randn(3, 8, codec.transform.d_out, generator=random), dim=2).requires_grad_()
    anchor, positive, negative = points
    decoded = inputs + 1 if codec.decoder is not None else None
    more: set[str] = set()  # what foreign terms log besides
    for name, term in training.terms.items():
        if _is_ours(term):
            continue
        with blamed(_path(term)):
            result = term(Triplets(inputs, (anchor, positive, negative), (anchor, positive, negative), decoded, torch.ones(())))
            loss = result["loss"] if isinstance(result, dict) else result
            got = tuple(loss.shape) if isinstance(loss, torch.Tensor) and loss.ndim else loss
            if not (isinstance(got, torch.Tensor) and got.isfinite()):
                raise InvalidInput(f"loss.terms.{name}: {_path(term)} must return a finite scalar, got {got}")
            more |= result.keys() if isinstance(result, dict) else set()
    validated = {name for name in VALIDATED if settings.rerank or "latent" not in name}
    validated = {name for name in validated if codec.decodes or "error" not in name}
    noted = {f"{when}/{name}" for when in ("train", "epoch") for name in ("loss", "violated", *training.terms, *more)}
    for callback in callbacks:
        monitor = getattr(callback, "monitor", None)
        # A checkpoint that is written with the validation comes before the means of the epoch.
        early = getattr(callback, "_save_on_train_epoch_end", None) is False
        if isinstance(monitor, str) and monitor not in validated | (set() if early else noted):
            raise InvalidInput(
                f"{type(callback).__name__} cannot monitor {monitor}; choose among "
                f"{', '.join(sorted(validated if early else validated | noted))}"
            )
