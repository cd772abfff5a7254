"""The one place where settings become objects, by Hydra's `instantiate`; and what is checked before any data is read."""

import inspect
import logging
import traceback
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_type_hints

import numpy as np
import torch
from pydantic import PydanticSchemaGenerationError, PydanticUserError, TypeAdapter, ValidationError

from catalyzer.codec import Codec
from catalyzer.datasets import Dataset
from catalyzer.errors import CatalyzerError, InvalidInput, MissingPackage
from catalyzer.nn import Transform, embed
from catalyzer.parts import Trust, describe, find_class, make, parameters
from catalyzer.quantizers import Quantizer, SignQuantizer
from catalyzer.runs.settings import Settings

if TYPE_CHECKING:  # what only uses a run need not wait for Lightning
    from pytorch_lightning.callbacks import Callback
    from pytorch_lightning.loggers import Logger

    from catalyzer.training import CatalyzerTraining, QueryTraining

log = logging.getLogger(__name__)

KINDS = {
    "dataset": "catalyzer.datasets.Dataset",
    "catalyzer": "catalyzer.nn.Transform",
    "quantizer": "catalyzer.quantizers.Quantizer",
    "decoder": "catalyzer.nn.Transform",
    "query": "catalyzer.training.QueryTraining",
    "loss.terms": "catalyzer.training.LossTerm",
    "optimizer": "torch.optim.Optimizer",
    "scheduler": "torch.optim.lr_scheduler.LRScheduler",
    "miner": "catalyzer.training.Miner",
    "trainer": "pytorch_lightning.Trainer",
    "callbacks": "pytorch_lightning.callbacks.Callback",
    "logger": "pytorch_lightning.loggers.Logger",
}
"""The groups of parts, and what the class of a part must be derived from. Three groups hold parts by name."""

USED_LATER = ("dataset", "catalyzer", "quantizer", "decoder")
"""The groups that a finished run is used with; the others train."""

TRUSTED = ("torch.optim", "pytorch_lightning")
"""Modules whose classes any run folder may name, of the kinds above."""

MADE_UP = 300  # vectors that foreign parts are tried on


def parts(values: dict[str, Any]) -> Iterator[tuple[str, str, dict[str, Any]]]:
    """All parts of composed settings: group, key on the command line, and the part itself."""
    for group in KINDS:
        node: Any = values
        for key in group.split("."):
            node = node.get(key) or {}
        if "_target_" in node:
            if node["_target_"] is not None:
                yield group, group, node
        else:
            yield from ((group, f"{group}.{name}", part) for name, part in node.items() if part is not None)


def class_of(group: str, part: dict[str, Any], trust: Trust | None = None) -> type:
    """The class that a part names; see `catalyzer.parts.find_class` for `trust` and the errors."""
    return find_class(part["_target_"], find_class(KINDS[group], object), trust)


def fit_to_classes(values: dict[str, Any], overrides: Sequence[str]) -> None:
    """Check the arguments of all parts against their classes, and leave out those that were not meant for them.

    Where `quantizer._target_` was typed, the other arguments are still those of the option that the group had before.

    Args:
        values: composed settings; changed in place.
        overrides: as typed.

    Raises:
        InvalidInput: a class that is not there or of another kind, an argument of another type, or one that was typed and that
            the class does not take.
    """
    given = {key: value for key, _, value in (text.lstrip("+~").partition("=") for text in overrides)}
    for group, key, part in parts(values):
        cls = class_of(group, part)
        hints, others = _hints(cls)
        for name in [name for name in part if not name.startswith("_") and (group, name) != ("trainer", "sync_batchnorm")]:
            if name in hints or others is not None:
                part[name] = _checked(f"{key}.{name}", part[name], hints.get(name, others))
            elif f"{key}.{name}" in given or given.get(key, "").startswith("{"):
                takes = ", ".join(hints) or "nothing"
                raise InvalidInput(f"{key}.{name}: {cls.__name__} has no argument {name}; it takes {takes}")
            else:
                log.info("%s takes no %s, so %s.%s is left out", cls.__name__, name, key, name)
                del part[name]


def _hints(cls: type) -> tuple[dict[str, Any], Any]:
    """The types of the arguments by name, and that of all others that the class takes, or None where it takes no others.

    A class that takes **others is expected to hand them to its base, whose arguments are then its own too.
    """
    hints: dict[str, Any] = {}
    others = None
    for base in cls.__mro__:
        if "__init__" not in vars(base) or base is object:
            continue
        try:
            typed = get_type_hints(base.__init__)  # type: ignore[misc]
        except (NameError, TypeError):  # names that are imported for type checkers alone
            typed = {}
        hints = {name: typed.get(name, Any) for name in parameters(base)} | hints
        signature = inspect.signature(base.__init__).parameters.values()  # type: ignore[misc]
        rest = next((typed.get(each.name, Any) for each in signature if each.kind is inspect.Parameter.VAR_KEYWORD), None)
        others = rest if others is None else others
        if rest is None:
            break
    return hints, others


def _checked(key: str, value: Any, hint: Any) -> Any:
    if isinstance(value, dict | list):  # may hold parts
        return value
    try:
        return TypeAdapter(hint).validate_python(value)
    except ValidationError as error:
        message = error.errors()[0]["msg"]
        raise InvalidInput(f"{key}={value}: {message[0].lower()}{message[1:]}; change it on the command line") from None
    except (PydanticSchemaGenerationError, PydanticUserError):  # a type of somebody's that pydantic does not know
        return value


def check_trust(settings: Settings, trust: Trust, groups: Sequence[str] = tuple(KINDS)) -> None:
    """Raise `UntrustedPart` where settings of somebody's run name a class that `trust` does not allow.

    Args:
        settings: of a run folder.
        trust: modules whose classes may be named beside those of this package, torch's optimizers and Lightning's.
        groups: that are about to be built.
    """
    allowed = (*TRUSTED, *([trust] if isinstance(trust, str) else trust))

    def walk(value: Any) -> None:
        if isinstance(value, dict) and isinstance(path := value.get("_target_"), str):
            find_class(path, object, allowed)
        for each in value.values() if isinstance(value, dict) else value if isinstance(value, list) else ():
            walk(each)

    for group, _, part in parts(settings.model_dump()):
        if group in groups:
            class_of(group, part, allowed)
            walk(part)


def modules_of(settings: Settings) -> list[str]:
    """The modules that settings name, for those who have composed them themselves."""
    return sorted({part["_target_"].rpartition(".")[0] for _, _, part in parts(settings.model_dump())})


@contextmanager
def _blamed(path: str) -> Iterator[None]:
    """Turn what goes wrong in a part into a sentence that names it, and the line in which it went wrong."""
    try:
        yield
    except CatalyzerError:
        raise
    except ImportError as error:
        raise MissingPackage(f"{path}: {' '.join(str(error).split())}") from None
    except Exception as error:
        reason = " ".join(str(error).split()) or "no message"
        at = traceback.extract_tb(error.__traceback__)[-1]
        where = "" if "hydra" in Path(at.filename).parts else f" ({Path(at.filename).name}, line {at.lineno})"
        raise InvalidInput(f"{path}: {type(error).__name__}: {reason}{where}") from error


def _built(group: str, part: dict[str, Any], **given: Any) -> Any:
    """The part, with those of the given arguments that its class takes and the settings do not have."""
    hints, _ = _hints(class_of(group, part))
    more = {name: value for name, value in given.items() if name in hints and name not in part}
    with _blamed(part["_target_"]):
        return _maker(part)(**more)


def _maker(part: dict[str, Any]) -> Any:
    """What makes the part of arguments that its settings do not have."""
    from hydra.utils import instantiate  # what only uses a run need not wait for Hydra

    return instantiate({**part, "_partial_": True}, _convert_="all")


def build_dataset(settings: Settings) -> Dataset:
    """The dataset, not read yet."""
    return _built("dataset", settings.dataset)


def build_quantizer(part: dict[str, Any], dim: int) -> Quantizer:
    """A quantizer of vectors of `dim` dimensions, not fitted yet."""
    return _built("quantizer", part, dim=dim)


def build_codec(settings: Settings, d_in: int, d_out: int) -> Codec:
    """Transform, quantizer and decoder, with nothing learned.

    Args:
        settings: of the run.
        d_in: dimension of the data.
        d_out: dimension to map to, for transforms that take one.

    Raises:
        InvalidInput: a part that refuses its arguments, or parts that do not fit together.
    """
    transform = _built("catalyzer", settings.catalyzer, d_in=d_in, d_out=d_out)
    quantizer = build_quantizer(settings.quantizer, transform.d_out)
    if settings.decoder.get("_target_") is None:
        return Codec(transform, quantizer)
    decoder = _built("decoder", settings.decoder, d_in=transform.d_out, d_out=d_in)
    return Codec(transform, quantizer, decoder, settings.refine, settings.latent_share)


def build_training(settings: Settings, codec: Codec) -> "CatalyzerTraining":
    """What trains the codec's networks."""
    from catalyzer.training import CatalyzerTraining

    terms = {name: _built("loss.terms", part) for name, part in settings.loss.terms.items() if part is not None}
    return CatalyzerTraining(
        codec,
        terms,
        optimizer=_maker(settings.optimizer),
        scheduler=_maker(settings.scheduler),
        end_to_end=settings.end_to_end,
        rerank=settings.rerank,
        sync_batchnorm=bool(settings.trainer.get("sync_batchnorm", False)),
    )


def build_query_training(settings: Settings, codec: Codec) -> "QueryTraining":
    """What trains the network for queries behind a trained codec."""
    return _built("query", settings.query, codec=codec, sync_batchnorm=bool(settings.trainer.get("sync_batchnorm", False)))


def build_miner(settings: Settings) -> Any:
    """What finds the neighbours."""
    return _built("miner", settings.miner)


def build_callbacks(settings: Settings, folder: Path) -> "list[Callback]":
    """The callbacks of a training in `folder`, which those get that ask for it, as `folder` or `dirpath`."""
    given = {"folder": folder, "dirpath": folder / "checkpoints"}
    return [_built("callbacks", part, **given) for part in settings.callbacks.values() if part is not None]


def build_loggers(settings: Settings, folder: Path) -> "list[Logger]":
    """The loggers of a run in `folder`, which those get that ask for it, as `save_dir`."""
    return [_built("logger", part, save_dir=folder) for part in settings.logger.values() if part is not None]


def trainer_options(settings: Settings) -> dict[str, Any]:
    """Arguments of `pytorch_lightning.Trainer`; batch norm is synchronized by ours, which works on CPUs too."""
    from hydra.utils import instantiate

    options = {key: value for key, value in settings.trainer.items() if key not in ("_target_", "sync_batchnorm")}
    return instantiate(options, _convert_="all")


def build_baselines(settings: Settings, d_in: int, bits: int) -> list[Quantizer]:
    """The quantizers that are measured beside, on the raw vectors and at the size of the chosen one's codes.

    Args:
        settings: of the run; each baseline is an option of the group `quantizer`.
        d_in: dimension of the data.
        bits: of a code.
    """
    from omegaconf import OmegaConf

    from catalyzer.runs.compose import CONF

    made = []
    for name in settings.baselines:
        file = CONF / "quantizer" / f"{name}.yaml"
        if not file.is_file():
            options = ", ".join(sorted(path.stem for path in file.parent.glob("*.yaml")))
            raise InvalidInput(f"baselines: there is no quantizer {name}; choose among {options}")
        given = {"quantizer": OmegaConf.load(file), "bits": bits, "seed": settings.seed}
        part: Any = OmegaConf.to_container(OmegaConf.create(given), resolve=True)
        try:
            made.append(build_quantizer(part["quantizer"], d_in))
        except InvalidInput as error:
            raise InvalidInput(f"the baselines cannot be built: {error}; baselines=[] leaves them out") from None
    return made


def check(settings: Settings, folder: Path, d_in: int | None = None) -> None:
    """Check all that can be known before data is read: classes, arguments, and whether parts can do what is asked of them.

    Parts of other packages are tried on vectors that are made up.

    Args:
        settings: of the run.
        folder: of the run; nothing is written.
        d_in: dimension of the data; None for what the dataset says before it is read. Where it says nothing, a dimension is
            made up too, and a part that fails on it is left to a second check.

    Raises:
        InvalidInput: one sentence on what is wrong first.
    """
    d_in = build_dataset(settings).dim if d_in is None else d_in
    try:
        codec, d_out = _tried(settings, d_in)
        rehearse(codec)
    except InvalidInput as error:
        if d_in is None and error.__cause__ is not None:  # raised within a part
            return
        raise
    transform, quantizer = codec.transform, codec.quantizer
    chosen = f"catalyzer={transform.label or 'identity'} quantizer={quantizer.label}"
    if (
        isinstance(quantizer, SignQuantizer)
        and transform.d_out == d_out
        and (settings.d_out == "auto" or quantizer.bits != settings.bits)
    ):
        raise InvalidInput(
            f"the sign of each coordinate makes codes of d_out = {settings.d_out} bits, but bits = {settings.bits}; "
            "set one of them and leave the other"
        )
    through = transform.is_trained and quantizer.can("straight_through")
    for asked, what in (
        (settings.end_to_end, "end_to_end trains a network through a fixed quantizer"),
        (codec.decoder is not None, "a decoder is trained with a network through a fixed quantizer"),
    ):
        if asked and not through:
            raise InvalidInput(f"{what}, such as catalyzer=mlp quantizer=lattice or quantizer=sign; got {chosen}")
    if settings.query.get("_target_") is not None and (not through or quantizer.symmetric):
        raise InvalidInput(
            "a network for queries is trained to rank the points of a fixed quantizer, such as catalyzer=mlp quantizer=lattice "
            f"or quantizer=sign quantizer.asymmetric=true; got {chosen}"
        )
    if settings.refine > 1 and not quantizer.can("nearest"):
        raise InvalidInput(f"refine = {settings.refine} tries lattice points, got quantizer={quantizer.label}; set refine=1")
    if settings.split == "validation" and not transform.is_trained:
        raise InvalidInput(
            "split=validation compares runs by the epochs of their training, which only a network has, such as catalyzer=mlp; "
            f"got {chosen}"
        )
    build_baselines(settings, 128, 64)
    build_miner(settings)
    if transform.is_trained:
        _check_training(settings, codec, folder)


def _tried(settings: Settings, d_in: int | None) -> tuple[Codec, int]:
    """A codec for vectors of d_in dimensions, and its d_out, where either may be made up; its parts check their arguments."""
    from catalyzer.training.dimension import DIMENSIONS

    choices = (24, *DIMENSIONS) if settings.d_out == "auto" else (settings.d_out,)
    for d_out in choices:
        try:
            with torch.random.fork_rng(devices=[]):
                return build_codec(settings, d_in or max(128, d_out), d_out), d_out
        except InvalidInput:
            if d_out == choices[-1]:
                raise
    raise AssertionError("unreachable: there is a choice")


def _is_ours(part: object) -> bool:
    return type(part).__module__.startswith("catalyzer.")


def _path(part: object) -> str:
    return f"{type(part).__module__}.{type(part).__qualname__}"


def rehearse(codec: Codec) -> None:
    """Send made-up vectors through transforms and quantizers of other packages, and these through a file."""
    random = np.random.default_rng(0)
    x = random.normal(size=(MADE_UP, codec.transform.d_in)).astype(np.float32)
    transform, quantizer = codec.transform, codec.quantizer
    for network, shape in ((transform, (MADE_UP, quantizer.dim)), (codec.decoder, x.shape)):
        if network is None or _is_ours(network):
            continue
        with _blamed(_path(network)):
            network.adapt(x)
            made = embed(network, x if network is transform else random.normal(size=(MADE_UP, network.d_in)).astype(np.float32))
            if made.shape != shape or not np.isfinite(made).all():
                raise InvalidInput(f"{_path(network)} makes {made.shape} of {MADE_UP} vectors, expected {shape} finite numbers")
            make(describe(network), Transform, trust=type(network).__module__).load_state_dict(network.state_dict())
    if _is_ours(quantizer):
        return
    latent = random.normal(size=(MADE_UP, quantizer.dim)).astype(np.float32)
    latent /= np.linalg.norm(latent, axis=1, keepdims=True)
    with _blamed(_path(quantizer)):
        codes = _expected(quantizer, "codes", quantizer.fit(latent).encode(latent), (MADE_UP, quantizer.code_size), "uint8")
        _expected(quantizer, "decoded vectors", quantizer.decode(codes), latent.shape, "float32")
        distances, ids = quantizer.search(latent[:2], codes, 3)
        _expected(quantizer, "distances", distances, (2, 3), "float32")
        _expected(quantizer, "rows", ids, (2, 3), "int64")
        again = make(describe(quantizer), Quantizer, trust=type(quantizer).__module__)
        again.load_state_dict(quantizer.state_dict())
        if not np.array_equal(again.encode(latent), codes):
            raise InvalidInput(
                f"{_path(quantizer)} codes differently after it was in a file; name what fit learns with an underscore at the "
                "end, self.scale_, or define state_dict and load_state_dict"
            )


def _expected(quantizer: Quantizer, name: str, got: Any, shape: tuple[int, ...], dtype: str) -> np.ndarray:
    if not isinstance(got, np.ndarray):
        raise InvalidInput(f"{_path(quantizer)}: expected {name} as an array, got {type(got).__name__}")
    if got.shape != shape or got.dtype != dtype:
        raise InvalidInput(f"{_path(quantizer)}: expected {name} of {shape} {dtype}, got {got.shape} {got.dtype}")
    return got


def _check_training(settings: Settings, codec: Codec, folder: Path) -> None:
    """Build what trains, and try foreign terms of the loss, optimizers and schedules on made-up triplets."""
    from catalyzer.training import Checkpoints, Triplets, check_trainer
    from catalyzer.training.module import VALIDATED

    check_trainer(trainer_options(settings))
    callbacks = build_callbacks(settings, folder)
    if not any(isinstance(callback, Checkpoints) for callback in callbacks):
        raise InvalidInput("callbacks.checkpoints is missing, without which no run could be resumed; leave it where it was")
    for callback in callbacks:
        monitor = getattr(callback, "monitor", None)
        if isinstance(monitor, str) and monitor not in VALIDATED and not monitor.startswith(("train/", "epoch/")):
            raise InvalidInput(
                f"{type(callback).__name__} monitors {monitor}; logged are {', '.join(sorted(VALIDATED))}, and epoch/loss"
            )
    if settings.query.get("_target_") is not None:
        build_query_training(settings, codec)
    training = build_training(settings, codec)
    if not training.terms:
        raise InvalidInput("loss.terms has no term to minimize")
    with _blamed(settings.optimizer["_target_"]):
        optimizer = training.make_optimizer(training.parameters())
    with _blamed(settings.scheduler["_target_"]):
        training.schedule(optimizer, total_steps=10)
    for weight in training.parameters():
        weight.grad = torch.zeros_like(weight)
    with _blamed(settings.optimizer["_target_"]):
        optimizer.step(lambda: torch.zeros(()))  # type: ignore[arg-type, return-value]
    random = torch.Generator().manual_seed(0)
    inputs = torch.randn(3, 8, codec.transform.d_in, generator=random)
    points = torch.nn.functional.normalize(torch.randn(3, 8, codec.transform.d_out, generator=random), dim=2).requires_grad_()
    decoded = inputs + 1 if codec.decoder is not None else None
    for name, term in training.terms.items():
        if _is_ours(term):
            continue
        with _blamed(_path(term)):
            result = term(Triplets(inputs, points, points, decoded, torch.ones(())))
            loss = result["loss"] if isinstance(result, dict) else result
            got = tuple(loss.shape) if isinstance(loss, torch.Tensor) and loss.ndim else loss
            if not (isinstance(got, torch.Tensor) and got.isfinite()):
                raise InvalidInput(f"loss.terms.{name}: {_path(term)} is to make a finite scalar, got {got}")
