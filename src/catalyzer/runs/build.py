"""The only module that builds objects from settings, with Hydra's `instantiate`."""

import inspect
import logging
import traceback
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_type_hints

from pydantic import PydanticSchemaGenerationError, PydanticUserError, TypeAdapter, ValidationError
from pydantic_core import PydanticCustomError

from catalyzer.codec import Codec
from catalyzer.datasets import Benchmark, Dataset
from catalyzer.errors import CatalyzerError, InvalidInput, MissingPackage
from catalyzer.files.array_cache import ArrayCache
from catalyzer.metric import Metric
from catalyzer.parts import Trust, find_class, parameters
from catalyzer.quantizers import Quantizer
from catalyzer.runs.settings import Settings, number

if TYPE_CHECKING:  # what only uses a run need not wait for Lightning
    from pytorch_lightning.callbacks import Callback
    from pytorch_lightning.loggers import Logger

    from catalyzer.training import CatalyzerTraining, QueryTraining

log = logging.getLogger(__name__)

OURS = Path(__file__).parents[1]

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
"""The groups of parts, and what the class of a part must be derived from."""

NAMED = ("loss.terms", "callbacks", "logger")
"""The groups that hold any number of parts, by name."""

TRUSTED = ("torch.optim", "pytorch_lightning")
"""Modules whose classes any run folder may name, of the kinds above."""


def parts(values: dict[str, Any]) -> Iterator[tuple[str, str, dict[str, Any]]]:
    """All parts of composed settings: group, key on the command line, and the part itself."""
    for group in KINDS:
        node: Any = values
        for key in group.split("."):
            node = node.get(key) or {}
        if group in NAMED:
            yield from ((group, f"{group}.{name}", part) for name, part in node.items() if part is not None)
        elif node.get("_target_") is not None:
            yield group, group, node


def class_of(group: str, part: dict[str, Any], trust: Trust | None = None) -> type:
    """The class that a part names; see `catalyzer.parts.find_class` for `trust` and the errors."""
    return find_class(part["_target_"], find_class(KINDS[group], object), trust)


def fit_to_classes(values: dict[str, Any], overrides: Sequence[str]) -> None:
    """Check the arguments of all parts against their classes, and drop those that were not meant for them.

    With `quantizer._target_` on the command line, the other arguments are still those of the group's previous option.

    Args:
        values: composed settings; changed in place.
        overrides: overrides as typed.

    Raises:
        InvalidInput: a class that is not there or of another kind, an argument of another type, or one that was typed and that
            the class does not take.
    """
    given = {key: value for key, _, value in (text.lstrip("+~").partition("=") for text in overrides)}
    for group, key, part in parts(values):
        cls = class_of(group, part)
        hints, others = arguments_of(cls)
        for name in [name for name in part if not name.startswith("_") and (group, name) != ("trainer", "sync_batchnorm")]:
            if name in hints or others is not None:
                part[name] = _checked(f"{key}.{name}", part[name], hints.get(name, others))
            elif f"{key}.{name}" in given or given.get(key, "").startswith("{"):
                takes = ", ".join(hints) or "nothing"
                raise InvalidInput(f"{key}.{name}: {cls.__name__} has no argument {name}; it takes {takes}")
            else:
                log.info("%s has no argument %s, so %s.%s is ignored", cls.__name__, name, key, name)
                del part[name]


def arguments_of(cls: type) -> tuple[dict[str, Any], Any]:
    """The types of the arguments by name, and that of all others that the class takes, or None where it takes no others.

    A class that takes **others is expected to pass them to its base, whose arguments it then has too.
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
            return hints, None
    return hints, others


def _checked(key: str, value: Any, hint: Any) -> Any:
    if isinstance(value, dict | list):  # may hold parts
        return value
    try:
        return number(value, TypeAdapter(hint).validate_python(value))
    except (ValidationError, PydanticCustomError) as error:
        message = error.errors()[0]["msg"] if isinstance(error, ValidationError) else error.message()
        raise InvalidInput(f"{key}={value}: {message[0].lower()}{message[1:]}; change it on the command line") from None
    except (PydanticSchemaGenerationError, PydanticUserError):  # a type of somebody's that pydantic does not know
        return value


def check_trust(settings: Settings, trust: Trust, groups: Sequence[str] = tuple(KINDS)) -> None:
    """Raise `UntrustedPart` if the settings of a run folder name a class that `trust` does not allow.

    Args:
        settings: settings in a run folder.
        trust: modules whose classes may be named in addition to those of this package, torch's optimizers and Lightning.
        groups: groups that will be built.
    """
    own = (trust,) if isinstance(trust, str) else tuple(trust)

    def walk(value: Any) -> None:  # through arguments, in which Hydra would instantiate too
        if isinstance(value, dict) and "_target_" in value:
            find_class(str(value["_target_"]), object, own)
        for each in value.values() if isinstance(value, dict) else value if isinstance(value, list) else ():
            walk(each)

    for group, _, part in parts(settings.model_dump()):
        if group in groups:
            class_of(group, part, (*TRUSTED, *own))
            for argument in part.values():
                walk(argument)


def modules_of(settings: Settings) -> list[str]:
    """The modules that settings name, for users who have composed them themselves."""
    return sorted({part["_target_"].rpartition(".")[0] for _, _, part in parts(settings.model_dump())})


EXTRAS = {"TensorBoardLogger": "tensorboard"}
"""Extras of this package with what classes of others need."""


@contextmanager
def blamed(path: str) -> Iterator[None]:
    """Turn what goes wrong in a part into a sentence that names it, and the line in which it went wrong."""
    try:
        yield
    except CatalyzerError:
        raise
    except ImportError as error:
        extra = EXTRAS.get(path.rpartition(".")[2])
        raise MissingPackage(
            f'{path} needs a package that is not installed: pip install "catalyzer[{extra}]"'
            if extra
            else f"{path}: {' '.join(str(error).split())}"
        ) from None
    except Exception as error:
        reason = " ".join(str(error).split()) or "no message"
        # The last line of theirs, rather than of a library that it calls or of ours that calls it.
        frames = [(Path(frame.filename), frame.lineno) for frame in traceback.extract_tb(error.__traceback__)]
        theirs = [each for each in frames if "site-packages" not in each[0].parts and OURS not in each[0].parents]
        at = f" ({theirs[-1][0].name}, line {theirs[-1][1]})" if theirs else ""
        raise InvalidInput(f"{path}: {type(error).__name__}: {reason}{at}") from error


def _built(group: str, part: dict[str, Any], **given: Any) -> Any:
    """The part, with those of the given arguments that its class takes and the settings do not have."""
    hints, _ = arguments_of(class_of(group, part))
    more = {name: value for name, value in given.items() if name in hints and name not in part}
    try:
        with blamed(part["_target_"]):
            return _maker(part)(**more)
    except InvalidInput as error:
        if error.__cause__ is not None:  # raised within the part, which is named already
            raise
        raise InvalidInput(f"{group}: {error}") from None


def _built_by_name(group: str, named: dict[str, dict[str, Any] | None], **given: Any) -> dict[str, Any]:
    return {name: _built(group, part, **given) for name, part in named.items() if part is not None}


def _maker(part: dict[str, Any]) -> Any:
    """What makes the part of arguments that its settings do not have."""
    from hydra.utils import instantiate  # what only uses a run need not wait for Hydra

    return instantiate({**part, "_partial_": True}, _convert_="all")


def build_dataset(settings: Settings) -> Dataset:
    """The dataset, before it is read."""
    return _built("dataset", settings.dataset)


def load_dataset(settings: Settings, metric: Metric | None = None) -> Benchmark:
    """The dataset, read; see `catalyzer.datasets.Dataset.load` for the errors.

    Args:
        settings: settings of the run.
        metric: metric of a trained run; None is the metric of the settings, fitted to the dataset.
    """
    dataset = build_dataset(settings)
    with blamed(settings.dataset["_target_"]):
        return dataset.load(ArrayCache(settings.cache), metric or dataset.compared_by(settings.metric))


def build_quantizer(part: dict[str, Any], dim: int) -> Quantizer:
    """A quantizer of vectors of `dim` dimensions, not fitted yet."""
    return _built("quantizer", part, dim=dim)


def build_codec(settings: Settings, d_in: int, d_out: int) -> Codec:
    """Transform, quantizer and decoder, with nothing learned.

    Args:
        settings: settings of the run.
        d_in: dimension of the data, as the metric compares them.
        d_out: dimension to map to, for transforms that take one.

    Raises:
        InvalidInput: a part that refuses its arguments, or parts that do not fit together.
    """
    given: dict[str, Any] = {"d_in": d_in, "d_out": d_out}
    if {"spheres", "gain"} & arguments_of(class_of("catalyzer", settings.catalyzer))[0].keys():
        quantizer = build_quantizer(settings.quantizer, d_out)
        given["spheres"] = [*quantizer.spheres] if len(quantizer.spheres) > 1 else None
        given["gain"] = bool(quantizer.gain)
        if settings.quantizer.get("norms") is not None and not settings.catalyzer.get("nested"):
            raise InvalidInput("quantizer.norms are those of nested blocks; leave them out, or use catalyzer.nested=true")
        if quantizer.gain is True and settings.catalyzer.get("nested"):
            raise InvalidInput(
                "quantizer.gain=true is one gain for all blocks, and the norms of nested ones differ; use quantizer.gain=blocks"
            )
    transform = _built("catalyzer", settings.catalyzer, **given)
    quantizer = build_quantizer(settings.quantizer, transform.d_out)
    if settings.decoder.get("_target_") is None:
        return Codec(transform, quantizer)
    decoder = _built("decoder", settings.decoder, **given | {"d_in": transform.d_out, "d_out": d_in})
    return Codec(transform, quantizer, decoder, settings.steps, settings.refine, settings.latent_share)


def build_training(settings: Settings, codec: Codec) -> "CatalyzerTraining":
    """The training of the codec's networks."""
    from catalyzer.training import CatalyzerTraining

    return CatalyzerTraining(
        codec,
        _built_by_name("loss.terms", settings.loss.terms),
        optimizer=_maker(settings.optimizer),
        scheduler=_maker(settings.scheduler),
        end_to_end=settings.end_to_end,
        rerank=settings.rerank,
        sync_batchnorm=bool(settings.trainer.get("sync_batchnorm", False)),
    )


def build_query_training(settings: Settings, codec: Codec) -> "QueryTraining":
    """The training of the query network of a trained codec."""
    return _built("query", settings.query, codec=codec, sync_batchnorm=bool(settings.trainer.get("sync_batchnorm", False)))


def build_miner(settings: Settings) -> Any:
    """The miner, which finds the neighbours."""
    return _built("miner", settings.miner)


def build_callbacks(settings: Settings, folder: Path) -> "list[Callback]":
    """The callbacks of a training in `folder`, which those get that ask for it, as `folder` or `dirpath`."""
    given = {"folder": folder, "dirpath": folder / "checkpoints"}
    return [*_built_by_name("callbacks", settings.callbacks, **given).values()]


def build_loggers(settings: Settings, folder: Path) -> "list[Logger]":
    """The loggers of a run in `folder`, which those get that ask for it, as `save_dir`."""
    return [*_built_by_name("logger", settings.logger, save_dir=folder).values()]


def trainer_options(settings: Settings) -> dict[str, Any]:
    """Arguments of `pytorch_lightning.Trainer`; batch norm is synchronized by ours, which works on CPUs too."""
    from hydra.utils import instantiate

    options = {key: value for key, value in settings.trainer.items() if key not in ("_target_", "sync_batchnorm")}
    return instantiate(options, _convert_="all")


def build_baselines(settings: Settings, d_in: int, bits: int) -> list[Quantizer]:
    """The baselines: quantizers of the raw vectors with codes of the same size as the chosen quantizer's.

    Args:
        settings: settings of the run; each baseline is an option of the group `quantizer`.
        d_in: dimension of the data.
        bits: bits of a code.
    """
    from omegaconf import OmegaConf

    from catalyzer.runs.compose import CONF

    made = []
    options = {file.stem: file for file in sorted((CONF / "quantizer").glob("*.yaml"))}
    for name in settings.baselines:
        if name not in options:
            raise InvalidInput(f"baselines: there is no quantizer {name}; choose among {', '.join(options)}")
        given = {"quantizer": OmegaConf.load(options[name]), "bits": bits, "seed": settings.seed}
        part: Any = OmegaConf.to_container(OmegaConf.create(given), resolve=True)
        try:
            made.append(build_quantizer(part["quantizer"], d_in))
        except InvalidInput as error:
            raise InvalidInput(f"the baselines cannot be built: {error}; leave them out with baselines=[]") from None
    return made
