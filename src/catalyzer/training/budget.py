"""The duration of an epoch, measured on a few of its steps, so that a training can fit a time budget."""

import re
import time
from typing import Any

import pytorch_lightning as pl
import torch
from pytorch_lightning import LightningModule
from pytorch_lightning.callbacks import Callback

from catalyzer.errors import InvalidInput
from catalyzer.training.data import AnchorData
from catalyzer.training.epoch_report import quiet_lightning
from catalyzer.training.fit import stoppable
from catalyzer.training.module import Training

UNITS = {"s": 1, "min": 60, "h": 3600}
FIRST_STEPS, MEASURED_STEPS = 10, 60  # the first, slower ones are not counted


def seconds_of(duration: str) -> float:
    """The seconds of a duration given as text.

    Raises:
        InvalidInput: a text other than a number and a unit; 0 needs no unit.

    >>> seconds_of("10min"), seconds_of("1.5h"), seconds_of("90 s"), seconds_of("0")
    (600.0, 5400.0, 90.0, 0.0)
    """
    match = re.fullmatch(r"(\d+(?:\.\d*)?)\s*(s|min|h)|(0)", duration.strip())
    if not match:
        raise InvalidInput(f"expected a duration such as 90s, 10min or 1.5h; got {duration!r}")
    return 0.0 if match[3] else float(match[1]) * UNITS[match[2]]


def measure_epoch(training: Training, data: AnchorData, trainer_options: dict[str, Any]) -> tuple[float, float]:
    """Estimated seconds of an epoch, and of the preparation before the first.

    Mining is measured in full; the rate of a few steps is taken for all.

    Args:
        training: training whose networks are changed by a few steps.
        data: training data.
        trainer_options: arguments of `pytorch_lightning.Trainer`.
    """
    clock = _Clock()
    quiet_lightning()
    trainer = pl.Trainer(
        **{**trainer_options, "max_epochs": 1, "check_val_every_n_epoch": 1},
        limit_train_batches=MEASURED_STEPS,
        limit_val_batches=0,
        callbacks=[clock],
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        use_distributed_sampler=False,
    )
    with stoppable():
        trainer.fit(training, datamodule=data)
    timed = clock.ends[FIRST_STEPS - 1 :] if len(clock.ends) > FIRST_STEPS else clock.ends
    seconds_per_step = (timed[-1] - timed[0]) / max(1, len(timed) - 1)
    return float(trainer.callback_metrics["epoch/mining_seconds"]) + data.steps * seconds_per_step, clock.before


class _Clock(Callback):
    def __init__(self) -> None:
        self.made, self.before = time.perf_counter(), 0.0
        self.ends: list[float] = []

    def on_train_start(self, trainer: pl.Trainer, pl_module: LightningModule) -> None:
        self.before = time.perf_counter() - self.made

    def on_train_batch_start(self, trainer: pl.Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        if not self.ends:
            self.ends.append(time.perf_counter())

    def on_train_batch_end(self, trainer: pl.Trainer, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        if pl_module.device.type == "cuda" and (len(self.ends) == FIRST_STEPS - 1 or trainer.is_last_batch):
            torch.cuda.synchronize(pl_module.device)  # steps that are queued are not done; at both ends of what is timed
        self.ends.append(time.perf_counter())
