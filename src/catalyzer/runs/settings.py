"""The settings of a run, typed and checked before any data is read; `conf/` holds their defaults and their meaning."""

import math
from pathlib import Path
from typing import Annotated, Any, Literal, Self

import yaml
from pydantic import BaseModel, ConfigDict, Field, PositiveInt, ValidationError, field_validator, model_validator

from catalyzer.files.atomic import write_atomically
from catalyzer.datasets import fetch_published, make_photosift
from catalyzer.errors import InvalidInput
from catalyzer.quantizers import (
    AdditiveQuantizer,
    HashQuantizer,
    LatticeQuantizer,
    ProductQuantizer,
    Quantizer,
    RaBitQuantizer,
    SignQuantizer,
)

TABLE_3 = {16: 0.05, 24: 0.02, 32: 0.01, 40: 0.005}
SIGN_LAMBDA = 0.08  # section 4.1 has λ chosen by the recall of the signs, and publishes no choice; ours is in docs/results.md
DECODER_LAMBDA = 0.005  # reconstruction spreads points too, so less of KoLeo is best; docs/results.md


def paper_lambda(d_out: int | str) -> float:
    """λ by Table 3 of the paper; geometric between its dimensions, constant beyond them; that of 24 for auto.

    >>> [paper_lambda(d) for d in (8, 16, 24, 28, 40, 64, "auto")]
    [0.05, 0.05, 0.02, 0.01414, 0.005, 0.005, 0.02]
    """
    if not isinstance(d_out, int):  # also of what the settings will refuse
        return TABLE_3[24]
    dims = sorted(TABLE_3)
    low = max((d for d in dims if d <= d_out), default=dims[0])
    high = min((d for d in dims if d >= d_out), default=dims[-1])
    share = (d_out - low) / (high - low) if high > low else 0.0
    return round(math.exp((1 - share) * math.log(TABLE_3[low]) + share * math.log(TABLE_3[high])), 5)


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
            raise InvalidInput(_sentence(error)) from None


class _Dataset(_Settings):
    base_size: PositiveInt | None
    train_size: PositiveInt
    validation_base_size: PositiveInt
    validation_queries_size: PositiveInt


class Demo(_Dataset):
    name: Literal["demo"]


class Published(_Dataset):
    name: Literal["bigann", "deep1b", "photosift"]
    root: str
    base_size: PositiveInt


class Files(_Dataset):
    name: Literal["files"]
    learn: str
    base: str
    queries: str
    groundtruth: str | None


class MLP(_Settings):
    name: Literal["mlp"]
    hidden: PositiveInt


class Plain(_Settings):
    name: Literal["pca", "identity"]


class NoDecoder(_Settings):
    name: Literal["none"]
    rerank: int = Field(ge=0)


class MLPDecoder(_Settings):
    name: Literal["mlp"]
    rerank: int = Field(ge=0)
    hidden: PositiveInt
    latent_share: float = Field(ge=0, le=1)


class NoQuery(_Settings):
    name: Literal["none"]


class MLPQuery(_Settings):
    name: Literal["mlp"]
    max_epochs: PositiveInt


class Loss(_Settings):
    rank: float = Field(ge=0)
    reconstruction: float = Field(gt=0)


class Lattice(_Settings):
    name: Literal["lattice"]
    d_out: PositiveInt
    bits: PositiveInt
    radius_sq: int | None

    def build(self, dim: int) -> Quantizer:
        return LatticeQuantizer(dim, self.bits, self.radius_sq)


class Sign(_Settings):
    name: Literal["sign"]
    d_out: PositiveInt
    asymmetric: bool

    def build(self, dim: int) -> Quantizer:
        return SignQuantizer(dim, self.asymmetric)


class Product(_Settings):
    name: Literal["pq", "opq"]
    d_out: PositiveInt
    bits: PositiveInt

    def build(self, dim: int) -> Quantizer:
        return ProductQuantizer(dim, self.bits, rotate=self.name == "opq")


class Hash(_Settings):
    name: Literal["lsh", "itq"]
    d_out: PositiveInt
    bits: PositiveInt
    seed: int = Field(ge=0)

    def build(self, dim: int) -> Quantizer:
        return HashQuantizer(dim, self.bits, learned=self.name == "itq", seed=self.seed)


class Additive(_Settings):
    name: Literal["rq", "lsq"]
    d_out: PositiveInt
    bits: PositiveInt

    def build(self, dim: int) -> Quantizer:
        return AdditiveQuantizer(dim, self.bits, local_search=self.name == "lsq")


class RaBitQ(_Settings):
    name: Literal["rabitq"]
    d_out: PositiveInt

    def build(self, dim: int) -> Quantizer:
        return RaBitQuantizer(dim)


QuantizerSettings = Lattice | Sign | Product | Hash | Additive | RaBitQ


Method = Literal["auto", "exact", "ivf", "hnsw"]


class Miner(_Settings):
    positives: Method
    negatives: Method


class KoLeo(_Settings):
    scope: Literal["local", "global"]


class Trainer(_Settings):
    max_epochs: PositiveInt
    accelerator: str
    devices: int | str | list[int]
    num_nodes: PositiveInt
    strategy: str
    precision: str | int
    check_val_every_n_epoch: PositiveInt
    log_every_n_steps: PositiveInt
    sync_batchnorm: bool

    @property
    def options(self) -> dict[str, Any]:
        """Arguments of `pytorch_lightning.Trainer`; batch norm is synchronized by ours, which works on CPUs too."""
        return self.model_dump(exclude={"sync_batchnorm"})


class WandB(_Settings):
    project: str
    entity: str | None
    group: str | None


class LoggerSettings(_Settings):
    wandb: WandB | None
    tensorboard: bool


class Callbacks(_Settings):
    monitor: Literal["val/recall_at_1", "val/recall_at_10", "val/recall_at_100"]
    patience: PositiveInt | None
    keep_last: PositiveInt


class Settings(_Settings):
    """All that decides a run; `conf/settings.yaml` says what each key means."""

    dataset: Annotated[Demo | Published | Files, Field(discriminator="name")]
    catalyzer: Annotated[MLP | Plain, Field(discriminator="name")]
    quantizer: Annotated[QuantizerSettings, Field(discriminator="name")]
    decoder: Annotated[NoDecoder | MLPDecoder, Field(discriminator="name")]
    query: Annotated[NoQuery | MLPQuery, Field(discriminator="name")]
    trainer: Trainer
    logger: LoggerSettings
    callbacks: Callbacks
    bits: PositiveInt
    d_out: int | Literal["auto"]
    lambda_: float = Field(alias="lambda", ge=0)
    koleo: KoLeo
    loss: Loss
    rerank: int = Field(ge=0)
    refine: PositiveInt
    end_to_end: bool
    rank_loss: Literal["triplet", "triangle"]
    batch_size: int = Field(ge=2)
    optimizer: Literal["sgd", "adamw"]
    learning_rate: float = Field(gt=0)
    momentum: float = Field(ge=0, lt=1)
    decay: Literal["cosine"] | list[tuple[Annotated[float, Field(ge=0, le=1)], Annotated[float, Field(gt=0)]]]
    warmup: float = Field(ge=0, le=1)
    k_pos: PositiveInt
    k_neg: PositiveInt
    miner: Miner
    baselines: list[Literal["pq", "opq"]]
    split: Literal["validation", "test"] = "test"  # runs of before this key were all measured on it
    seed: int = Field(ge=0)
    cache: str

    @field_validator("d_out", mode="before")
    @classmethod
    def _dimension_or_auto(cls, value: Any) -> Any:
        if value != "auto" and not (isinstance(value, int) and value >= 2):
            raise ValueError(f"d_out={value}: input should be a number of at least 2, or auto; change it on the command line")
        return value

    @model_validator(mode="after")
    def _fit_together(self) -> Self:
        if self.end_to_end and not (self.catalyzer.name == "mlp" and self.quantizer.name in ("lattice", "sign")):
            raise ValueError(
                "end_to_end trains the mlp through a fixed quantizer: it needs catalyzer=mlp and quantizer=lattice or "
                f"quantizer=sign, got catalyzer={self.catalyzer.name} quantizer={self.quantizer.name}"
            )
        if self.decoder.name == "mlp" and not (self.catalyzer.name == "mlp" and self.quantizer.name in ("lattice", "sign")):
            raise ValueError(
                "decoder=mlp is trained with the mlp through a fixed quantizer: it needs catalyzer=mlp and quantizer=lattice "
                f"or quantizer=sign, got catalyzer={self.catalyzer.name} quantizer={self.quantizer.name}"
            )
        compares = self.quantizer.name == "lattice" or (self.quantizer.name == "sign" and self.quantizer.asymmetric)
        if self.query.name == "mlp" and not (self.catalyzer.name == "mlp" and compares):
            raise ValueError(
                "query=mlp is trained to rank the points of a fixed quantizer: it needs catalyzer=mlp and quantizer=lattice, "
                "or quantizer=sign quantizer.asymmetric=true, got "
                f"catalyzer={self.catalyzer.name} quantizer={self.quantizer.name}"
            )
        for key, asked in (("rerank", self.rerank > 0), ("refine", self.refine > 1)):
            if asked and self.decoder.name == "none":
                raise ValueError(f"{key} = {getattr(self, key)} needs decoded vectors, but decoder=none; set decoder=mlp")
        if self.refine > 1 and self.quantizer.name != "lattice":
            raise ValueError(f"refine = {self.refine} tries lattice points, got quantizer={self.quantizer.name}; set refine=1")
        if self.split == "validation" and self.catalyzer.name != "mlp":
            raise ValueError(
                "split=validation compares runs by the epochs of their training, which only catalyzer=mlp has, got "
                f"catalyzer={self.catalyzer.name}"
            )
        if self.trainer.check_val_every_n_epoch > self.trainer.max_epochs:
            raise ValueError(
                f"trainer.check_val_every_n_epoch = {self.trainer.check_val_every_n_epoch} is more than trainer.max_epochs = "
                f"{self.trainer.max_epochs}, so no epoch would be validated; lower it"
            )
        # The dimension of identity is the data's, which is known later; auto chooses one that the lattice has.
        if self.catalyzer.name != "identity" and not (self.d_out == "auto" and self.quantizer.name == "lattice"):
            quantizer = self.quantizer.build(self.quantizer.d_out if self.d_out == "auto" else self.d_out)
            if isinstance(quantizer, SignQuantizer) and (self.d_out == "auto" or quantizer.bits != self.bits):
                raise ValueError(
                    f"the sign of each coordinate makes codes of d_out = {self.d_out} bits, but bits = {self.bits}; "
                    "set one of them and leave the other"
                )
        return self

    def decides_as(self, other: Self) -> bool:
        """Whether both make the same run: where it is logged, where intermediate results are kept, and what it is measured on
        when it is trained, decide nothing."""
        aside = {"logger", "cache", "split"}
        return self.model_dump(exclude=aside) == other.model_dump(exclude=aside)

    def save(self, path: Path) -> None:
        """Write the composed configuration as YAML."""
        text = yaml.safe_dump(self.model_dump(mode="json", by_alias=True), sort_keys=False)
        write_atomically(path, lambda file: file.write(text.encode()))

    @classmethod
    def load(cls, path: Path) -> Self:
        """Settings that `save` wrote.

        Raises:
            InvalidInput: the file is missing or is not such a configuration.
        """
        if not path.is_file():
            raise InvalidInput(f"{path.parent} is not a run folder: it has no {path.name}")
        try:
            values = yaml.safe_load(path.read_text())
        except (yaml.YAMLError, UnicodeDecodeError):
            raise InvalidInput(f"{path} is not readable YAML") from None
        try:
            return cls.check(values)
        except InvalidInput as error:
            raise InvalidInput(f"{path}: {error}") from None


class Evaluation(_Settings):
    """The keys of `src/evaluate.py`; `conf/evaluate.yaml` says what each means."""

    run: str
    quantizer: Annotated[QuantizerSettings, Field(discriminator="name")]
    rerank: Annotated[int, Field(ge=0)] | None
    refine: PositiveInt | None


class _OnEngine(_Settings):
    engine: Literal["local", "ray"]
    address: str | None

    @model_validator(mode="after")
    def _address_of_ray(self) -> Self:
        if self.address is not None and self.engine != "ray":
            raise ValueError(f"address={self.address} is that of a Ray cluster; add engine=ray")
        return self


class Encode(_OnEngine):
    """The keys of `src/encode.py`; `conf/encode.yaml` says what each means."""

    run: str
    input: str
    output: str
    shard_size: PositiveInt


class Search(_OnEngine):
    """The keys of `src/search.py`; `conf/search.yaml` says what each means."""

    codes: str
    queries: str
    k: PositiveInt
    rerank: Annotated[int, Field(ge=0)] | None
    run: str | None
    output: str
    format: Literal["vecs", "npy"]


class PreparePhotosift(_Settings):
    """What decides the photosift that is made; `conf/prepare/photosift.yaml` says what each key means."""

    dataset: Published
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


class PreparePublished(_Settings):
    """What is fetched from where; `conf/prepare/bigann.yaml` says what each key means."""

    dataset: Published
    source: str
    learn: str
    base: str
    queries: str

    def prepare(self) -> None:
        dataset = self.dataset
        fetch_published(
            dataset.name,
            Path(dataset.root),
            self.source,
            self.learn,
            self.base,
            self.queries,
            learn_size=dataset.train_size + dataset.validation_base_size + dataset.validation_queries_size,
            base_size=dataset.base_size,
        )


class Reproduction(_Settings):
    """The keys of `src/reproduce.py` that `src/train.py` does not have; `conf/reproduce.yaml` says what each means."""

    target: str
    out: str
    seeds: PositiveInt
    lambdas: list[Annotated[float, Field(ge=0)]] = Field(min_length=1)
    job: Annotated[int, Field(ge=0)] | None


def _sentence(error: ValidationError) -> str:
    first = max(error.errors(), key=lambda one: len(one["loc"]))  # of a choice of types, that which the value came nearest to
    if first["type"] == "value_error":  # raised by our own checks, which are sentences already
        return str(first["ctx"]["error"])
    # The tags of the unions are in the path too ("quantizer.lattice.bits"); users know "quantizer.bits".
    path = [text for part in first["loc"] if "[" not in (text := str(part))]  # nor types, such as "list[int]"
    if len(path) > 2 and path[0] in ("dataset", "catalyzer", "quantizer", "decoder", "query"):
        del path[1]
    message = first["msg"][0].lower() + first["msg"][1:]
    if first["type"] in ("missing", "extra_forbidden"):
        return f"setting {'.'.join(path)}: {message}"
    return f"{'.'.join(path)}={first['input']}: {message}; change it on the command line"
