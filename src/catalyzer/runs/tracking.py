"""Loggers of a run: any of Lightning's, and Weights & Biases in a way that needs no account."""

import logging
import os
import secrets
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import yaml
from pytorch_lightning.loggers import Logger, WandbLogger

from catalyzer.files.atomic import write_atomically
from catalyzer.runs import OVERRIDES_FILE, SWEPT_FILE
from catalyzer.runs.build import build_loggers
from catalyzer.runs.overrides import by_key
from catalyzer.runs.results import short
from catalyzer.runs.settings import Settings
from catalyzer.training import is_first

log = logging.getLogger(__name__)

PATIENCE = 30  # seconds in which W&B's server has to answer before the run is logged offline


class WandB(WandbLogger):
    """Weights & Biases, offline where no API key is configured or no server answers; a resumed run continues there too.

    Args:
        save_dir: folder of the run.
        project: project of the runs.
        entity: user or team; None is the default.
        group: common name of several runs; None is the sweep's folder in a sweep.

    A job of a sweep is named by the keys that vary and their values; any other run, and the table of a sweep, by its folder.
    """

    def __init__(
        self, save_dir: str | Path, project: str = "catalyzer", entity: str | None = None, group: str | None = None
    ) -> None:
        import wandb

        folder = Path(save_dir)
        identity = folder / "wandb_id"
        if not identity.exists() and is_first():
            given = os.environ.get("WANDB_RUN_ID") if "WANDB_SWEEP_ID" in os.environ else None  # by `wandb agent`
            ours = (given or secrets.token_hex(8)).encode()
            write_atomically(identity, lambda file: file.write(ours))
        sweep, name = _place(folder.resolve())
        options: dict[str, Any] = {
            "project": project,
            "entity": entity,
            "group": group or sweep,
            "name": name,
            "id": identity.read_text() if identity.exists() else None,
            "resume": "allow",
            "save_dir": folder,
            "settings": wandb.Settings(init_timeout=PATIENCE, silent=True),
        }
        try:
            if wandb.login(prompt=False):  # asks the server too
                super().__init__(**options)
                _ = self.experiment
                log.info("W&B: project %s", project)
                return
        except wandb.errors.Error as error:
            log.warning("W&B: the server cannot be reached (%s)", str(error).split("\n")[0])
        log.info("W&B: offline, no API key found or no server; later: wandb sync %s/wandb/offline-*", folder)
        super().__init__(**options, offline=True, mode="offline")  # Lightning's own flag leaves W&B asking for a login


def _place(folder: Path) -> tuple[str | None, str]:
    """Name of the sweep that a folder belongs to, None where to none, and name of its run."""
    if (folder / SWEPT_FILE).exists():
        return folder.name, folder.name
    if not (folder.parent / SWEPT_FILE).exists():
        return None, folder.name
    given = by_key(yaml.safe_load((folder / OVERRIDES_FILE).read_text()))
    varied = [key for key in yaml.safe_load((folder.parent / SWEPT_FILE).read_text()) if key in given]
    return folder.parent.name, " ".join(f"{key}={short(given[key])}" for key in varied) or folder.name


@contextmanager
def loggers(settings: Settings, folder: Path) -> Iterator[list[Logger]]:
    """The loggers that the settings name, with the settings logged; closed in the end, as failed if an error occurs.

    Raises:
        MissingPackage: what a logger needs is not installed.
    """
    made = build_loggers(settings, folder)
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


def _close(made: Sequence[Logger], status: str) -> None:
    for logger in made:
        logger.finalize(status)
        if isinstance(logger, WandbLogger) and is_first():
            logger.experiment.finish(exit_code=0 if status == "success" else 1)
