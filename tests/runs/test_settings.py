"""Values are checked before any data is read, each with one sentence; what conf/ composes is always valid."""

import sys
from pathlib import Path

import pytest
import torch
import yaml
from hypothesis import given
from hypothesis import strategies as st

from catalyzer import Codec, InvalidInput, LatticeQuantizer
from catalyzer.errors import CatalyzerError, DamagedFile, UntrustedPart
from catalyzer.nn import PCA
from catalyzer.runs import build, checks
from catalyzer.runs.compose import CONF, compose_config, resolved
from catalyzer.runs.defaults import paper_lambda
from catalyzer.runs.settings import Settings, preparation
from tests.helpers import DIM, ROOT, clustered, settings_of

FOLDER = Path("no/run/yet")


def check(*overrides: str) -> Settings:
    """The settings of `train.py OVERRIDES`, after all that is checked before data is read."""
    settings = settings_of(*overrides)
    checks.check(settings, FOLDER, typed=overrides)
    assert not FOLDER.exists()
    return settings


def test_defaults() -> None:
    settings = check()
    classes = [part["_target_"] for part in (settings.dataset, settings.catalyzer, settings.quantizer)]
    assert classes == ["catalyzer.datasets.Demo", "catalyzer.nn.Catalyzer", "catalyzer.quantizers.LatticeQuantizer"]
    assert (settings.bits, settings.d_out, settings.lambda_) == (64, 24, 0.02)


@pytest.mark.parametrize(
    ("overrides", "steps"),
    [
        ([], 0),
        (["decoder=mlp"], 2),
        (["decoder=residual"], 2),
        (["experiment=decoder"], 2),
        (["decoder=mlp", "steps=0"], 0),
        (["decoder=mlp", "quantizer=sign"], 0),  # which gets worse by them
        (["catalyzer=linear", "decoder=linear"], 0),
        (["decoder=mlp", "decoder._target_=catalyzer.nn.PCADecoder"], 0),
    ],
)
def test_steps_by_default(overrides: list[str], steps: int) -> None:
    assert check(*overrides).steps == steps


FILES = ["dataset.learn=a.npy", "dataset.base=b.npy", "dataset.queries=c.npy"]
GROUPS = sorted({path.parent.name for path in CONF.glob("*/*.yaml")} - {"prepare"})  # which is of another command


@pytest.mark.parametrize(
    "choice", [f"{group}={path.stem}" for group in GROUPS for path in sorted((CONF / group).glob("*.yaml"))]
)
def test_every_option_of_every_group_is_valid(choice: str) -> None:
    if choice == "trainer=gpu" and not torch.cuda.is_available():
        with pytest.raises(InvalidInput, match="the trainer refuses its settings"):
            check(choice)
    else:
        needed = {
            "dataset=files": FILES,
            "dataset=annbenchmarks": ["dataset.path=x.hdf5"],
            "decoder=linear": ["catalyzer=linear"],
        }
        check(choice, *needed.get(choice, []))


@pytest.mark.parametrize("dataset", sorted(path.stem for path in (CONF / "prepare").glob("*.yaml")))
def test_every_dataset_that_can_be_prepared_is_valid(dataset: str) -> None:
    images = ["images=photographs"] if dataset == "photosift" else []
    values = resolved(compose_config("prepare", [f"dataset={dataset}", *images]))
    assert preparation(values).dataset.base_size == (100_000 if dataset == "glosses" else 1_000_000)


@pytest.mark.parametrize("dataset", ["demo", "bigann", "deep1b", "photosift", "files"])
@pytest.mark.parametrize("catalyzer", ["mlp", "pca", "identity"])
@pytest.mark.parametrize("quantizer", ["lattice", "sign", "pq", "opq"])
def test_every_composition_is_valid(dataset: str, catalyzer: str, quantizer: str) -> None:
    settings_of(
        f"dataset={dataset}", f"catalyzer={catalyzer}", f"quantizer={quantizer}", *(FILES if dataset == "files" else [])
    )


def test_auto_finds_a_dimension_for_bits_that_the_proposed_one_has_no_lattice_for() -> None:
    assert check("d_out=auto", "bits=128").d_out == "auto"
    with pytest.raises(InvalidInput, match="more than the 1,048,576 that are supported"):
        check("d_out=24", "bits=128", "quantizer.blocks=1")


@pytest.mark.parametrize(("d_out", "expected"), [(16, 0.05), (24, 0.02), (32, 0.01), (40, 0.005)])
def test_lambda_comes_from_table_3(d_out: int, expected: float) -> None:
    assert settings_of(f"d_out={d_out}").lambda_ == expected


@given(st.integers(2, 200))
def test_lambda_never_grows_with_the_dimension(d_out: int) -> None:
    assert 0.005 <= paper_lambda(d_out + 1) <= paper_lambda(d_out) <= 0.05


def test_bits_and_dimension_follow_each_other() -> None:
    assert settings_of("quantizer=sign").d_out == 64
    assert settings_of("quantizer=sign", "bits=32").d_out == 32
    assert settings_of("quantizer=sign", 'bits="32"').d_out == 32
    assert settings_of("bits=32", "quantizer=opq").quantizer["bits"] == 32


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["lambda=-1"], "lambda=-1: input should be greater than or equal to 0"),
        (["lambda=much"], "lambda=much: input should be a valid number"),
        (["lambda=nan"], "lambda=nan: input should be a finite number"),
        (["d_out=3", "quantizer.radius_sq=7"], "no integer point of 3 dimensions has the squared norm r² = 7"),
        (["quantizer.radius_sq=-4"], "radius_sq must be an integer between 1 and"),
        (["quantizer.radius_sq=200"], "needs 79 bits, which do not fit in bits = 64"),
        (["bits=32", "quantizer.radius_sq=79"], "needs 64 bits, which do not fit in bits = 32"),
        (["bits=0"], "bits=0: input should be greater than 0"),
        (["bits=abc"], "bits=abc: input should be a valid integer"),
        (["bits=[64]"], "bits=[64]: input should be a valid integer"),
        (["quantizer=pq", "bits=12"], "bits must be a multiple of 8, got 12"),
        (["quantizer=sign", "d_out=24"], "codes of d_out = 24 bits, but bits = 64"),
        (["d_out=1"], "d_out=1: input should be a whole number of at least 2, or auto"),
        (["d_out=auto", "quantizer=sign"], "codes of d_out = auto bits, but bits = 64"),
        (["d_out=some"], "d_out=some: input should be a whole number of at least 2, or auto"),
        (["end_to_end=true", "quantizer=pq"], "end_to_end=true needs a network and a fixed quantizer"),
        (["end_to_end=true", "catalyzer=pca"], "end_to_end=true needs a network and a fixed quantizer"),
        (["decoder=mlp", "quantizer=pq"], "a decoder needs a network and a fixed quantizer"),
        (["decoder=mlp", "catalyzer=pca"], "a decoder needs a network and a fixed quantizer"),
        (["decoder=mlp", "decoder.hidden=0"], "hidden must be an integer of at least 1; got 0"),
        (["query=mlp", "quantizer=opq"], "a query network needs a network and a fixed quantizer"),
        (["query=mlp", "quantizer=sign"], "quantizer=sign quantizer.asymmetric=true; got Catalyzer and SignQuantizer"),
        (["query=mlp", "query.max_epochs=0"], "query.max_epochs must be at least 1, got 0"),
        (["rerank=100"], "rerank = 100 needs decoded vectors, but decoder=none; set decoder=mlp"),
        (["steps=2"], "steps = 2 needs decoded vectors, but decoder=none; set decoder=mlp"),
        (["steps=-1", "decoder=mlp"], "steps=-1: input should be greater than or equal to 0"),
        (["steps=1.5", "decoder=mlp"], "steps=1.5: input should be a"),
        (["refine=4"], "refine = 4 needs decoded vectors, but decoder=none; set decoder=mlp"),
        (
            ["refine=4", "decoder=mlp", "quantizer=sign"],
            "refine = 4 tries lattice points, SignQuantizer has none; use quantizer=lattice, or refine=1",
        ),
        (["refine=0"], "refine=0: input should be greater than 0"),
        (["split=validation", "catalyzer=pca"], "split=validation compares epochs of a training, so it needs a network"),
        (["split=train"], "split=train: input should be 'validation' or 'test'"),
        (["rerank=-1"], "rerank=-1: input should be greater than or equal to 0"),
        (["loss.terms.koleo.weight=-1"], "the weight of a loss term must be at least 0, got -1"),
        (["loss.terms.koleo.scope=all"], "loss.terms.koleo.scope=all: input should be 'local' or 'global'"),
        (["~loss.terms.rank", "~loss.terms.koleo"], "loss.terms is empty; keep at least one term"),
        (["~callbacks.checkpoints"], "callbacks.checkpoints is missing, but without it a run cannot be resumed"),
        (
            ["callbacks=early_stopping", "callbacks.early_stopping.monitor=val/loss"],
            "EarlyStopping cannot monitor val/loss; choose among",
        ),
        (["optimizer.momentum=much"], "optimizer.momentum=much: input should be a valid number"),
        (["+optimizer.betas=[0.9,0.99]"], "optimizer.betas: SGD has no argument betas; it takes"),
        (["quantizer._target_=catalyzer.nn.PCA"], "catalyzer.nn.PCA: expected a class derived from catalyzer.quantizers"),
        (["quantizer._target_=no_such_module.Quantizer"], "there is no module no_such_module"),
        (["catalyzer._target_=catalyzer.nn.Perceptron"], "catalyzer.nn.Perceptron"),
        (["trainer.max_epochs=0"], "trainer.max_epochs=0"),
        (["trainer.check_val_every_n_epoch=9"], "no epoch would be validated"),
        (["batch_size=1"], "batch_size=1"),
        (["miner.negatives=fast"], "miner.negatives=fast: input should be 'auto', 'exact', 'ivf' or 'hnsw'"),
        (["baselines=[hsl]"], "baselines: there is no quantizer hsl; choose among eden, itq, lattice, lsh"),
        (["dataset=files"], "dataset.learn is missing; give it on the command line: dataset.learn=..."),
        (["decay=[[2,0.1]]"], "decay.0.0=2"),
        (["rerank=1e3", "decoder=mlp"], "rerank=1000.0: input should be a whole number, without a point or an exponent"),
        (["bits=64.0"], "bits=64.0: input should be a whole number"),
        (["bits=true"], "bits=True: input should be a number"),
        (["lambda=true"], "lambda=True: input should be a number"),
        (["d_out=24.0"], "d_out=24.0: input should be a whole number of at least 2, or auto"),
        (["trainer.max_epochs=2.5"], "trainer.max_epochs=2.5: input should be a whole number of at least 1"),
        (["trainer.max_epochs=true"], "trainer.max_epochs=True: input should be a whole number of at least 1"),
        (["catalyzer.hidden=64.0"], "catalyzer.hidden=64.0: input should be a whole number"),
        (
            ["catalyzer=linear", "seed=1", "loss=triplet", "lambda=0.5"],
            "Linear is not trained, which leaves loss=triplet lambda=0.5 without effect; leave that out, or choose a network",
        ),
        (["catalyzer=pca", "trainer=cpu", "trainer.max_epochs=3"], "PCA is not trained, which leaves trainer.max_epochs=3"),
        (["catalyzer=identity", "~loss.terms.koleo"], "Identity is not trained, which leaves ~loss.terms.koleo without effect"),
        (["decoder=linear", "d_out=auto"], "decoder=linear decodes what catalyzer=linear maps; got Catalyzer"),
        (
            ["catalyzer=identity", "quantizer=rabitq", "bits=256"],
            "bits = 256, but RaBitQuantizer makes codes of 192 bits from 128 dimensions; leave out bits, and set d_out",
        ),
        (["dataset.train_size=1e4"], "dataset.train_size=10000.0: input should be a whole number"),
    ],
)
def test_wrong_values_get_one_sentence(overrides: list[str], message: str) -> None:
    with pytest.raises(InvalidInput) as caught:
        check(*overrides)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_saved_and_loaded_they_are_the_same(tmp_path: Path) -> None:
    settings = settings_of("lambda=0.013", "quantizer=opq", "logger=wandb")
    settings.save(tmp_path / "config.yaml")
    assert Settings.load(tmp_path / "config.yaml") == settings


@pytest.mark.parametrize("text", ["", "a: [", "- 1", "{}", "!!python/object/apply:os.system ['true']", "\xff"])
def test_a_damaged_or_hostile_configuration_is_refused(text: str, tmp_path: Path) -> None:
    (tmp_path / "config.yaml").write_text(text, encoding="latin-1")
    with pytest.raises(DamagedFile, match=r"config\.yaml"):
        Settings.load(tmp_path / "config.yaml")


VERSION_1 = Path(__file__).parent / "config-version-1.yaml"


def test_a_file_of_version_1_stays_readable(tmp_path: Path) -> None:
    """As the first release with versions wrote it. A key that comes later has its default in `Settings`, or this fails."""
    assert yaml.safe_load(VERSION_1.read_text())["version"] == 1
    settings = Settings.load(VERSION_1)
    assert settings.quantizer["_target_"] == "catalyzer.quantizers.LatticeQuantizer"
    assert settings.trainer["max_epochs"] == 2
    build.check_trust(settings, ())
    checks.check(settings, tmp_path)


@pytest.mark.parametrize(
    ("old", "new", "error", "words"),
    [
        (
            "version: 1",
            "version: 2",
            InvalidInput,
            "has version 2, but this version of catalyzer reads up to 1; install a newer version",
        ),
        ("version: 1", "version: one", DamagedFile, "version=one"),
        ("bits: 64", "bits: ${oc.env:HOME}", DamagedFile, "without interpolations"),
        ("\nbits: 64", "\nlambada: 1\nbits: 64", DamagedFile, "lambada"),
    ],
)
def test_a_file_that_is_not_of_version_1(old: str, new: str, error: type[CatalyzerError], words: str, tmp_path: Path) -> None:
    (tmp_path / "config.yaml").write_text(VERSION_1.read_text().replace(old, new))
    with pytest.raises(error) as caught:
        Settings.load(tmp_path / "config.yaml")
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "of_ours",
    [
        "catalyzer.quantizers.LatticeQuantizer",
        "catalyzer.training.TripletRank",
        "torch.optim.SGD",
        "catalyzer.training.Checkpoints",
        "pytorch_lightning.Trainer",
    ],
)
def test_a_foreign_class_in_a_run_is_not_imported_unless_it_is_trusted(
    of_ours: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "foreign_parts.py").write_text("raise SystemError('imported')")
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "config.yaml").write_text(VERSION_1.read_text().replace(f"{of_ours}\n", "foreign_parts.Part\n"))
    settings = Settings.load(tmp_path / "config.yaml")
    with pytest.raises(UntrustedPart, match=r"foreign_parts\.Part is not a class of catalyzer, .* trust=foreign_parts"):
        build.check_trust(settings, ["foreign", "other_parts"])
    assert "foreign_parts" not in sys.modules
    with pytest.raises(InvalidInput, match="importing foreign_parts failed: SystemError: imported"):
        build.check_trust(settings, ["foreign_parts"])


def test_keys_that_are_numbers_come_back(tmp_path: Path) -> None:
    override = "+callbacks.x={_target_: pytorch_lightning.callbacks.GradientAccumulationScheduler, scheduling: {0: 1, 2: 2}}"
    settings = check(override)
    settings.save(tmp_path / "config.yaml")
    assert Settings.load(tmp_path / "config.yaml") == settings


LOAD = "{_target_: torch.load, f: evil.pt, weights_only: false}"
TIMER = f"{{_target_: pytorch_lightning.callbacks.Timer, duration: {LOAD}}}"


@pytest.mark.parametrize(
    ("group", "hostile"),
    [
        ("quantizer", f"{{_target_: catalyzer.quantizers.LatticeQuantizer, bits: {LOAD}, radius_sq: null}}"),
        ("quantizer", f"{{_target_: catalyzer.quantizers.LatticeQuantizer, bits: 64, radius_sq: [1, {{more: {LOAD}}}]}}"),
        ("quantizer", "{_target_: catalyzer.commands.console.os.system, command: 'true'}"),
        ("quantizer", "{_target_: catalyzer.files.atomic.write_atomically}"),
        ("quantizer", "{_target_: catalyzer.nn.Identity, d_in: 3}"),
        ("optimizer", "{_target_: torch.hub.load, repo_or_dir: evil}"),
        ("trainer", "{_target_: pytorch_lightning.Trainer, max_epochs: 1, check_val_every_n_epoch: 1, profiler: "
                    "{_target_: pytorch_lightning.loggers.CSVLogger, save_dir: /}}"),
        ("callbacks", f"{{_target_: null, evil: {TIMER}}}"),
        ("callbacks", f"{{evil: {{_target_: pytorch_lightning.callbacks.Timer, duration: !!pairs [a: {LOAD}]}}}}"),
        ("baselines", "[../quantizer/pq]"),
        ("baselines", "[/evil]"),
        ("cache", r'"\x24{oc.env:HOME}"'),
    ],
)  # fmt: skip
def test_nothing_hostile_in_a_run_is_called(group: str, hostile: str, tmp_path: Path) -> None:
    values = yaml.safe_load(VERSION_1.read_text())
    del values[group]
    (tmp_path / "config.yaml").write_text(f"{yaml.safe_dump(values)}{group}: {hostile}\n")

    def use() -> None:
        settings = Settings.load(tmp_path / "config.yaml")
        build.check_trust(settings, [])
        build.build_baselines(settings, 128, 64)

    with pytest.raises(CatalyzerError) as caught:
        use()
    assert "\n" not in str(caught.value)


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
            if line.rstrip().endswith(":") or line == "{}" or line.lstrip().startswith("_target_:"):  # the first line says
                continue
            elsewhere = {"experiment", "scale"} & set(path.parts)  # these override keys that are explained where they are from
            assert "#" in line or elsewhere, f"{path.relative_to(ROOT)}: {line!r} has no comment"
        assert path.read_text().startswith("#"), f"{path} does not say what it is"
        assert yaml.safe_load(path.read_text()) is not None


class OwnMap(PCA):
    """One of another package, for whoever asks."""


def test_trying_a_part_leaves_what_it_has_learned() -> None:
    transform = OwnMap(DIM, 24).adapt(clustered(500, DIM, 0))
    learned = transform.matrix.clone()
    checks.rehearse(Codec(transform, LatticeQuantizer(24)))
    assert torch.equal(transform.matrix, learned)
