"""Train a catalyzer in a run folder, or go on where a killed run stopped."""

import csv
import logging
import warnings
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
from lightning_fabric.utilities.exceptions import MisconfigurationException
from pytorch_lightning import LightningModule
from pytorch_lightning.callbacks import Callback, EarlyStopping, LearningRateMonitor, ModelCheckpoint
from pytorch_lightning.loggers import CSVLogger, Logger

from catalyzer.errors import InvalidInput
from catalyzer.neighbors import engine
from catalyzer.training.callbacks import EpochReport, WholeCheckpoints, load_checkpoint
from catalyzer.training.data import AnchorData

log = logging.getLogger(__name__)


def check_trainer(options: dict[str, Any]) -> None:
    """Raise `InvalidInput` where Lightning would refuse the options, such as a GPU where there is none."""
    _quiet_lightning()
    try:
        pl.Trainer(**options, logger=False, enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False)
    except (MisconfigurationException, ValueError) as error:
        raise InvalidInput(f"the trainer refuses its settings: {' '.join(str(error).split())}") from None


def fit(
    training: LightningModule,
    data: AnchorData,
    folder: Path,
    *,
    trainer_options: dict[str, Any],
    loggers: list[Logger],
    monitor: str,
    patience: int | None = None,
    epoch_name: str = "epoch",
) -> float:
    """Train on `data`, and leave in the networks of `training` the weights of the best epoch on the validation split.

    Writes `checkpoints/last.ckpt` after every epoch, `checkpoints/best.ckpt` and `metrics.csv` into `folder`; where
    `last.ckpt` is there already, training goes on from it.

    Args:
        training: module and settings of the optimization.
        data: what is mined, and the validation split.
        folder: of the run, or of a part of it.
        trainer_options: arguments of `pytorch_lightning.Trainer`.
        loggers: besides the CSV one.
        monitor: metric, higher is better, that decides which epoch is best.
        patience: stop after this many validations without a better one; None never stops early.
        epoch_name: what the log calls an epoch.

    Returns:
        Seconds of training, those of the run that this one goes on from included.
    """
    folder = folder.resolve()  # Lightning forgets which epoch was best if a checkpoint's path is spelled differently
    last, best = folder / "checkpoints" / "last.ckpt", folder / "checkpoints" / "best.ckpt"
    checkpoint = load_checkpoint(last) if last.exists() else None
    report = EpochReport(epoch_name)
    # Fixed names without version counters: a checkpoint replaces the one before it by renaming.
    keep: dict[str, Any] = {"dirpath": last.parent, "enable_version_counter": False}
    callbacks: list[Callback] = [
        report,
        LearningRateMonitor(logging_interval="step"),
        ModelCheckpoint(filename="best", monitor=monitor, mode="max", **keep),
        ModelCheckpoint(filename="last", monitor=None, save_on_train_epoch_end=True, **keep),
    ]
    if patience is not None:
        callbacks.append(EarlyStopping(monitor, mode="max", patience=patience))

    _quiet_lightning()
    trainer = pl.Trainer(
        **trainer_options,
        default_root_dir=folder,
        logger=[_csv_logger(folder, checkpoint["global_step"] if checkpoint else 0), *loggers],
        callbacks=callbacks,
        plugins=[WholeCheckpoints()],
        enable_progress_bar=False,
        enable_model_summary=False,
        num_sanity_val_steps=0,
        use_distributed_sampler=False,  # AnchorData shares out the batches itself
    )
    log.info("training on %s × %d, neighbours by %s", trainer.accelerator.__class__.__name__, trainer.world_size, engine())
    if checkpoint:
        log.info("going on after epoch %d of %d", checkpoint["epoch"] + 1, trainer.max_epochs)
    trainer.fit(training, datamodule=data, ckpt_path=last if checkpoint else None, weights_only=True)

    training.load_state_dict(load_checkpoint(best)["state_dict"])
    training.cpu().eval()
    # The report's own count stays in the processes of a distributed run; the checkpoint has it in every case.
    return float(load_checkpoint(last)["callbacks"][report.state_key]["seconds"])


def _csv_logger(folder: Path, resumed_step: int) -> CSVLogger:
    # Lightning's writer starts an empty file; what the run had logged up to its checkpoint is put back first.
    path = folder / "metrics.csv"
    rows: list[dict[str, str]] = []
    if resumed_step and path.exists():
        with path.open(newline="") as file:
            rows = [{k: v for k, v in row.items() if v} for row in csv.DictReader(file)]
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Experiment logs directory")
        logger = CSVLogger(folder, name="", version="")
        _ = logger.experiment  # created here, inside the filter, and not at the first line logged
        for row in rows:
            step = int(row.pop("step"))
            if step < resumed_step:
                logger.experiment.log_metrics(row, step)  # it writes the texts as they are
        logger.experiment.save()
    return logger


def _quiet_lightning() -> None:
    for name in ("pytorch_lightning", "lightning_fabric", "lightning.pytorch"):
        logging.getLogger(name).setLevel(logging.WARNING)
    for message in (
        ".*does not have many workers.*",  # batches are looked up in memory, there is nothing for workers to do
        ".*Checkpoint directory .* exists and is not empty.*",
        ".*The number of training batches .* is smaller than the logging interval.*",
        ".*LeafSpec.*",
        ".*isinstance\\(treespec.*",
    ):
        warnings.filterwarnings("ignore", message=message)
