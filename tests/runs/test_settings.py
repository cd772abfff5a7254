"""Values are checked before any data is read, each with one sentence; what conf/ composes is always valid."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from hydra import compose, initialize_config_dir
from hypothesis import given
from hypothesis import strategies as st

from catalyzer import InvalidInput
from catalyzer.commands.console import register_resolvers, resolved
from catalyzer.runs.settings import Settings, paper_lambda
from tests.helpers import ROOT

CONF = ROOT / "conf"


@pytest.fixture(autouse=True)
def hydra() -> Iterator[None]:
    register_resolvers()
    with initialize_config_dir(str(CONF), version_base="1.3"):
        yield


def check(*overrides: str) -> Settings:
    values: dict[str, Any] = resolved(compose("train", list(overrides)))
    values.pop("resume")
    return Settings.check(values)


def test_defaults() -> None:
    settings = check()
    assert (settings.dataset.name, settings.catalyzer.name, settings.quantizer.name) == ("demo", "mlp", "lattice")
    assert (settings.bits, settings.d_out, settings.lambda_) == (64, 24, 0.02)


FILES = ["dataset.learn=a.npy", "dataset.base=b.npy", "dataset.queries=c.npy"]


@pytest.mark.parametrize("dataset", ["demo", "bigann", "deep1b", "photosift", "files"])
@pytest.mark.parametrize("catalyzer", ["mlp", "pca", "identity"])
@pytest.mark.parametrize("quantizer", ["lattice", "sign", "pq", "opq"])
def test_every_composition_is_valid(dataset: str, catalyzer: str, quantizer: str) -> None:
    overrides = [f"dataset={dataset}", f"catalyzer={catalyzer}", f"quantizer={quantizer}"]
    check(*overrides, *(FILES if dataset == "files" else []))


def test_auto_finds_a_dimension_for_bits_that_the_proposed_one_has_no_lattice_for() -> None:
    assert check("d_out=auto", "bits=128").d_out == "auto"
    with pytest.raises(InvalidInput, match="more than the 1,048,576 that are supported"):
        check("d_out=24", "bits=128")


@pytest.mark.parametrize("group", ["decoder", "query", "trainer", "logger", "callbacks", "experiment"])
def test_every_option_of_every_other_group_is_valid(group: str) -> None:
    for option in (CONF / group).glob("*.yaml"):
        check(f"{group}={option.stem}")


@pytest.mark.parametrize(("d_out", "expected"), [(16, 0.05), (24, 0.02), (32, 0.01), (40, 0.005)])
def test_lambda_comes_from_table_3(d_out: int, expected: float) -> None:
    assert check(f"d_out={d_out}").lambda_ == expected


@given(st.integers(2, 200))
def test_lambda_never_grows_with_the_dimension(d_out: int) -> None:
    assert 0.005 <= paper_lambda(d_out + 1) <= paper_lambda(d_out) <= 0.05


def test_bits_and_dimension_follow_each_other() -> None:
    assert check("quantizer=sign").d_out == 64
    assert check("quantizer=sign", "bits=32").d_out == 32
    assert check("bits=32", "quantizer=opq").quantizer.model_dump()["bits"] == 32


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["lambda=-1"], "lambda=-1: input should be greater than or equal to 0"),
        (["lambda=much"], "lambda=much: input should be a valid number"),
        (["lambda=nan"], "lambda=nan: input should be a finite number"),
        (["d_out=3", "quantizer.radius_sq=7"], "no integer point of 3 dimensions has the squared norm r² = 7"),
        (["quantizer.radius_sq=-4"], "radius_sq must be between 1 and"),
        (["quantizer.radius_sq=200"], "needs 79 bits, which do not fit in bits = 64"),
        (["bits=32", "quantizer.radius_sq=79"], "needs 64 bits, which do not fit in bits = 32"),
        (["bits=0"], "bits=0: input should be greater than 0"),
        (["quantizer=pq", "bits=12"], "bits must be a multiple of 8, got 12"),
        (["quantizer=sign", "d_out=24"], "codes of d_out = 24 bits, but bits = 64"),
        (["d_out=1"], "d_out=1: input should be a number of at least 2, or auto"),
        (["d_out=auto", "quantizer=sign"], "codes of d_out = auto bits, but bits = 64"),
        (["d_out=some"], "d_out=some: input should be a number of at least 2, or auto"),
        (["end_to_end=true", "quantizer=pq"], "end_to_end trains the mlp through a fixed quantizer"),
        (["end_to_end=true", "catalyzer=pca"], "end_to_end trains the mlp through a fixed quantizer"),
        (["decoder=mlp", "quantizer=pq"], "decoder=mlp is trained with the mlp through a fixed quantizer"),
        (["decoder=mlp", "catalyzer=pca"], "decoder=mlp is trained with the mlp through a fixed quantizer"),
        (["decoder=mlp", "decoder.hidden=0"], "decoder.hidden=0: input should be greater than 0"),
        (["query=mlp", "quantizer=opq"], "query=mlp is trained to rank the points of a fixed quantizer"),
        (["query=mlp", "quantizer=sign"], "quantizer=sign quantizer.asymmetric=true, got catalyzer=mlp quantizer=sign"),
        (["query=mlp", "query.max_epochs=0"], "query.max_epochs=0: input should be greater than 0"),
        (["rerank=100"], "rerank = 100 needs decoded vectors, but decoder=none; set decoder=mlp"),
        (["refine=4"], "refine = 4 needs decoded vectors, but decoder=none; set decoder=mlp"),
        (["refine=4", "decoder=mlp", "quantizer=sign"], "refine = 4 tries lattice points, got quantizer=sign; set refine=1"),
        (["refine=0"], "refine=0: input should be greater than 0"),
        (["split=validation", "catalyzer=pca"], "split=validation compares runs by the epochs of their training"),
        (["split=train"], "split=train: input should be 'validation' or 'test'"),
        (["rerank=-1"], "rerank=-1: input should be greater than or equal to 0"),
        (["loss.reconstruction=0"], "loss.reconstruction=0"),
        (["trainer.max_epochs=0"], "trainer.max_epochs=0"),
        (["trainer.check_val_every_n_epoch=9"], "no epoch would be validated"),
        (["batch_size=1"], "batch_size=1"),
        (["miner.negatives=fast"], "miner.negatives=fast: input should be 'auto', 'exact', 'ivf' or 'hnsw'"),
        (["baselines=[lsh]"], "baselines.0=lsh"),
        (["dataset=files"], "dataset.learn is missing; give it on the command line: dataset.learn=..."),
        (["decay=[[2,0.1]]"], "decay.0.0=2"),
    ],
)
def test_wrong_values_get_one_sentence(overrides: list[str], message: str) -> None:
    with pytest.raises(InvalidInput) as caught:
        check(*overrides)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_saved_and_loaded_they_are_the_same(tmp_path: Path) -> None:
    settings = check("lambda=0.013", "quantizer=opq", "logger=wandb")
    settings.save(tmp_path / "config.yaml")
    assert Settings.load(tmp_path / "config.yaml") == settings


@pytest.mark.parametrize("text", ["", "a: [", "- 1", "{}", "!!python/object/apply:os.system ['true']"])
def test_a_damaged_or_hostile_configuration_is_refused(text: str, tmp_path: Path) -> None:
    (tmp_path / "config.yaml").write_text(text)
    with pytest.raises(InvalidInput, match=r"config\.yaml"):
        Settings.load(tmp_path / "config.yaml")


def test_every_key_of_every_file_has_a_comment() -> None:
    for path in CONF.rglob("*.yaml"):
        if "hydra" in path.relative_to(CONF).parts:
            continue
        in_defaults = in_hydra = False
        for line in path.read_text().splitlines():
            if not line.startswith((" ", "-")):
                in_defaults, in_hydra = line.startswith("defaults:"), line.startswith("hydra:")
            if in_defaults or in_hydra or not line.strip() or line.lstrip().startswith("#"):
                continue
            if line.rstrip().endswith(":") or line.startswith("name:"):  # a group, whose keys follow, or its choice
                continue
            elsewhere = {"experiment", "scale"} & set(path.parts)  # these override keys that are explained where they are from
            assert "#" in line or elsewhere, f"{path.relative_to(ROOT)}: {line!r} has no comment"
        assert path.read_text().startswith("#"), f"{path} does not say what it is"
        assert yaml.safe_load(path.read_text())
