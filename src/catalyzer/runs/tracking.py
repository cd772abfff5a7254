"""Where a run is logged beside its folder: Weights & Biases and TensorBoard."""

import logging
import secrets
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from pytorch_lightning.loggers import Logger, TensorBoardLogger, WandbLogger

from catalyzer.errors import InvalidInput
from catalyzer.files.atomic import write_atomically
from catalyzer.runs.settings import Settings, WandB
from catalyzer.training import is_first

log = logging.getLogger(__name__)

PATIENCE = 30  # seconds in which W&B's server has to answer before the run goes on without it


@contextmanager
def loggers(settings: Settings, folder: Path) -> Iterator[list[Logger]]:
    """The loggers that the settings name, with the settings logged; closed in the end, as a failure where there is one.

    Raises:
        InvalidInput: a package is missing.
    """
    made: list[Logger] = []
    if settings.logger.tensorboard:
        made.append(_tensorboard(folder))
    if settings.logger.wandb is not None:
        made.append(_wandb(settings.logger.wandb, folder))
    for logger in made:
        logger.log_hyperparams(settings.model_dump(mode="json", by_alias=True))
    try:
        yield made
    except BaseException:
        _close(made, "failed")
        raise
    _close(made, "success")


def log_tables(
    made: Sequence[Logger], tables: Mapping[str, tuple[Sequence[str], Sequence[Sequence]]], figures: Mapping[str, Path]
) -> None:
    """Tables, of columns and rows, and figures as PNG by their names, where a logger takes them."""
    for logger in made:
        if isinstance(logger, WandbLogger):
            for name, (columns, rows) in tables.items():
                logger.log_table(name, [*columns], [[*row] for row in rows])
            for name, path in figures.items():
                logger.log_image(name, [str(path)])


def _tensorboard(folder: Path) -> Logger:
    try:
        return TensorBoardLogger(folder, name="", version="tensorboard")
    except ModuleNotFoundError:
        raise InvalidInput("logger=tensorboard needs TensorBoard: pip install tensorboard") from None


def _wandb(chosen: WandB, folder: Path) -> WandbLogger:
    try:
        import wandb
    except ModuleNotFoundError:
        raise InvalidInput("logger=wandb needs wandb: pip install wandb") from None

    key = folder / "wandb_id"  # by which a resumed run goes on there too
    if not key.exists() and is_first():
        write_atomically(key, lambda file: file.write(secrets.token_hex(8).encode()))
    options: dict[str, Any] = {
        "project": chosen.project,
        "entity": chosen.entity,
        "group": chosen.group or (folder.parent.name if folder.parent.name.endswith("_sweep") else None),
        "name": folder.name,
        "id": key.read_text() if key.exists() else None,
        "resume": "allow",
        "save_dir": folder,
        "settings": wandb.Settings(init_timeout=PATIENCE, silent=True),
    }
    try:
        if wandb.login(prompt=False):  # asks the server too
            logger = WandbLogger(**options)
            _ = logger.experiment
            log.info("W&B: project %s", chosen.project)
            return logger
    except wandb.errors.Error as error:
        log.warning("W&B: the server cannot be reached (%s)", str(error).split("\n")[0])
    log.info("W&B: offline, no API key found or no server; later: wandb sync %s/wandb/offline-*", folder)
    return WandbLogger(**options, offline=True, mode="offline")  # Lightning's own flag leaves W&B asking for a login


def _close(made: Sequence[Logger], status: str) -> None:
    for logger in made:
        logger.finalize(status)
        if isinstance(logger, WandbLogger) and is_first():
            logger.experiment.finish(exit_code=0 if status == "success" else 1)
