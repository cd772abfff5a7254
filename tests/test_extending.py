"""Parts of a researcher, by docs/extending.md: its blocks make `my_parts.py`, its commands run; mistakes are refused."""

import os
import re
import shlex
from pathlib import Path

import numpy as np
import pytest
import yaml

from tests.helpers import DIM, FAST, ROOT, blocks, clustered, command, interrupted, refused, rows

PAGE = "docs/extending.md"
PYTHON = [content for language, content in blocks(PAGE) if language == "python"]
COMMANDS = re.findall(r"^    python src/(\w+\.py) (.*)$", (ROOT / PAGE).read_text(), re.MULTILINE)
ALONE = 2  # blocks at the page's end that are programs, where the others are pieces of my_parts.py

BAD_PARTS = """
import numpy as np
import torch
from torch import nn

from catalyzer.datasets import Dataset, DatasetVectors
from catalyzer.nn import Transform
from catalyzer.training import LossTerm
from my_parts import Grid


class Wide(Transform):
    def __init__(self, d_in, d_out):
        super().__init__(d_in, d_out)
        self.layer = nn.Linear(d_in, d_out + 1)

    def forward(self, x):
        return self.layer(x.float())


class Failing(Wide):
    def forward(self, x):
        return self.layer(x.float()) @ torch.ones(3, 3)


class NotKept(Transform):
    def __init__(self, d_in, d_out, depth=1):
        super().__init__(d_in, d_out)
        self.layer = nn.Linear(d_in, d_out)

    def forward(self, x):
        return self.layer(x.float())


class Constant(Transform):
    def forward(self, z):
        return torch.ones(len(z), self.d_out)


class FloatCodes(Grid):
    def encode(self, x):
        return super().encode(x).astype(np.float32)


class DoubleVectors(Grid):
    def decode(self, codes):
        return super().decode(codes).astype(np.float64)


class Forgetful(Grid):
    shift = 0

    def fit(self, x):
        self.shift = 1
        return self

    def encode(self, x):
        return super().encode(x) + np.uint8(self.shift)


class Vector(LossTerm):
    def forward(self, triplets):
        return triplets.points[0].norm(dim=1)


class NotANumber(LossTerm):
    def forward(self, triplets):
        return triplets.points[0].sum() * float("nan")


class Missing(Dataset):
    dim = 64

    def __init__(self, **sizes):
        super().__init__(**sizes)

    def read(self, cache):
        raise AssertionError("data was read")
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A researcher's folder: `my_parts.py`, `my_conf/` and data."""
    folder = tmp_path_factory.mktemp("own")
    (folder / "my_parts.py").write_text("\n\n".join(PYTHON[:-ALONE]))
    (folder / "bad_parts.py").write_text(BAD_PARTS)
    (folder / "broken.py").write_text("import there_is_no_such_package\n")
    (folder / "misspelt.py").write_text("def (\n")
    for language, content in blocks(PAGE):
        if language == "yaml":
            file = folder / content.splitlines()[0].removeprefix("# ")
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(content)
    words = clustered(6000, DIM, 0)
    (folder / "glove.txt").write_text("\n".join(f"word{row} {' '.join(map(str, x))}" for row, x in enumerate(words)))
    for seed, name in enumerate(("base", "queries"), 1):
        np.save(folder / f"{name}.npy", clustered(300, DIM, seed))
    return folder


@pytest.fixture(scope="module")
def own(environment: dict[str, str], folder: Path) -> dict[str, str]:
    """The environment of somebody who has set PYTHONPATH as the page says."""
    return environment | {"PYTHONPATH": os.pathsep.join(filter(None, [str(folder), os.environ.get("PYTHONPATH")]))}


GLOVE = ["dataset._target_=my_parts.GloVe", "+dataset.path=glove.txt", "trainer.accelerator=cpu", "baselines=[]"]
SMALL = [*GLOVE, *FAST]
EVERYTHING = [
    *SMALL,
    "catalyzer._target_=my_parts.ResidualCatalyzer", "+catalyzer.depth=3", "quantizer._target_=my_parts.ScalarQuantizer",
    "+loss.terms.variance={_target_: my_parts.Variance, weight: 0.1}", "+callbacks.count={_target_: my_parts.CountSteps}",
    "+callbacks.ema={_target_: pytorch_lightning.callbacks.EMAWeightAveraging}", "callbacks=early_stopping",
    "+trainer.gradient_clip_val=1", "+trainer.limit_train_batches=10", "+trainer.accumulate_grad_batches=2",
    "optimizer._target_=torch.optim.NAdam", "optimizer.lr=1e-3",
    "scheduler._target_=torch.optim.lr_scheduler.ExponentialLR", "+scheduler.gamma=0.9",
]  # fmt: skip


@pytest.fixture(scope="module")
def trained(own: dict[str, str], folder: Path) -> Path:
    """A run of nothing but parts of the researcher's."""
    process = command("train.py", own, folder)(*EVERYTHING, "hydra.run.dir=outputs/trained")
    assert "ResidualCatalyzer + ScalarQuantizer" in process.stdout
    return folder / "outputs" / "trained"


def test_all_parts_train_together(trained: Path) -> None:
    (row,) = rows(trained).values()
    assert row["method"] == "ResidualCatalyzer + ScalarQuantizer"
    assert row["bits"] == 96
    assert row["recall"]["10"] > 0.5
    settings = yaml.safe_load((trained / "config.yaml").read_text())
    assert settings["catalyzer"] == {"_target_": "my_parts.ResidualCatalyzer", "hidden": 64, "depth": 3}
    assert settings["dataset"]["path"] == "glove.txt"
    assert "variance" in (trained / "metrics.csv").read_text().splitlines()[0]
    assert (trained / "steps.txt").read_text() == "20"


def test_an_interrupted_run_resumes_to_the_same_end(
    own: dict[str, str], folder: Path, trained: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PYTHONPATH", own["PYTHONPATH"])
    interrupted([*EVERYTHING, "hydra.run.dir=outputs/interrupted"], own, folder, 2)
    train = command("train.py", own, folder)
    refused(train("resume=outputs/interrupted", expect=2), "my_parts.", "trust=my_parts")
    train("resume=outputs/interrupted", "trust=my_parts")
    resumed = folder / "outputs" / "interrupted"
    for file in ("catalyzer.safetensors", "quantizer.safetensors", "steps.txt"):
        assert (resumed / file).read_bytes() == (trained / file).read_bytes()


def test_a_run_of_own_parts_is_evaluated_and_encodes_and_searches(own: dict[str, str], folder: Path, trained: Path) -> None:
    evaluate = command("evaluate.py", own, folder)
    refused(evaluate("run=outputs/trained", "quantizer=pq", expect=2), "trust=my_parts")
    evaluate("run=outputs/trained", "+quantizer._target_=my_parts.Grid", "trust=my_parts")
    assert rows(trained / "evaluations" / "grid-192bits").keys() == {"ResidualCatalyzer + Grid"}
    command("encode.py", own, folder)("run=outputs/trained", "input=base.npy", "output=codes", "trust=my_parts")
    search = command("search.py", own, folder)
    given = ["codes=codes", "queries=queries.npy", "k=10", "output=found", "format=npy"]
    refused(search(*given, expect=2), "trust=my_parts")
    search(*given, "trust=my_parts")
    assert np.load(folder / "found.ids.npy").shape == (300, 10)


def test_the_network_is_exported(folder: Path, trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("onnxruntime")
    from catalyzer.commands.cli import main

    monkeypatch.syspath_prepend(folder)
    main(["export", str(trained), "--onnx", str(tmp_path / "network.onnx"), "--trust", "my_parts"])
    assert (tmp_path / "network.onnx").exists()


def test_a_sweep_over_files_of_settings(own: dict[str, str], folder: Path) -> None:
    (line,) = [arguments for _, arguments in COMMANDS if "searchpath" in arguments]
    line = line.replace("quantizer=lattice,opq,my_quantizer", "quantizer=lattice,my_quantizer")  # OPQ takes seconds
    small = [each for each in SMALL if not each.startswith("trainer.max_epochs")]
    process = command("train.py", own, folder)(
        *shlex.split(line),
        *small,
        "trainer.max_epochs=1",
        "+trainer.limit_train_batches=5",
        "hydra.sweep.dir=outputs/sweep",
        "scheduler._target_=torch.optim.lr_scheduler.OneCycleLR",
        "+scheduler.max_lr=0.1",
    )
    methods = [next(iter(rows(folder / "outputs" / "sweep" / str(job)))) for job in range(4)]
    assert methods == [
        f"{network} + {quantizer}"
        for network in ("catalyzer", "ResidualCatalyzer")
        for quantizer in ("lattice", "ScalarQuantizer")
    ]
    assert "resmlp" in process.stdout


def test_a_quantizer_to_train_through_in_two_processes(own: dict[str, str], folder: Path) -> None:
    command("train.py", own, folder)(
        *SMALL, "catalyzer._target_=my_parts.ResidualCatalyzer", "quantizer._target_=my_parts.Grid", "decoder=mlp",
        "decoder.hidden=32", "end_to_end=true", "rerank=20", "trainer=ddp", "+trainer.limit_train_batches=5",
        "hydra.run.dir=outputs/ddp", "scheduler._target_=torch.optim.lr_scheduler.ReduceLROnPlateau", "+scheduler.factor=0.5",
    )  # fmt: skip
    assert set(rows(folder / "outputs" / "ddp")) >= {"ResidualCatalyzer + Grid"}


@pytest.fixture
def checked(folder: Path, monkeypatch: pytest.MonkeyPatch):
    """Composes and checks settings as `src/train.py` does before it reads data."""
    from catalyzer.commands.train import composed_settings
    from catalyzer.runs.checks import check
    from catalyzer.runs.compose import compose_config, resolved

    monkeypatch.syspath_prepend(folder)
    monkeypatch.chdir(folder)

    def run(*overrides: str):
        values = resolved(compose_config("train", list(overrides)))
        del values["resume"], values["trust"]
        settings = composed_settings(values, list(overrides))
        check(settings, folder / "unused")
        return settings

    return run


TYPED = [
    arguments
    for script, arguments in COMMANDS
    if script == "train.py" and "-m " not in arguments and "resume=" not in arguments
]


@pytest.mark.parametrize("arguments", TYPED)
def test_the_commands_of_the_page_are_accepted(arguments: str, checked) -> None:
    assert len(TYPED) > 8
    checked(*shlex.split(arguments))


@pytest.mark.parametrize(("page", "least"), [("README.md", 1), ("docs/experiments.md", 4)])
def test_other_pages_show_commands_of_the_page(page: str, least: int) -> None:
    shown = re.findall(r"^    python src/train.py (.*my_parts.*)$", (ROOT / page).read_text(), re.MULTILINE)
    assert len(shown) >= least
    assert {*shown} <= {*TYPED}


def term(name: str) -> str:
    return f"+loss.terms.own={{_target_: {name}}}"


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (["catalyzer._target_=my_parts.Nothing"], "no attribute 'Nothing'"),
        (["catalyzer._target_=nowhere.Net"], "there is no module nowhere; install it, or add its folder to PYTHONPATH"),
        (["catalyzer._target_=broken.Net"], "there is no module there_is_no_such_package"),
        (["catalyzer._target_=misspelt.Net"], "importing misspelt failed: SyntaxError"),
        (["catalyzer._target_=ResidualCatalyzer"], "expected module and class, such as my_parts.ResidualCatalyzer"),
        (["catalyzer._target_=my_parts.Grid"], "expected a class derived from catalyzer.nn"),
        (["quantizer._target_=my_parts.ResidualCatalyzer"], "expected a class derived from catalyzer.quantizers"),
        (["quantizer._target_=misspelt.Codes"], "importing misspelt failed"),
        (["catalyzer._target_=os.system", "+catalyzer.command=true"], "expected a class derived from"),
        (["+catalyzer.depth=3"], "catalyzer.depth: Catalyzer has no argument depth; it takes d_in, d_out, hidden"),
        (["catalyzer._target_=my_parts.ResidualCatalyzer", "+catalyzer.depth=many"], "catalyzer.depth=many"),
        (["catalyzer._target_=bad_parts.Wide"], r"bad_parts.Wide makes \(300, 25\) of 300 vectors"),
        (["catalyzer._target_=bad_parts.Failing"], r"bad_parts.Failing: RuntimeError: .* \(bad_parts.py, line \d+\)"),
        (["catalyzer._target_=bad_parts.NotKept"], "add self.depth = depth"),
        (["quantizer._target_=bad_parts.FloatCodes"], r"bad_parts.FloatCodes: expected codes of \(300, 24\) uint8, got"),
        (["quantizer._target_=bad_parts.DoubleVectors"], "expected decoded vectors of .* float32, got .* float64"),
        (["quantizer._target_=bad_parts.Forgetful"], "encodes differently after it is saved and loaded"),
        (["quantizer._target_=my_parts.ScalarQuantizer", "end_to_end=true"], "end_to_end=true needs .* a fixed quantizer"),
        (["quantizer._target_=my_parts.Grid", "decoder=mlp", "refine=4"], "refine = 4 tries lattice points, Grid has none"),
        (["decoder=mlp", "decoder._target_=bad_parts.Constant", "steps=2"], "Constant has none; use steps=0"),
        ([term("bad_parts.Vector")], r"bad_parts.Vector must return a finite scalar, got \(8,\)"),
        ([term("bad_parts.NotANumber")], "finite scalar, got nan"),
        (["+loss.terms.own={_target_: my_parts.Variance, weight: -1}"], "at least 0, got -1"),
        (["+loss.terms.own={_target_: my_parts.Variance, wight: 1}"], "Variance has no argument wight"),
        (["+loss.terms.own=3"], "loss.terms.own=3"),
        (["loss.terms.rank=null", "loss.terms.koleo=null", "loss.terms.reconstruction=null"], "loss.terms is empty"),
        (["+trainer.nonsense=1"], "trainer.nonsense: Trainer has no argument nonsense"),
        (["+trainer.logger=true"], "loggers are a group of their own"),
        (["optimizer.lr=-1"], "torch.optim.SGD: ValueError: Invalid learning rate"),
        (["scheduler._target_=torch.optim.lr_scheduler.ExponentialLR"], "missing 1 required positional argument: 'gamma'$"),
        (["+callbacks.own={_target_: my_parts.CountSteps, every: 3}"], "CountSteps has no argument every"),
        (["+callbacks.own={_target_: pytorch_lightning.callbacks.EarlyStopping, monitor: loss}"], "cannot monitor loss;"),
    ],
)  # fmt: skip
def test_a_mistake_is_one_sentence_before_data_is_read(overrides: list[str], words: str, checked) -> None:
    from catalyzer.errors import CatalyzerError

    with pytest.raises(CatalyzerError, match=words) as raised:
        checked("dataset._target_=bad_parts.Missing", *overrides)
    assert "\n" not in str(raised.value)


def test_a_mistake_ends_the_command_with_code_2(own: dict[str, str], folder: Path) -> None:
    process = command("train.py", own, folder)("dataset._target_=bad_parts.Missing", "+catalyzer.depth=3", expect=2)
    refused(process, "Catalyzer has no argument depth")


def test_the_programs_of_the_page(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(folder)
    monkeypatch.chdir(tmp_path)
    names: dict = {"np": np}
    for program in PYTHON[-ALONE:]:
        exec(compile(program, PAGE, "exec"), names)
    assert names["codes"].shape == (1000, 8)
    assert names["I"].shape == (100, 10)


def test_weights_of_a_checkpoint_by_lightning(tmp_path: Path) -> None:
    import pytorch_lightning as pl
    import torch

    from catalyzer import Catalyzer, Codec, LatticeQuantizer
    from catalyzer.training import CatalyzerTraining, TripletData

    def codec() -> Codec:
        return Codec(Catalyzer(DIM, 24, hidden=32), LatticeQuantizer(24))

    training = CatalyzerTraining(codec())
    trainer = pl.Trainer(max_epochs=1, logger=False, default_root_dir=tmp_path, enable_progress_bar=False)
    trainer.fit(training, datamodule=TripletData(clustered(500, DIM, 0), batch_size=64))
    trainer.save_checkpoint(tmp_path / "last.ckpt")
    other = codec()
    CatalyzerTraining.load_from_checkpoint(tmp_path / "last.ckpt", codec=other)
    for name, tensor in training.transform.state_dict().items():
        assert torch.equal(tensor, other.transform.state_dict()[name])
