"""The command of `src/train.py`."""

import contextlib
import math
import os
import shlex
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from omegaconf import DictConfig

from catalyzer.commands.console import SweepFolder, check_launch, errors_kept_in, one_sentence_errors
from catalyzer.commands.hydra_command import hydra_command, typed
from catalyzer.errors import InvalidInput
from catalyzer.interrupts import INTERRUPTED, interruptible
from catalyzer.runs import ERROR_FILE
from catalyzer.runs.compose import resolved

if TYPE_CHECKING:
    from catalyzer.runs.settings import Settings


def how_to_go_on(run: Path | None = None) -> str:
    """The command that resumes after Ctrl-C: the run in a folder, or else the sweep, if one has begun."""
    if run is None and SweepFolder.latest is not None:
        folder = _short(SweepFolder.latest)
        return f"resume the sweep with: {typed(f'hydra.sweep.dir={folder}', without='hydra.sweep.dir=')}"
    if run is None or not (run / "config.yaml").exists():
        return f"nothing was saved; run again: {typed()}"
    if "TORCHELASTIC_RUN_ID" in os.environ:  # none of its processes knows how they were started
        return "the same command resumes it"

    from catalyzer.runs.build import TRUSTED, modules_of
    from catalyzer.runs.settings import Settings

    others = [name for name in modules_of(Settings.load(run / "config.yaml")) if not name.startswith(("catalyzer.", *TRUSTED))]
    trust = [f"trust=[{','.join(others)}]"] if others else []
    return f"resume with: {shlex.join(['python', sys.argv[0], f'resume={_short(run)}', *trust])}"


def _short(folder: Path) -> Path:
    return folder.relative_to(Path.cwd()) if folder.is_relative_to(Path.cwd()) else folder


@hydra_command("train", how_to_go_on)
def main(config: DictConfig) -> float | None:
    """One run; returns its best recall@10 on the validation split, or None if nothing was trained.

    A failed job of a sweep returns -inf, with the reason in its folder: a search then tries other values.
    """
    hydra_config = HydraConfig.get()
    folder, overrides = Path(hydra_config.runtime.output_dir), list(hydra_config.overrides.task)
    sweeping = hydra_config.mode == RunMode.MULTIRUN
    by_itself = contextlib.nullcontext() if sweeping else interruptible(lambda: how_to_go_on(folder))
    with errors_kept_in(folder) if sweeping else one_sentence_errors(folder), by_itself:
        if sweeping:
            from catalyzer.runs.sweeps import save_overrides

            os.chdir(hydra_config.runtime.cwd)  # of the command, where a worker need not have been started
            save_overrides(overrides, folder)
        values = resolved(config)
        check_launch(hydra_config.overrides.hydra)
        resume, trust = values.pop("resume"), values.pop("trust")
        if resume and sweeping:
            raise InvalidInput("resume continues one run, but -m starts new ones; leave out -m")
        if resume:
            folder, settings = Path(resume), settings_to_resume(resume, trust, overrides)
        else:
            settings = composed_settings(values, overrides)

        from catalyzer.runs.experiment import run
        from catalyzer.runs.sweeps import validation_recall

        run(settings, folder, overrides, sweeping)
        if not sweeping:  # which has made up for a job of a sweep, where the folder is one
            (folder / ERROR_FILE).unlink(missing_ok=True)
        return validation_recall(folder).get(10)
    return -math.inf


def composed_settings(values: dict, overrides: list[str]) -> "Settings":
    """The settings of a composed configuration, its parts fitted to the classes that they name.

    Raises:
        InvalidInput: see `catalyzer.runs.build.fit_to_classes` and `Settings.check`.
    """
    from catalyzer.runs.build import fit_to_classes
    from catalyzer.runs.settings import Settings

    Settings.check(values)  # so that there are parts to look at
    fit_to_classes(values, overrides)
    return Settings.check(values)


def settings_to_resume(folder: str, trust: list[str] | str, overrides: list[str]) -> "Settings":
    """The settings of the run in `folder`.

    Raises:
        InvalidInput: not a run folder, or overrides other than `resume` and `trust`, which would have no effect.
        UntrustedPart: they name a class of a module that `trust` does not allow.
    """
    from catalyzer.runs.build import check_trust
    from catalyzer.runs.settings import Settings

    settings = Settings.load(Path(folder) / "config.yaml")
    others = [text for text in overrides if not text.startswith(("resume=", "trust="))]
    if others:
        raise InvalidInput(f"resume uses the settings of {folder}; leave out {' '.join(others)}")
    check_trust(settings, trust)
    return settings


def command() -> None:
    """Run the command line with Hydra; a sweep ends with its table, also if its launcher gave up."""
    complete, interrupted = False, False
    try:
        main()
        complete = True
    except SystemExit as stop:
        interrupted = stop.code == INTERRUPTED
        raise
    finally:
        failed = False
        if SweepFolder.latest is not None and not interrupted:
            with one_sentence_errors():
                from catalyzer.runs.sweeps import end_sweep

                failed = end_sweep(SweepFolder.latest, complete)
        SweepFolder.restore()
        if failed:
            sys.exit(1)


if __name__ == "__main__":
    command()
