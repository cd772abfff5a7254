"""The metrics of a training that is stopped: what it has logged stays, once, whenever that is."""

import csv
import os
import signal
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from lightning_fabric.loggers import Logger as AnyLogger
from pytorch_lightning.callbacks import ModelCheckpoint
from pytorch_lightning.loggers import Logger
from torch.optim.lr_scheduler import ReduceLROnPlateau

from catalyzer import InvalidInput, LatticeQuantizer
from catalyzer.codec import Codec
from catalyzer.training import CatalyzerTraining, Checkpoints, fit, newest_checkpoint
from catalyzer.training.metrics_file import MetricsFile
from tests.helpers import network, options, triplet_data


class StopAt(Logger):
    """Has the process told to stop when a certain metric is logged at a certain step."""

    name, version = "", ""

    def __init__(self, metric: str, step: int) -> None:
        super().__init__()
        self.metric, self.step = metric, step

    def log_hyperparams(self, *args: Any, **kwargs: Any) -> None:
        pass

    def log_metrics(self, metrics: dict[str, float], step: int | None = None) -> None:
        if self.metric in metrics and step == self.step:
            os.kill(os.getpid(), signal.SIGTERM)


def train(folder: Path, *loggers: AnyLogger, trainer: dict[str, Any] | None = None, **options: Any) -> None:
    training = CatalyzerTraining(Codec(network(), LatticeQuantizer(8, 32)), **options)
    best = ModelCheckpoint(
        folder / "checkpoints",
        "best",
        "val/recall_at_10",
        mode="max",
        save_on_train_epoch_end=False,
        enable_version_counter=False,
    )
    fit(
        training,
        triplet_data(folder / "cache"),
        folder,
        trainer_options={"max_epochs": 3, "accelerator": "cpu", "log_every_n_steps": 4, **(trainer or {})},
        callbacks=[Checkpoints(folder), best],
        loggers=[*loggers],
    )


def logged(path: Path) -> list[tuple[str, str, str]]:
    with path.open(newline="") as file:
        rows = [*csv.DictReader(file)]
    return sorted((row["step"], k, v) for row in rows for k, v in row.items() if v and not k.endswith(("_second", "_seconds")))


STEPS = len(options(Path())["train"]) // options(Path())["batch_size"]


@pytest.mark.parametrize(
    ("metric", "step"),
    [
        ("train/loss", 3),
        ("train/loss", STEPS + 3),
        ("val/recall_at_10", STEPS - 1),
        ("epoch/loss", STEPS - 1),
        ("epoch/loss", 2 * STEPS - 1),
    ],
)
def test_a_training_stopped_at_any_time_logs_what_one_that_was_not_logs(tmp_path: Path, metric: str, step: int) -> None:
    train(tmp_path / "whole")
    with pytest.raises(SystemExit):
        train(tmp_path / "stopped", StopAt(metric, step))
    train(tmp_path / "stopped")
    whole, stopped = (logged(tmp_path / name / "metrics.csv") for name in ("whole", "stopped"))
    assert {int(row) for row, name, _ in whole if name == "epoch/loss"} == {STEPS - 1, 2 * STEPS - 1, 3 * STEPS - 1}
    assert stopped == whole


def test_a_schedule_that_looks_at_the_loss_resumes_to_the_same_end(tmp_path: Path) -> None:
    falls = partial(ReduceLROnPlateau, patience=0, threshold=10.0)  # the loss never falls as far, so the rate does
    train(tmp_path / "whole", scheduler=falls)
    with pytest.raises(SystemExit):
        train(tmp_path / "stopped", StopAt("epoch/loss", 2 * STEPS - 1), scheduler=falls)
    train(tmp_path / "stopped", scheduler=falls)
    whole, stopped = (logged(tmp_path / name / "metrics.csv") for name in ("whole", "stopped"))
    assert len({value for _, name, value in whole if name == "lr-SGD"}) == 3
    assert stopped == whole


def test_a_training_that_ends_within_an_epoch_keeps_its_weights(tmp_path: Path) -> None:
    train(tmp_path, trainer={"max_steps": STEPS + 3})
    found = newest_checkpoint(tmp_path)
    assert found is not None
    assert found[1]["global_step"] == STEPS + 3


def test_means_count_each_look_at_a_batch(tmp_path: Path) -> None:
    train(tmp_path, trainer={"max_epochs": 1}, optimizer=partial(torch.optim.LBFGS, lr=0.01, max_iter=3))
    shares = [float(value) for _, name, value in logged(tmp_path / "metrics.csv") if name == "epoch/violated"]
    assert len(shares) == 1
    assert 0 < shares[0] < 1


NAMES = ["epoch/loss", 'of the "sphere", in degrees']
numbers = st.floats(allow_nan=False)
first = st.fixed_dictionaries(dict.fromkeys(NAMES, numbers))
more = st.lists(st.dictionaries(st.sampled_from(NAMES), numbers, min_size=1))


@given(first, more, more, st.data())
def test_a_file_cut_after_what_a_checkpoint_knows_is_gone_on_with(
    tmp_path_factory: pytest.TempPathFactory, first: dict, known: list[dict], later: list[dict], data: st.DataObject
) -> None:
    path = tmp_path_factory.mktemp("metrics") / "metrics.csv"
    before = [first, *known]
    metrics, saved = MetricsFile(path), 0
    for rows, step in ((before, 0), (later, len(before))):
        saved = path.stat().st_size
        for number, row in enumerate(rows, step):
            metrics.log_metrics(row, number)
        metrics.save()
    path.write_bytes(path.read_bytes()[: data.draw(st.integers(saved, path.stat().st_size))])

    metrics = MetricsFile(path, len(before))
    for number, row in enumerate(later, len(before)):
        metrics.log_metrics(row, number)
    metrics.save()
    with path.open(newline="") as file:
        read = [{k: float(v) for k, v in row.items() if v} for row in csv.DictReader(file)]
    assert read == [{"step": number, **row} for number, row in enumerate([*before, *later])]


def test_a_file_that_holds_no_metrics(tmp_path: Path) -> None:
    for content in ("name,price\nbread,3\n", "step,loss\nten,0.5\n", "step,loss\n1,2,3,4\n"):
        (tmp_path / "metrics.csv").write_text(content)
        with pytest.raises(InvalidInput, match="expected the metrics of a run"):
            MetricsFile(tmp_path / "metrics.csv", 10)
        assert (tmp_path / "metrics.csv").read_text() == content
