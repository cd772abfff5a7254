"""Progress of a training: a display for each epoch, a line in the log after it."""

import logging
import multiprocessing
import time
import warnings
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
from pytorch_lightning.callbacks import Callback

from catalyzer.progress import progress

log = logging.getLogger(__name__)


class EpochReport(Callback):
    """A progress display for each epoch's steps, a line in the log after it, and the time that all epochs took.

    Args:
        name: name of an epoch in the display and the log.
    """

    def __init__(self, name: str = "epoch") -> None:
        self.name = name
        self.seconds = 0.0
        """Spent in training so far, mining and validation included; continues in a resumed run. The clock starts
        when the report is made, before positives are mined."""
        self._last = time.perf_counter()
        self._display = ExitStack()
        self._advance: Any = None

    def state_dict(self) -> dict[str, Any]:
        self._count()
        return {"seconds": self.seconds}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.seconds = state_dict["seconds"]

    def _count(self) -> None:
        now = time.perf_counter()
        self.seconds += now - self._last
        self._last = now

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        # A process that was spawned for distributed training inherits no logging; its first one speaks for all.
        if multiprocessing.parent_process() is None:
            return
        quiet_lightning()
        if trainer.is_global_zero:
            log_file = logging.FileHandler(Path(trainer.default_root_dir) / "train.log")
            handlers: list[logging.Handler] = [logging.StreamHandler(), log_file]
            logging.basicConfig(format="%(asctime)s %(message)s", datefmt="%H:%M:%S", handlers=handlers)
            logging.getLogger("catalyzer").setLevel(logging.INFO)

    def on_train_batch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Any, batch_idx: int) -> None:
        # Opened by the first batch rather than by the epoch, whose beginning is mining with a display of its own.
        if self._advance is None and trainer.is_global_zero and trainer.progress_bar_callback is None:
            vectors = trainer.datamodule.batch_size * trainer.world_size  # type: ignore[attr-defined]
            name = f"{self.name} {trainer.current_epoch + 1}/{trainer.max_epochs}"
            total = (int(trainer.num_training_batches) - batch_idx) * vectors  # a resumed run has done a part
            advance = self._display.enter_context(progress(name, total, "vectors"))
            self._advance = lambda: advance(vectors)

    def on_train_batch_end(self, trainer: pl.Trainer, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        if self._advance is not None:
            self._advance()
            if trainer.is_last_batch:
                self._close()

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._count()
        values = {name: float(value) for name, value in trainer.callback_metrics.items()}  # means over all processes
        if not trainer.is_global_zero:
            return
        # An epoch that ends early, as by trainer.max_steps, has no means.
        parts = [f"loss {values['epoch/loss']:.4f}"] if "epoch/loss" in values else []
        if "epoch/violated" in values:
            parts.append(f"violated {values['epoch/violated']:.1%}")
        if (trainer.current_epoch + 1) % int(trainer.check_val_every_n_epoch or 1) == 0:  # else they are an earlier epoch's
            parts += [f"R@{k} {values[name]:.1%}" for k in (1, 10, 100) if (name := f"val/recall_at_{k}") in values]
            first_stage = [f"R@{k} {values[name]:.1%}" for k in (1, 10, 100) if (name := f"val/latent_recall_at_{k}") in values]
            if first_stage:
                parts[-1] += f" (before reranking {', '.join(first_stage)})"
            if "val/squared_error" in values:
                parts.append(f"squared error {values['val/squared_error']:.4g}")
        if "epoch/mining_seconds" in values:
            parts.append(f"mining {values['epoch/mining_seconds']:.1f} s")
        parts.append(f"{self.seconds:.0f} s so far")
        log.info("%s %d/%d: %s", self.name, trainer.current_epoch + 1, trainer.max_epochs, ", ".join(parts))

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._count()
        self._close()

    def on_exception(self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException) -> None:
        self._close()

    def _close(self) -> None:
        self._display.close()
        self._advance = None


def quiet_lightning() -> None:
    """Hide Lightning's messages that our log has too."""
    for name in ("pytorch_lightning", "lightning_fabric", "lightning.pytorch"):
        logging.getLogger(name).setLevel(logging.WARNING)
    for message in (
        ".*does not have many workers.*",  # batches are looked up in memory, there is nothing for workers to do
        ".*Checkpoint directory .* exists and is not empty.*",
        ".*The number of training batches .* is smaller than the logging interval.*",
    ):
        warnings.filterwarnings("ignore", message=message)
