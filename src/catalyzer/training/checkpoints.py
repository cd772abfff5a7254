"""Checkpoints: written atomically, loaded without unpickling, and saved when a run is told to stop."""

import io
import logging
import multiprocessing
import os
import re
import signal
import subprocess
import threading
from pathlib import Path
from types import FrameType
from typing import Any

import pytorch_lightning as pl
import torch
from lightning_fabric.plugins import TorchCheckpointIO
from pytorch_lightning.callbacks import Callback

from catalyzer.errors import DamagedFile, InvalidInput
from catalyzer.files.atomic import write_atomically
from catalyzer.interrupts import GRACE, INTERRUPTED, after
from catalyzer.training.metrics_file import MetricsFile

log = logging.getLogger(__name__)

TERMINATED = 128 + signal.SIGTERM
"""Exit code of a run that was told to stop, as shells give it."""


class AtomicCheckpoints(TorchCheckpointIO):
    """Checkpoints are written to a temporary file and renamed; only tensors and plain values are loaded."""

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any = None) -> None:
        buffer = io.BytesIO()
        torch.save(checkpoint, buffer)  # not straight into the file, since torch hides why writing failed
        write_atomically(Path(path), lambda file: file.write(buffer.getbuffer()))

    def load_checkpoint(self, path: Any, map_location: Any = None, weights_only: bool | None = None) -> dict[str, Any]:
        return load_checkpoint(Path(path))


def load_checkpoint(path: Path) -> dict[str, Any]:
    """A checkpoint's content, on the CPU.

    Raises:
        DamagedFile: the file cannot be read, or has more than tensors and plain values.
    """
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch.load has no common class for what a damaged or hostile file raises
        raise DamagedFile(f"{path}: not a checkpoint that can be loaded ({type(error).__name__})") from None


def checkpoint_files(folder: Path) -> list[Path]:
    """The checkpoints from which a run in `folder` can resume, newest first."""
    return sorted((folder / "checkpoints").glob("step-*.ckpt"), reverse=True)


def newest_checkpoint(folder: Path) -> tuple[Path, dict[str, Any]] | None:
    """The newest checkpoint from which a run in `folder` can resume, and its content; None if the run has none.

    Raises:
        DamagedFile: there are checkpoints, but none of them can be loaded.
    """
    files = checkpoint_files(folder)
    for path in files:
        try:
            return path, load_checkpoint(path)
        except DamagedFile as error:  # only whole files are renamed into place, so something else has damaged it
            log.warning("%s; resuming from the previous checkpoint", error)
    if files:
        raise DamagedFile(f"{folder}: none of its checkpoints can be loaded; remove {folder / 'checkpoints'} to start over")
    return None


class Checkpoints(Callback):
    """Keeps the last checkpoints: one after each epoch, and one as soon as the process is told to stop.

    SIGTERM saves and ends the run with exit code `TERMINATED`, and SIGINT with `INTERRUPTED`, without saving if no step ends
    within `GRACE` seconds. In a job of SLURM, SIGUSR1 acts like SIGTERM and queues the job again. If one of several processes
    is told to stop, all stop.

    Args:
        folder: folder of the run.
        keep: number of checkpoints to keep.

    Raises:
        InvalidInput: `keep` below 1.
    """

    def __init__(self, folder: Path, keep: int = 2) -> None:
        if keep < 1:
            raise InvalidInput(f"expected to keep at least 1 checkpoint, got keep = {keep}")
        self.folder, self.keep = folder, keep
        self._told: signal.Signals | None = None
        self._late = False
        self._timer: threading.Timer | None = None
        self._handlers: dict[signal.Signals, Any] = {}

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        # In place of Lightning's handlers, which are set before and with several processes wait for the others from within.
        if threading.current_thread() is threading.main_thread():  # elsewhere Python has no signals
            told = [signal.SIGTERM, signal.SIGINT, *([signal.SIGUSR1] if "SLURM_JOB_ID" in os.environ else [])]
            heard = [number for number in told if signal.getsignal(number) is not signal.SIG_IGN]
            self._handlers = {number: signal.signal(number, self._notice) for number in heard}
            if multiprocessing.parent_process() is not None:  # which has blocked it until here, see `fit`
                signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})

    def _notice(self, number: int, frame: FrameType | None) -> None:
        if self._late:
            raise SystemExit(INTERRUPTED)
        first, self._told = self._told is None, self._told or signal.Signals(number)  # a second one may interrupt what follows
        if first and number == signal.SIGINT:
            self._timer = after(GRACE, self._hurry)

    def _hurry(self) -> None:
        self._late = True
        os.kill(os.getpid(), signal.SIGINT)  # which wakes the main thread, whatever it waits for

    def on_train_batch_end(self, trainer: pl.Trainer, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        # The last batch is followed by the validation, which belongs to the epoch's own checkpoint. Gradients that are
        # accumulated are in no checkpoint. Agreement costs a synchronization.
        accumulating = (batch_idx + 1) % trainer.accumulate_grad_batches
        unlogged = trainer.global_step % trainer.log_every_n_steps  # type: ignore[attr-defined]
        if trainer.is_last_batch or accumulating or (trainer.world_size > 1 and unlogged):
            return
        if self._stopping(trainer):
            self._save(trainer, None if unlogged else "train/", stopping=True)
            self._leave(trainer)

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        stopping = self._stopping(trainer)  # asked before saving, so that all processes agree on what they save for
        self._save(trainer, "epoch/", stopping)
        if stopping:
            self._leave(trainer)

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if self._stopping(trainer):  # since the end of the last epoch
            self._leave(trainer)

    def teardown(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        if self._timer is not None:
            self._timer.cancel()
        for number, handler in self._handlers.items():
            signal.signal(number, handler)
        self._handlers = {}

    def _stopping(self, trainer: pl.Trainer) -> bool:
        return trainer.strategy.reduce_boolean_decision(self._told is not None, all=False)

    def _save(self, trainer: pl.Trainer, prefix: str | None, stopping: bool) -> None:
        # Lightning writes what a module logs after this hook, which a run that is stopped here does not reach; a resumed run
        # would never have it. The file of metrics gets it before each checkpoint, since a crash may follow at any time.
        values = {} if prefix is None else {k: float(v) for k, v in trainer.logged_metrics.items() if k.startswith(prefix)}
        for logger in trainer.loggers:
            if values and (stopping or isinstance(logger, MetricsFile)):
                logger.log_metrics({"epoch": trainer.current_epoch, **values}, trainer.global_step - 1)
            logger.save()
        trainer.save_checkpoint(self.folder / "checkpoints" / f"step-{trainer.global_step:09d}.ckpt")
        if trainer.is_global_zero:
            for old in checkpoint_files(self.folder)[self.keep :]:
                old.unlink()

    def _leave(self, trainer: pl.Trainer) -> None:
        if trainer.is_global_zero:
            log.info("told to stop: saved after step %d of epoch %d", trainer.global_step, trainer.current_epoch + 1)
            if self._told is signal.SIGUSR1:
                requeue()
        if torch.distributed.is_initialized():
            # A thread of Gloo that still holds what it has reduced when Python ends aborts the process ("terminate called
            # without an active exception"); this waits for it.
            torch.distributed.destroy_process_group()
        raise SystemExit(INTERRUPTED if self._told is signal.SIGINT else TERMINATED)


def requeue() -> None:
    """Make SLURM queue the job of this process again."""
    array, task = os.environ.get("SLURM_ARRAY_JOB_ID"), os.environ.get("SLURM_ARRAY_TASK_ID")
    job = f"{array}_{task}" if array else os.environ["SLURM_JOB_ID"]
    if not re.fullmatch(r"[0-9_]+", job):
        raise InvalidInput(f"the job's number in SLURM's environment is {job!r}, expected digits")
    answer = subprocess.run(["scontrol", "requeue", job], capture_output=True, text=True, check=False)
    if answer.returncode:
        log.error("SLURM did not queue job %s again: %s", job, answer.stderr.strip())
    else:
        log.info("SLURM has queued job %s again", job)
