"""Training in a run's folder; an interrupted one is resumed."""

import atexit
import contextlib
import logging
import multiprocessing
import os
import signal
import threading
from collections.abc import Iterator, Sequence
from multiprocessing import resource_tracker
from multiprocessing.util import register_after_fork
from pathlib import Path
from types import FrameType
from typing import Any, NoReturn

import pytorch_lightning as pl
import torch
from lightning_fabric.plugins.environments.slurm import SLURMEnvironment
from lightning_fabric.utilities.exceptions import MisconfigurationException
from lightning_fabric.utilities.rank_zero import rank_zero_only
from pytorch_lightning.accelerators import CPUAccelerator
from pytorch_lightning.callbacks import Callback, LearningRateMonitor, ProgressBar
from pytorch_lightning.loggers import Logger
from pytorch_lightning.utilities.exceptions import SIGTERMException
from torch.multiprocessing.spawn import ProcessExitedException, ProcessRaisedException

from catalyzer.errors import InvalidInput
from catalyzer.interrupts import GRACE, INTERRUPTED, after, handled
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
    "enable_checkpointing": "a run always keeps checkpoints, so that it can be resumed",
    "fast_dev_run": "it saves nothing; trainer.limit_train_batches=1 trainer.max_epochs=1 makes a short run",
}


def check_trainer(options: dict[str, Any], callbacks: Sequence[Callback] = ()) -> None:
    """Raise `InvalidInput` if Lightning would refuse options or callbacks, such as a missing GPU."""
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
    """Train on `data`; the networks of `training` then have the weights of the best epoch on the validation split.

    If `folder` has checkpoints, training resumes from the newest. The best epoch is that of the callback that writes
    `checkpoints/best.ckpt`; without one, the last weights are kept.

    Args:
        training: module and settings of the optimization.
        data: data module with mining and the validation split.
        folder: folder of the run, or of a part of it; `metrics.csv` and checkpoints are written there.
        trainer_options: arguments of `pytorch_lightning.Trainer`.
        callbacks: callbacks, including `Checkpoints`, without which nothing can be resumed.
        loggers: loggers in addition to `metrics.csv`.
        epoch_name: name of an epoch in the log.

    Returns:
        Seconds of training, including those before it was resumed.

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
            _GroupOfGloo(),
            LearningRateMonitor(logging_interval="step"),
            *sorted(callbacks, key=lambda callback: isinstance(callback, Checkpoints)),
        ],
    )
    log.info("training on %s × %d, neighbours by %s", trainer.accelerator.__class__.__name__, trainer.world_size, engine())
    cores = os.cpu_count() or 1
    if isinstance(trainer.accelerator, CPUAccelerator) and trainer.num_devices > cores:
        log.warning("%d processes share %d cores, which slows them down; trainer.devices=%d", trainer.num_devices, cores, cores)
    if found:
        log.info("resuming from %s, epoch %d of %d", found[0].name, found[1]["epoch"] + 1, trainer.max_epochs)
    with stoppable() if trainer.strategy.launcher is None else _processes_as_one(trainer, folder):
        try:
            trainer.fit(training, datamodule=data, ckpt_path=found[0] if found else None, weights_only=True)
        except MisconfigurationException as error:
            raise InvalidInput(f"Lightning refuses the training: {' '.join(str(error).split())}") from None

    last = newest_checkpoint(folder)
    if last is None:
        raise InvalidInput("the training ended before its first step; check the limits set by trainer and callbacks")
    best = folder / "checkpoints" / "best.ckpt"
    if not best.exists():
        log.info("no epoch was chosen on the validation split; the weights are the last ones")
    training.load_state_dict((load_checkpoint(best) if best.exists() else last[1])["state_dict"])
    training.cpu().eval()
    # The report's own count stays in the processes of a distributed run; the checkpoint has it in every case.
    return float(last[1]["callbacks"][report.state_key]["seconds"])


def is_first() -> bool:
    """Whether this process writes the folder: that of rank 0, or the only one."""
    return not getattr(rank_zero_only, "rank", 0)


@contextlib.contextmanager
def stoppable() -> Iterator[None]:
    """Have SIGTERM and SIGINT end what Lightning does, where nothing in it saves: by an exit, and by a KeyboardInterrupt.

    Lightning itself would make an exit with code 1 of the latter, without a word.
    """

    def leave(number: int, _: FrameType | None) -> NoReturn:
        raise SystemExit(128 + number)

    with handled(signal.SIGTERM, leave), handled(signal.SIGINT, leave):
        try:
            yield
        except SystemExit as stop:
            if stop.code == INTERRUPTED:
                raise KeyboardInterrupt from None
            raise


@contextlib.contextmanager
def _processes_as_one(trainer: pl.Trainer, folder: Path) -> Iterator[None]:
    # Spawned training processes are told what this one is told, and what ends one of them is told as if it were our own.
    told: list[int] = []
    trainer.callbacks.append(_BeforeEachStart(told))  # type: ignore[attr-defined]
    with stoppable(), _told_on(told):
        try:
            yield
        except (ProcessExitedException, ProcessRaisedException) as error:
            if not told:
                _raise_as_ours(error, folder)
        if told:
            raise SystemExit(128 + told[0])


def _raise_as_ours(error: ProcessExitedException | ProcessRaisedException, folder: Path) -> NoReturn:
    if isinstance(error, ProcessExitedException):
        if error.exit_code in (TERMINATED, INTERRUPTED):
            raise SystemExit(error.exit_code) from None
        reason = error.signal_name or f"exit code {error.exit_code}"
        raise InvalidInput(
            f"a training process ended with {reason}; resume={folder} resumes from its last checkpoint"
        ) from None
    kind, _, message = str(error).strip().splitlines()[-1].partition(": ")
    if kind.rpartition(".")[2] == InvalidInput.__name__:
        raise InvalidInput(message) from None
    if kind.rpartition(".")[2] == SIGTERMException.__name__:  # told before its training had begun
        raise SystemExit(TERMINATED) from None
    raise error


@contextlib.contextmanager
def _told_on(told: list[int]) -> Iterator[None]:
    """Keep in `told` what this process is told by SIGINT and SIGTERM, pass it on to those that it has started, and end them.

    A thread does so, since the main one waits for the processes. They begin with SIGINT blocked, as this thread has it when it
    starts them: a terminal sends it to all, and one that is still importing could do nothing but print where it was. A forked
    process would write what it is told into our pipe, too, from where it is passed on to it again.
    """
    if threading.current_thread() is not threading.main_thread():  # where Python has no signals
        yield
        return
    receiver, sender = os.pipe()
    os.set_blocking(sender, False)

    def pass_on() -> None:
        while number := os.read(receiver, 1):
            if not told:
                after(GRACE + 1, lambda: tell(signal.SIGKILL))
            told.append(number[0])
            tell(number[0])

    def tell(number: int) -> None:
        for process in multiprocessing.active_children():
            if process.pid is not None:
                os.kill(process.pid, number)

    thread = threading.Thread(target=pass_on, daemon=True)
    thread.start()
    register_after_fork(thread, lambda _: signal.set_wakeup_fd(-1))
    with handled(signal.SIGTERM, lambda *_: None), handled(signal.SIGINT, lambda *_: None):
        resource_tracker.ensure_running()  # of Python's own, which would unblock it where the first process is started
        before = signal.set_wakeup_fd(sender, warn_on_full_buffer=False)
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
        try:
            yield
        finally:
            signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})
            signal.set_wakeup_fd(before)
            os.close(sender)
            thread.join()
            os.close(receiver)
            if told:
                tell(signal.SIGKILL)


class _GroupOfGloo(Callback):
    """Ends a process group of gloo before the interpreter ends, as Lightning does with one of NCCL.

    A thread of gloo that still holds a tensor would ask for the interpreter that is ending, and abort the process.
    """

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        if torch.distributed.is_initialized() and torch.distributed.get_backend() == "gloo":
            atexit.unregister(_end_group)  # of a training before
            atexit.register(_end_group)


def _end_group() -> None:
    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()


class _BeforeEachStart(Callback):
    """Keeps a process from being started after this one was told to end: what one is given is pickled right before."""

    def __init__(self, told: list[int]) -> None:
        self.told = told

    def __getstate__(self) -> dict[str, Any]:
        if self.told:
            raise SystemExit(128 + self.told[0])
        return {"told": []}
