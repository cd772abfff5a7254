"""Train a catalyzer (or fit a baseline), code the base, search it, and print recall: `python src/train.py --help`."""

import math
import os
import sys
from pathlib import Path

import hydra
from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from omegaconf import DictConfig

from catalyzer.commands.console import (
    SweepFolder,
    check_launch,
    errors_kept_in,
    one_sentence_errors,
    register_resolvers,
    resolved,
    settings_to_resume,
)
from catalyzer.errors import InvalidInput

register_resolvers()


@hydra.main(version_base="1.3", config_path="../conf", config_name="train")
def main(config: DictConfig) -> float | None:
    """One run; returns its best recall@10 on the validation split, or None where nothing was trained.

    As a job of a sweep it returns -inf where it fails, with the reason in its folder: a search then looks elsewhere.
    """
    hydra_config = HydraConfig.get()
    folder, overrides = Path(hydra_config.runtime.output_dir), list(hydra_config.overrides.task)
    sweeping = hydra_config.mode == RunMode.MULTIRUN
    with errors_kept_in(folder) if sweeping else one_sentence_errors(folder):
        from catalyzer.runs.settings import Settings

        if sweeping:
            from catalyzer.runs.sweeps import save_overrides

            os.chdir(hydra_config.runtime.cwd)  # of the command, where a worker need not have been started
            save_overrides(overrides, folder)
        values = resolved(config)
        check_launch(hydra_config.overrides.hydra)
        resume = values.pop("resume")
        if resume and sweeping:
            raise InvalidInput("resume goes on with one run, which a sweep makes anew; leave out -m")
        settings = settings_to_resume(resume, overrides) if resume else Settings.check(values)

        from catalyzer.runs.experiment import run
        from catalyzer.runs.sweeps import validation_recall

        folder = Path(resume) if resume else folder
        run(settings, folder)
        return validation_recall(folder).get(10)
    return -math.inf


def command() -> None:
    """What Hydra makes of the command line; a sweep ends with its table, also where its launcher gave up."""
    whole = False
    try:
        main()
        whole = True
    finally:
        if SweepFolder.latest is not None:
            with one_sentence_errors():
                from catalyzer.runs.sweeps import end_sweep

                failed = end_sweep(SweepFolder.latest, whole)
            if failed:
                sys.exit(1)


if __name__ == "__main__":
    command()
