"""The command of `src/train.py`."""

import math
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import hydra
from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from omegaconf import DictConfig

from catalyzer.commands.console import SweepFolder, check_launch, errors_kept_in, one_sentence_errors
from catalyzer.errors import InvalidInput
from catalyzer.runs.compose import CONF, register_resolvers, resolved

if TYPE_CHECKING:
    from catalyzer.runs.settings import Settings

register_resolvers()


@hydra.main(version_base="1.3", config_path=str(CONF), config_name="train")
def main(config: DictConfig) -> float | None:
    """One run; returns its best recall@10 on the validation split, or None where nothing was trained.

    As a job of a sweep it returns -inf where it fails, with the reason in its folder: a search then looks elsewhere.
    """
    hydra_config = HydraConfig.get()
    folder, overrides = Path(hydra_config.runtime.output_dir), list(hydra_config.overrides.task)
    sweeping = hydra_config.mode == RunMode.MULTIRUN
    with errors_kept_in(folder) if sweeping else one_sentence_errors(folder):
        if sweeping:
            from catalyzer.runs.sweeps import save_overrides

            os.chdir(hydra_config.runtime.cwd)  # of the command, where a worker need not have been started
            save_overrides(overrides, folder)
        values = resolved(config)
        check_launch(hydra_config.overrides.hydra)
        resume, trust = values.pop("resume"), values.pop("trust")
        if resume and sweeping:
            raise InvalidInput("resume continues one run, and a sweep makes new ones; leave out -m")
        if resume:
            folder, settings = Path(resume), settings_to_resume(resume, trust, overrides)
        else:
            settings = composed_settings(values, overrides)

        from catalyzer.runs.experiment import run
        from catalyzer.runs.sweeps import validation_recall

        run(settings, folder)
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
        InvalidInput: not a run folder, or other overrides beside `resume` and `trust`, which would silently change nothing.
        UntrustedPart: they name a class of a module that `trust` does not allow.
    """
    from catalyzer.runs.build import check_trust
    from catalyzer.runs.settings import Settings

    settings = Settings.load(Path(folder) / "config.yaml")
    others = [text for text in overrides if not text.startswith(("resume=", "trust="))]
    if others:
        raise InvalidInput(f"resume continues with the settings of {folder}; leave out {' '.join(others)}")
    check_trust(settings, trust)
    return settings


def command() -> None:
    """What Hydra makes of the command line; a sweep ends with its table, also where its launcher gave up."""
    complete = False
    try:
        main()
        complete = True
    finally:
        if SweepFolder.latest is not None:
            with one_sentence_errors():
                from catalyzer.runs.sweeps import end_sweep

                failed = end_sweep(SweepFolder.latest, complete)
            if failed:
                sys.exit(1)


if __name__ == "__main__":
    command()
