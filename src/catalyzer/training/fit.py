"""Training in a run's folder; an interrupted one is resumed."""

import contextlib
import logging
import multiprocessing
import os
import signal
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
from lightning_fabric.plugins.environments.slurm import SLURMEnvironment
from lightning_fabric.utilities.exceptions import MisconfigurationException
from lightning_fabric.utilities.rank_zero import rank_zero_only
from pytorch_lightning.callbacks import Callback, LearningRateMonitor, ProgressBar
from pytorch_lightning.loggers import Logger
from pytorch_lightning.utilities.exceptions import SIGTERMException
from torch.multiprocessing.spawn import ProcessExitedException, ProcessRaisedException

from catalyzer.errors import InvalidInput
from catalyzer.neighbors import engine
from catalyzer.training.checkpoints import TERMINATED, AtomicCheckpoints, Checkpoints, load_checkpoint, newest_checkpoint
from catalyzer.training.data import AnchorData
from catalyzer.training.epoch_report import EpochReport, quiet_lightning
from catalyzer.training.metrics_file import MetricsFile
from catalyzer.training.module import Training

log = logging.getLogger(__name__)


RESERVED = {  # arguments of pl.Trainer that `fit` sets, and what a user does instead
    "callbacks": "callbacks are a group of their own: '+callbacks.NAME={_target_: ...}'",
    "logger": "loggers are a group of their own: logger=wandb, or '+logger.NAME={_target_: ...}'",
    "default_root_dir": "the folder of the run is hydra.run.dir",
    "enable_checkpointing": "a run keeps checkpoints, or it could not be resumed",
    "fast_dev_run": "it keeps nothing; trainer.limit_train_batches=1 trainer.max_epochs=1 makes a short run",
}


def check_trainer(options: dict[str, Any], callbacks: Sequence[Callback] = ()) -> None:
    """Raise `InvalidInput` where Lightning would refuse options or callbacks, such as a GPU where there is none."""
    for name in RESERVED.keys() & options.keys():
        raise InvalidInput(f"trainer.{name} cannot be set: {RESERVED[name]}")
    quiet_lightning()
    try:
        pl.Trainer(**{**_quiet(callbacks), **options}, logger=False, callbacks=[*callbacks])
    except (MisconfigurationException, ValueError, TypeError, ImportError, RuntimeError) as error:
        raise InvalidInput(f"the trainer refuses its settings: {' '.join(str(error).split())}") from None


def _quiet(callbacks: Sequence[Callback]) -> dict[str, Any]:
    """No display of Lightning's, unless there is a callback for one."""
    displayed = any(isinstance(callback, ProgressBar) for callback in callbacks)
    return {"enable_progress_bar": displayed, "enable_model_summary": False}


def fit(
    training: Training,
    data: AnchorData,
    folder: Path,
    *,
    trainer_options: dict[str, Any],
    callbacks: Sequence[Callback],
    loggers: Sequence[Logger] = (),
    epoch_name: str = "epoch",
) -> float:
    """Train on `data`, and leave in the networks of `training` the weights of the best epoch on the validation split.

    Where `folder` has a checkpoint, training is resumed from the newest. Which epoch is best says the callback that writes
    `checkpoints/best.ckpt`; where none does, the last weights are kept.

    Args:
        training: module and settings of the optimization.
        data: what is mined, and the validation split.
        folder: of the run, or of a part of it; `metrics.csv` and checkpoints are written there.
        trainer_options: arguments of `pytorch_lightning.Trainer`.
        callbacks: among them `Checkpoints`, without which nothing could be resumed.
        loggers: besides `metrics.csv`.
        epoch_name: what the log calls an epoch.

    Returns:
        Seconds of training, those before it was resumed included.

    Raises:
        InvalidInput: the loss is no longer a number, or a training process has died.
        SystemExit: the process was told to stop.
    """
    folder = folder.resolve()  # Lightning forgets which epoch was best if a checkpoint's path is spelled differently
    found = newest_checkpoint(folder)
    report = EpochReport(epoch_name)
    quiet_lightning()
    plugins = [AtomicCheckpoints(), *(trainer_options.get("plugins") or [])]
    if SLURMEnvironment.detect():  # by Lightning's own measure; jobs are queued again by `Checkpoints`
        plugins.append(SLURMEnvironment(auto_requeue=False))
    trainer = pl.Trainer(
        **{
            **_quiet(callbacks),
            "num_sanity_val_steps": 0,
            "use_distributed_sampler": False,  # AnchorData shares out the batches itself
            **trainer_options,
            "plugins": plugins,
        },
        default_root_dir=folder,
        logger=[MetricsFile(folder / "metrics.csv", found[1]["global_step"] if found else 0), *loggers],
        # A checkpoint has the state of all callbacks before it in the list.
        callbacks=[
            report,
            LearningRateMonitor(logging_interval="step"),
            *sorted(callbacks, key=lambda callback: isinstance(callback, Checkpoints)),
        ],
    )
    log.info("training on %s × %d, neighbours by %s", trainer.accelerator.__class__.__name__, trainer.world_size, engine())
    if found:
        log.info("resuming from %s, epoch %d of %d", found[0].name, found[1]["epoch"] + 1, trainer.max_epochs)
    with _processes_as_one(folder):
        try:
            trainer.fit(training, datamodule=data, ckpt_path=found[0] if found else None, weights_only=True)
        except MisconfigurationException as error:
            raise InvalidInput(f"Lightning refuses the training: {' '.join(str(error).split())}") from None

    last = newest_checkpoint(folder)
    if last is None:
        raise InvalidInput("the training ended before its first step; look at the limits that trainer and callbacks set")
    best = folder / "checkpoints" / "best.ckpt"
    if not best.exists():
        log.info("no epoch was chosen on the validation split; the weights are the last ones")
    training.load_state_dict((load_checkpoint(best) if best.exists() else last[1])["state_dict"])
    training.cpu().eval()
    # The report's own count stays in the processes of a distributed run; the checkpoint has it in every case.
    return float(last[1]["callbacks"][report.state_key]["seconds"])


def is_first() -> bool:
    """Whether this process is the one that writes the folder: that of rank 0, or the only one."""
    return not getattr(rank_zero_only, "rank", 0)


@contextlib.contextmanager
def _processes_as_one(folder: Path) -> Iterator[None]:
    # Spawned training processes are told what this one is told, and what ends one of them is told as if it were our own.
    def pass_on(number: int, _: Any) -> None:
        if not multiprocessing.active_children():  # and before the training begins there is nothing to save
            raise SystemExit(TERMINATED)
        for process in multiprocessing.active_children():
            if process.pid is not None:
                os.kill(process.pid, number)

    main = threading.current_thread() is threading.main_thread()
    before = signal.signal(signal.SIGTERM, pass_on) if main else None
    try:
        yield
    except ProcessExitedException as error:
        if error.exit_code == TERMINATED:
            raise SystemExit(TERMINATED) from None
        reason = error.signal_name or f"exit code {error.exit_code}"
        raise InvalidInput(
            f"a training process ended with {reason}; resume={folder} resumes from its last checkpoint"
        ) from None
    except ProcessRaisedException as error:
        kind, _, message = str(error).strip().splitlines()[-1].partition(": ")
        if kind.rpartition(".")[2] == InvalidInput.__name__:
            raise InvalidInput(message) from None
        if kind.rpartition(".")[2] == SIGTERMException.__name__:  # told before its training had begun
            raise SystemExit(TERMINATED) from None
        raise
    finally:
        if main:
            signal.signal(signal.SIGTERM, before)
