"""The settings of a run, typed and checked before any data is read; `conf/` holds their defaults and their meaning.

The class and the arguments of a part are checked when it is built (`catalyzer.runs.build`).
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any, Literal, Self

import yaml
from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    PositiveInt,
    ValidationError,
    ValidatorFunctionWrapHandler,
    field_validator,
    model_validator,
)
from pydantic_core import PydanticCustomError

from catalyzer.datasets import Dataset, fetch_published, make_glosses, make_photosift
from catalyzer.errors import DamagedFile, InvalidInput, did_you_mean
from catalyzer.files.atomic import write_atomically
from catalyzer.metric import MetricName
from catalyzer.parts import find_class

VERSION = 1
"""Of `config.yaml`. A key that comes later has its default in `Settings` too, so that older folders can still be read."""


Trusted = Annotated[list[str], BeforeValidator(lambda value: [value] if isinstance(value, str) else value)]
"""Other modules whose classes a run's folder may name."""


class _Settings(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False, populate_by_name=True)

    @classmethod
    def check(cls, values: dict[str, Any]) -> Self:
        """Settings from a composed configuration.

        Raises:
            InvalidInput: one sentence on the first value that is wrong.
        """
        try:
            return cls.model_validate(values)
        except ValidationError as error:
            raise InvalidInput(_sentence(error, cls)) from None

    @field_validator("*", mode="wrap")
    @classmethod
    def _number(cls, value: Any, validate: ValidatorFunctionWrapHandler) -> Any:
        return number(value, validate(value))


def _names_a_class(part: dict[str, Any]) -> dict[str, Any]:
    if not isinstance(part.get("_target_"), str):
        raise ValueError(f"_target_ must name a class, such as catalyzer.nn.Catalyzer; got {part.get('_target_')}")
    return part


def _names_a_class_or_none(part: dict[str, Any]) -> dict[str, Any]:
    return part if part.get("_target_", "") is None else _names_a_class(part)


PartSettings = Annotated[dict[str, Any], AfterValidator(_names_a_class)]
"""A part as Hydra instantiates it: its class as `_target_`, and its arguments."""


OptionalPart = Annotated[dict[str, Any], AfterValidator(_names_a_class_or_none)]
"""The same, or `_target_: null` for none."""


class Loss(_Settings):
    terms: dict[str, PartSettings | None]


class Settings(_Settings):
    """All that decides a run; `conf/settings.yaml` says what each key means."""

    version: Literal[1] = 1
    dataset: PartSettings
    metric: MetricName | None = None
    catalyzer: PartSettings
    quantizer: PartSettings
    decoder: OptionalPart
    query: OptionalPart
    loss: Loss
    optimizer: PartSettings
    scheduler: PartSettings
    miner: PartSettings
    trainer: PartSettings
    callbacks: dict[str, PartSettings | None]
    logger: dict[str, PartSettings | None]
    bits: PositiveInt
    d_out: int | Literal["auto"]
    lambda_: float = Field(alias="lambda", ge=0)
    rerank: int = Field(ge=0)
    latent_share: float = Field(ge=0, le=1)
    steps: int = Field(default=0, ge=0)
    refine: PositiveInt
    end_to_end: bool
    baselines: list[str]
    monitor: Literal["val/recall_at_1", "val/recall_at_10", "val/recall_at_100"]
    split: Literal["validation", "test"]
    batch_size: int = Field(ge=2)
    learning_rate: float = Field(gt=0)
    decay: Literal["cosine"] | list[tuple[Annotated[float, Field(ge=0, le=1)], Annotated[float, Field(gt=0)]]]
    warmup: float = Field(ge=0, le=1)
    k_pos: PositiveInt
    k_neg: PositiveInt
    seed: int = Field(ge=0, lt=1 << 32)
    cache: str

    @field_validator("d_out", mode="before")
    @classmethod
    def _dimension_or_auto(cls, value: Any) -> Any:
        if value != "auto" and not (type(value) is int and value >= 2):
            raise ValueError(
                f"d_out={value}: input should be a whole number of at least 2, or auto; change it on the command line"
            )
        return value

    @model_validator(mode="after")
    def _fit_together(self) -> Self:
        for key, asked in (("rerank", self.rerank > 0), ("steps", self.steps > 0), ("refine", self.refine > 1)):
            if asked and self.decoder.get("_target_") is None:
                raise ValueError(f"{key} = {getattr(self, key)} needs decoded vectors, but decoder=none; set decoder=mlp")
        for key in ("max_epochs", "check_val_every_n_epoch", "log_every_n_steps"):
            value = self.trainer.get(key)
            if type(value) is not int or value < 1:
                raise ValueError(
                    f"trainer.{key}={value}: input should be a whole number of at least 1; change it on the command line"
                )
        epochs, every = self.trainer["max_epochs"], self.trainer["check_val_every_n_epoch"]
        if every > epochs:
            raise ValueError(
                f"trainer.check_val_every_n_epoch = {every} is more than trainer.max_epochs = {epochs}, so no epoch would be "
                "validated; lower it"
            )
        return self

    def differences(self, other: Self) -> list[str]:
        """The keys, such as "catalyzer.hidden", by which two settings make different runs.

        Where a run is logged, where intermediate results are kept, and what it is measured on in the end, decide nothing.
        """
        mine, others = (
            _flat(settings.model_dump(by_alias=True, exclude={"logger", "cache", "split"})) for settings in (self, other)
        )
        return [key for key in {**mine, **others} if mine.get(key, ...) != others.get(key, ...)]

    def save(self, path: Path) -> None:
        """Write the composed configuration as YAML."""
        text = yaml.safe_dump(self.model_dump(by_alias=True), sort_keys=False)
        write_atomically(path, lambda file: file.write(text.encode()))

    @classmethod
    def load(cls, path: Path) -> Self:
        """Settings that `save` wrote. Nothing that they name is imported.

        Raises:
            InvalidInput: there is no such file, or it is of another version.
            DamagedFile: it is not such a configuration.
        """
        if not path.is_file():
            raise InvalidInput(f"{path.parent} is not a run folder: it has no {path.name}")
        try:
            values = yaml.safe_load(path.read_bytes())
            texts = [*_texts(values)]
        except (yaml.YAMLError, ValueError, TypeError, RecursionError):
            raise DamagedFile(f"{path} is not readable YAML of plain values") from None
        version = values.get("version") if isinstance(values, dict) else None
        if isinstance(version, int) and version > VERSION:
            raise InvalidInput(
                f"{path} has version {version}, but this version of catalyzer reads up to {VERSION}; install a newer version"
            )
        # A run's settings are resolved; an interpolation of somebody else's could read this environment.
        if any("${" in text for text in texts):
            raise DamagedFile(f"{path}: expected settings without interpolations, got ${{...}}")
        try:
            return cls.check(values)
        except InvalidInput as error:
            raise DamagedFile(f"{path}: {error}") from None


def _flat(values: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested values by their dotted keys."""
    flat: dict[str, Any] = {}
    for key, value in values.items():
        flat |= _flat(value, f"{prefix}{key}.") if isinstance(value, dict) and value else {f"{prefix}{key}": value}
    return flat


def _texts(value: Any) -> Iterator[str]:
    """All texts of plain values; a TypeError for what YAML's tags can make besides."""
    if isinstance(value, dict | list):
        for each in [*value, *value.values()] if isinstance(value, dict) else value:
            yield from _texts(each)
    elif isinstance(value, str):
        yield value
    elif value is not None and not isinstance(value, bool | int | float):
        raise TypeError(f"expected a plain value, got {type(value).__name__}")


class Evaluation(_Settings):
    """The keys of `src/evaluate.py`; `conf/evaluate.yaml` says what each means."""

    run: str
    quantizer: PartSettings | None = None
    rerank: Annotated[int, Field(ge=0)] | None
    steps: Annotated[int, Field(ge=0)] | None
    refine: PositiveInt | None
    split: Literal["test", "validation"]
    trust: Trusted


class _OnEngine(_Settings):
    engine: Literal["local", "ray"]
    address: str | None

    @model_validator(mode="after")
    def _address_of_ray(self) -> Self:
        if self.address is not None and self.engine != "ray":
            raise ValueError(f"address={self.address} is for a Ray cluster; add engine=ray")
        return self


class Encode(_OnEngine):
    """The keys of `src/encode.py`; `conf/encode.yaml` says what each means."""

    run: str
    input: str
    output: str
    shard_size: PositiveInt
    trust: Trusted


class Search(_OnEngine):
    """The keys of `src/search.py`; `conf/search.yaml` says what each means."""

    codes: str
    queries: str
    k: PositiveInt
    rerank: Annotated[int, Field(ge=0)] | None
    run: str | None
    output: str
    format: Literal["vecs", "npy"]
    trust: Trusted


class PublishedDataset(_Settings):
    target: str = Field(alias="_target_")
    root: str
    base_size: PositiveInt
    train_size: PositiveInt
    validation_base_size: PositiveInt
    validation_queries_size: PositiveInt


class PreparePhotosift(_Settings):
    """What decides the photosift that is made; `conf/prepare/photosift.yaml` says what each key means."""

    dataset: PublishedDataset
    images: str
    learn_size: PositiveInt
    queries_size: PositiveInt
    seed: int = Field(ge=0)
    skip_unreadable: bool

    def prepare(self) -> None:
        make_photosift(
            Path(self.images),
            Path(self.dataset.root),
            base_size=self.dataset.base_size,
            learn_size=self.learn_size,
            queries_size=self.queries_size,
            seed=self.seed,
            skip_unreadable=self.skip_unreadable,
        )


class PrepareGlosses(_Settings):
    """What decides the glosses that are made; `conf/prepare/glosses.yaml` says what each key means."""

    dataset: PublishedDataset
    texts: str | None
    wordnet: str
    gcide: str
    model: str | None
    dtype: Literal["bfloat16", "float32"]
    device: str
    normalize: bool
    learn_size: PositiveInt | None
    queries_size: PositiveInt
    seed: int = Field(ge=0)

    def prepare(self) -> None:
        make_glosses(
            Path(self.dataset.root),
            texts=None if self.texts is None else Path(self.texts),
            wordnet=Path(self.wordnet),
            gcide=Path(self.gcide),
            model=self.model,
            dtype=self.dtype,
            device=self.device,
            normalize=self.normalize,
            base_size=self.dataset.base_size,
            learn_size=self.learn_size,
            queries_size=self.queries_size,
            seed=self.seed,
        )


class PreparePublished(_Settings):
    """What is fetched from where; `conf/prepare/bigann.yaml` says what each key means."""

    dataset: PublishedDataset
    source: str
    learn: str
    base: str
    queries: str

    def prepare(self) -> None:
        dataset = self.dataset
        fetch_published(
            find_class(dataset.target, Dataset).label,
            Path(dataset.root),
            self.source,
            self.learn,
            self.base,
            self.queries,
            learn_size=dataset.train_size + dataset.validation_base_size + dataset.validation_queries_size,
            base_size=dataset.base_size,
        )


def preparation(values: dict[str, Any]) -> PreparePhotosift | PrepareGlosses | PreparePublished:
    """The settings of `src/prepare.py`, checked, told apart by a key that each has alone; see `_Settings.check`."""
    if "images" in values:
        return PreparePhotosift.check(values)
    return PrepareGlosses.check(values) if "texts" in values else PreparePublished.check(values)


class Reproduction(_Settings):
    """The keys of `src/reproduce.py` that `src/train.py` does not have; `conf/reproduce.yaml` says what each means."""

    target: str
    out: str
    seeds: PositiveInt
    lambdas: list[Annotated[float, Field(ge=0)]] = Field(min_length=1)
    job: Annotated[int, Field(ge=0)] | None


def number(given: Any, taken: Any) -> Any:
    """`taken`, what pydantic made of a value, unless it has made a number of a truth value, or an integer of another number.

    Raises:
        PydanticCustomError: it has.
    """
    if isinstance(given, bool) and type(taken) in (int, float):
        raise PydanticCustomError("number", "input should be a number")
    if isinstance(given, float) and type(taken) is int:
        raise PydanticCustomError("number", "input should be a whole number, without a point or an exponent")
    return taken


def _sentence(error: ValidationError, cls: type[BaseModel]) -> str:
    first = max(error.errors(), key=lambda one: len(one["loc"]))  # of a choice of types, that which the value came nearest to
    if first["type"] == "value_error":  # raised by our own checks, which are sentences already
        return str(first["ctx"]["error"])
    path = [text for part in first["loc"] if "[" not in (text := str(part))]  # without types, such as "list[int]"
    if first["type"] == "extra_forbidden":
        near = (
            did_you_mean(path[0], [field.alias or name for name, field in cls.model_fields.items()]) if len(path) == 1 else ""
        )
        return f"there is no key {'.'.join(path)}{near}"
    message = first["msg"][0].lower() + first["msg"][1:]
    if first["type"] == "missing":
        return f"setting {'.'.join(path)}: {message}"
    return f"{'.'.join(path)}={first['input']}: {message}; change it on the command line"
