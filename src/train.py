"""Train a catalyzer (or fit a baseline), code the base, search it, and print recall: `python src/train.py --help`."""

from pathlib import Path

import hydra
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig

from catalyzer.commands import check_launch, one_sentence_errors, register_resolvers, resolved, settings_to_resume

register_resolvers()


@hydra.main(version_base="1.3", config_path="../conf", config_name="train")
def main(config: DictConfig) -> None:
    hydra_config = HydraConfig.get()
    folder = Path(hydra_config.runtime.output_dir)
    with one_sentence_errors(folder):
        from catalyzer.settings import Settings

        values = resolved(config)
        check_launch(hydra_config.overrides.hydra)
        resume = values.pop("resume")
        settings = settings_to_resume(resume, hydra_config.overrides.task) if resume else Settings.check(values)

        from catalyzer.experiment import run

        run(settings, Path(resume) if resume else folder)


if __name__ == "__main__":
    main()
